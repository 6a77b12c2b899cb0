"""The light Schrödinger bridge: a plan in closed form, fitted to samples of both ends."""

import jax.numpy as jnp

from d2ejax.typing import Array


def light_loss(log_normalisers: Array, log_potentials: Array) -> Array:
    """How far a plan π_ψ(x_T | x_0) = q(x_T | x_0) ψ(x_T) / ψ_0(x_0) is from the bridge.

    L(ψ) = E_{p_0}[log ψ_0(x_0)] - E_{p_1}[log ψ(x_T)] = KL(π* || π_ψ) - KL(π* || π_q)
    (Korotin et al. 2024, arXiv:2310.01174, prop. 3.1), π_q the plan of the reference. The two
    ends are averaged over apart, so that no coupling is needed. The least value is minus the
    optimal path KL. With the adjusted potential v and its normaliser c in place of ψ and ψ_0
    the loss is the same up to a constant.

    Args:
        log_normalisers: log ψ_0 at samples of the source, `(num_starts,)`.
        log_potentials: log ψ at samples of the target, `(num_ends,)`.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If an array does not have one axis.
    """
    if not log_normalisers.ndim == log_potentials.ndim == 1:
        raise ValueError(
            f"log_normalisers have shape {log_normalisers.shape} and log_potentials "
            f"{log_potentials.shape}: must be (num_starts,) and (num_ends,)"
        )
    return jnp.mean(log_normalisers) - jnp.mean(log_potentials)
