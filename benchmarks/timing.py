"""What a gradient step costs: seconds to compile it, and milliseconds to run it.

Timed between two Gaussians, in any dimension, which cost next to nothing themselves.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from d2ejax import parallel
from experiments import build
from experiments.configs import base

# So many gradient steps of a half-step that the timing never leaves it.
_NEVER = 10**6


def configuration(dim: int, source: str, target: str) -> ConfigDict:
    """The defaults between two Gaussians, of which no half-step ends while it is timed.

    Args:
        dim: Dimension of both ends.
        source: Access to the source, "samples" or "energy".
        target: Access to the target.
    """
    config = base.get_config()
    for end, access, std in ((config.source, source, 0.7), (config.target, target, 0.4)):
        end.name, end.access = "gaussian", access
        end.options = ConfigDict({"dim": dim, "std": std})
    config.ipf.forward_steps = config.ipf.backward_steps = _NEVER
    return config


class Case(NamedTuple):
    """A forward half-step to be timed.

    Attributes:
        name: What it is called.
        source: Access to the source, "samples" or "energy".
        target: Access to the target.
        loss: Its loss.
        off_policy: The share of groups of paths that start off-policy.
    """

    name: str
    source: str
    target: str
    loss: str
    off_policy: float


def half_step(case: Case, size: Mapping[str, int]) -> ConfigDict:
    """The configuration of a half-step, not validated; the backward one has a single step.

    Args:
        case: The half-step.
        size: Its batch_size, num_steps, width and dim.
    """
    config = configuration(size["dim"], case.source, case.target)
    config.ipf.forward_loss, config.ipf.backward_steps = case.loss, 1
    config.ipf.backward_loss = "likelihood" if case.source == "samples" else "log_variance"
    config.exploration.off_policy_ratio = case.off_policy
    config.exploration.off_policy_ratio_end = case.off_policy
    config.batch_size, config.grid.num_steps = size["batch_size"], size["num_steps"]
    config.network.width = size["width"]
    return config


def start() -> None:
    """Gives JAX the devices that the runner gives it, before it first runs."""
    parallel.cut_cpu(base.get_config().parallel.cpu_devices)


class Cost(NamedTuple):
    """The cost of a configuration's gradient steps.

    Attributes:
        compile_seconds: Of initialisation, compilation and one step.
        milliseconds: Of one gradient step.
    """

    compile_seconds: float
    milliseconds: float


def cost_of_step(config: ConfigDict, *, dispatch: int, repeats: int) -> Cost:
    """Runs gradient steps as the runner does, many in one dispatch; the fastest counts.

    The first gradient step is not among them.

    Args:
        config: A validated configuration.
        dispatch: Gradient steps in one dispatch.
        repeats: Dispatches timed.
    """
    trainer = parallel.data_parallel(build.build(config).algorithm)
    start = time.perf_counter()
    state = trainer.init(jax.random.key(0))
    state, _ = jax.block_until_ready(trainer.run(state, 1))
    compile_seconds = time.perf_counter() - start
    fastest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(trainer.run(state, dispatch))
        fastest = min(fastest, time.perf_counter() - start)
    return Cost(compile_seconds, 1e3 * fastest / dispatch)
