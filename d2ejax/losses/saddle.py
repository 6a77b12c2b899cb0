"""The discriminator of entropic neural optimal transport."""

import jax.numpy as jnp

from d2ejax.typing import Array


def discriminator_loss(on_ends: Array, on_target: Array) -> Array:
    """What the potential of the target descends: E β(x_K) - E_{p_1} β(x).

    The saddle point sup_β inf_P KL(P ‖ Q) - E_P[β(x_K)] + E_{p_1}[β], whose inner problem is
    one of control with the terminal cost -β, is the Schrödinger bridge with β = log ψ_T up to a
    constant, ψ_T the potential in P* = φ_t ψ_t (Gushchin et al. 2023, arXiv:2211.01156).

    Args:
        on_ends: β at the ends of paths, which carry no gradient, `(n,)`.
        on_target: β at samples of the target, `(m,)`.

    Returns:
        A scalar, in nats; only its gradient means anything.

    Raises:
        ValueError: If an argument is not a vector.
    """
    if on_ends.ndim != 1 or on_target.ndim != 1:
        raise ValueError(
            f"on_ends has shape {on_ends.shape} and on_target {on_target.shape}: must be "
            "vectors"
        )
    return jnp.mean(on_ends) - jnp.mean(on_target)
