"""Methods that learn from a target's energy, side by side.

`python -m benchmarks.samplers --folder=runs/samplers` trains each method on each problem and
seed through the runner, and leaves results.jsonl (runs with a record of the same configuration
are not repeated), the tables, results.md, and a figure in the folder. There are two kinds of
problems: targets for samplers, from next to one point, with their log Z; and bridges from
samples to an energy, with the gap to the exact bridge. Budgets are equal numbers of evaluations
of the energy, equal seconds of training on this machine (compilation left out, by the rate of
a short run), or equal gradient steps. `--quick` takes less than five minutes.

Targets without samples are judged where `--references` holds the draws of long chains,

    python -m benchmarks.reference_chains --target=double_well_particles
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import runs, sampler_methods
from benchmarks.evaluations import energy_evaluations
from benchmarks.runs import Cell, Record
from benchmarks.sampler_methods import (
    BRIDGES,
    PROBLEMS,
    RIVALS,
    SAMPLERS,
    TARGETS,
    UNSAMPLED,
)
from d2ejax import plotting

BUDGETS = ("steps", "evaluations", "seconds")
_DEFAULTS = {"steps": 3000.0, "evaluations": 3e7, "seconds": 60.0}
_PILOT_STEPS = 600
_FIELDS = ("problem", "method", "seed", "budget", "amount")
_SPENT = ("steps (seconds)", "evaluations / 1000")
_COLUMNS = {
    "bridge": (
        "method",
        "seeds",
        "gap (limit)",
        "drift error",
        "W2² (floor)",
        "modes",
        *_SPENT,
    ),
    "target": (
        "method",
        "seeds",
        "log Z error: ELBO",
        "weighted",
        "SMC",
        "ESS",
        "W2² (floor)",
        "other distances",
        "modes",
        *_SPENT,
    ),
}
_NOTE = (
    "Medians over the seeds. Of a bridge the gap in nats, beside the limit of its kernels, and "
    "the relative error of the drift. Of a target how far the lower bound of log Z, its "
    "estimate by importance weights and that by sequential Monte Carlo along the same process "
    "are from the truth, and the effective share of the weights. Modes: share of those with at "
    "least half their mass. Evaluations are those of the target's energy or its gradient in "
    "training, at one point each, the network's own included where it is fed that gradient."
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; --quick changes defaults, what is given besides stands."""
    parser = runs.parser("samplers", __doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="mixture-25 and Gauss-ring, few steps")
    add(
        "--problems",
        type=runs.listed(str, PROBLEMS),
        default=[name for name in PROBLEMS if name not in UNSAMPLED],
        help="all but those that need draws of long chains",
    )
    add("--methods", type=runs.listed(str, SAMPLERS | RIVALS), default=list(SAMPLERS | RIVALS))
    add("--budget", choices=BUDGETS, default="evaluations")
    add("--amount", type=float, default=None, help=f"of the budget: {_DEFAULTS}")
    add("--seeds", type=runs.listed(int), default=[0])
    add(
        "--references",
        type=Path,
        default=Path("runs/reference_chains"),
        help="folder of benchmarks.reference_chains",
    )
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(
            problems=["mixture-25", "Gauss-ring"],
            methods=["log-variance", "path KL", "ipf"],
            budget="steps",
            amount=300.0,
        )
    args = parser.parse_args(argv)
    if args.amount is None:
        args.amount = _DEFAULTS[args.budget]
    for problem in args.problems:
        file = _draws(problem, args.references)
        if file is not None and not file.is_file():
            parser.error(f"--problems={problem}: must have draws of long chains in {file}")
    return args


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """Every cell asked for."""
    for problem in args.problems:
        for method in args.methods:
            for seed in args.seeds if method in sampler_methods.methods(problem) else ():
                yield {
                    "problem": problem,
                    "method": method,
                    "seed": seed,
                    "budget": args.budget,
                    "amount": args.amount,
                }


def settings(fields: Record, steps: float) -> dict[str, Any]:
    """The values of dotted keys of a run of about so many gradient steps."""
    problem = PROBLEMS[fields["problem"]]
    method = sampler_methods.methods(fields["problem"])[fields["method"]]
    return {
        "seed": fields["seed"],
        "evaluate.plots": False,
        **({"evaluate.smc": True} if fields["problem"] in TARGETS else {}),
        **problem.overrides,
        **method.overrides,
        **method.spend(steps),
    }


def configure(fields: Record) -> ConfigDict:
    """The configuration of a cell; a number of steps stands in for what is not known yet."""
    amount = fields["amount"] if fields["budget"] == "steps" else _PILOT_STEPS
    return runs.checked(_config(fields), settings(fields, amount))


def _config(fields: Record) -> str:
    return f"experiments/configs/{PROBLEMS[fields['problem']].config}.py"


def within_evaluations(fields: Record) -> int:
    """The most gradient steps that an amount of evaluations of the energy is enough for."""

    def affordable(steps: int) -> bool:
        config = runs.checked(_config(fields), settings(fields, steps))
        return energy_evaluations(config, config.parallel.cpu_devices) <= fields["amount"]

    most = 1
    while affordable(2 * most):
        most *= 2
    step = most // 2
    while step:
        most += step * affordable(most + step)
        step //= 2
    return most


def measure(folder: Path, references: Path, cell: Cell) -> Record:
    """Trains one cell; what it found, or why it failed.

    Args:
        folder: Where all goes.
        references: Folder of draws of long chains.
        cell: What to train.
    """
    fields, cache = cell.fields, folder / "compiled"
    try:
        steps = fields["amount"]
        if fields["budget"] == "evaluations":
            steps = within_evaluations(fields)
        elif fields["budget"] == "seconds":
            steps *= _rate(folder, fields)
        values = settings(fields, steps) | _reference(fields, references)
        name = "_".join(map(str, (*fields.values(), round(steps), cell.config_hash)))
        directory = folder / "runs" / name.replace(" ", "-")
        found = runs.train(_config(fields), values, directory, cache=cache)
    except runs.RunFailed as error:
        return {"failed": str(error)}
    config = runs.checked(_config(fields), values)
    num_devices = int(found["devices"].partition(" ")[0])  # "2 x cpu"
    return {**found, "energy_evaluations": energy_evaluations(config, num_devices)}


def _rate(folder: Path, fields: Record) -> float:
    """Gradient steps per second of a method on a problem."""
    pilot = {**fields, "seed": 0, "budget": "steps", "amount": _PILOT_STEPS}
    values = settings(pilot, _PILOT_STEPS) | {
        "evaluate.num_paths": 2,
        "evaluate.smc": False,
        "evaluate.sinkhorn": False,
    }
    name = f"rate_{fields['problem']}_{fields['method']}".replace(" ", "-")
    directory = folder / "runs" / f"{name}_{runs.config_hash(configure(pilot))}"
    found = runs.train(_config(fields), values, directory, cache=folder / "compiled")
    return found["steps_per_second"]


def _reference(fields: Record, references: Path) -> dict[str, Any]:
    """Draws of long chains, where a target needs them."""
    file = _draws(fields["problem"], references)
    return {} if file is None else {"evaluate.reference": str(file.absolute())}


def _draws(problem: str, references: Path) -> Path | None:
    """Where draws of the target are, if it has no samples of its own."""
    if problem not in UNSAMPLED:
        return None
    given = PROBLEMS[problem]
    target = runs.checked(f"experiments/configs/{given.config}.py", given.overrides).target
    return runs.reference_file(references, target.name, target.options.to_dict())


def table(records: Sequence[Record]) -> str:
    """A section per problem and budget, with a line per method."""
    parts = [_NOTE]
    groups = sorted({(r["problem"], r["budget"], r["amount"]) for r in records}, key=_order)
    for group in groups:
        problem, budget, amount = group
        kind = "bridge" if problem in BRIDGES else "target"
        found = [r for r in records if (r["problem"], r["budget"], r["amount"]) == group]
        known = [*sampler_methods.methods(problem)]
        lines = [(name, [r for r in found if r["method"] == name]) for name in known]
        rows = [_row(kind, name, line) for name, line in lines if line]
        parts += [f"## {problem}, {amount:g} {budget}", runs.markdown(_COLUMNS[kind], rows)]
    return "\n\n".join(parts)


def _order(group: tuple[str, str, float]) -> tuple[int, int, float]:
    return list(PROBLEMS).index(group[0]), BUDGETS.index(group[1]), group[2]


def _row(kind: str, name: str, records: Sequence[Record]) -> list[str]:
    done = [r for r in records if "failed" not in r]
    lost = len(records) - len(done)
    seeds = f"{len(done)}, {lost} failed" if lost else str(len(done))
    if not done:
        why = f"failed: {runs.failure(records[0])}"
        return [name, seeds, why] + ["-"] * (len(_COLUMNS[kind]) - 3)

    def of(key: str) -> float | None:
        return runs.median(done, key)

    seconds = runs.median([{"s": runs.train_seconds(r)} for r in done], "s")
    distances = runs.beside(of("w2_squared"), of("w2_squared_floor"))
    spent = [
        runs.beside(of("gradient_steps"), seconds, 0),
        runs.number((of("energy_evaluations") or 0) / 1000, 0),
    ]
    modes = runs.number(of("mode_coverage"), 2)
    if kind == "bridge":
        gap = runs.beside(of("bridge_gap"), of("bridge_gap_limit"))
        drift = runs.number(of("drift_error"), 4)
        return [name, seeds, gap, drift, distances, modes, *spent]
    bounds = [{"e": abs(r["log_z_lower"] - r["log_z_true"])} for r in done if _known(r)]
    errors = [runs.median(bounds, "e"), of("log_z_error"), of("log_z_error_smc")]
    numbers = [runs.number(error) for error in errors]
    return [
        name,
        seeds,
        *numbers,
        runs.number(of("ess")),
        distances,
        _others(done),
        modes,
        *spent,
    ]


def _known(record: Record) -> bool:
    return record.get("log_z_true") is not None and record.get("log_z_lower") is not None


_OTHERS = {
    "sinkhorn": "Sinkhorn",
    "w2_geometric": "W2 up to symmetry",
    "distances_w2": "distances",
    "energy_w2": "energy W2",
}


def _others(records: Sequence[Record]) -> str:
    """Distances that published tables have for some targets alone."""
    found = {name: runs.median(records, key) for key, name in _OTHERS.items()}
    shown = [f"{name} {runs.number(v)}" for name, v in found.items() if v is not None]
    return ", ".join(shown) or "-"


def draw(folder: Path, records: Sequence[Record]) -> None:
    """Each problem's methods by their error: medians over the seeds, at the largest budget."""
    panels = []
    for problem in PROBLEMS:
        own = [r for r in records if r["problem"] == problem and _error(r) is not None]
        if own:
            _, budget, amount = max(
                ((r["problem"], r["budget"], r["amount"]) for r in own), key=_order
            )
            found = [r for r in own if (r["budget"], r["amount"]) == (budget, amount)]
            panels.append(_panel(f"{problem}, {amount:g} {budget}", found))
    if panels:
        figure = plotting.ranking(panels, title="Learning from an energy")
        plotting.save(figure, folder / "samplers.png")


def _panel(title: str, records: Sequence[Record]) -> plotting.Ranking:
    errors: dict[str, list[float]] = {}
    for record in records:
        errors.setdefault(record["method"], []).append(_error(record) or 0.0)
    values = {name: float(np.median(found)) for name, found in errors.items()}
    if records[0]["problem"] in BRIDGES:
        limit = runs.median(records, "bridge_gap_limit")
        return plotting.Ranking(title, values, "bridge gap [nats], dashed its limit", limit)
    return plotting.Ranking(title, values, "log Z less its lower bound [nats]")


def _error(record: Record) -> float | None:
    """What its figure shows of a run; None for nothing that a logarithm could."""
    error = record.get("bridge_gap") if record["problem"] in BRIDGES else None
    if _known(record) and record["problem"] not in BRIDGES:
        error = record["log_z_true"] - record["log_z_lower"]
    return error if error is not None and error > 0 else None


def write(folder: Path) -> None:
    """Writes and prints the tables of all records, and draws the figure."""
    runs.write_table(folder, _FIELDS, table)
    draw(folder, runs.newest(runs.read_records(folder / runs.RECORDS), _FIELDS))


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)

    def measured(folder: Path, cell: Cell) -> Record:
        return measure(folder, args.references, cell)

    runs.run(args, cells(args), configure, measured, write)


if __name__ == "__main__":
    main()
