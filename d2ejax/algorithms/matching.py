"""Matching: minibatches of both ends are coupled and a regression fitted to what joins them.

Nothing is simulated and nothing alternates. As good as the coupling is near to the plan of the
bridge, the minimiser is near to the bridge: its probability flow and score ([SF]²M, Tong et al.
2024, arXiv:2307.03672), or its forward and its backward kernels on the grid. Of a coupling by
optimal transport and straight lines remains conditional flow matching (Tong et al. 2024,
arXiv:2302.00482), the limit of vanishing noise: a flow alone.

Which of these it is, is said by the objective, which draws the data of one gradient step.

What is observed may be a process at more times than two. The reference being Markov, its bridge
through all of these marginals is, *leg* by leg, the bridge between one and the next: every leg
is coupled and regressed on by itself, while one network, or one for each process, stands for
all of them (Tong et al. 2024, on cells). Two ends are the case of one leg.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from d2ejax import losses, references, rollouts, time_grids
from d2ejax.algorithms import legs
from d2ejax.algorithms.base import (
    Algorithm,
    State,
    all_shares,
    counted,
    gradient_step,
    init_state,
)
from d2ejax.algorithms.bridges import joined_bridge_loss, pinned_paths
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, AxisName, EmbeddedNetwork, Key, Params

Spacing = Literal["uniform", "grid"]
SPACINGS: tuple[Spacing, ...] = ("uniform", "grid")

MARGIN = 1e-3
"""Share of a leg left out at either end, where the conditional flow of a bridge is noise: its
second moment diverges as the logarithm of this."""

Coupling = Callable[[Key, Array, Array], tuple[Array, Array]]

Objective = Callable[[Key, Array, Array], Callable[[Params], tuple[Array, dict[str, Array]]]]
"""Maps `(key, x_0, x_1)`, coupled ends `(num_legs, n, dim)` of each leg, or `(n, dim)` of a
single one, to the loss of parameters on what is drawn between them, with its metrics."""


def matching(
    ends: Sequence[Endpoint],
    couple: Coupling | Sequence[Coupling],
    objective: Objective,
    *,
    batch_size: int,
    init_params: Callable[[Key], Params],
    optimiser: optax.GradientTransformation,
    ema_decay: float,
    axis_name: AxisName | None = None,
) -> Algorithm:
    """A regression on coupled minibatches of two ends, or of all that is observed in between.

    Args:
        ends: What the source, each marginal in between and the target offer to training:
            samples.
        couple: Re-pairs `(key, x_0, x_1)`, the ends of a leg; see `d2ejax.couplings`. What it
            sees is the batch of all devices: of less, an optimal plan would be another. One
            for all legs, or one for each.
        objective: What is drawn between the pairs, and the loss on it.
        batch_size: Pairs in one gradient step, of each leg and on each device.
        init_params: Maps a key to the parameters.
        optimiser: Of the parameters.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `base.State`, its parameters a dict by the objective's
        names.

    Raises:
        ValueError: If an end offers no samples, or there are not as many couplings as legs.
    """
    samplers, num_legs = [endpoints.sampler(end) for end in ends], len(ends) - 1
    couplings = [couple] * num_legs if callable(couple) else list(couple)
    if len(couplings) != num_legs or num_legs < 1:
        raise ValueError(
            f"couple: has {len(couplings)} couplings: must be one, or one for each of the "
            f"{num_legs} legs between {len(ends)} ends"
        )

    def init(key: Key) -> State:
        return init_state(key, init_params, optimiser, axis_name)

    def step(state: State) -> tuple[State, dict[str, Array]]:
        key, *keys = jax.random.split(state.key, 5)
        end_keys = (keys[0], *legs.keys(keys[1], num_legs))
        drawn = [sample(k, batch_size) for sample, k in zip(samplers, end_keys, strict=True)]
        pairs = [
            _coupled(couplings[i], k, drawn[i], drawn[i + 1], axis_name)
            for i, k in enumerate(legs.keys(keys[3], num_legs))
        ]
        loss_fn = objective(keys[2], *map(jnp.stack, zip(*pairs, strict=True)))
        model, finite, metrics = gradient_step(
            loss_fn, state.model, optimiser, decay=ema_decay, axis_name=axis_name
        )
        return counted(state._replace(model=model, key=key), finite), metrics

    return Algorithm(init, step)


def _coupled(
    couple: Coupling, key: Key, x_0: Array, x_1: Array, axis_name: AxisName | None
) -> tuple[Array, Array]:
    """This device's share of the pairs of the whole batch, the same on all of them."""
    if axis_name is None:
        return couple(key, x_0, x_1)
    words, *ends = (
        all_shares(part, axis_name) for part in (jax.random.key_data(key), x_0, x_1)
    )
    shared_key = jax.random.wrap_key_data(words[0], impl=jax.random.key_impl(key))
    pairs = couple(shared_key, *(end.reshape(-1, end.shape[-1]) for end in ends))
    own = jax.lax.axis_index(axis_name)
    first, second = (end.reshape(-1, *x_0.shape)[own] for end in pairs)
    return first, second


def stratified_times(
    grid: TimeGrid,
    num_times: int,
    *,
    spacing: Spacing = "uniform",
    knots: Sequence[int] = (),
) -> Callable[[Key], Array]:
    """Makes the times of one gradient step, one in each of as many strata of each leg.

    Args:
        grid: The time grid.
        num_times: How many in each leg.
        spacing: "uniform" over a leg, or as dense as the points of the "grid".
        knots: Points of the grid, counted from 0, at which one leg ends and the next begins.

    Returns:
        Maps a key to ascending times, `MARGIN` of its leg off both of its ends, shape
        `(num_legs * num_times,)`.

    Raises:
        ValueError: If an option is out of range.
    """
    if num_times < 1:
        raise ValueError(f"num_times = {num_times}: must be ≥ 1")
    if spacing not in SPACINGS:
        raise ValueError(f"spacing = {spacing!r}: must be one of {SPACINGS}")
    starts, lengths = (part[:, None] for part in legs.spans(grid, knots))
    edges = jnp.asarray([0, *knots, grid.num_steps], starts.dtype)

    def draw(key: Key) -> Array:
        noise = jax.random.uniform(key, (len(starts), num_times))
        shares = (jnp.arange(num_times, dtype=noise.dtype)[None] + noise) / num_times
        times = starts + shares * lengths
        if spacing == "grid":
            points = jnp.arange(grid.num_steps + 1, dtype=shares.dtype)
            first, steps = edges[:-1, None], jnp.diff(edges)[:, None]
            times = jnp.interp(first + shares * steps, points, grid.times)
        low, high = (starts + share * lengths for share in (MARGIN, 1.0 - MARGIN))
        return jnp.clip(times, low, high).reshape(-1)

    return draw


def flow_and_score(
    current: EmbeddedNetwork,
    osmotic: EmbeddedNetwork,
    law: Reference,
    grid: TimeGrid,
    *,
    draw_times: Callable[[Key], Array],
    score_weight: float = 1.0,
    knots: Sequence[int] = (),
    of_drift: bool = False,
) -> Objective:
    """The objective of [SF]²M: probability flow and score of bridges at some times.

    The networks' first outputs are, as in `d2ejax.flows`, the current velocity less the
    reference's drift, v = f + current, and the osmotic velocity g²/2 ∇log p_t = osmotic. With
    `score_weight` one the loss grows from its minimum as the sum of the KL divergences of both
    processes does, but for the weight of the score, which falls off at the ends of a leg.

    Args:
        current: Of the parameters "current".
        osmotic: Of the parameters "osmotic".
        law: The reference in continuous time.
        grid: The time grid, for the times of its ends and knots.
        draw_times: Maps a key to the times of a gradient step, shared by all pairs: as many in
            each leg, leg after leg.
        score_weight: Factor of the score's part of the loss.
        knots: Points of the grid, counted from 0, at which one leg ends and the next begins.
        of_drift: Whether the first network is that of the forward drift, current + osmotic, so
            that the flow is what the score leaves of it; no gradient of the flow's loss then
            reaches the score.

    Returns:
        The objective, with the metrics "flow_loss" and "score_loss".

    Raises:
        ValueError: If the knots are not points between the ends of the grid, in order.
    """
    starts, lengths = legs.spans(grid, knots)
    num_legs = len(starts)
    at_times = jax.vmap(partial(_bridge_point, law), (None, None, None, 0, 0))
    at_pairs = jax.vmap(at_times, (None, 0, 0, None, 0), out_axes=(0, 0, 0, None))
    at_legs = jax.vmap(at_pairs, out_axes=(1, 1, 1, 0))

    def objective(key: Key, x_0: Array, x_1: Array):
        time_key, noise_key = jax.random.split(key)
        times = draw_times(time_key)
        by_leg, x_0, x_1 = legs.split(num_legs, times, x_0, x_1)
        shape = (*x_0.shape[:2], by_leg.shape[1], x_0.shape[2])
        noise = jax.random.normal(noise_key, shape, x_0.dtype)
        *drawn, variances = at_legs((starts, starts + lengths), x_0, x_1, by_leg, noise)
        points, flows, scores = map(legs.along, drawn)
        # The mean over all times is one over the legs; the divergences are sums over them.
        squared_diffusion = jnp.square(law.diffusion(times))
        spans = num_legs * jnp.repeat(lengths, by_leg.shape[1])
        score_weights = num_legs * variances.reshape(-1)

        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            flow, _ = rollouts.at_times(current, params["current"], points, times)
            push, _ = rollouts.at_times(osmotic, params["osmotic"], points, times)
            score = push * (2.0 / squared_diffusion)[None, :, None]
            if of_drift:
                flow = flow - jax.lax.stop_gradient(push)
            parts = {
                "flow_loss": losses.flow_matching_loss(flow, flows, spans / squared_diffusion),
                "score_loss": losses.score_matching_loss(score, scores, score_weights),
            }
            return parts["flow_loss"] + score_weight * parts["score_loss"], parts

        return loss

    return objective


def _bridge_point(
    law: Reference, leg: tuple[Array, Array], x_0: Array, x_1: Array, t: Array, noise: Array
) -> tuple[Array, Array, Array, Array]:
    """A point of a pinned bridge, its flow less the reference's drift, score and variance."""
    given = {"start": leg[0], "end": leg[1]}
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
    knots: Sequence[int] = (),
) -> Objective:
    """The objective of conditional flow matching: velocities of straight lines.

    On a leg of length L from t_0 on, x_t = (1 - s) x_0 + s x_1 + path_std ε with the share
    s = (t - t_0)/L, and the target (x_1 - x_0)/L. The reference sets no more than the unit of
    the loss, its displacement per time.

    Args:
        current: Its first output is the velocity; of the parameters "current".
        law: The reference in continuous time.
        grid: The time grid, for the times of its ends and knots.
        draw_times: Maps a key to the times of a gradient step, shared by all pairs: as many in
            each leg, leg after leg.
        path_std: Standard deviation around the lines, in units of x.
        knots: Points of the grid, counted from 0, at which one leg ends and the next begins.

    Returns:
        The objective.

    Raises:
        ValueError: If the knots are not points between the ends of the grid, in order.
    """
    starts, lengths = legs.spans(grid, knots)
    num_legs = len(starts)
    leg_weights = num_legs * lengths**2 / law.variance(starts, starts + lengths)

    def objective(key: Key, x_0: Array, x_1: Array):
        time_key, noise_key = jax.random.split(key)
        times = draw_times(time_key)
        by_leg, x_0, x_1 = legs.split(num_legs, times, x_0, x_1)
        shares = ((by_leg - starts[:, None]) / lengths[:, None])[None, :, :, None]
        # Pairs, legs, times in a leg, coordinates.
        early, late = (jnp.swapaxes(x, 0, 1)[:, :, None] for x in (x_0, x_1))
        points = legs.along((1.0 - shares) * early + shares * late)
        points += path_std * jax.random.normal(noise_key, points.shape, points.dtype)
        velocities = (late - early) / lengths[None, :, None, None]
        targets = legs.along(jnp.repeat(velocities, by_leg.shape[1], axis=2))
        weights = jnp.repeat(leg_weights, by_leg.shape[1])

        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            velocity, _ = rollouts.at_times(current, params["current"], points, times)
            return losses.flow_matching_loss(velocity, targets, weights), {}

        return loss

    return objective


def bridge_regression(
    forward: Process,
    backward: Process,
    law: Reference,
    grid: TimeGrid,
    *,
    knots: Sequence[int] = (),
) -> Objective:
    """The objective of bridge regression: both processes fitted to pinned paths on the grid.

    Args:
        forward: The forward process, of the parameters "forward".
        backward: The backward process, of the parameters "backward".
        law: The reference in continuous time.
        grid: The time grid.
        knots: Points of the grid, counted from 0, at which one leg ends and the next begins.

    Returns:
        The objective, with the metrics "forward_loss" and "backward_loss", in nats per path.

    Raises:
        ValueError: If the knots are not points between the ends of the grid, in order.
    """
    pieces = time_grids.cut(grid, knots)

    def objective(key: Key, x_0: Array, x_1: Array):
        x_0, x_1 = (x.reshape(len(pieces), -1, x.shape[-1]) for x in (x_0, x_1))
        keys = legs.keys(key, len(pieces))
        paths = [
            (pinned_paths(keys[i], law, x_0[i], x_1[i], piece), piece)
            for i, piece in enumerate(pieces)
        ]

        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            parts = {
                f"{name}_loss": joined_bridge_loss(process, params[name], paths, law)
                for name, process in (("forward", forward), ("backward", backward))
            }
            return parts["forward_loss"] + parts["backward_loss"], parts

        return loss

    return objective
