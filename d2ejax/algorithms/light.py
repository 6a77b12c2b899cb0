"""The light Schrödinger bridge: a potential in closed form fitted to samples of both ends.

No path is simulated: the loss is one of the ends alone, and the forward process, the chain
with the exact moments of each step, comes with the potential (Korotin et al. 2024,
arXiv:2310.01174). The backward process is then fitted once, to bridges of the reference between
ends that the finished plan couples.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from d2ejax import losses
from d2ejax.algorithms.base import (
    Algorithm,
    Model,
    counted,
    device_key,
    gradient_step,
    init_model,
)
from d2ejax.algorithms.bridges import bridge_loss, pinned_paths
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.kernels import Process
from d2ejax.light import LightPotential
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key, Params

_Sampler = Callable[[Key, int], Array]
_Loss = Callable[[Params], tuple[Array, dict[str, Array]]]


class State(NamedTuple):
    """The state of the light bridge.

    Attributes:
        potential: The model of the potential, which the forward process shares.
        backward: The model of the backward process.
        step: Gradient steps so far, those left out included.
        skipped: Steps left out because their loss or gradient was not finite.
        consecutive_skipped: The length of the current run of such steps.
        key: A typed key; differs between devices.
    """

    potential: Model
    backward: Model
    step: Array
    skipped: Array
    consecutive_skipped: Array
    key: Key


class LightPhases(NamedTuple):
    """What the gradient steps of a run are spent on.

    Attributes:
        potential_steps: Those of the potential, which come first.
        backward_steps: Those of the backward process.
        ends_batch: Samples of each end in a step of the potential, on each device.
        paths_batch: Paths in a step of the backward process, on each device.
    """

    potential_steps: int
    backward_steps: int
    ends_batch: int = 1024
    paths_batch: int = 128

    @property
    def total(self) -> int:
        """Gradient steps in the whole run."""
        return self.potential_steps + self.backward_steps


def light_bridge(
    potential: LightPotential,
    backward: Process,
    ends: tuple[Endpoint, Endpoint],
    grid: TimeGrid,
    phases: LightPhases,
    *,
    init_backward: Callable[[Key], Params],
    optimisers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    num_components: int = 50,
    init_share: float = 0.1,
    ema_decay: float = 0.99,
    axis_name: str | None = None,
) -> Algorithm:
    """The light bridge between two ends that are sampled.

    The potential starts as in the authors' code: equal weights, centres at samples of the
    target, and one variance for all components, in units of the reference's over [0, T].

    Args:
        potential: The potential, which brings the reference.
        backward: The backward process.
        ends: What the source and the target offer to training: samples.
        grid: The time grid.
        phases: What the gradient steps are spent on.
        init_backward: Maps a key to the parameters of the backward process.
        optimisers: Of the potential and of the backward process.
        num_components: Gaussians in the potential.
        init_share: The variance that they start with, in those units: S in the paper.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `State`.

    Raises:
        ValueError: If an end has no samples.
    """
    samplers = endpoints.sampler(ends[0]), endpoints.sampler(ends[1])
    on_ends = partial(_on_ends, potential, samplers, phases.ends_batch)
    on_paths = partial(_on_paths, potential, backward, samplers[0], grid, phases.paths_batch)
    update = partial(gradient_step, decay=ema_decay, axis_name=axis_name)

    def init(key: Key) -> State:
        # The key is the same on all devices, and so are the parameters.
        centre_key, backward_key, own_key = jax.random.split(key, 3)
        centres = samplers[1](centre_key, num_components)
        zero = jnp.zeros((), jnp.int32)
        return State(
            init_model(potential.init(centres, share=init_share), optimisers[0]),
            init_model(init_backward(backward_key), optimisers[1]),
            step=zero,
            skipped=zero,
            consecutive_skipped=zero,
            key=device_key(own_key, axis_name),
        )

    def fit_potential(state: State, key: Key) -> tuple[State, dict[str, Array]]:
        model, finite, metrics = update(on_ends(key), state.potential, optimisers[0])
        return counted(state._replace(potential=model), finite), metrics

    def fit_backward(state: State, key: Key) -> tuple[State, dict[str, Array]]:
        loss = on_paths(key, state.potential.average)
        model, finite, metrics = update(loss, state.backward, optimisers[1])
        return counted(state._replace(backward=model), finite), metrics

    def step(state: State) -> tuple[State, dict[str, Array]]:
        key, step_key = jax.random.split(state.key)
        first = state.step < phases.potential_steps
        return jax.lax.cond(
            first, fit_potential, fit_backward, state._replace(key=key), step_key
        )

    return Algorithm(init, step)


def _on_ends(
    potential: LightPotential, samplers: tuple[_Sampler, _Sampler], size: int, key: Key
) -> _Loss:
    """The loss of the potential on fresh samples of both ends."""
    source_key, target_key = jax.random.split(key)
    starts, goals = samplers[0](source_key, size), samplers[1](target_key, size)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        at_time = jax.vmap(partial(potential.log_value, params), (0, None))
        return losses.light_loss(at_time(starts, 0.0), at_time(goals, potential.t_max)), {}

    return loss


def _on_paths(
    potential: LightPotential,
    backward: Process,
    sampler: _Sampler,
    grid: TimeGrid,
    size: int,
    key: Key,
    params: Params,
) -> _Loss:
    """The loss of the backward process on bridges between ends that the plan couples."""
    start_key, end_key, bridge_key = jax.random.split(key, 3)
    starts = sampler(start_key, size)
    end_keys = jax.random.split(end_key, size)
    ends = jax.vmap(potential.sample_end, (0, None, 0))(end_keys, params, starts)
    paths = pinned_paths(bridge_key, potential.reference, starts, ends, grid)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        return bridge_loss(backward, params, paths, potential.reference, grid), {}

    return loss
