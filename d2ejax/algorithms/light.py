"""The light Schrödinger bridge: a potential in closed form fitted to samples of both ends.

No path is simulated: the loss is one of the ends alone, and the forward process, the chain
with the exact moments of each step, comes with the potential (Korotin et al. 2024,
arXiv:2310.01174). The backward process is then fitted once, to bridges of the reference between
ends that the finished plan couples.

The potential alone is what other algorithms may start from: see `fit_potential`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
from d2ejax.algorithms.bridges import ends_objective
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.kernels import BASE, Process
from d2ejax.light import LightPotential
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, AxisName, Key, Params

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
    axis_name: AxisName | None = None,
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
    start = partial(_start, potential, samplers[1], num_components, init_share, optimisers[0])
    on_paths = partial(_on_paths, potential, backward, samplers[0], grid, phases.paths_batch)
    update = partial(gradient_step, decay=ema_decay, axis_name=axis_name)

    def init(key: Key) -> State:
        # The key is the same on all devices, and so are the parameters.
        centre_key, backward_key, own_key = jax.random.split(key, 3)
        zero = jnp.zeros((), jnp.int32)
        return State(
            start(centre_key),
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


def fit_potential(
    key: Key,
    potential: LightPotential,
    ends: tuple[Endpoint, Endpoint],
    *,
    optimiser: optax.GradientTransformation,
    num_steps: int,
    batch_size: int = 1024,
    num_components: int = 50,
    init_share: float = 0.1,
    ema_decay: float = 0.99,
    axis_name: AxisName | None = None,
) -> Params:
    """Fits a potential by the gradient steps that `light_bridge` takes first, in one scan.

    For the `init` of other algorithms: `LightPotential.process` makes it a process to start
    from (see `kernels.on_top`), near to the bridge before they have taken a step.

    Args:
        key: A typed key, the same on all devices.
        potential: The potential.
        ends: What the source and the target offer to training: samples.
        optimiser: An optax transformation.
        num_steps: Gradient steps; those whose loss or gradient is not finite are left out.
        batch_size: Samples of each end in a step, on each device.
        num_components: Gaussians in the potential.
        init_share: The variance that they start with; see `light_bridge`.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients are averaged.

    Returns:
        The averaged parameters of the potential, the same on all devices.

    Raises:
        ValueError: If an end has no samples.
    """
    samplers = endpoints.sampler(ends[0]), endpoints.sampler(ends[1])
    centre_key, own_key = jax.random.split(key)
    model = _start(potential, samplers[1], num_components, init_share, optimiser, centre_key)

    def advance(model: Model, key: Key) -> tuple[Model, None]:
        loss = _on_ends(potential, samplers, batch_size, key)
        model, _, _ = gradient_step(
            loss, model, optimiser, decay=ema_decay, axis_name=axis_name
        )
        return model, None

    keys = jax.random.split(device_key(own_key, axis_name), num_steps)
    return jax.lax.scan(advance, model, keys)[0].average


def with_fixed_base(
    optimiser: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """An optimiser that leaves alone what a process starts from: all under `kernels.BASE`.

    Without a gradient the parameters would still decay, or be moved by what is shared.

    Args:
        optimiser: Of all other parameters.
    """

    def labels(params: Params) -> Params:
        def label(path: tuple[Any, ...], leaf: Array) -> str:
            fixed = any(getattr(part, "key", None) == BASE for part in path)
            return "fixed" if fixed else "trained"

        return jax.tree.map_with_path(label, params)

    return optax.partition({"trained": optimiser, "fixed": optax.set_to_zero()}, labels)


def _start(
    potential: LightPotential,
    sampler: _Sampler,
    num_components: int,
    init_share: float,
    optimiser: optax.GradientTransformation,
    key: Key,
) -> Model:
    """The model of a potential before its first step, its centres samples of the target."""
    centres = sampler(key, num_components)
    return init_model(potential.init(centres, share=init_share), optimiser)


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
    return ends_objective(bridge_key, backward, potential.reference, grid, starts, ends)
