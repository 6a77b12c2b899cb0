"""Functions that keep energies and their gradients finite where there is no mass."""

import jax.numpy as jnp

from d2ejax.typing import Array


def bounded_exp(x: Array, last: float) -> Array:
    """eˣ up to a point and its tangent beyond, so that it does not overflow.

    Args:
        x: Any shape.
        last: Where the tangent begins.

    Returns:
        The same shape: convex, with a continuous derivative.
    """
    return jnp.exp(jnp.minimum(x, last)) * (1.0 + jnp.maximum(x - last, 0.0))


def safe_norm(x: Array) -> Array:
    """The norm over the last axis, with a derivative of zero, not NaN, at zero."""
    tiny = jnp.asarray(1e-12, x.dtype)
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1), tiny))
