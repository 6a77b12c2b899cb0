"""Every method that learns from samples of both ends, on pairs in the plane.

`python -m benchmarks.data_pairs --folder=runs/data_pairs` trains each method on each pair and
seed through the runner, all with as many gradient steps, on the reference and the grid of the
library's defaults, and leaves results.jsonl (runs with a record of the same configuration are
not repeated) and the table, results.md, in the folder. W2² is between 512 points, as published
tables have it, beside what two sets of true points of that size are apart.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import runs
from benchmarks.bridge_methods import METHODS
from benchmarks.runs import Cell, Record

PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gauss-ring": ("gaussian_to_ring_d2d", {}),
    "moons-ring": ("moons_to_ring_d2d", {}),
    "Gauss-moons": ("gaussian_to_ring_d2d", {"target.name": "two_moons"}),
    "moons-roll": ("moons_to_ring_d2d", {"target.name": "swiss_roll"}),
}
"""Per pair a config of both ends known by samples, and values of dotted keys."""

FROM_DATA = [
    name
    for name, method in METHODS.items()
    if (method.source, method.target) == ("samples", "samples")
]

_FIELDS = ("pair", "method", "seed", "steps")
_COLUMNS = (
    "method",
    "seeds",
    "bridge gap (matched kernels)",
    "path KL (optimum)",
    "W2² ± s.e. (floor)",
    "drift error",
    "steps/s",
)


def settings(fields: Record) -> dict[str, Any]:
    """The values of dotted keys of a run."""
    method = METHODS[fields["method"]]
    return {
        "seed": fields["seed"],
        "evaluate.num_samples": 512,
        "evaluate.plots": False,
        **PAIRS[fields["pair"]][1],
        **method.spend(fields["steps"]),
        **method.overrides,
    }


def configure(fields: Record) -> ConfigDict:
    """The configuration of a run."""
    return runs.checked(_file(fields), settings(fields))


def measure(folder: Path, found: Cell) -> Record:
    """Trains one run; its summary, or why it failed."""
    name = "_".join([*map(str, found.fields.values()), found.config_hash]).replace(" ", "-")
    cache = folder / "compiled"
    try:
        return runs.train(
            _file(found.fields), settings(found.fields), folder / "runs" / name, cache=cache
        )
    except runs.RunFailed as error:
        return {"failed": str(error)}


def _file(fields: Record) -> str:
    return f"experiments/configs/{PAIRS[fields['pair']][0]}.py"


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """The runs asked for, seed by seed, so that a first table is soon complete."""
    for seed in range(args.seeds):
        for pair in args.pairs:
            for method in args.methods:
                yield {"pair": pair, "method": method, "seed": seed, "steps": args.steps}


def table(records: Sequence[Record]) -> str:
    """A section per pair, in it a line per method: medians over the seeds."""
    parts = []
    for pair in PAIRS:
        rows = []
        for method in FROM_DATA:
            found = [r for r in records if (r["pair"], r["method"]) == (pair, method)]
            if found:
                rows.append(_row(method, found))
        if rows:
            parts += [f"## {pair}", runs.markdown(_COLUMNS, rows)]
    return "\n\n".join(parts)


def _row(method: str, found: Sequence[Record]) -> list[str]:
    done = [record for record in found if record.get("w2_squared") is not None]
    failed = len(found) - len(done)

    def median(name: str) -> float | None:
        return runs.median(done, name)

    return [
        method,
        f"{len(done)}, {failed} failed" if failed else str(len(done)),
        runs.beside(median("bridge_gap"), median("bridge_gap_limit")),
        runs.beside(median("path_kl"), median("path_kl_optimal")),
        f"{_mean_and_error(done, 'w2_squared')} ({runs.number(median('w2_squared_floor'))})",
        runs.number(median("drift_error"), 4),
        runs.number(median("steps_per_second"), 0),
    ]


def _mean_and_error(records: Sequence[Record], name: str) -> str:
    values = np.array([record[name] for record in records])
    if len(values) < 2:
        return runs.number(values.mean() if values.size else None)
    error = values.std(ddof=1) / len(values) ** 0.5
    return f"{runs.number(values.mean())} ± {runs.number(error)}"


def write(folder: Path) -> None:
    """Writes and prints the table of all records."""
    text = table(runs.newest(runs.read_records(folder / runs.RECORDS), _FIELDS))
    (folder / "results.md").write_text(text + "\n")
    print(text)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.data_pairs", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    runs.add_flags(parser, "runs/data_pairs")
    add("--pairs", type=runs.listed(str, PAIRS), default=list(PAIRS))
    add("--methods", type=runs.listed(str, FROM_DATA), default=FROM_DATA)
    add("--seeds", type=int, default=5)
    add("--steps", type=int, default=6000, help="gradient steps of each run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    runs.run(
        args,
        cells(args),
        configure,
        functools.partial(measure, args.folder),
        lambda: write(args.folder),
    )


if __name__ == "__main__":
    main()
