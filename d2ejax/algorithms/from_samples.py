"""Half-steps whose pinned end offers samples, from which the opposite process draws paths."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from d2ejax import losses, rollouts
from d2ejax.algorithms import half_steps, partners
from d2ejax.algorithms.bridges import bridge_loss, pinned_paths
from d2ejax.algorithms.half_steps import METRICS, HalfStep, Inputs, Objective
from d2ejax.endpoints import base as endpoints
from d2ejax.typing import Array, Key, Params


def objective(half: HalfStep, key: Key, inputs: Inputs) -> Objective:
    """Draws the data of one gradient step of a loss that needs samples of the pinned end.

    Args:
        half: The half-step.
        key: A typed key.
        inputs: What it reads.

    Returns:
        The loss on that data as a function of the trained parameters, with its metrics.

    Raises:
        ValueError: If a loss of paths as they were drawn is to rejoin their ends.
    """
    goal_key, path_key, own_key = jax.random.split(key, 3)
    if inputs.cache is None:
        paths = _paths(half, goal_key, path_key, inputs, half.batch_size)
    else:
        chosen = jax.random.randint(path_key, (half.batch_size,), 0, inputs.cache.shape[0])
        paths = inputs.cache[chosen]
    value = on_paths(half, own_key, inputs, paths)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        metrics = {name: jnp.full((), jnp.nan) for name in METRICS}
        return value(params["drift"]), metrics

    return loss


def on_paths(
    half: HalfStep, key: Key, inputs: Inputs, paths: Array
) -> Callable[[Params], Array]:
    """The loss of given paths of the opposite process.

    Args:
        half: The half-step.
        key: A typed key, for all else that is random.
        inputs: What it reads.
        paths: Shape `(n, num_steps + 1, dim)`; where their ends are rejoined by the reference,
            the first and the last point are all that counts.

    Returns:
        Maps the parameters of the trained process to a scalar.

    Raises:
        ValueError: If a loss of paths as they were drawn is to rejoin their ends.
    """
    if _rejoins(half):
        paths = pinned_paths(key, half.law, paths[:, 0], paths[:, -1], half.grid)
    return _LOSSES[half.loss](half, key, inputs, paths)


def init_cache(half: HalfStep) -> Array | None:
    """An empty cache, to be filled by the first gradient step; None if none is kept."""
    if not half.cached_batches or half.loss not in half_steps.FROM_SAMPLES:
        return None
    num_points = 2 if _rejoins(half) else half.grid.num_steps + 1
    return jnp.zeros((half.cached_batches * half.batch_size, num_points, half.goal.dim))


def refresh_cache(half: HalfStep, key: Key, inputs: Inputs, cache: Array) -> Array:
    """Simulates all paths of a cache anew where a gradient step is to begin with that.

    Args:
        half: The half-step.
        key: A typed key.
        inputs: What it reads.
        cache: The cache as it is, `(n, num_points, dim)`: of paths whose ends will be rejoined
            by the reference the two ends, else all points.

    Returns:
        The cache as it is to be used.
    """
    goal_key, path_key = jax.random.split(key)

    def anew() -> Array:
        paths = _paths(half, goal_key, path_key, inputs, cache.shape[0])
        return jnp.stack([paths[:, 0], paths[:, -1]], axis=1) if _rejoins(half) else paths

    return jax.lax.cond(inputs.step % half.cache_every == 0, anew, lambda: cache)


def _rejoins(half: HalfStep) -> bool:
    """Whether the reference takes the place of the paths' interior."""
    if half.reanchor and half.loss in half_steps.WITH_FIXED_VARIANCE:
        raise ValueError(
            f"reanchor = True: must be False with the loss {half.loss!r}, which reads the "
            "score of the opposite process off its own steps"
        )
    return half.reanchor or half.loss == "bridge_matching"


def _paths(half: HalfStep, goal_key: Key, key: Key, inputs: Inputs, n: int) -> Array:
    """Paths of the opposite process from the goal, or their ends alone in the right places."""
    goals = endpoints.sampler(half.goal)(goal_key, n)
    opposite = partners.learned(half.opposite, inputs.opposite["drift"])
    if half.loss != "bridge_matching" or half.first_coupling == "reference":
        return opposite.draw(key, goals)

    def independent(key: Key, goals: Array) -> Array:
        starts = endpoints.sampler(half.start)(key, goals.shape[0])
        early, late = (starts, goals) if half.start_end == 0 else (goals, starts)
        # Of what lies between them nothing is kept.
        return jnp.stack([early, *[late] * half.grid.num_steps], axis=1)

    first = inputs.opposite_step == 0
    return jax.lax.cond(first, independent, opposite.draw, key, goals)


def _likelihood(
    half: HalfStep, key: Key, inputs: Inputs, paths: Array
) -> Callable[[Params], Array]:
    def loss(params: Params) -> Array:
        log_densities = rollouts.step_log_densities(half.trained, params, paths)
        return losses.trajectory_likelihood_loss(log_densities)

    return loss


def _bridge_matching(
    half: HalfStep, key: Key, inputs: Inputs, paths: Array
) -> Callable[[Params], Array]:
    return lambda params: bridge_loss(half.trained, params, paths, half.law, half.grid)


def _mean_matching(
    half: HalfStep, key: Key, inputs: Inputs, paths: Array
) -> Callable[[Params], Array]:
    variances = jnp.exp(half.trained.steps.log_variance)
    return _regression(half, inputs, paths, losses.mean_matching_loss, variances)


def _drift_matching(
    half: HalfStep, key: Key, inputs: Inputs, paths: Array
) -> Callable[[Params], Array]:
    lengths = half.trained.steps.length
    return _regression(half, inputs, paths, losses.drift_matching_loss, lengths)


def _regression(
    half: HalfStep,
    inputs: Inputs,
    paths: Array,
    loss: Callable[[Array, Array, Array], Array],
    scales: Array,
) -> Callable[[Params], Array]:
    """A loss of the trained process's means beside those of the opposite one's reversal."""
    given = _given(paths, backward=half.trained.backward)
    target = _reversal_means(half, inputs, paths)
    return lambda params: loss(
        rollouts.step_kernels(half.trained, params, given).mean, target, scales
    )


def _reversal_means(half: HalfStep, inputs: Inputs, paths: Array) -> Array:
    opposite_means, means_at_given = (
        rollouts.step_kernels(
            half.opposite, inputs.opposite["drift"], _given(paths, backward=backward)
        ).mean
        for backward in (half.opposite.backward, half.trained.backward)
    )
    given = _given(paths, backward=half.trained.backward)
    return losses.reversal_means(
        given, opposite_means, means_at_given, half.opposite.steps.scale
    )


def _sde_likelihood(
    half: HalfStep, key: Key, inputs: Inputs, paths: Array
) -> Callable[[Params], Array]:
    given, steps = _given(paths, backward=half.trained.backward), half.trained.steps
    # A step of the reference scales what its own noise adds, so that its reversal has another
    # variance; what turns a score into a drift is between them. All are one without a drift.
    both = steps.log_variance + half.opposite.steps.log_variance
    variances = jnp.exp(0.5 * both)
    opposite_drifts = rollouts.step_drifts(half.opposite, inputs.opposite["drift"], given)
    probes = None
    if half.divergence == "hutchinson":
        probes = jax.random.rademacher(key, given.shape, given.dtype)

    def loss(params: Params) -> Array:
        drifts, divergences = rollouts.step_divergences(half.trained, params, given, probes)
        return losses.sde_likelihood_loss(
            drifts, divergences, opposite_drifts, variances, steps.length
        )

    return loss


def _given(paths: Array, *, backward: bool) -> Array:
    """What each kernel of a process is given of a path, `(..., num_steps, dim)`."""
    return paths[..., 1:, :] if backward else paths[..., :-1, :]


_LOSSES: dict[str, Callable[[HalfStep, Key, Inputs, Array], Callable[[Params], Array]]] = {
    "likelihood": _likelihood,
    "bridge_matching": _bridge_matching,
    "mean_matching": _mean_matching,
    "drift_matching": _drift_matching,
    "sde_likelihood": _sde_likelihood,
}
"""By their names, what each makes of paths of the opposite process."""
