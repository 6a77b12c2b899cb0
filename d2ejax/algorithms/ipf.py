"""Iterative proportional fitting as one (init, step) algorithm.

Iteration n is a backward half-step, which pins the source, then a forward one, which pins the
target (De Bortoli et al. 2021, arXiv:2106.01357; with energies, Tamogashev & Malkin 2026). Each
picks its loss by what its end offers, so that data-to-data, data-to-energy, energy-to-data and
energy-to-energy are one algorithm.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from d2ejax.algorithms import from_energy, from_samples, half_steps
from d2ejax.algorithms.base import (
    Algorithm,
    Model,
    counted,
    device_key,
    gradient_step,
    init_model,
)
from d2ejax.algorithms.half_steps import Buffers, Caches, HalfStep, Inputs, Objective
from d2ejax.endpoints import base as endpoints
from d2ejax.exploration import particles
from d2ejax.typing import Array, AxisName, Key, Params

_T = TypeVar("_T")

BACKWARD, FORWARD = 0, 1
"""Index of each direction in the state's models."""


class State(NamedTuple):
    """The state of IPF.

    Attributes:
        models: The backward and the forward model; the parameters of each are a dict with the
            process's "drift" and the "potential" of the end that it starts from.
        buffers: Particles of the source and of the target; None for an end that is sampled.
        caches: Paths of the opposite process for the backward and for the forward half-step,
            `(cached_batches * batch_size, num_points, dim)`; None where none are kept.
        step: Gradient steps so far, those left out included.
        own_steps: How many of them trained each direction, shape `(2,)`; schedules and
            refreshes run on these.
        skipped: Steps left out because their loss or gradient was not finite.
        consecutive_skipped: The length of the current run of such steps.
        key: A typed key; differs between devices.
        params_key: Another, the same on all devices; draws the parameters of half-steps that
            start anew.
    """

    models: tuple[Model, Model]
    buffers: Buffers
    caches: Caches
    step: Array
    own_steps: Array
    skipped: Array
    consecutive_skipped: Array
    key: Key
    params_key: Key


class Schedule(NamedTuple):
    """Which half-step each gradient step belongs to: cycles of segments, repeated.

    Attributes:
        segments: Pairs of a direction and a number of gradient steps, in order; a period.
        repeats: How often the period runs.
        final: Segments after the last period.
    """

    segments: tuple[tuple[int, int], ...]
    repeats: int
    final: tuple[tuple[int, int], ...] = ()

    @property
    def period(self) -> int:
        """Gradient steps in one iteration."""
        return sum(steps for _, steps in self.segments)

    @property
    def total(self) -> int:
        """Gradient steps in the whole run."""
        return self.period * self.repeats + sum(steps for _, steps in self.final)

    def boundaries(self) -> list[tuple[int, int, int]]:
        """All half-steps as `(direction, iteration, end)`, in order; ends are exclusive."""
        result, end = [], 0
        for iteration in range(self.repeats):
            for direction, steps in self.segments:
                end += steps
                result.append((direction, iteration, end))
        for direction, steps in self.final:
            end += steps
            result.append((direction, self.repeats, end))
        return result


def schedule(
    backward_loss: half_steps.Loss,
    forward_loss: half_steps.Loss,
    *,
    iterations: int,
    backward_steps: int,
    forward_steps: int,
) -> Schedule:
    """The half-steps of a run.

    A semi-discrete half-step needs no opposite process, so that one's gradient steps are all
    spent at the end, on fitting it once to the finished process.

    Args:
        backward_loss: Loss of the backward half-step.
        forward_loss: Loss of the forward half-step.
        iterations: IPF iterations.
        backward_steps: Gradient steps of a backward half-step.
        forward_steps: Gradient steps of a forward half-step.

    Returns:
        The schedule.
    """
    steps = {BACKWARD: backward_steps, FORWARD: forward_steps}
    for loss, direction in ((backward_loss, BACKWARD), (forward_loss, FORWARD)):
        if loss == "semi_discrete":
            other = 1 - direction
            final = ((other, steps[other] * iterations),)
            return Schedule(((direction, steps[direction]),), iterations, final)
    return Schedule(tuple(steps.items()), iterations)


def ipf(
    backward: HalfStep,
    forward: HalfStep,
    plan: Schedule,
    *,
    init_params: Callable[[Key], tuple[Params, Params]],
    optimisers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    ema_decay: float,
    use_ema_opposite: bool = True,
    warm_start: bool = True,
    axis_name: AxisName | None = None,
) -> Algorithm:
    """IPF over a schedule of half-steps.

    Args:
        backward: The backward half-step.
        forward: The forward half-step.
        plan: Which half-step each gradient step belongs to.
        init_params: Maps a key to the parameters of the backward and the forward model, each a
            dict with "drift" and "potential".
        optimisers: Of the backward and the forward model; see the order of `State.models`.
        ema_decay: Decay of the parameters' moving average per step.
        use_ema_opposite: Whether a half-step sees the opposite process by its moving average.
        warm_start: Whether a half-step goes on from where the one before it, in the same
            direction, left its parameters; otherwise each begins with new ones. The optimiser
            goes on in either case, and with it the schedule of its learning rate.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `State`.

    Raises:
        ValueError: If a half-step would begin with paths cached before it.
    """
    for direction, steps in (*plan.segments, *plan.final):
        half = (backward, forward)[direction]
        if half.cached_batches and steps % half.cache_every:
            raise ValueError(
                f"cache_every = {half.cache_every}: must be a divisor of {steps}, the gradient "
                "steps of its half-step"
            )
    branches = [
        partial(
            _train,
            direction,
            half,
            optimiser,
            ema_decay=ema_decay,
            use_ema_opposite=use_ema_opposite,
            axis_name=axis_name,
        )
        for direction, half, optimiser in zip(
            (BACKWARD, FORWARD), (backward, forward), optimisers, strict=True
        )
    ]

    def init(key: Key) -> State:
        # The key is the same on all devices, and so are the parameters.
        params_key, own_key = jax.random.split(key)
        own_key, *buffer_keys = jax.random.split(device_key(own_key, axis_name), 3)
        params = init_params(params_key)
        backward_model, forward_model = map(init_model, params, optimisers)
        zero = jnp.zeros((), jnp.int32)
        return State(
            (backward_model, forward_model),
            _init_buffers(buffer_keys, forward),
            (from_samples.init_cache(backward), from_samples.init_cache(forward)),
            step=zero,
            own_steps=jnp.zeros((2,), jnp.int32),
            skipped=zero,
            consecutive_skipped=zero,
            key=own_key,
            params_key=params_key,
        )

    def step(state: State) -> tuple[State, dict[str, Array]]:
        direction = _direction(plan, state.step)
        if not warm_start:
            restart = partial(_restart, init_params, direction)
            state = jax.lax.cond(_begins(plan, state.step), restart, lambda state: state, state)
        return jax.lax.switch(direction, branches, state)

    return Algorithm(init, step, own=("buffers", "caches", "key"))


def _restart(
    init_params: Callable[[Key], tuple[Params, Params]], direction: Array, state: State
) -> State:
    """New parameters, the same on all devices, for the model of one direction."""
    fresh = init_params(jax.random.fold_in(state.params_key, state.step))

    def renewed(which: int) -> Model:
        model = state.models[which]
        new = model._replace(params=fresh[which], average=fresh[which])
        return jax.tree.map(partial(jnp.where, direction == which), new, model)

    return state._replace(models=(renewed(BACKWARD), renewed(FORWARD)))


def objective(half: HalfStep, key: Key, inputs: Inputs) -> tuple[Objective, Buffers]:
    """Draws the data of one gradient step.

    Args:
        half: The half-step.
        key: A typed key.
        inputs: What it reads.

    Returns:
        The loss on that data as a function of the trained parameters, with its metrics; and
        the buffers as drawing the data left them.
    """
    if half.loss in half_steps.FROM_SAMPLES:
        return from_samples.objective(half, key, inputs), inputs.buffers
    return from_energy.objective(half, key, inputs)


def _train(
    direction: int,
    half: HalfStep,
    optimiser: optax.GradientTransformation,
    state: State,
    *,
    ema_decay: float,
    use_ema_opposite: bool,
    axis_name: AxisName | None,
) -> tuple[State, dict[str, Array]]:
    """One gradient step of one half-step."""
    model, opposite = state.models[direction], state.models[1 - direction]
    key, step_key = jax.random.split(state.key)
    inputs = Inputs(
        model.params,
        model.average,
        opposite.average if use_ema_opposite else opposite.params,
        state.buffers,
        state.own_steps[direction],
        state.own_steps[1 - direction],
    )
    cache = state.caches[direction]
    if cache is not None:
        cache_key, step_key = jax.random.split(step_key)
        inputs = inputs._replace(
            cache=from_samples.refresh_cache(half, cache_key, inputs, cache)
        )
    loss_fn, buffers = objective(half, step_key, inputs)
    model, finite, metrics = gradient_step(
        loss_fn, model, optimiser, decay=ema_decay, axis_name=axis_name
    )
    state = state._replace(
        models=_pair(direction, model, opposite),
        # Whether or not the step was taken: what has no mass has not joined them.
        buffers=buffers,
        # Bad paths go with the next refresh; those before them may be of an older process.
        caches=_pair(direction, inputs.cache, state.caches[1 - direction]),
        own_steps=state.own_steps.at[direction].add(1),
        key=key,
    )
    return counted(state, finite), metrics


def _pair(direction: int, own: _T, other: _T) -> tuple[_T, _T]:
    """What belongs to a direction and to the other one, in the order of the state."""
    return (own, other) if direction == BACKWARD else (other, own)


def _direction(plan: Schedule, step: Array) -> Array:
    """The direction that a gradient step trains."""
    final_step = step - plan.period * plan.repeats
    return jnp.where(
        (final_step >= 0) & bool(plan.final),
        _lookup(plan.final or plan.segments, final_step),
        _lookup(plan.segments, step % plan.period),
    )


def _begins(plan: Schedule, step: Array) -> Array:
    """Whether a gradient step is the first of its half-step."""
    starts = jnp.asarray([0, *(end for _, _, end in plan.boundaries())], jnp.int32)
    return jnp.any(step == starts)


def _lookup(segments: tuple[tuple[int, int], ...], offset: Array) -> Array:
    ends = jnp.cumsum(jnp.asarray([steps for _, steps in segments], jnp.int32))
    index = jnp.minimum(jnp.searchsorted(ends, offset, side="right"), len(segments) - 1)
    return jnp.asarray([direction for direction, _ in segments], jnp.int32)[index]


def _init_buffers(keys: list[Key], half: HalfStep) -> Buffers:
    source, target = (
        None if explorer is None else particles.init(key, explorer, endpoints.log_density(end))
        for key, explorer, end in zip(
            keys, half.particles, (half.start, half.goal), strict=True
        )
    )
    return source, target
