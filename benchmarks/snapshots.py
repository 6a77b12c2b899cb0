"""Bridges through snapshots: what they say of one that they were not trained on.

`python -m benchmarks.snapshots --folder=runs/snapshots` leaves out each snapshot between the
first and the last in turn, trains each method on all others through the runner, and leaves
results.jsonl (runs with a record of the same configuration are not repeated) and the tables,
results.md, in the folder. They have W₁ between equally many points of what is learned and of
what was left out, beside what there is without training and what two sets of true points are
apart.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import runs
from benchmarks.runs import Cell, Record
from experiments import ends

PROCESSES = ("branching", "gapminder")
"""Each has a configuration of its name."""

METHODS: dict[str, dict[str, Any]] = {
    "sf2m": {},
    "cfm": {},
    "eot": {"learn_variance": True},
}
"""Values of dotted keys, beside the name of the method."""

_LEARNED = {
    "w1_left_out": "process",
    "w1_left_out_ode": "flow",
    "w1_left_out_from_start": "process, from the source",
    "w1_left_out_from_start_ode": "flow, from the source",
}
_UNTRAINED = {
    "w1_left_out_straight": "straight lines between the neighbours",
    "w1_left_out_previous": "the snapshot before",
    "w1_left_out_next": "the snapshot after",
    "w1_left_out_floor": "floor",
}
_FOLLOWED = {"track_error_straight": "straight lines", "track_error_staying": "nobody moves"}
_FIELDS = ("process", "left_out", "method", "seed", "steps")


def settings(fields: Record) -> dict[str, Any]:
    """The values of dotted keys of a run."""
    return {
        "seed": fields["seed"],
        "snapshots.left_out": fields["left_out"],
        "method": fields["method"],
        "matching.num_steps": fields["steps"],
        # Paths of which nothing here is an average.
        "evaluate.num_paths": 2000,
        "evaluate.plots": False,
        **METHODS[fields["method"]],
    }


def configure(fields: Record) -> ConfigDict:
    """The configuration of a run."""
    return runs.checked(_file(fields["process"]), settings(fields))


def measure(folder: Path, found: Cell) -> Record:
    """Trains one run; its summary, or why it failed."""
    name = "_".join([*map(str, found.fields.values()), found.config_hash])
    return runs.outcome(
        _file(found.fields["process"]),
        settings(found.fields),
        folder / "runs" / name,
        cache=folder / "compiled",
    )


def labels(process: str) -> list[str]:
    """What the snapshots of a process are called."""
    return list(ends.build_snapshots(runs.checked(_file(process), {})).labels)


def _file(process: str) -> str:
    return f"experiments/configs/{process}.py"


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """The runs asked for, seed by seed, so that first tables are soon complete."""
    for seed in range(args.seeds):
        for process in args.processes:
            for left_out in range(1, len(labels(process)) - 1):
                for method in args.methods:
                    yield dict(
                        zip(_FIELDS, (process, left_out, method, seed, args.steps), strict=True)
                    )


def tables(records: Sequence[Record]) -> str:
    """A section per process: a line per method and way to use it, medians over the seeds."""
    parts = []
    for process in PROCESSES:
        own = [r for r in records if r["process"] == process and "failed" not in r]
        if own:
            parts += [f"## {process}", *_section(process, own)]
        if failed := [r for r in records if r["process"] == process and "failed" in r]:
            parts.append(f"{len(failed)} runs failed.")
    return "\n\n".join(parts)


def _section(process: str, records: Sequence[Record]) -> list[str]:
    inner = labels(process)[1:-1]
    steps = sorted({record["steps"] for record in records})
    seeds = len({record["seed"] for record in records})
    line = functools.partial(_line, records, len(inner))
    by_method = [line(f"{m}, {how}", k, m) for m in METHODS for k, how in _LEARNED.items()]
    found = [
        f"W₁ to the snapshot left out; seeds: {seeds}, steps: {', '.join(map(str, steps))}",
        runs.markdown(
            ("learned", *inner, "mean"),
            filter(None, [*by_method, *(line(name, k) for k, name in _UNTRAINED.items())]),
        ),
    ]
    followed = [line(f"{method}, flow", "track_error", method) for method in METHODS]
    followed += [line(name, key) for key, name in _FOLLOWED.items()]
    if any(followed):
        title = ("root mean square error of an individual", *inner, "mean")
        found.append(runs.markdown(title, filter(None, followed)))
    return found


def _line(
    records: Sequence[Record], num: int, name: str, key: str, method: str | None = None
) -> list[str] | None:
    """The medians of a value for each snapshot left out, and their mean; None without any."""
    medians = []
    for left_out in range(1, num + 1):
        own = (r for r in records if r["left_out"] == left_out)
        medians.append(runs.median((r for r in own if method in (None, r["method"])), key))
    if all(value is None for value in medians):
        return None
    known = [np.nan if value is None else value for value in medians]
    return [name, *map(runs.number, medians), runs.number(float(np.mean(known)))]


def write(folder: Path) -> None:
    """Writes and prints the tables of all records."""
    runs.write_table(folder, _FIELDS, tables)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.parser("snapshots", __doc__)
    add = parser.add_argument
    add("--processes", type=runs.listed(str, PROCESSES), default=list(PROCESSES))
    add("--methods", type=runs.listed(str, METHODS), default=list(METHODS))
    add("--seeds", type=int, default=1)
    add("--steps", type=int, default=3000, help="gradient steps of each run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    runs.run(args, cells(args), configure, measure, write)


if __name__ == "__main__":
    main()
