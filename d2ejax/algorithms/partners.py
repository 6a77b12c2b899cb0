"""What stands opposite to the trained process in a half-step.

Either the learned opposite process, or the reference with a potential in closed form, averaged
over anchors of the end that the trained process starts from (the semi-discrete half-step), or
whichever of the two the effective number of anchors speaks for.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax import losses, non_finite, references, rollouts
from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key, LogDensity, Params


class Partner(NamedTuple):
    """The other factor of the log path ratio.

    Attributes:
        draw: Maps a key and goal points `(n, dim)` to paths that end (or, for a backward
            half-step, start) there, shape `(n, num_steps + 1, dim)`.
        log_density: Maps paths `(..., num_steps + 1, dim)` to their log-densities given their
            goals, `(...)`, up to a constant or, in the semi-discrete case, a function of the
            start.
        effective_anchors: Maps a goal point to the effective number of samples behind that
            log-density; NaN where none are used.
        in_closed_form: Whether the semi-discrete half-bridge stands there; a boolean scalar.
    """

    draw: Callable[[Key, Array], Array]
    log_density: Callable[[Array], Array]
    effective_anchors: Callable[[Array], Array]
    in_closed_form: Array


def learned(process: Process, params: Params) -> Partner:
    """The opposite process, as it was last trained."""

    def draw(key: Key, goals: Array) -> Array:
        keys = jax.random.split(key, goals.shape[0])
        simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
        return simulate(keys, process, params, goals)

    return Partner(
        draw,
        lambda paths: rollouts.log_density(process, params, paths),
        lambda goal: jnp.full((), jnp.nan),
        in_closed_form=jnp.asarray(False),
    )


class Anchors(NamedTuple):
    """A minibatch that stands for the end where the trained process starts.

    Attributes:
        positions: `(num_anchors, dim)`.
        log_importance: log p_0 / b, up to a constant, for anchors drawn from a density b other
            than the end's own, `(num_anchors,)`; -∞ for one without mass, None for true
            samples.
    """

    positions: Array
    log_importance: Array | None


def smoothed_anchors(
    key: Key, positions: Array, log_density: LogDensity, num_anchors: int
) -> Anchors:
    """Importance-weighted anchors of an end known by its energy, from particles near its mass.

    The proposal is a Gaussian kernel density estimate of the particles, whose own density is
    known, so that the weighted anchors represent the end exactly in the limit, however the
    particles are distributed: a mode holding too many of them gets a smaller weight each.

    Args:
        key: A typed key.
        positions: Particles, `(n, dim)`.
        log_density: The end's log-density.
        num_anchors: How many to draw.

    Returns:
        The anchors.
    """
    choice_key, noise_key = jax.random.split(key)
    num_particles, dim = positions.shape
    # Silverman's rule, per coordinate; never zero, even if all particles coincide.
    spread = jnp.maximum(jnp.std(positions, axis=0), 1e-6)
    centre = jnp.mean(positions, axis=0)
    bandwidth = spread * num_particles ** (-1.0 / (dim + 4))
    chosen = positions[jax.random.randint(choice_key, (num_anchors,), 0, num_particles)]
    anchors = chosen + bandwidth[None] * jax.random.normal(noise_key, (num_anchors, dim))

    def log_proposal(x: Array) -> Array:
        # In units of the bandwidth, but centred first: it may be tiny beside the positions.
        y = (x - centre) / bandwidth
        distances = _squared_distances((positions - centre[None]) / bandwidth[None], y)
        return jax.nn.logsumexp(-0.5 * distances)

    log_importance = jax.vmap(lambda x: log_density(x) - log_proposal(x))(anchors)
    weighs = non_finite.has_mass(log_importance)
    return Anchors(anchors, jnp.where(weighs, log_importance, -jnp.inf))


def draw_anchors(key: Key, anchors: Anchors, n: int) -> Array:
    """Some `(n, dim)` of the anchors, each as often as its importance says."""
    log_weights = anchors.log_importance
    if log_weights is None:
        log_weights = jnp.zeros(anchors.positions.shape[0])
    return anchors.positions[jax.random.categorical(key, log_weights, shape=(n,))]


def semi_discrete(
    anchors: Anchors,
    potentials: Array,
    law: Reference,
    reference: Process,
    grid: TimeGrid,
    *,
    backward: bool,
) -> Partner:
    """The half-bridge of the reference in closed form, against a minibatch.

    Forward half-step: log R(τ | x_K) = log Q(τ | x_0) - log φ_T(x_K) up to a function of x_0,
    with φ_T averaged over the anchors x_0^m (see `d2ejax.losses.semi_discrete`), and paths from
    x_K are pinned bridges to an anchor drawn with its weight. Mirrored for a backward one.

    Args:
        anchors: Samples of the end where the trained process starts, weighted or not.
        potentials: Their potentials c, `(num_anchors,)`.
        law: The reference in continuous time.
        reference: The reference on the grid.
        grid: The time grid.
        backward: Whether the trained process runs backward.

    Returns:
        The partner.
    """
    goal_end = 0 if backward else -1

    def log_weights(goal: Array) -> Array:
        log_transitions = _log_transitions(law, grid, anchors.positions, goal, backward)
        return losses.anchor_log_weights(log_transitions, potentials, anchors.log_importance)

    def draw_one(key: Key, goal: Array) -> Array:
        choice_key, bridge_key = jax.random.split(key)
        anchor = anchors.positions[jax.random.categorical(choice_key, log_weights(goal))]
        x_0, x_1 = (goal, anchor) if backward else (anchor, goal)
        return references.pinned_path(bridge_key, law, x_0, x_1, grid)

    def draw(key: Key, goals: Array) -> Array:
        return jax.vmap(draw_one)(jax.random.split(key, goals.shape[0]), goals)

    def log_density(paths: Array) -> Array:
        goals = paths[..., goal_end, :].reshape(-1, paths.shape[-1])
        log_potentials = jax.vmap(lambda goal: losses.log_potential(log_weights(goal)))(goals)
        log_reference = rollouts.log_density(reference, None, paths)
        return log_reference - log_potentials.reshape(log_reference.shape)

    return Partner(
        draw,
        log_density,
        lambda goal: losses.effective_anchors(log_weights(goal)),
        in_closed_form=jnp.asarray(True),
    )


def potential_gradient(
    anchors: Anchors, potentials: Array, law: Reference, grid: TimeGrid, goal: Array
) -> tuple[Array, Array]:
    """∇log φ_T at one goal of a forward half-step, in closed form against a minibatch.

    The scores of the transitions from the anchors, averaged with their weights; see
    `d2ejax.losses.semi_discrete`.

    Args:
        anchors: Samples of the source, weighted or not.
        potentials: Their potentials c, `(num_anchors,)`.
        law: The reference in continuous time.
        grid: The time grid.
        goal: Where, shape `(dim,)`.

    Returns:
        The gradient, `(dim,)`, and the effective number of anchors behind it.
    """
    start, end = grid.times[0], grid.times[-1]
    log_transitions = _log_transitions(law, grid, anchors.positions, goal, backward=False)
    log_weights = losses.anchor_log_weights(log_transitions, potentials, anchors.log_importance)
    mean = jnp.matmul(
        jax.nn.softmax(log_weights), anchors.positions, precision=jax.lax.Precision.HIGHEST
    )
    gradient = (law.scale(start, end) * mean - goal) / law.variance(start, end)
    return gradient, losses.effective_anchors(log_weights)


def _log_transitions(
    law: Reference, grid: TimeGrid, anchors: Array, goal: Array, backward: bool
) -> Array:
    """Log-density of the reference's transition between each anchor and one goal."""
    start, end = grid.times[0], grid.times[-1]
    scale, variance = law.scale(start, end), law.variance(start, end)
    near, far = (anchors, scale * goal) if backward else (scale * anchors, goal)
    distances = _squared_distances(near, far)
    constant = goal.shape[-1] * (jnp.log(variance) + math.log(2.0 * math.pi))
    return -0.5 * (distances / variance + constant)


def _squared_distances(points: Array, y: Array) -> Array:
    """Squared distances of `(n, dim)` points from one, as a product of matrices under `vmap`.

    All goals times all anchors times all coordinates is by far the largest array of a gradient
    step, so it is better not to make it.
    """
    # Near the points' centre little is lost where the squares cancel.
    centre = jnp.mean(points, axis=0)
    points, y = points - centre[None], y - centre
    squares = jnp.sum(jnp.square(points), axis=1) + jnp.sum(jnp.square(y))
    # Accelerators would round the factors first, an error of tenths of a nat in a log-weight.
    products = jnp.matmul(points, y, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(squares - 2.0 * products, 0.0)


def hybrid(
    closed_form: Partner, opposite: Partner, goals: Array, *, min_anchors: float
) -> Partner:
    """The half-bridge in closed form while enough anchors count, else the learned process.

    The choice is one for the whole gradient step: the log path ratios of the two differ by a
    function of the start, so that a group of paths must not mix them.

    Args:
        closed_form: A semi-discrete partner.
        opposite: A learned one.
        goals: The goal points of this gradient step, `(n, dim)`.
        min_anchors: Effective anchors, on average over the goals, that are enough.

    Returns:
        The partner.
    """
    effective = jnp.mean(jax.vmap(closed_form.effective_anchors)(goals))
    enough = effective >= min_anchors
    return Partner(
        lambda key, ends: jax.lax.cond(enough, closed_form.draw, opposite.draw, key, ends),
        lambda p: jax.lax.cond(enough, closed_form.log_density, opposite.log_density, p),
        closed_form.effective_anchors,
        in_closed_form=enough,
    )
