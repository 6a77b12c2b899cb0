"""The README's table of results: `python -m benchmarks.results --folder=runs/results`.

Trains every row and seed of the table through the runner, one after the other, prints the table
in Markdown and writes it to results.md in the folder. Runs that are finished are not repeated,
interrupted ones go on; `benchmarks.mode_weights` shares them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import runs
from experiments import ends, validation, workdir


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        config: A name in experiments/configs.
        overrides: Values of dotted keys.
        marked: Whether all seeds are run, or the first alone.
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
    "`gaussian_to_gaussian`": Row("gaussian_to_gaussian", {}, marked=False),
    "`gaussian_to_ring_d2d`": Row("gaussian_to_ring_d2d", {}, marked=False),
    "`moons_to_ring_d2d`": Row("moons_to_ring_d2d", {}, marked=False),
    "`mixtures`": Row("mixtures", {}, marked=False),
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


def train(row: Row, seed: int, folder: Path) -> runs.Record:
    """Runs one seed of a row, and returns its summary."""
    settings = {"seed": seed, "evaluate.plots": False, **row.overrides}
    config, directory = f"experiments/configs/{row.config}.py", _directory(row, seed, folder)
    return runs.train(config, settings, directory, cache=folder / "compiled")


def mode_shares(row: Row, seed: int, folder: Path) -> np.ndarray:
    """The mass of each mode in units of its true mass, of a finished run; empty without modes.

    The target is built anew: a summary has the run's own weights alone. NaN where it has null.
    """
    directory = _directory(row, seed, folder)
    found = json.loads((directory / workdir.SUMMARY).read_text()).get("mode_weights")
    target = ends.build_ends(validation.validate(workdir.read_config(directory))).target
    return runs.mode_shares(found, target.mode_weights)


def attempt(row: Row, seed: int, folder: Path) -> tuple[runs.Record, np.ndarray]:
    """`train` and `mode_shares`; of a run without a result why it has none, and no shares."""
    try:
        found = train(row, seed, folder)
    except runs.RunFailed as error:
        return {"failed": str(error)}, np.zeros(0)
    if reason := runs.failure(found):
        return {"failed": reason}, np.zeros(0)
    shares = mode_shares(row, seed, folder)
    if not np.all(np.isfinite(shares)):
        return {"failed": "the mode weights are not finite"}, np.zeros(0)
    return found, shares


def _directory(row: Row, seed: int, folder: Path) -> Path:
    settings = (f"{key}={value}" for key, value in row.overrides.items())
    return folder / "_".join([row.config, *settings, str(seed)])


def line(
    label: str, found: Sequence[runs.Record], shares: Sequence[np.ndarray]
) -> tuple[str, ...]:
    """Medians over the seeds of a row, and the range of its gap and of its modes' shares."""
    done = [record for record in found if runs.failure(record) is None]
    failed = len(found) - len(done)

    def median(name: str) -> float | None:
        return runs.median(done, name)

    gaps = [record["bridge_gap"] for record in done]
    modes = np.concatenate(shares)
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


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.results")
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/results"), help="where the runs are")
    add("--seeds", type=int, default=5, help="of each row that has marks to meet")
    args = parser.parse_args(argv)
    lines = []
    with runs.locked(args.folder):
        for label, row in ROWS.items():
            seeds = range(args.seeds if row.marked else 1)
            runs_of_row = [attempt(row, seed, args.folder) for seed in seeds]
            found, shares = zip(*runs_of_row, strict=True)
            lines.append(line(label, found, shares))
        text = runs.markdown(_COLUMNS, lines)
        (args.folder / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
