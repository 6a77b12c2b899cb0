"""How far methods end from bridges that are known exactly, in any dimension.

`python -m benchmarks.exact_bridges --folder=runs/exact_bridges` trains every method on every
pair, dimension, ε and budget through the runner, one after the other, and leaves in the folder

    results.jsonl   one record per cell: what it is, then its run's whole summary
    results.md      the table
    *.png           the bridge gap against dimension, one figure per pair and budget
    runs/           the workdirs

Cells that have a record are not repeated, so that the same command goes on where it was stopped
and a new method costs its own cells alone: it joins by one line of `METHODS`. Budgets are equal
numbers of gradient steps, or equal seconds of training on this machine, compilation left out;
the second kind is cut to measure from the rate that the first one had.
"""

import argparse
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import runs
from benchmarks.runs import Record
from d2ejax import plotting

_CONFIG = "experiments/configs/mixtures.py"
_ITERATIONS = 5


class Method(NamedTuple):
    """One line of the table.

    Attributes:
        source: What it sees of the source, "samples" or "energy".
        target: What it sees of the target.
        overrides: Values of dotted keys of the configuration.
        forward_share: The share of gradient steps that the forward process gets.
    """

    source: str
    target: str
    overrides: dict[str, Any]
    forward_share: float = 2 / 3


METHODS = {
    "ipf D2D": Method("samples", "samples", {}, forward_share=1 / 2),
    "ipf D2E": Method("samples", "energy", {}),
    "ipf D2E hybrid": Method("samples", "energy", {"ipf.forward_loss": "hybrid"}),
    "ipf D2E log-variance": Method("samples", "energy", {"ipf.forward_loss": "log_variance"}),
    "ipf E2D": Method("energy", "samples", {}, forward_share=1 / 3),
    "ipf E2E": Method("energy", "energy", {}),
}
"""The defaults of the library, but for what stands here."""

PAIRS = {"mixtures": ("samples", "energy"), "gaussian_plan": ("samples",)}
"""Pairs of `d2ejax.pairs`, with what their targets offer."""

BUDGETS = ("steps", "seconds")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; --quick changes defaults, what is given besides stands."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.exact_bridges", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/exact_bridges"), help="where all goes")
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
    """Every cell asked for; of one method, the steps come before the seconds."""
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
    share = method.forward_share
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
        "ipf.iterations": _ITERATIONS,
        "ipf.forward_steps": max(1, round(steps * share / _ITERATIONS)),
        "ipf.backward_steps": max(1, round(steps * (1 - share) / _ITERATIONS)),
        "evaluate.num_samples": 1000,
        "evaluate.num_paths": 4000,
        "evaluate.plots": False,
        **method.overrides,
    }


def measure(folder: Path, cell: Record) -> Record:
    """Trains one cell; what it found, or why it failed."""
    steps = cell["amount"]
    if cell["budget"] == "seconds":
        steps *= _rate(folder, cell)
    name = "_".join(str(value) for value in cell.values()).replace(" ", "-")
    try:
        return runs.train(
            _CONFIG,
            overrides(cell, steps),
            folder / "runs" / name,
            cache=folder / "compiled",
        )
    except runs.RunFailed as error:
        return {"failed": str(error)}


def _rate(folder: Path, cell: Record) -> float:
    """Gradient steps per second of the same training on the budget of steps."""
    same = {key: cell[key] for key in ("pair", "dim", "epsilon", "method")}
    records = runs.read_records(folder / "results.jsonl")
    twin = runs.find(records, same | {"budget": "steps"}) or {}
    if not twin.get("steps_per_second"):
        raise ValueError(f"no rate of {same}: its budget 'steps' must be run first, and end")
    return twin["steps_per_second"]


def table(records: Sequence[Record]) -> str:
    """Every cell's line, each measure with its ideal or its floor."""
    columns = (
        "pair",
        "dim",
        "ε",
        "method",
        "budget",
        "gap (limit) [nats]",
        "drift error",
        "cBW²-UVP % (floor)",
        "BW²-UVP %",
        "lost modes",
        "log Z error",
        "ESS",
        "steps",
        "seconds",
    )
    return runs.markdown(columns, (_row(record, len(columns)) for record in records))


def _row(record: Record, length: int) -> list[str]:
    start = [record["pair"], str(record["dim"]), f"{record['epsilon']:g}", record["method"]]
    start.append(f"{record['amount']:g} {record['budget']}")
    if "failed" in record:
        row = [*start, f"failed: {record['failed']}"]
        return row + ["-"] * (length - len(row))
    show, get = runs.number, record.get
    return [
        *start,
        runs.beside(get("bridge_gap"), get("bridge_gap_limit")),
        show(get("drift_error")),
        runs.beside(get("conditional_bw_uvp"), get("conditional_bw_uvp_floor"), 2),
        show(get("bw_uvp"), 2),
        lost_modes(record),
        show(get("log_z_error")),
        show(get("ess")),
        str(record["gradient_steps"]),
        show(runs.train_seconds(record), 0),
    ]


def lost_modes(record: Record) -> str:
    """How many modes hold less than half their mass, of how many."""
    weights, coverage = record.get("mode_weights"), record.get("mode_coverage")
    if not weights or coverage is None:
        return "-"
    return f"{round((1 - coverage) * len(weights))} of {len(weights)}"


def panels(records: Sequence[Record]) -> list[plotting.Panel]:
    """The gap against dimension: a panel per ε, a line per method, the median over seeds."""
    found = []
    for epsilon in sorted({record["epsilon"] for record in records}):
        part = [r for r in records if r["epsilon"] == epsilon]
        methods = [name for name in METHODS if any(r["method"] == name for r in part)]
        lines = {name: [r for r in part if r["method"] == name] for name in methods}
        found.append(
            plotting.Panel(
                title=f"ε = {epsilon:g}",
                lines={name: _against_dim(line, "bridge_gap") for name, line in lines.items()},
                x_label="dimension",
                y_label="bridge gap [nats]",
                limit=_against_dim(part, "bridge_gap_limit"),
            )
        )
    return found


def _against_dim(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    values: dict[int, list[float]] = {}
    for record in records:
        if record.get(name) is not None:
            values.setdefault(record["dim"], []).append(record[name])
    dims = sorted(values)
    return list(map(float, dims)), [float(np.median(values[dim])) for dim in dims]


def draw(folder: Path, records: Sequence[Record]) -> None:
    """One figure per pair and budget; cells that failed leave a hole."""
    for pair, budget in itertools.product(PAIRS, BUDGETS):
        part = [r for r in records if (r["pair"], r["budget"]) == (pair, budget)]
        if any(r.get("bridge_gap") is not None for r in part):
            title = f"{pair}, equal {budget}".replace("_", " ")
            figure = plotting.comparison(panels(part), title=title, limit_name="K-step limit")
            plotting.save(figure, folder / f"gap_{pair}_{budget}.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes and prints the table."""
    args = parse(argv)
    path = args.folder / "results.jsonl"
    records = runs.complete(path, cells(args), functools.partial(measure, args.folder))
    text = table(records)
    (args.folder / "results.md").write_text(text + "\n")
    draw(args.folder, records)
    print(text)


if __name__ == "__main__":
    main()
