"""How far methods end from bridges that are known exactly, in any dimension.

`python -m benchmarks.exact_bridges --folder=runs/exact_bridges` trains every method on every
pair, dimension, ε and budget through the runner, one after the other, and leaves in the folder

    results.jsonl   one record per cell: what it is, the hash of its configuration, then its
                    run's whole summary, or why it failed
    results.md      the tables, one per pair and budget, of all records
    *.png           the bridge gap against dimension, one figure per pair and budget
    runs/           the workdirs

Cells that have a record of the same configuration are not repeated, so that the same command
goes on where it was stopped and a new method costs its own cells alone: it joins by one line of
`benchmarks.bridge_methods`. Budgets are equal numbers of gradient steps, or equal seconds of
training on this machine, compilation left out; the second kind is cut to measure from the rate
of a short run of the same method and dimension, which nothing else should disturb.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import runs
from benchmarks.bridge_methods import METHODS, VARIANTS
from benchmarks.runs import Cell, Record
from d2ejax import plotting

_CONFIG = "experiments/configs/mixtures.py"
_PILOT_STEPS = 300
"""Gradient steps of a run that tells how many a method takes in a second."""


PAIRS = {"mixtures": ("samples", "energy"), "gaussian_plan": ("samples",)}
"""Pairs of `d2ejax.pairs`, with what their targets offer."""

BUDGETS = ("steps", "seconds")

_FIELDS = ("pair", "dim", "epsilon", "method", "seed", "budget", "amount")
_COLUMNS = (
    "dim",
    "ε",
    "method",
    "seeds",
    "gap (limit) [nats]",
    "drift error",
    "cBW²-UVP % (floor)",
    "BW²-UVP %",
    "lost modes",
    "log Z error",
    "ESS",
    "anchors",
    "steps (seconds)",
)
_NOTE = (
    "Medians over the seeds. Beside the gap of a single seed stands the standard error of its "
    "estimate. Modes are lost below half their mass; those of all seeds are counted together. "
    "Anchors are the effective ones behind the semi-discrete potential."
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; --quick changes defaults, what is given besides stands."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.exact_bridges", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    runs.add_flags(parser, "runs/exact_bridges")
    add("--quick", action="store_true", help="dims 2 and 16, ε = 1, few steps: five minutes")
    add("--pairs", type=runs.listed(str, PAIRS), default=list(PAIRS))
    add("--dims", type=runs.listed(int), default=[2, 16, 64, 128])
    add("--epsilons", type=runs.listed(float), default=[0.1, 1.0, 10.0])
    add("--methods", type=runs.listed(str, METHODS), default=list(METHODS))
    add("--budgets", type=runs.listed(str, BUDGETS), default=list(BUDGETS))
    add("--seeds", type=runs.listed(int), default=[0])
    add("--steps", type=int, default=3000, help="gradient steps of the budget 'steps'")
    add("--seconds", type=float, default=30.0, help="of training, of the budget 'seconds'")
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(
            pairs=["mixtures"],
            dims=[2, 16],
            epsilons=[1.0],
            methods=["ipf D2D", "ipf D2E", "ipf E2E"],
            budgets=["steps"],
            steps=900,
        )
    return parser.parse_args(argv)


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """Every cell asked for."""
    product = itertools.product(
        args.pairs, args.dims, args.epsilons, args.methods, args.seeds, BUDGETS
    )
    for pair, dim, epsilon, method, seed, budget in product:
        if budget in args.budgets and METHODS[method].target in PAIRS[pair]:
            yield {
                "pair": pair,
                "dim": dim,
                "epsilon": epsilon,
                "method": method,
                "seed": seed,
                "budget": budget,
                "amount": float(getattr(args, budget)),
            }


def overrides(cell: Record, steps: float) -> dict[str, Any]:
    """The cell's values of dotted keys, for about so many gradient steps."""
    method, dim = METHODS[cell["method"]], cell["dim"]
    # At a small ε, components this narrow keep the two ends apart; see `mixture_pair`.
    std = min(0.5, round(0.63 * cell["epsilon"] ** 0.5, 3))
    return {
        "seed": cell["seed"],
        "pair.name": cell["pair"],
        "pair.options.dim": dim,
        "pair.options.std": std,
        # ε = sigma² over the unit of time.
        "reference.sigma": cell["epsilon"] ** 0.5,
        "source.access": method.source,
        "target.access": method.target,
        "network.width": 64 if dim < 16 else 128,
        # Langevin steps shrink as MALA's acceptance asks for; the noise of a restart has the
        # norm of the ends, whatever the dimension.
        "exploration.refresh_step_size": round(0.2 * std**2 * (2 / dim) ** (1 / 3), 5),
        "exploration.restart_std": round(3.0 * (2 / dim) ** 0.5, 4),
        **method.spend(steps),
        "evaluate.num_samples": 1000,
        "evaluate.num_paths": 4000,
        "evaluate.plots": False,
        **method.overrides,
    }


def configure(fields: Record) -> ConfigDict:
    """The configuration of a cell; seconds stand in for steps that are not known yet."""
    return runs.checked(_CONFIG, overrides(fields, fields["amount"]))


def measure(folder: Path, cell: Cell) -> Record:
    """Trains one cell; what it found, or why it failed.

    Args:
        folder: Where all goes.
        cell: What to train.
    """
    steps = cell.fields["amount"]
    try:
        if cell.fields["budget"] == "seconds":
            steps *= _rate(folder, cell.fields)
        parts = (*cell.fields.values(), round(steps), cell.config_hash)
        return _train(folder, "_".join(map(str, parts)), overrides(cell.fields, steps))
    except runs.RunFailed as error:
        return {"failed": str(error)}


def _rate(folder: Path, fields: Record) -> float:
    """Gradient steps per second of a method in a dimension, whatever the pair and ε.

    Raises:
        RunFailed: If the run that it is measured by fails.
    """
    pilot = {**fields, "pair": "mixtures", "epsilon": 1.0, "seed": 0}
    settings = overrides(pilot, _PILOT_STEPS) | {"evaluate.num_paths": 2}
    name = f"rate_{fields['dim']}_{fields['method']}_{runs.config_hash(configure(pilot))}"
    return _train(folder, name, settings)["steps_per_second"]


def _train(folder: Path, name: str, settings: dict[str, Any]) -> Record:
    directory = folder / "runs" / name.replace(" ", "-")
    return runs.train(_CONFIG, settings, directory, cache=folder / "compiled")


def table(records: Sequence[Record]) -> str:
    """A section per pair and budget; in it a line per cell but for the seed, in order."""
    parts = [_NOTE]
    for pair, budget, amount in _groups(records):
        lines: dict[tuple[int, float, int], list[Record]] = {}
        for record in _part(records, pair, budget, amount):
            place = (record["dim"], record["epsilon"], _place(record["method"]))
            lines.setdefault(place, []).append(record)
        rows = (_row(lines[place]) for place in sorted(lines))
        parts += [
            f"## {_heading(pair, budget, amount)}",
            runs.markdown(_COLUMNS, rows),
        ]
    return "\n\n".join(parts)


def _groups(records: Sequence[Record]) -> list[tuple[str, str, float]]:
    """Every pair, budget and amount that there is."""
    found = {(r["pair"], r["budget"], r["amount"]) for r in records}
    return sorted(found, key=lambda group: (group[0], BUDGETS.index(group[1]), group[2]))


def _part(records: Sequence[Record], pair: str, budget: str, amount: float) -> list[Record]:
    group = (pair, budget, amount)
    return [r for r in records if (r["pair"], r["budget"], r["amount"]) == group]


def _place(method: str) -> int:
    """Its place among the methods; records may be of one that is no longer there."""
    names = list(METHODS)
    return names.index(method) if method in names else len(names)


def _heading(pair: str, budget: str, amount: float) -> str:
    return f"{pair}, {amount:g} {budget}".replace("_", " ")


def _row(records: Sequence[Record]) -> list[str]:
    first, done = records[0], [r for r in records if runs.failure(r) is None]
    lost = len(records) - len(done)
    seeds = f"{len(done)}, {lost} failed" if lost else str(len(done))
    start = [str(first["dim"]), f"{first['epsilon']:g}", first["method"], seeds]
    if not done:
        row = [*start, f"failed: {runs.failure(first)}"]
        return row + ["-"] * (len(_COLUMNS) - len(row))

    def show(name: str, digits: int = 3) -> str:
        return runs.number(runs.median(done, name), digits)

    seconds = [{"seconds": runs.train_seconds(r)} for r in done]
    steps = runs.median(done, "gradient_steps")
    uvp, floor = (runs.median(done, f"conditional_bw_uvp{kind}") for kind in ("", "_floor"))
    return [
        *start,
        _gap(done),
        show("drift_error", 4),
        runs.beside(uvp, floor, 2),
        show("bw_uvp", 2),
        lost_modes(done),
        show("log_z_error"),
        show("ess"),
        show("effective_anchors", 0),
        runs.beside(steps, runs.median(seconds, "seconds"), 0),
    ]


def _gap(records: Sequence[Record]) -> str:
    """The median, of a single seed with its standard error; in brackets the limit."""
    gap, limit = (runs.median(records, f"bridge_gap{kind}") for kind in ("", "_limit"))
    error = records[0].get("bridge_gap_standard_error")
    if len(records) > 1 or error is None:
        return runs.beside(gap, limit)
    shown = f"{runs.number(gap)} ± {runs.number(error)}"
    return shown if limit is None else f"{shown} ({runs.number(limit)})"


def lost_modes(records: Sequence[Record]) -> str:
    """How many modes hold less than half their mass, of how many, all runs together."""
    lost = modes = 0
    for record in records:
        weights, coverage = record.get("mode_weights"), record.get("mode_coverage")
        if weights and coverage is not None:
            lost, modes = lost + round((1 - coverage) * len(weights)), modes + len(weights)
    return f"{lost} of {modes}" if modes else "-"


def panels(records: Sequence[Record]) -> list[plotting.Panel]:
    """The gap against dimension: a panel per ε, a line per method, the median over seeds.

    The limit is that of the methods that learn their variance, the smaller one.
    """
    found = []
    for epsilon in sorted({record["epsilon"] for record in records}):
        part = [r for r in records if r["epsilon"] == epsilon]
        methods = sorted({r["method"] for r in part}, key=_place)
        lines = {name: [r for r in part if r["method"] == name] for name in methods}
        found.append(
            plotting.Panel(
                title=f"ε = {epsilon:g}",
                lines={name: _against_dim(line, "bridge_gap") for name, line in lines.items()},
                x_label="dimension",
                y_label="bridge gap [nats]",
                limit=_against_dim(part, "bridge_gap_limit", np.min),
            )
        )
    return found


def _against_dim(
    records: Sequence[Record], name: str, of: Callable[[list[float]], Any] = np.median
) -> tuple[list[float], list[float]]:
    found: dict[int, list[float]] = {}
    for record in records:
        if record.get(name) is not None:
            found.setdefault(record["dim"], []).append(record[name])
    dims = sorted(found)
    return [float(dim) for dim in dims], [float(of(found[dim])) for dim in dims]


def draw(folder: Path, records: Sequence[Record]) -> None:
    """One figure per pair and budget; cells that failed leave a hole."""
    for group in _groups(records):
        part = [r for r in _part(records, *group) if r["method"] not in VARIANTS]
        # On logarithmic axes an estimate below zero is a hole as well.
        if any((r.get("bridge_gap") or 0.0) > 0 for r in part):
            figure = plotting.comparison(
                panels(part), title=_heading(*group), limit_name="K-step limit"
            )
            pair, budget, amount = group
            plotting.save(figure, folder / f"gap_{pair}_{amount:g}_{budget}.png")


def write(folder: Path) -> None:
    """Writes and prints the tables of all records, and draws the figures."""
    records = runs.newest(runs.read_records(folder / runs.RECORDS), _FIELDS)
    text = table(records)
    (folder / "results.md").write_text(text + "\n")
    print(text)
    draw(folder, records)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    runs.run(args, cells(args), configure, measure, write)


if __name__ == "__main__":
    main()
