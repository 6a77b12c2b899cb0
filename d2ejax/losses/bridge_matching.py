"""Bridge matching: fitting a process to bridges of the reference between coupled ends."""

import math

import jax.numpy as jnp

from d2ejax.typing import Array

_LOG_2PI = math.log(2.0 * math.pi)


def bridge_matching_loss(
    means: Array, log_variances: Array, target_means: Array, target_variances: Array
) -> Array:
    """Cross-entropy of a process's kernels and the steps of pinned bridges of the reference.

    L(θ) = -E Σ_k E_Q[log P_θ(x_{k+1} | x_k) | x_k, x_K], the trajectory likelihood of pinned
    bridges with the next state averaged out: the same minimiser, the Markovian projection of
    the mixture of bridges, from less noise. With a fixed variance it is the regression of the
    drift on (x_K - x_k)/(T - t_k), each step weighted by its length (Brownian reference; Shi
    et al. 2023, arXiv:2303.16852, eq. 9), and unlike that it can fit the variance as well.
    Mirrored, on E_Q[· | x_{k+1}, x_0], for a backward process.

    Args:
        means: Of the kernels of the process, `(num_paths, num_steps, dim)`.
        log_variances: Of the same.
        target_means: Of the steps of the bridges, given the same states, same shape.
        target_variances: Of the same, per coordinate, `(num_steps,)`.

    Returns:
        A scalar, in nats per path.

    Raises:
        ValueError: If the shapes do not match.
    """
    if not (
        means.ndim == 3
        and means.shape == log_variances.shape == target_means.shape
        and target_variances.shape == means.shape[1:2]
    ):
        raise ValueError(
            f"means have shape {means.shape}, log_variances {log_variances.shape}, "
            f"target_means {target_means.shape} and target_variances "
            f"{target_variances.shape}: must be (num_paths, num_steps, dim) three times and "
            "(num_steps,)"
        )
    squares = jnp.square(means - target_means) + target_variances[None, :, None]
    per_entry = squares * jnp.exp(-log_variances) + log_variances + _LOG_2PI
    return 0.5 * jnp.mean(jnp.sum(per_entry, axis=(1, 2)))
