"""Matching: minibatches of both ends are coupled and a regression fitted to what joins them.

Nothing is simulated and nothing alternates. As good as the coupling is near to the plan of the
bridge, the minimiser is near to the bridge: its probability flow and score ([SF]²M, Tong et al.
2024, arXiv:2307.03672), or its forward and its backward kernels on the grid. Of a coupling by
optimal transport and straight lines remains conditional flow matching (Tong et al. 2024,
arXiv:2302.00482), the limit of vanishing noise: a flow alone.

Which of these it is, is said by the objective, which draws the data of one gradient step.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from d2ejax import losses, references, rollouts
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
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, EmbeddedNetwork, Key, Params

Spacing = Literal["uniform", "grid"]
SPACINGS: tuple[Spacing, ...] = ("uniform", "grid")

MARGIN = 1e-3
"""Share of [0, T] left out at either end, where the conditional flow of a bridge is noise: its
second moment diverges as the logarithm of this."""

Coupling = Callable[[Key, Array, Array], tuple[Array, Array]]

Objective = Callable[[Key, Array, Array], Callable[[Params], tuple[Array, dict[str, Array]]]]
"""Maps `(key, x_0, x_1)`, coupled ends `(n, dim)`, to the loss of parameters on what is drawn
between them, with its metrics."""


class State(NamedTuple):
    """The state of a matching algorithm.

    Attributes:
        model: What is trained; its parameters are a dict by the objective's names.
        step: Gradient steps so far, those left out included.
        skipped: Steps left out because their loss or gradient was not finite.
        consecutive_skipped: The length of the current run of such steps.
        key: A typed key; differs between devices.
    """

    model: Model
    step: Array
    skipped: Array
    consecutive_skipped: Array
    key: Key


def matching(
    ends: tuple[Endpoint, Endpoint],
    couple: Coupling,
    objective: Objective,
    *,
    batch_size: int,
    init_params: Callable[[Key], Params],
    optimiser: optax.GradientTransformation,
    ema_decay: float,
    axis_name: str | None = None,
) -> Algorithm:
    """A regression on coupled minibatches of two ends.

    Args:
        ends: What the source and the target offer to training: samples.
        couple: Re-pairs `(key, x_0, x_1)`; see `d2ejax.couplings`. What it sees is the batch
            of all devices: of less, an optimal plan would be another.
        objective: What is drawn between the pairs, and the loss on it.
        batch_size: Pairs in one gradient step, on each device.
        init_params: Maps a key to the parameters.
        optimiser: Of the parameters.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `State`.

    Raises:
        ValueError: If an end offers no samples.
    """
    samplers = endpoints.sampler(ends[0]), endpoints.sampler(ends[1])

    def init(key: Key) -> State:
        # The key is the same on all devices, and so are the parameters.
        params_key, own_key = jax.random.split(key)
        zero = jnp.zeros((), jnp.int32)
        model = init_model(init_params(params_key), optimiser)
        return State(model, zero, zero, zero, device_key(own_key, axis_name))

    def step(state: State) -> tuple[State, dict[str, Array]]:
        key, *keys = jax.random.split(state.key, 5)
        x_0, x_1 = samplers[0](keys[0], batch_size), samplers[1](keys[1], batch_size)
        pairs = _coupled(couple, keys[3], x_0, x_1, axis_name)
        loss_fn = objective(keys[2], *pairs)
        model, finite, metrics = gradient_step(
            loss_fn, state.model, optimiser, decay=ema_decay, axis_name=axis_name
        )
        return counted(state._replace(model=model, key=key), finite), metrics

    return Algorithm(init, step)


def _coupled(
    couple: Coupling, key: Key, x_0: Array, x_1: Array, axis_name: str | None
) -> tuple[Array, Array]:
    """This device's share of the pairs of the whole batch, the same on all of them."""
    if axis_name is None:
        return couple(key, x_0, x_1)
    words, *ends = (
        jax.lax.all_gather(part, axis_name) for part in (jax.random.key_data(key), x_0, x_1)
    )
    shared_key = jax.random.wrap_key_data(words[0], impl=jax.random.key_impl(key))
    pairs = couple(shared_key, *(end.reshape(-1, end.shape[-1]) for end in ends))
    own = jax.lax.axis_index(axis_name)
    first, second = (end.reshape(-1, *x_0.shape)[own] for end in pairs)
    return first, second


def stratified_times(
    grid: TimeGrid, num_times: int, *, spacing: Spacing = "uniform"
) -> Callable[[Key], Array]:
    """Makes the times of one gradient step, one in each of as many strata.

    Args:
        grid: The time grid.
        num_times: How many.
        spacing: "uniform" over (0, T), or as dense as the points of the "grid".

    Returns:
        Maps a key to ascending times, `MARGIN` off 0 and T, shape `(num_times,)`.

    Raises:
        ValueError: If an option is out of range.
    """
    if num_times < 1:
        raise ValueError(f"num_times = {num_times}: must be ≥ 1")
    if spacing not in SPACINGS:
        raise ValueError(f"spacing = {spacing!r}: must be one of {SPACINGS}")

    def draw(key: Key) -> Array:
        noise = jax.random.uniform(key, (num_times,))
        shares = (jnp.arange(num_times, dtype=noise.dtype) + noise) / num_times
        times = shares * grid.t_max
        if spacing == "grid":
            knots = jnp.arange(grid.num_steps + 1, dtype=shares.dtype)
            times = jnp.interp(shares * grid.num_steps, knots, grid.times)
        return jnp.clip(times, MARGIN * grid.t_max, (1.0 - MARGIN) * grid.t_max)

    return draw


def flow_and_score(
    current: EmbeddedNetwork,
    osmotic: EmbeddedNetwork,
    law: Reference,
    grid: TimeGrid,
    *,
    draw_times: Callable[[Key], Array],
    score_weight: float = 1.0,
) -> Objective:
    """The objective of [SF]²M: probability flow and score of bridges at some times.

    The networks' first outputs are, as in `d2ejax.flows`, the current velocity less the
    reference's drift, v = f + current, and the osmotic velocity g²/2 ∇log p_t = osmotic. With
    `score_weight` one the loss grows from its minimum as the sum of the KL divergences of both
    processes does, but for the weight of the score, which falls off at the ends.

    Args:
        current: Of the parameters "current".
        osmotic: Of the parameters "osmotic".
        law: The reference in continuous time.
        grid: The time grid, for its horizon.
        draw_times: Maps a key to the times of a gradient step, shared by all pairs.
        score_weight: Factor of the score's part of the loss.

    Returns:
        The objective, with the metrics "flow_loss" and "score_loss".
    """

    def objective(key: Key, x_0: Array, x_1: Array):
        time_key, noise_key = jax.random.split(key)
        times = draw_times(time_key)
        shape = (x_0.shape[0], times.shape[0], x_0.shape[1])
        noise = jax.random.normal(noise_key, shape, x_0.dtype)
        at_times = jax.vmap(partial(_bridge_point, law, grid), (None, None, 0, 0))
        at_all = jax.vmap(at_times, (0, 0, None, 0), out_axes=(0, 0, 0, None))
        points, flows, scores, variances = at_all(x_0, x_1, times, noise)
        squared_diffusion = jnp.square(law.diffusion(times))

        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            flow, _ = rollouts.at_times(current, params["current"], points, times)
            push, _ = rollouts.at_times(osmotic, params["osmotic"], points, times)
            score = push * (2.0 / squared_diffusion)[None, :, None]
            parts = {
                "flow_loss": losses.flow_matching_loss(
                    flow, flows, grid.t_max / squared_diffusion
                ),
                "score_loss": losses.score_matching_loss(score, scores, variances),
            }
            return parts["flow_loss"] + score_weight * parts["score_loss"], parts

        return loss

    return objective


def _bridge_point(
    law: Reference, grid: TimeGrid, x_0: Array, x_1: Array, t: Array, noise: Array
) -> tuple[Array, Array, Array, Array]:
    """A point of a pinned bridge, its flow less the reference's drift, score and variance."""
    given = {"start": grid.times[0], "end": grid.t_max}
    mean, variance = references.pinned(law, x_0, x_1, t, **given)
    rates = references.pinned_rates(law, x_0, x_1, t, **given)
    x = mean + jnp.sqrt(variance) * noise
    flow = losses.conditional_flow(x, mean, variance, *rates) - law.drift(x, t)
    return x, flow, losses.conditional_score(x, mean, variance), variance


def flow_alone(
    current: EmbeddedNetwork,
    law: Reference,
    grid: TimeGrid,
    *,
    draw_times: Callable[[Key], Array],
    path_std: float = 0.0,
) -> Objective:
    """The objective of conditional flow matching: velocities of straight lines.

    x_t = (1 - s) x_0 + s x_1 + path_std ε with s = t/T, and the target (x_1 - x_0)/T. The
    reference sets no more than the unit of the loss, its displacement per time.

    Args:
        current: Its first output is the velocity; of the parameters "current".
        law: The reference in continuous time.
        grid: The time grid, for its horizon.
        draw_times: Maps a key to the times of a gradient step, shared by all pairs.
        path_std: Standard deviation around the lines, in units of x.

    Returns:
        The objective.
    """
    t_max = grid.t_max
    weight = t_max**2 / law.variance(grid.times[0], t_max)

    def objective(key: Key, x_0: Array, x_1: Array):
        time_key, noise_key = jax.random.split(key)
        times = draw_times(time_key)
        shares = (times / t_max)[None, :, None]
        points = (1.0 - shares) * x_0[:, None] + shares * x_1[:, None]
        points += path_std * jax.random.normal(noise_key, points.shape, points.dtype)
        targets = jnp.broadcast_to(((x_1 - x_0) / t_max)[:, None], points.shape)

        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            velocity, _ = rollouts.at_times(current, params["current"], points, times)
            weights = jnp.full_like(times, weight)
            return losses.flow_matching_loss(velocity, targets, weights), {}

        return loss

    return objective


def bridge_regression(
    forward: Process, backward: Process, law: Reference, grid: TimeGrid
) -> Objective:
    """The objective of bridge regression: both processes fitted to pinned paths on the grid.

    Args:
        forward: The forward process, of the parameters "forward".
        backward: The backward process, of the parameters "backward".
        law: The reference in continuous time.
        grid: The time grid.

    Returns:
        The objective, with the metrics "forward_loss" and "backward_loss", in nats per path.
    """

    def objective(key: Key, x_0: Array, x_1: Array):
        paths = pinned_paths(key, law, x_0, x_1, grid)

        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            parts = {
                f"{name}_loss": bridge_loss(process, params[name], paths, law, grid)
                for name, process in (("forward", forward), ("backward", backward))
            }
            return parts["forward_loss"] + parts["backward_loss"], parts

        return loss

    return objective
