"""The README's table of results: `python -m benchmarks.results --folder=runs/results`.

Trains every row and seed of the table through the runner, one after the other, and leaves
results.jsonl (runs with a record of the same configuration are not repeated) and the table,
results.md, in the folder. `benchmarks.mode_weights` shares the records.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks import runs
from experiments import ends


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        config: A name in experiments/configs.
        overrides: Values of dotted keys.
        marked: Whether all seeds are run, rather than the first alone.
    """

    config: str
    overrides: dict[str, Any]
    marked: bool = True


ROWS = {
    "`gaussian_to_ring`": Row("gaussian_to_ring", {}),
    "`two_moons`": Row("two_moons", {}),
    "`cross_to_ring`": Row("cross_to_ring", {}),
    "`two_moons`, to the swiss roll": Row("two_moons", {"target.name": "swiss_roll"}),
    "`gaussian_to_ring`, K = 10": Row("gaussian_to_ring", {"grid.num_steps": 10}),
    "`gaussian_to_ring`, K = 40": Row("gaussian_to_ring", {"grid.num_steps": 40}),
    "`gaussian_to_ring`, to two moons": Row(
        "gaussian_to_ring", {"target.name": "two_moons"}, marked=False
    ),
    "`gaussian_to_gaussian`": Row("gaussian_to_gaussian", {}, marked=False),
    "`mixtures`": Row("mixtures", {}),
    # Every pair of the plane again, from samples of both ends.
    "`gaussian_to_ring_d2d`": Row("gaussian_to_ring_d2d", {}),
    "`moons_to_ring_d2d`": Row("moons_to_ring_d2d", {}),
    "`moons_to_ring_d2d`, from the cross": Row(
        "moons_to_ring_d2d", {"source.name": "cross"}, marked=False
    ),
    "`moons_to_ring_d2d`, to the swiss roll": Row(
        "moons_to_ring_d2d", {"target.name": "swiss_roll"}, marked=False
    ),
    "`gaussian_to_ring_d2d`, to two moons": Row(
        "gaussian_to_ring_d2d", {"target.name": "two_moons"}, marked=False
    ),
}
_COLUMNS = (
    "config",
    "seeds",
    "bridge gap, median (matched kernels)",
    "of all seeds",
    "drift error",
    "path KL (optimum)",
    "W2² (floor)",
    "mode weights / true",
    "ESS",
    "training [s]",
)


def cell(row: Row, seed: int) -> runs.Record:
    """What tells a run from all others."""
    return {"config": row.config, "overrides": row.overrides, "seed": seed}


def configure(fields: runs.Record) -> ConfigDict:
    """The configuration of a run."""
    return runs.checked(_file(fields), _settings(fields))


def measure(folder: Path, found: runs.Cell) -> runs.Record:
    """Trains one run; its summary, or why it failed."""
    fields = found.fields
    settings = (f"{key}={value}" for key, value in fields["overrides"].items())
    name = "_".join([fields["config"], *settings, str(fields["seed"]), found.config_hash])
    directory, cache = folder / "runs" / name, folder / "compiled"
    return runs.outcome(_file(fields), _settings(fields), directory, cache=cache)


def _file(fields: runs.Record) -> str:
    return f"experiments/configs/{fields['config']}.py"


def _settings(fields: runs.Record) -> dict[str, Any]:
    return {"seed": fields["seed"], "evaluate.plots": False, **fields["overrides"]}


def mode_shares(record: runs.Record) -> np.ndarray:
    """The mass of each mode in units of its true mass; empty without modes, NaN for a null."""
    target = ends.build_ends(configure(record)).target
    return runs.mode_shares(record.get("mode_weights"), target.mode_weights)


def failure(record: runs.Record) -> str | None:
    """Why a record holds no result; None if it holds one."""
    reason = runs.failure(record)
    if reason is None and not np.all(np.isfinite(mode_shares(record))):
        return "the mode weights are not finite"
    return reason


def found_of(folder: Path, wanted: Iterable[runs.Record]) -> Iterator[runs.Record]:
    """The records of the runs asked for, in their order.

    Runs that are not there yet, or were made with other defaults, are left out.
    """
    records = runs.read_records(folder / runs.RECORDS)
    for fields in wanted:
        expected = fields | {"config_hash": runs.config_hash(configure(fields))}
        record = runs.find(records, expected)
        if record is not None:
            yield record


def line(label: str, found: Sequence[runs.Record]) -> tuple[str, ...]:
    """Medians over the seeds of a row, and the range of its gap and of its modes' shares."""
    done = [record for record in found if failure(record) is None]
    failed = len(found) - len(done)

    def median(name: str) -> float | None:
        return runs.median(done, name)

    gaps = [record["bridge_gap"] for record in done]
    modes = np.concatenate([np.zeros(0), *map(mode_shares, done)])
    seconds = [{"seconds": runs.train_seconds(record)} for record in done]
    return (
        label,
        f"{len(done)}, {failed} failed" if failed else str(len(done)),
        runs.beside(median("bridge_gap"), median("bridge_gap_limit")),
        f"{min(gaps):.3f} to {max(gaps):.3f}" if len(gaps) > 1 else "-",
        runs.number(median("drift_error"), 4),
        runs.beside(median("path_kl"), median("path_kl_optimal")),
        runs.beside(median("w2_squared"), median("w2_squared_floor"), 4),
        f"{modes.min():.2f} to {modes.max():.2f}" if modes.size else "-",
        runs.number(median("ess"), 2),
        runs.number(runs.median(seconds, "seconds"), 0),
    )


def cells_of(row: Row, seeds: int) -> list[runs.Record]:
    """The runs of a row."""
    return [cell(row, seed) for seed in range(seeds if row.marked else 1)]


def write(args: argparse.Namespace) -> None:
    """Writes and prints the table of what there is."""
    found = {
        label: list(found_of(args.folder, cells_of(row, args.seeds)))
        for label, row in ROWS.items()
    }
    lines = (line(label, records) for label, records in found.items() if records)
    text = runs.markdown(_COLUMNS, lines)
    (args.folder / "results.md").write_text(text + "\n")
    print(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    parser = argparse.ArgumentParser(prog="benchmarks.results")
    runs.add_flags(parser, "runs/results")
    parser.add_argument(
        "--seeds", type=int, default=5, help="of each row but for those of which one is enough"
    )
    args = parser.parse_args(argv)
    cells = [fields for row in ROWS.values() for fields in cells_of(row, args.seeds)]
    runs.run(
        args,
        cells,
        configure,
        measure,
        lambda _: write(args),
    )


if __name__ == "__main__":
    main()
