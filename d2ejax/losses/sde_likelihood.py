"""SDE likelihood training: the half-step in terms of the two processes' controls."""

import jax
import jax.numpy as jnp

from d2ejax.typing import Array


def sde_likelihood_loss(
    drifts: Array,
    divergences: Array,
    opposite_drifts: Array,
    variances: Array,
    lengths: Array,
) -> Array:
    """The divergence form of the likelihood, for a fixed diffusion coefficient.

    L(φ) = E Σ_k Δ_k [½‖ẑ_k‖² + g_k ∇·ẑ_k + z_kᵀẑ_k], where u = g z is the residual drift of the
    opposite process on the reference, û = g ẑ that of the trained one and g_k² = v_k / Δ_k
    (Chen, Liu & Theodorou 2022, arXiv:2110.11291, theorem 4 trained in alternation; z and ẑ
    change places for a forward process). All of it at what the trained kernel is given, where
    at the optimum ẑ + z is g times the score of the opposite chain's marginal. In terms of the
    residual drifts it is

    L(φ) = E Σ_k Δ_k [(½‖û_k‖² + u_kᵀû_k) / g_k² + ∇·û_k].

    Integrating by parts over the noise of a step turns this expectation into that of mean
    matching, up to a constant that depends on the opposite process alone: the same minimiser,
    from other noise; for Euler steps of a reference with constant coefficients, exactly.

    Args:
        drifts: û of the trained process, `(num_paths, num_steps, dim)`.
        divergences: ∇·û of the same, `(num_paths, num_steps)`.
        opposite_drifts: u of the opposite process at the same states and steps, the shape of
            `drifts`; carries no gradient.
        variances: v_k of each step, per coordinate, `(num_steps,)`.
        lengths: Δ_k of each step, `(num_steps,)`.

    Returns:
        A scalar, in nats per path up to a constant; may be negative.

    Raises:
        ValueError: If the shapes do not match.
    """
    if not (
        drifts.ndim == 3
        and drifts.shape == opposite_drifts.shape
        and divergences.shape == drifts.shape[:2]
        and variances.shape == lengths.shape == drifts.shape[1:2]
    ):
        raise ValueError(
            f"drifts have shape {drifts.shape}, divergences {divergences.shape}, "
            f"opposite_drifts {opposite_drifts.shape}, variances {variances.shape} and lengths "
            f"{lengths.shape}: must be (num_paths, num_steps, dim), (num_paths, num_steps), "
            "the first again and (num_steps,) twice"
        )
    crossed = drifts * (0.5 * drifts + jax.lax.stop_gradient(opposite_drifts))
    squared_diffusion = variances / lengths
    rates = jnp.sum(crossed, axis=-1) / squared_diffusion[None] + divergences
    return jnp.mean(jnp.sum(rates * lengths[None], axis=1))
