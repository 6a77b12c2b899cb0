"""The losses of adjoint methods on pairs of ends, and what stands for the corrector in them.

See `d2ejax.algorithms.adjoint` for the methods.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from d2ejax import losses, references, rollouts
from d2ejax.algorithms import partners
from d2ejax.algorithms.adjoint_replay import Pairs
from d2ejax.algorithms.bridges import pinned_paths
from d2ejax.algorithms.half_steps import Objective
from d2ejax.algorithms.partners import Anchors
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.exploration.particles import Particles
from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key, Params

Corrector = Literal["learned", "semi_discrete", "reference", "independent", "none"]
CORRECTORS: tuple[Corrector, ...] = get_args(Corrector)
WITH_ANCHORS: tuple[Corrector, ...] = ("semi_discrete", "reference")
"""Correctors that average over samples of the source."""


class AdjointSampler(NamedTuple):
    """Everything fixed about an adjoint method. Schedules map a gradient step to a scalar.

    Attributes:
        corrector: What stands for ∇log φ_T.
        forward: The forward process.
        backward: The backward process.
        reference: The reference on the grid.
        law: The reference in continuous time.
        grid: The time grid.
        source: What the source offers to training: samples.
        target: What the target offers to training: its energy.
        learn_variance: Whether the forward process has a variance to learn. Adjoints say
            nothing of it: it is fitted to the residual of the same pinned steps about the
            process's own means, as bridge matching does.
        potential: Network of c, `(params, x) -> scalar`; of "semi_discrete".
        score: Network of h, `(params, x) -> (dim,)`; of "learned".
        particles: How the target is explored for off-policy pairs; of "semi_discrete", None for
            none.
        batch_size: Paths in one gradient step, on each device.
        num_anchors: Samples of the source behind φ_T.
        rollout_size: Paths simulated at once, on each device.
        rollout_every: Gradient steps of a stage after which that many join the replay.
        replay_size: Pairs that it keeps, on each device.
        max_gradient: Largest norm of ∇E_1; longer ones are cut to it.
        curvature: λ ≥ 0, about that of the target's energy, per squared unit of x; see
            `path_adjoints`.
        damping: Weight η ≥ 0 of the previous iterate, the process as the last rollout found it,
            beside the target (Blessing et al. 2026).
        off_policy_ratio: Schedule of the share of pairs that come from particles. The loss
            regresses on gradients at whatever ends it is given, so that the particles have to
            have the law of the target.
        inverse_temperature: Schedule of the factor of the target's energy.
        add_ends: Whether the ends of simulated paths join the particles.
    """

    corrector: Corrector
    forward: Process
    backward: Process
    reference: Process
    law: Reference
    grid: TimeGrid
    source: Endpoint
    target: Endpoint
    learn_variance: bool
    potential: Callable[[Params, Array], Array] | None = None
    score: Callable[[Params, Array], Array] | None = None
    particles: Particles | None = None
    batch_size: int = 128
    num_anchors: int = 1024
    rollout_size: int = 512
    rollout_every: int = 20
    replay_size: int = 4096
    max_gradient: float = jnp.inf
    curvature: float = 0.0
    damping: float = 0.0
    off_policy_ratio: optax.Schedule = optax.constant_schedule(0.0)
    inverse_temperature: optax.Schedule = optax.constant_schedule(1.0)
    add_ends: bool = True


def objective(
    given: AdjointSampler,
    key: Key,
    pairs: Pairs,
    *,
    average: Params,
    corrector: Params,
    previous: Params,
    step: Array,
) -> Objective:
    """The loss of the forward process, and of the potential, on bridges between given ends.

    Args:
        given: The method.
        key: A typed key.
        pairs: The ends, with ∇E_1.
        average: The moving average of the forward model's parameters, for "semi_discrete".
        corrector: Parameters of h, for "learned".
        previous: Parameters of the previous iterate's drift, for damping.
        step: Gradient steps so far.

    Returns:
        Maps the forward model's parameters to the loss, in nats per path, with the metric
        "anchors", the mean effective number of samples behind φ_T.
    """
    anchor_key, path_key = jax.random.split(key)
    corrections, anchors = correction(given, anchor_key, pairs, average, corrector)
    costs = given.inverse_temperature(step) * pairs.gradients + corrections
    paths = pinned_paths(path_key, given.law, pairs.starts, pairs.ends, given.grid)
    plain = adjoints = path_adjoints(given, paths, costs)
    steps, seen = given.forward.steps, paths[:, :-1]
    variances = jnp.exp(steps.log_variance)
    pulls = variances / steps.scale
    if given.damping:
        found = rollouts.step_kernels(given.forward, previous, seen).mean
        before = -(found - steps.scale[None, :, None] * seen) / pulls[None, :, None]
        # The minimiser of ‖u - target‖² + η ‖u - before‖².
        adjoints = (adjoints + given.damping * before) / (1.0 + given.damping)
    total = given.law.variance(given.grid.times[0], given.grid.t_max)
    potential = given.potential if given.corrector == "semi_discrete" else None

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        means, log_variances = rollouts.step_kernels(given.forward, params["drift"], seen)
        shifts = means - steps.scale[None, :, None] * seen
        value = losses.adjoint_matching_loss(shifts, adjoints, pulls, variances)
        if given.learn_variance:
            targets = references.pinned_step(given.law, paths, given.grid)
            fixed = jax.lax.stop_gradient(means)
            value += losses.bridge_matching_loss(fixed, log_variances, *targets)
        if potential is not None:
            gradient = jax.vmap(jax.grad(potential, argnums=1), (None, 0))
            slopes = gradient(params["potential"], pairs.starts)
            value += losses.potential_gradient_loss(slopes, plain[:, 0], total)
        return value, {"anchors": anchors}

    return loss


def path_adjoints(given: AdjointSampler, paths: Array, costs: Array) -> Array:
    """The adjoints along bridges of the reference, of the gradients of the cost at their ends.

    That is scale(t, T) (∇E_1 + h)(x_T), and with a curvature λ > 0 a mixture of it and of
    -∇_{x_t} log q(x_T | x_t), the pull to the bridge's own end. By Stein's identity both have
    one conditional mean given x_t where x_T has the density ∝ q(x_T | x_t) ψ_T(x_T), as it has
    at the bridge, while their noise is opposite: with the share c_t = λ V_t / (1 + λ V_t) of
    the second, V_t the variance of q(x_T | x_t), it cancels altogether for a Gaussian ψ_T of
    the variance 1/λ. The first alone has λ V_t times the noise of the second. What the second
    adds holds on to the process that the ends are from, so that it converges in smaller steps.
    (A control variate, as c(t) is of Blessing et al. 2026, arXiv:2603.00530.)

    Args:
        given: The method.
        paths: Bridges, `(num_paths, num_steps + 1, dim)`.
        costs: (∇E_1 + h)(x_T), `(num_paths, dim)`.

    Returns:
        At the first state of every step, `(num_paths, num_steps, dim)`.
    """
    times, end = given.grid.times[:-1], given.grid.t_max
    scales, variances = given.law.scale(times, end), given.law.variance(times, end)
    adjoints = scales[None, :, None] * costs[:, None]
    if not given.curvature:
        return adjoints
    misses = scales[None, :, None] * paths[:, :-1] - paths[:, -1:]
    pulls = (scales / variances)[None, :, None] * misses
    share = (given.curvature * variances / (1.0 + given.curvature * variances))[None, :, None]
    return (1.0 - share) * adjoints + share * pulls


def correction(
    given: AdjointSampler, key: Key, pairs: Pairs, average: Params, corrector: Params
) -> tuple[Array, Array]:
    """The corrector at the ends of some pairs.

    Args:
        given: The method.
        key: A typed key, for the anchors.
        pairs: The pairs.
        average: The moving average of the forward model's parameters, for "semi_discrete".
        corrector: Parameters of h, for "learned".

    Returns:
        h, `(n, dim)`, and the mean effective number of anchors behind it, NaN without.
    """
    if given.corrector in WITH_ANCHORS:
        anchors, potentials = source_anchors(given, key, average)
        gradient = partial(
            partners.potential_gradient, anchors, potentials, given.law, given.grid
        )
        found, effective = jax.vmap(gradient)(pairs.ends)
        return found, jnp.mean(effective)
    if given.corrector == "learned" and given.score is not None:
        found = jax.vmap(given.score, (None, 0))(corrector, pairs.ends)
    elif given.corrector == "independent":
        found = _transition_scores(given, pairs)
    else:
        found = jnp.zeros_like(pairs.ends)
    return found, jnp.full((), jnp.nan)


def corrector_objective(given: AdjointSampler, pairs: Pairs) -> Objective:
    """The loss of the network of h on some pairs, as a function of its parameters."""
    score, targets = given.score, _transition_scores(given, pairs)
    if score is None:
        raise ValueError("score = None: must be a network with corrector = 'learned'")
    # A pair of an empty replay has no gradient, and is not to be trained on here either.
    valid = jnp.where(jnp.isfinite(pairs.gradients[0, 0]), 1.0, jnp.nan)
    total = valid * given.law.variance(given.grid.times[0], given.grid.t_max)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        found = jax.vmap(score, (None, 0))(params, pairs.ends)
        return losses.corrector_loss(found, targets, total), {}

    return loss


def _transition_scores(given: AdjointSampler, pairs: Pairs) -> Array:
    """∇_{x_T} log q(x_T | x_0) of each pair."""
    start, end = given.grid.times[0], given.grid.t_max
    means, variance = given.law.scale(start, end) * pairs.starts, given.law.variance(start, end)
    return jax.vmap(losses.conditional_score, (0, 0, None))(pairs.ends, means, variance)


def source_anchors(given: AdjointSampler, key: Key, average: Params) -> tuple[Anchors, Array]:
    """Fresh samples of the source, with their potentials c.

    Args:
        given: The method.
        key: A typed key.
        average: The moving average of the forward model's parameters.

    Returns:
        The anchors and c at them, `(num_anchors,)`.
    """
    positions = endpoints.sampler(given.source)(key, given.num_anchors)
    if given.corrector == "reference" or given.potential is None:
        return Anchors(positions, None), jnp.zeros(given.num_anchors)
    # The average is the slow copy of the potential that keeps the fixed point stable.
    potentials = jax.vmap(given.potential, (None, 0))(average["potential"], positions)
    return Anchors(positions, None), potentials
