"""Which checkpoint is the best: that of the lowest bridge gap, or else of the lowest loss."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def score(loss: float, phase_end: int, probed: Mapping[str, float]) -> dict[str, float] | None:
    """What tells how good a checkpoint is: see `rank`.

    Args:
        loss: Mean of the loss over the steps since the checkpoint before, of this phase alone.
        phase_end: The first step after the phase.
        probed: What was measured of the state, with its `bridge_gap` if that is known.

    Returns:
        JSON types; None where nothing is finite.
    """
    gap = probed.get("bridge_gap", math.nan)
    if math.isfinite(gap):
        return {"bridge_gap": float(gap)}
    return {"phase_end": phase_end, "loss": float(loss)} if math.isfinite(loss) else None


def rank(score: Any) -> Any:
    """Lower is better: first those whose gap is known, by that; then the later phase, by loss.

    Losses of two phases are different quantities, and may be of different processes: they
    cannot be compared, but a later phase goes on from where the earlier ones ended.
    """
    if "bridge_gap" in score:
        return 0, score["bridge_gap"], 0.0
    return 1, -score["phase_end"], score["loss"]


def read(checkpoint: Path) -> Any:
    """The score in the directory of a checkpoint, None if it has none.

    Raises:
        ValueError: If it is damaged.
    """
    file = checkpoint / "metrics" / "metrics"  # Where orbax writes it.
    return json.loads(file.read_text()) if file.exists() else None


def best(checkpoints: Path, steps: Sequence[int]) -> int | None:
    """The step of the lowest score, the latest of equal ones; None where none has a score."""
    ranked = {}
    for step in steps:
        try:
            found = read(checkpoints / str(step))
        except ValueError:  # Then the checkpoint is damaged.
            continue
        if found is not None:
            ranked[step] = rank(found)
    return min(ranked, key=lambda step: (ranked[step], -step), default=None)
