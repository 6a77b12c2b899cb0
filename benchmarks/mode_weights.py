"""Does any seed lose a mode? `python -m benchmarks.mode_weights --folder=runs/results`.

Trains ten seeds of every default config whose target has modes, and prints how much of its true
mass each mode got; mode_weights.md in the folder has the same. A run that failed counts as one
that lost a mode. Runs that have a record of the same configuration are not repeated; those of
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


def line(record: runs.Record) -> tuple[str, ...]:
    """One line of the table."""
    start = (f"`{record['config']}`", str(record["seed"]))
    if reason := results.failure(record):
        return (*start, f"failed: {reason}", "-", "-", "-")
    shares = results.mode_shares(record)
    return (
        *start,
        runs.number(shares.min(), 2),
        runs.number(shares.max(), 2),
        runs.beside(record.get("bridge_gap"), record.get("bridge_gap_limit")),
        " ".join(runs.number(weight) for weight in record["mode_weights"]),
    )


def keeps_modes(record: runs.Record) -> bool:
    """Whether every mode has at least half its mass; a run that failed lost them."""
    shares = results.mode_shares(record)
    return results.failure(record) is None and shares.size > 0 and bool(np.all(shares >= _LOST))


def verdict(records: Sequence[runs.Record]) -> str:
    """How many runs lost a mode, and which."""
    lost = [f"{r['config']} seed {r['seed']}" for r in records if not keeps_modes(r)]
    return f"{len(lost)} of {len(records)} runs lost a mode: {', '.join(lost) or 'none'}"


def write(folder: Path, cells: Sequence[runs.Record]) -> None:
    """Writes and prints the table of what there is."""
    found = list(results.found_of(folder, cells))
    text = f"{runs.markdown(_COLUMNS, map(line, found))}\n\n{verdict(found)}"
    (folder / "mode_weights.md").write_text(text + "\n")
    print(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    parser = argparse.ArgumentParser(prog="benchmarks.mode_weights")
    runs.add_flags(parser, "runs/results")
    add = parser.add_argument
    add("--configs", type=runs.listed(str, _CONFIGS), default=list(_CONFIGS))
    add("--seeds", type=int, default=10, help="of each config")
    args = parser.parse_args(argv)
    cells = [
        results.cell(results.Row(name, {}), seed)
        for name in args.configs
        for seed in range(args.seeds)
    ]
    runs.run(
        args,
        cells,
        results.configure,
        results.measure,
        lambda folder: write(folder, cells),
    )


if __name__ == "__main__":
    main()
