"""Trajectory likelihood: the half-step whose pinned end offers samples."""

import jax.numpy as jnp

from d2ejax.typing import Array


def trajectory_likelihood_loss(step_log_densities: Array) -> Array:
    """Negative log-likelihood of paths under the process that is trained.

    L(φ) = -E_τ[Σ_k log R_φ(x_k | x_{k+1})], τ drawn from the opposite process; its mirror for
    a forward process. The minimiser is the reversal of the process that drew the paths
    (Vargas et al. 2021, arXiv:2106.02081; Chen et al. 2022, arXiv:2110.11291).

    Args:
        step_log_densities: Log-density of each step, shape `(num_paths, num_steps)`, in nats.

    Returns:
        A scalar, in nats per path.

    Raises:
        ValueError: If the array does not have two axes.
    """
    if step_log_densities.ndim != 2:
        raise ValueError(
            f"step_log_densities has shape {step_log_densities.shape}: "
            "must be (num_paths, num_steps)"
        )
    return -jnp.mean(jnp.sum(step_log_densities, axis=1))
