"""Does any seed lose a mode? `python -m benchmarks.mode_weights --folder=runs/results`.

Trains ten seeds of every default config whose target has modes, and prints how much of its true
mass each mode got; mode_weights.md in the folder has the same. A run that failed counts as one
that lost a mode. Runs that are finished are not repeated, interrupted ones go on; those of
`benchmarks.results` are among them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import results, runs

_CONFIGS = (
    "two_moons",
    "gaussian_to_ring",
    "cross_to_ring",
    "gaussian_to_ring_d2d",
    "moons_to_ring_d2d",
    "mixtures",
)
_COLUMNS = ("config", "seed", "smallest / true", "largest / true", "gap (limit)", "weights")
# Below half its mass a mode counts as lost, as in metrics.mode_coverage.
_LOST = 0.5

Shares = dict[tuple[str, int], np.ndarray]
"""Config and seed to the mass of each mode, in units of its true mass."""


def line(name: str, seed: int, found: runs.Record, shares: np.ndarray) -> tuple[str, ...]:
    """One line of the table."""
    if reason := runs.failure(found):
        return (f"`{name}`", str(seed), f"failed: {reason}", "-", "-", "-")
    return (
        f"`{name}`",
        str(seed),
        runs.number(shares.min(), 2),
        runs.number(shares.max(), 2),
        runs.beside(found.get("bridge_gap"), found.get("bridge_gap_limit")),
        " ".join(runs.number(weight) for weight in found["mode_weights"]),
    )


def verdict(shares: Shares) -> str:
    """How many runs lost a mode, and which; one that has no shares, or NaN, lost them."""
    kept = {run: s.size > 0 and bool(np.all(s >= _LOST)) for run, s in shares.items()}
    lost = [f"{name} seed {seed}" for (name, seed), all_kept in kept.items() if not all_kept]
    return f"{len(lost)} of {len(shares)} runs lost a mode: {', '.join(lost) or 'none'}"


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.mode_weights")
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/results"), help="where the runs are")
    add("--configs", type=runs.listed(str, _CONFIGS), default=list(_CONFIGS))
    add("--seeds", type=int, default=10, help="of each config")
    args = parser.parse_args(argv)
    rows, shares = [], {}
    with runs.locked(args.folder):
        for name in args.configs:
            for seed in range(args.seeds):
                row = results.Row(name, {})
                found, shares[name, seed] = results.attempt(row, seed, args.folder)
                rows.append(line(name, seed, found, shares[name, seed]))
        text = f"{runs.markdown(_COLUMNS, rows)}\n\n{verdict(shares)}"
        (args.folder / "mode_weights.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
