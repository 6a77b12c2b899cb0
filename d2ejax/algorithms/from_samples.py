"""Half-steps whose pinned end offers samples, from which the opposite process draws paths."""

import jax
import jax.numpy as jnp

from d2ejax import losses, references, rollouts
from d2ejax.algorithms import partners
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
    """
    goal_key, path_key, bridge_key = jax.random.split(key, 3)
    goals = endpoints.sampler(half.goal)(goal_key, half.batch_size)
    paths = _paths(half, path_key, inputs, goals)
    if half.reanchor or half.loss == "bridge_matching":
        keys = jax.random.split(bridge_key, half.batch_size)
        bridge = jax.vmap(references.pinned_path, (0, None, 0, 0, None))
        paths = bridge(keys, half.law, paths[:, 0], paths[:, -1], half.grid)
    value = {"likelihood": _likelihood, "bridge_matching": _bridge_matching}[half.loss]

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        metrics = {name: jnp.full((), jnp.nan) for name in METRICS}
        return value(half, params["drift"], paths), metrics

    return loss


def _paths(half: HalfStep, key: Key, inputs: Inputs, goals: Array) -> Array:
    """Paths of the opposite process from the goal, or their ends alone in the right places."""
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


def _likelihood(half: HalfStep, params: Params, paths: Array) -> Array:
    log_densities = rollouts.step_log_densities(half.trained, params, paths)
    return losses.trajectory_likelihood_loss(log_densities)


def _bridge_matching(half: HalfStep, params: Params, paths: Array) -> Array:
    backward = half.trained.backward
    kernels = rollouts.step_kernels(half.trained, params, _given(paths, backward=backward))
    target = references.pinned_step(half.law, paths, half.grid, backward=backward)
    return losses.bridge_matching_loss(*kernels, *target)


def _given(paths: Array, *, backward: bool) -> Array:
    """What each kernel of a process is given of a path, `(..., num_steps, dim)`."""
    return paths[..., 1:, :] if backward else paths[..., :-1, :]
