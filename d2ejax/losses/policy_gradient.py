"""Policy gradient: a reward at the end of a path, and a penalty for leaving a base process."""

import jax
import jax.numpy as jnp

from d2ejax.non_finite import masked, mean_where
from d2ejax.typing import Array


def policy_gradient_loss(
    step_log_densities: Array,
    step_penalties: Array,
    rewards: Array,
    *,
    to_go: bool = True,
    where: Array | None = None,
) -> Array:
    """REINFORCE with a KL penalty; only its gradient means anything.

    The gradient is that of E[Σ_k KL_k - r(x_K)], KL_k the divergence of a step of the process
    from that of its base: E[Σ_k ∇log P(x_{k+1} | x_k) (c_k - b) + ∇KL_k], with the cost to go
    c_k = Σ_{j>k} KL_j - r(x_K) and, for b, its mean over the other paths. Without `to_go` c_k
    is -r(x_K) alone: the published form of DPOK (Fan et al. 2023, arXiv:2305.16381, eq. 8-10),
    which does not see that a step also decides where later ones are penalised.

    Args:
        step_log_densities: log P(x_{k+1} | x_k) of paths that carry no gradient,
            `(num_paths, num_steps)`.
        step_penalties: KL_k at the states of these paths, same shape.
        rewards: r(x_K), `(num_paths,)`.
        to_go: Whether the penalties of later steps count as costs of a step.
        where: Which paths count, `(num_paths,)`; None for all. The others may be NaN or
            infinite. The loss is NaN where fewer than two do: there is no baseline.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If the shapes do not match or there is only one path.
    """
    if not (
        step_log_densities.ndim == 2
        and step_log_densities.shape == step_penalties.shape
        and rewards.shape == step_log_densities.shape[:1]
        and len(rewards) > 1
    ):
        raise ValueError(
            f"step_log_densities has shape {step_log_densities.shape}, step_penalties "
            f"{step_penalties.shape} and rewards {rewards.shape}: must be (num_paths, "
            "num_steps) twice and (num_paths,), of two paths or more"
        )
    step_log_densities, step_penalties, rewards = (
        masked(values, where) for values in (step_log_densities, step_penalties, rewards)
    )
    costs = jnp.broadcast_to(-rewards[:, None], step_penalties.shape)
    if to_go:
        total = jnp.sum(step_penalties, axis=1, keepdims=True)
        costs = costs + total - jnp.cumsum(step_penalties, axis=1)
    costs = jax.lax.stop_gradient(costs)
    num_paths = len(rewards) if where is None else jnp.sum(where, dtype=costs.dtype)
    means = jnp.mean(costs, axis=0, keepdims=True) * (len(rewards) / num_paths)
    # Less the mean over the others: a baseline that has seen the path itself would be biased.
    advantages = (costs - means) * num_paths / (num_paths - 1)
    return mean_where(jnp.sum(step_log_densities * advantages + step_penalties, axis=1), where)
