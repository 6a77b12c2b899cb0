"""Mean and drift matching: regression on the reversal of a fixed diffusion coefficient.

Write F̄_k(x) for the mean of the forward kernel of step k and v_k for its variance, the same for
every x. Then ∇ log p_{k+1}(y) = E[(F̄_k(x_k) - y) / v_k | x_{k+1} = y] exactly, p_{k+1} the
marginal of the forward chain, and the Euler step of the reversal is

    y - (F̄_k(y) - y) + v_k ∇ log p_{k+1}(y) = E[y + F̄_k(x_k) - F̄_k(y) | x_{k+1} = y],

the conditional mean of something that a path gives (De Bortoli et al. 2021, arXiv:2106.01357,
proposition 3). Where the reference has a drift, so that its step scales the state by a_k, what
that step does is to be undone and not only subtracted:

    E[x_k | y] = y + E[F̄_k(x_k) - F̄_k(y) | y] / a_k,

as far as F̄_k(x) - a_k x is the same at x_k and y: exact for a linear reference by itself.
Mirrored for a forward kernel. A learned variance would add terms of its own.
"""

import jax
import jax.numpy as jnp

from d2ejax.typing import Array


def reversal_means(
    given: Array, opposite_means: Array, means_at_given: Array, scales: Array | None = None
) -> Array:
    """What the kernels of the trained process are to have as their means, path by path.

    Backward: x_{k+1} + (F̄_k(x_k) - F̄_k(x_{k+1})) / a_k. Forward: x_k + (B̄_k(x_{k+1}) -
    B̄_k(x_k)) / b_k, B̄_k the mean of the backward kernel of the step. See the module's
    docstring.

    Args:
        given: What the trained kernels are given, `(..., num_steps, dim)`.
        opposite_means: Means of the opposite process's kernels where that process was, at the
            other end of each step, same shape.
        means_at_given: Means of the same kernels at `given`, same shape.
        scales: What the reference's step scales a state by in the direction of the opposite
            process, a_k or b_k, `(num_steps,)`; None for one: a reference without a drift, or
            the published Euler step.

    Returns:
        Same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if not given.shape == opposite_means.shape == means_at_given.shape:
        raise ValueError(
            f"given has shape {given.shape}, opposite_means {opposite_means.shape} and "
            f"means_at_given {means_at_given.shape}: must be (..., num_steps, dim) three times"
        )
    moved = opposite_means - means_at_given
    if scales is None:
        return given + moved
    if scales.shape != given.shape[-2:-1]:
        raise ValueError(f"scales has shape {scales.shape}: must be {given.shape[-2:-1]}")
    return given + moved / jnp.broadcast_to(scales[:, None], moved.shape)


def mean_matching_loss(means: Array, target_means: Array, variances: Array) -> Array:
    """Mean matching: regression of the kernels' means, each step by its inverse variance.

    L(φ) = E Σ_k ‖B̄_φ(x_{k+1}) - target_k‖² / 2 v_k; its mirror for a forward process (De
    Bortoli et al. 2021, arXiv:2106.01357, proposition 3). To first order in the step v_k is the
    variance of the target, so that no step outweighs the others by its noise, and what the loss
    is above its least value is a KL divergence: of the steps from those of the Euler reversal,
    along the paths. The published weights are equal; on a uniform grid with a constant
    diffusion coefficient these are equal too.

    Args:
        means: Of the kernels of the process, `(num_paths, num_steps, dim)`.
        target_means: From `reversal_means`, same shape; carries no gradient.
        variances: v_k of each step, per coordinate, `(num_steps,)`.

    Returns:
        A scalar, in nats per path.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check(means, target_means, variances=variances)
    squares = jnp.sum(jnp.square(means - jax.lax.stop_gradient(target_means)), axis=-1)
    return 0.5 * jnp.mean(jnp.sum(squares / variances[None], axis=1))


def drift_matching_loss(means: Array, target_means: Array, lengths: Array) -> Array:
    """Drift matching, also called score matching: regression of the drifts, steps alike.

    L(φ) = E 1/K Σ_k ‖(B̄_φ(x_{k+1}) - x_{k+1}) / Δ_k - (target_k - x_{k+1}) / Δ_k‖², x_{k+1}
    cancelling; its mirror for a forward process (De Bortoli et al. 2021, arXiv:2106.01357,
    the score in place of the mean). Equal weights, as published: short steps, whose drifts are
    the noisiest, count for more than in mean matching. On a uniform grid with a constant
    diffusion coefficient the two are proportional.

    Args:
        means: Of the kernels of the process, `(num_paths, num_steps, dim)`.
        target_means: From `reversal_means`, same shape; carries no gradient.
        lengths: Δ_k of each step, `(num_steps,)`.

    Returns:
        A scalar, in squared units of x per squared unit of time.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check(means, target_means, lengths=lengths)
    errors = (means - jax.lax.stop_gradient(target_means)) / lengths[None, :, None]
    return jnp.mean(jnp.sum(jnp.square(errors), axis=-1))


def _check(means: Array, target_means: Array, **per_step: Array) -> None:
    ((name, values),) = per_step.items()
    if not (
        means.ndim == 3
        and means.shape == target_means.shape
        and values.shape == means.shape[1:2]
    ):
        raise ValueError(
            f"means have shape {means.shape}, target_means {target_means.shape} and {name} "
            f"{values.shape}: must be (num_paths, num_steps, dim) twice and (num_steps,)"
        )
