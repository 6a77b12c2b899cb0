"""Milliseconds per gradient step of each half-step, beside the floor.

`python -m benchmarks.throughput` runs every half-step as the runner runs it, many gradient
steps in one dispatch, and prints the minimum over repeats, the seconds of compilation, which
are timed apart, and the time of the bare matrix products of the same shapes in the same process
(see `benchmarks.floor`: in float32, of the whole batch on one device, with whatever threads it
takes); --json keeps all of it. --batch_size, --num_steps, --width and --dim may each be
several, between commas: all combinations are timed.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks import floor, runs, timing
from benchmarks.timing import Case
from experiments import validation
from experiments.errors import InputError

_CASES = (
    Case("D2D likelihood", "samples", "samples", "likelihood", 0.0),
    Case("D2E log-variance on-policy", "samples", "energy", "log_variance", 0.0),
    Case("D2E log-variance off-policy", "samples", "energy", "log_variance", 0.5),
    Case("D2E semi-discrete", "samples", "energy", "semi_discrete", 0.5),
    Case("E2E log-variance", "energy", "energy", "log_variance", 0.5),
    Case("E2E semi-discrete", "energy", "energy", "semi_discrete", 0.5),
)
_NAMES = tuple(case.name for case in _CASES)
_SIZES = ("batch_size", "num_steps", "width", "dim")
_COLUMNS = {"compile_seconds": "compile [s]", "milliseconds": "ms / step", "floor": "floor"}


def half_steps(
    size: runs.Record,
    names: Sequence[str] = _NAMES,
    *,
    dtype: str = "float32",
    steps_at_once: int = 0,
) -> Iterator[tuple[str, ConfigDict]]:
    """A config per half-step, the forward one; the backward one has a single step."""
    for case in _CASES:
        if case.name in names:
            config = timing.half_step(case, size)
            config.network.dtype, config.network.steps_at_once = dtype, steps_at_once
            yield case.name, validation.validate(config)


def measure(config: ConfigDict, dim: int, args: argparse.Namespace) -> runs.Record:
    """The cost of a half-step and its floor, in milliseconds."""
    cost = timing.cost_of_step(config, dispatch=args.dispatch, repeats=args.repeats)
    bare = floor.milliseconds(
        floor.sizes(config, dim), dispatch=args.dispatch, repeats=args.repeats
    )
    return {**cost._asdict(), "floor": bare, "ratio": cost.milliseconds / bare}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput")
    add, several = parser.add_argument, runs.listed(int)
    add("--batch_size", type=several, default=[128], help="paths scored in one gradient step")
    add("--num_steps", type=several, default=[20], help="steps K of a path")
    add("--width", type=several, default=[64], help="of the hidden layers")
    add("--dim", type=several, default=[2], help="of both ends")
    add("--cases", type=runs.listed(str, _NAMES), default=list(_NAMES))
    add(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the hidden layers",
    )
    add("--steps_at_once", type=int, default=0, help="steps scored at once; 0: all")
    add("--dispatch", type=int, default=100, help="gradient steps in one dispatch")
    add("--repeats", type=int, default=5, help="dispatches timed; the fastest counts")
    add("--json", type=Path, help="a file for one JSON object a line")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one line per half-step and size."""
    args = parse(argv)
    timing.start()
    heads = "".join(f"{head:>13}" for head in (*_COLUMNS.values(), "/ floor"))
    for values in itertools.product(*(getattr(args, name) for name in _SIZES)):
        size = dict(zip(_SIZES, values, strict=True))
        print(", ".join(f"{name} = {value}" for name, value in size.items()))
        print(f"{'half-step':<30}{heads}")
        settings = {"dtype": args.dtype, "steps_at_once": args.steps_at_once}
        try:
            configs = list(half_steps(size, args.cases, **settings))
        except InputError as error:
            raise SystemExit(f"error: {error}") from error
        for name, config in configs:
            found = measure(config, size["dim"], args)
            numbers = "".join(f"{found[key]:>13.2f}" for key in (*_COLUMNS, "ratio"))
            print(f"{name:<30}{numbers}", flush=True)
            if args.json:
                runs.append_record(args.json, {"half_step": name, **size, **settings, **found})


if __name__ == "__main__":
    main()
