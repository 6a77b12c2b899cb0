"""The README's table of results: `python -m benchmarks.results --folder=runs/results`.

Trains every config and seed of the table through the runner, one after the other, and prints
the table in Markdown. Runs that are finished are not repeated, interrupted ones go on.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

_FOLDER = flags.DEFINE_string("folder", "runs/results", "Where the runs are.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each config that has marks to meet.", 1)

_ONE_SEED = ("gaussian_to_gaussian", "gaussian_to_ring_d2d", "moons_to_ring_d2d")
_CONFIGS = ("two_moons", "gaussian_to_ring", "cross_to_ring", *_ONE_SEED)
_COLUMNS = (
    "config",
    "seed",
    "bridge gap (matched kernels)",
    "path KL (optimum)",
    "W2² (floor)",
    "mode weights",
    "seconds",
)


def train(name: str, seed: int) -> dict[str, Any]:
    """Runs one config to its end and returns its summary."""
    directory = Path(_FOLDER.value) / f"{name}_{seed}"
    config = f"experiments/configs/{name}.py"
    command = [sys.executable, "-m", "experiments.run", f"--config={config}"]
    command += [f"--config.seed={seed}", f"--workdir={directory}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((directory / "summary.json").read_text())


def row(name: str, seed: int, found: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    weights = found.get("mode_weights")
    error = found["bridge_gap_standard_error"]
    return (
        f"`{name}`",
        str(seed),
        f"{found['bridge_gap']:.3f} ± {error:.3f} ({found['bridge_gap_limit']:.3f})",
        f"{found['path_kl']:.3f} ({found['path_kl_optimal']:.3f})",
        f"{found['w2_squared']:.4f} ({found['w2_squared_floor']:.4f})",
        f"{min(weights):.3f} to {max(weights):.3f}" if weights else "-",
        f"{found['wall_seconds']:.0f}",
    )


def main(argv: list[str]) -> None:
    """Trains and prints."""
    del argv
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for name in _CONFIGS:
        for seed in range(1 if name in _ONE_SEED else _SEEDS.value):
            rows.append(row(name, seed, train(name, seed)))
    print("\n".join("| " + " | ".join(cells) + " |" for cells in rows))


if __name__ == "__main__":
    app.run(main)
