"""Milliseconds per gradient step of each half-step: `python -m benchmarks.throughput`.

Every half-step is run as the runner runs it, many gradient steps in one dispatch, and the
minimum over repeats is printed. Compilation is timed apart.
"""

import time
from collections.abc import Iterator

import jax
from absl import app, flags
from ml_collections import ConfigDict

from d2ejax import parallel
from experiments import build, validation
from experiments.configs import base

_BATCH = flags.DEFINE_integer("batch_size", 128, "Paths scored in one gradient step.", 1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 20, "Steps K of a path.", 1)
_WIDTH = flags.DEFINE_integer("width", 64, "Width of the hidden layers.", 1)
_DISPATCH = flags.DEFINE_integer("dispatch", 100, "Gradient steps in one dispatch.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Dispatches timed; the fastest counts.", 1)

_NEVER = 10**6


def half_steps() -> Iterator[tuple[str, ConfigDict]]:
    """A config per half-step: its one direction trains first, and for long."""
    cases = (
        ("data-to-data, likelihood", "samples", "samples", "likelihood", "likelihood"),
        ("data-to-energy, likelihood", "samples", "energy", "likelihood", "log_variance"),
        # Its mirror image, so that the energy half-step comes first.
        ("energy-to-data, log-variance", "energy", "samples", "log_variance", "likelihood"),
        ("data-to-energy, semi-discrete", "samples", "energy", "likelihood", "semi_discrete"),
        ("energy-to-energy, log-variance", "energy", "energy", "log_variance", "log_variance"),
        (
            "energy-to-energy, semi-discrete",
            "energy",
            "energy",
            "log_variance",
            "semi_discrete",
        ),
    )
    for name, source, target, backward_loss, forward_loss in cases:
        config = base.get_config()
        config.source.name = "cross" if source == "energy" else "two_moons"
        config.source.access, config.target.access = source, target
        config.ipf.backward_loss, config.ipf.forward_loss = backward_loss, forward_loss
        config.ipf.backward_steps = config.ipf.forward_steps = _NEVER
        config.batch_size, config.grid.num_steps = _BATCH.value, _NUM_STEPS.value
        config.network.width = _WIDTH.value
        yield name, validation.validate(config)


def measure(config: ConfigDict) -> tuple[float, float]:
    """Seconds to compile, and milliseconds of one gradient step."""
    trainer = parallel.data_parallel(build.build(config).algorithm)
    start = time.perf_counter()
    state = trainer.init(jax.random.key(0))
    state, _ = jax.block_until_ready(trainer.run(state, 1))
    compile_seconds = time.perf_counter() - start
    fastest = float("inf")
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(trainer.run(state, _DISPATCH.value))
        fastest = min(fastest, time.perf_counter() - start)
    return compile_seconds, 1e3 * fastest / _DISPATCH.value


def main(argv: list[str]) -> None:
    """Prints one line per half-step."""
    del argv
    print(f"batch {_BATCH.value}, K = {_NUM_STEPS.value}, width {_WIDTH.value}")
    print(f"{'half-step':<34}{'compile [s]':>12}{'ms / step':>12}")
    for name, config in half_steps():
        compile_seconds, milliseconds = measure(config)
        print(f"{name:<34}{compile_seconds:>12.1f}{milliseconds:>12.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
