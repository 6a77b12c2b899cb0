"""Entropic neural optimal transport: a process and a potential in a saddle point.

The process pays its divergence from the reference and is paid β at its end; the potential β
tells its ends from samples of the target (Gushchin et al. 2023, arXiv:2211.01156). The rival
between samples that is adversarial, and differentiates through its simulation.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from d2ejax import losses, rollouts
from d2ejax.algorithms.base import (
    Algorithm,
    Model,
    counted,
    device_key,
    gradient_step,
    init_model,
    with_model,
)
from d2ejax.algorithms.bridges import ends_objective
from d2ejax.algorithms.half_steps import Objective
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, AxisName, Key, Params

FORWARD, POTENTIAL, BACKWARD = 0, 1, 2
"""Index of each model in the state."""


class Enot(NamedTuple):
    """Everything fixed about the saddle point.

    Attributes:
        forward: The process that it trains.
        backward: The backward process, fitted to the finished one.
        reference: The reference on the grid.
        law: The reference in continuous time.
        grid: The time grid.
        source: What paths start from: samples.
        target: What the potential is shown: samples.
        potential: Network of β, `(params, x) -> scalar`.
        num_steps: Gradient steps of process and potential together.
        backward_steps: Those of the backward process, after them.
        inner_steps: Gradient steps of the process for one of the potential.
        batch_size: Paths in one gradient step, on each device.
    """

    forward: Process
    backward: Process
    reference: Process
    law: Reference
    grid: TimeGrid
    source: Endpoint
    target: Endpoint
    potential: Callable[[Params, Array], Array]
    num_steps: int
    backward_steps: int
    inner_steps: int = 10
    batch_size: int = 128

    @property
    def total(self) -> int:
        """Gradient steps in the whole run."""
        return self.num_steps + self.backward_steps


class State(NamedTuple):
    """The state of the saddle point.

    Attributes:
        models: Of the forward process, the potential and the backward process.
        step: Gradient steps so far, those left out included.
        skipped: Steps left out because their loss or gradient was not finite.
        consecutive_skipped: The length of the current run of such steps.
        key: A typed key; differs between devices.
    """

    models: tuple[Model, Model, Model]
    step: Array
    skipped: Array
    consecutive_skipped: Array
    key: Key


def enot(
    given: Enot,
    *,
    init_params: Callable[[Key], tuple[Params, Params, Params]],
    optimisers: tuple[optax.GradientTransformation, ...],
    ema_decay: float,
    axis_name: AxisName | None = None,
) -> Algorithm:
    """Entropic neural optimal transport.

    Args:
        given: What is trained, and how.
        init_params: Maps a key to the parameters of the three models; see `State.models`.
        optimisers: Of each of them.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `State`.

    Raises:
        ValueError: If an end offers no samples, or there is no step of the process between two
            of the potential.
    """
    for end in (given.source, given.target):
        endpoints.sampler(end)
    if given.inner_steps < 1:
        raise ValueError(f"inner_steps = {given.inner_steps}: must be ≥ 1")

    def init(key: Key) -> State:
        # The key is the same on all devices, and so are the parameters.
        params_key, own_key = jax.random.split(key)
        pairs = zip(init_params(params_key), optimisers, strict=True)
        forward, potential, backward = (init_model(*pair) for pair in pairs)
        zero = jnp.zeros((), jnp.int32)
        models = forward, potential, backward
        return State(models, zero, zero, zero, device_key(own_key, axis_name))

    def train(which: int, state: State, key: Key) -> tuple[State, dict[str, Array]]:
        model, finite, metrics = gradient_step(
            objective(given, which, key, state.models),
            state.models[which],
            optimisers[which],
            decay=ema_decay,
            axis_name=axis_name,
        )
        models = with_model(state.models, which, model)
        return counted(state._replace(models=models), finite), metrics

    branches = [partial(train, which) for which in (FORWARD, POTENTIAL, BACKWARD)]

    def step(state: State) -> tuple[State, dict[str, Array]]:
        key, step_key = jax.random.split(state.key)
        turn = state.step % (given.inner_steps + 1) == given.inner_steps
        which = jnp.where(state.step < given.num_steps, turn.astype(jnp.int32), BACKWARD)
        return jax.lax.switch(which, branches, state._replace(key=key), step_key)

    return Algorithm(init, step)


def objective(
    given: Enot, which: int, key: Key, models: tuple[Model, Model, Model]
) -> Objective:
    """Draws the data of one gradient step of one of the models.

    Args:
        given: What is trained.
        which: `FORWARD`, `POTENTIAL` or `BACKWARD`.
        key: A typed key.
        models: All three.

    Returns:
        The loss on that data as a function of its parameters, without metrics.
    """
    path_key, own_key = jax.random.split(key)
    if which == FORWARD:
        return _control(given, path_key, models[POTENTIAL].params)
    if which == POTENTIAL:
        ends = _simulate(given, path_key, models[FORWARD].params)[:, -1]
        true = endpoints.sampler(given.target)(own_key, given.batch_size)
        beta = jax.vmap(given.potential, (None, 0))
        return lambda params: (
            losses.discriminator_loss(beta(params, ends), beta(params, true)),
            {},
        )
    paths = _simulate(given, path_key, models[FORWARD].average)
    return ends_objective(
        own_key, given.backward, given.law, given.grid, paths[:, 0], paths[:, -1]
    )


def _control(given: Enot, key: Key, potential: Params) -> Objective:
    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        paths = _simulate(given, key, params)
        step_costs = rollouts.step_kl_divergences(
            given.forward, params, given.reference, None, paths
        )
        paid = jax.vmap(given.potential, (None, 0))(potential, paths[:, -1])
        return losses.control_loss(step_costs, -paid), {}

    return loss


def _simulate(given: Enot, key: Key, params: Params) -> Array:
    start_key, path_key = jax.random.split(key)
    starts = endpoints.sampler(given.source)(start_key, given.batch_size)
    keys = jax.random.split(path_key, given.batch_size)
    simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
    return simulate(keys, given.forward, params, starts)
