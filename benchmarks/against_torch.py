"""Gradient steps against eager PyTorch, turn and turn about in one process.

`python -m benchmarks.against_torch` (`pip install ".[bench]"`) times every half-step here and
in `benchmarks.eager`, same shapes, and prints the milliseconds of each and their ratios: to
code that scores one step of the paths after the other, as published code does, and to code that
scores them all in one call. --compile adds the latter with compiled networks; --json keeps what
is printed. Ours includes the refresh of particles once every fifty steps, theirs hardly ever,
since its fastest turn of few steps counts. PyTorch runs on the CPU: compare on a CPU.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import torch
from ml_collections import ConfigDict

from benchmarks import eager, eager_ends, runs, timing
from benchmarks.timing import Case
from d2ejax import parallel
from experiments import build, validation

_CASES = (
    Case("D2D", "samples", "samples", "likelihood", 0.0),
    Case("D2E on-policy", "samples", "energy", "log_variance", 0.0),
    Case("D2E off-policy", "samples", "energy", "log_variance", 0.5),
    Case("E2E", "energy", "energy", "log_variance", 0.5),
)
_SIZES = ("batch_size", "num_steps", "width", "dim")


def configuration(case: Case, size: runs.Record) -> ConfigDict:
    """The config of a half-step that both sides can do."""
    config = timing.half_step(case, size)
    config.ipf.reanchor, config.optimiser.name = "none", "adamw"
    return validation.validate(config)


def ours(config: ConfigDict) -> Callable[[int], None]:
    """Runs so many gradient steps, one dispatch, past compilation."""
    trainer = parallel.data_parallel(build.build(config).algorithm)
    state = [trainer.init(jax.random.key(0))]

    def run(num_steps: int) -> None:
        state[0], _ = jax.block_until_ready(trainer.run(state[0], num_steps))

    # Past the one step of the backward process.
    run(2)
    return run


def theirs(
    config: ConfigDict, case: Case, dim: int, *, at_once: bool, compiled: bool = False
) -> Callable[[int], None]:
    """The same for PyTorch."""
    experiment = build.build(config)
    forward, backward = (
        eager.chain(process, config, dim)
        for process in (experiment.forward, experiment.backward)
    )
    if compiled:
        forward, backward = (
            chain._replace(network=torch.compile(chain.network))
            for chain in (forward, backward)
        )
    start, goal = (
        eager_ends.gaussian(end.options.std, dim).restrict(end.access)
        for end in (config.source, config.target)
    )
    half = eager.HalfStep(forward, backward, start, goal, config, at_once)
    step = eager.half_step(half, case.loss)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            step()

    run(2)
    return run


def compare(
    runners: dict[str, Callable[[int], None]], steps: dict[str, int], repeats: int
) -> dict[str, float]:
    """The fastest of each in milliseconds per step, all in turn."""
    fastest = dict.fromkeys(runners, float("inf"))
    for _ in range(repeats):
        for name, run in runners.items():
            start = time.perf_counter()
            run(steps[name])
            taken = 1e3 * (time.perf_counter() - start) / steps[name]
            fastest[name] = min(fastest[name], taken)
    return fastest


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.against_torch")
    add, several = parser.add_argument, runs.listed(int)
    add("--batch_size", type=several, default=[128, 4096], help="paths in one gradient step")
    add("--num_steps", type=several, default=[20], help="steps K of a path")
    add("--width", type=several, default=[64], help="of the hidden layers")
    add("--dim", type=several, default=[2], help="of both ends")
    add("--cases", type=runs.listed(str, [case.name for case in _CASES]))
    add("--dispatch", type=int, default=50, help="our gradient steps in one dispatch")
    add("--eager_steps", type=int, default=10, help="theirs in one turn")
    add("--repeats", type=int, default=5, help="turns; the fastest counts")
    add("--threads", type=int, default=0, help="of PyTorch; 0: as many as it takes itself")
    add("--compile", action="store_true", help="add torch.compile")
    add("--json", type=Path, help="a file for one JSON object a line")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line per half-step and size."""
    args = parse(argv)
    timing.start()
    if args.threads:
        torch.set_num_threads(args.threads)
    for values in itertools.product(*(getattr(args, name) for name in _SIZES)):
        size = dict(zip(_SIZES, values, strict=True))
        print(", ".join(f"{name} = {value}" for name, value in size.items()))
        for case in _CASES:
            if args.cases and case.name not in args.cases:
                continue
            config, dim = configuration(case, size), size["dim"]
            runners = {
                "d2ejax": ours(config),
                "step by step": theirs(config, case, dim, at_once=False),
                "at once": theirs(config, case, dim, at_once=True),
            }
            if args.compile:
                runners["compiled"] = theirs(config, case, dim, at_once=True, compiled=True)
            steps = dict.fromkeys(runners, args.eager_steps) | {"d2ejax": args.dispatch}
            found = compare(runners, steps, args.repeats)
            shown = [f"{name} {found[name]:8.2f} ms" for name in found]
            ratios = [f"{found[name] / found['d2ejax']:.1f}" for name in found]
            line = ", ".join(shown) + f"; ratios {', '.join(ratios[1:])}"
            print(f"{case.name:<28}{line}", flush=True)
            if args.json:
                runs.append_record(args.json, {"half_step": case.name, **size, **found})


if __name__ == "__main__":
    main()
