"""Milliseconds per gradient step of each half-step: `python -m benchmarks.throughput`.

Every half-step is run as the runner runs it, many gradient steps in one dispatch, and the
minimum over repeats is printed. Compilation is timed apart.
"""

import argparse
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from benchmarks import timing
from experiments import validation
from experiments.configs import base

# Name, access to the source and to the target, loss of the backward and the forward half-step.
_CASES = (
    ("data-to-data, likelihood", "samples", "samples", "likelihood", "likelihood"),
    ("data-to-energy, likelihood", "samples", "energy", "likelihood", "log_variance"),
    # Its mirror image, so that the energy half-step comes first.
    ("energy-to-data, log-variance", "energy", "samples", "log_variance", "likelihood"),
    ("data-to-energy, semi-discrete", "samples", "energy", "likelihood", "semi_discrete"),
    ("energy-to-energy, log-variance", "energy", "energy", "log_variance", "log_variance"),
    ("energy-to-energy, semi-discrete", "energy", "energy", "log_variance", "semi_discrete"),
)


def half_steps(args: argparse.Namespace) -> Iterator[tuple[str, ConfigDict]]:
    """A config per half-step: its one direction trains first, and for long."""
    for name, source, target, backward_loss, forward_loss in _CASES:
        config = base.get_config()
        config.source.name = "cross" if source == "energy" else "two_moons"
        config.source.access, config.target.access = source, target
        config.ipf.backward_loss, config.ipf.forward_loss = backward_loss, forward_loss
        config.ipf.backward_steps = config.ipf.forward_steps = timing.NEVER
        config.batch_size, config.grid.num_steps = args.batch_size, args.num_steps
        config.network.width = args.width
        yield name, validation.validate(config)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one line per half-step."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput")
    add = parser.add_argument
    add("--batch_size", type=int, default=128, help="paths scored in one gradient step")
    add("--num_steps", type=int, default=20, help="steps K of a path")
    add("--width", type=int, default=64, help="of the hidden layers")
    add("--dispatch", type=int, default=100, help="gradient steps in one dispatch")
    add("--repeats", type=int, default=5, help="dispatches timed; the fastest counts")
    args = parser.parse_args(argv)
    print(f"batch {args.batch_size}, K = {args.num_steps}, width {args.width}")
    print(f"{'half-step':<34}{'compile [s]':>12}{'ms / step':>12}")
    for name, config in half_steps(args):
        cost = timing.cost_of_step(config, dispatch=args.dispatch, repeats=args.repeats)
        line = f"{name:<34}{cost.compile_seconds:>12.1f}{cost.milliseconds:>12.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
