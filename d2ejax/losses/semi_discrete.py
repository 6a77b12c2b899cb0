"""The semi-discrete half-step: one half-bridge in closed form against a minibatch.

Where one end is sampled, the opposite process need not be learned. Write the bridge as
P*_t = φ_t ψ_t. Given the potential of the sampled end, c(x_0) ≈ log ψ_0(x_0) up to a constant,
the potential of the other end is an average over samples x_0^m ~ p_0 of the reference's
transition q:

    log φ_T(y) ≈ log 1/M Σ_m q(y | x_0^m) exp(-c(x_0^m)),

and the reference takes the place of the opposite process in the log path ratio,
ℓ(τ) = Σ log P_θ - Σ log Q + E_1(x_K) + log φ_T(x_K), whose optimum is -log ψ_0(x_0).
"""

import jax
import jax.numpy as jnp

from d2ejax.non_finite import masked, mean_where
from d2ejax.typing import Array


def anchor_log_weights(
    log_transitions: Array, potentials: Array, log_importance: Array | None = None
) -> Array:
    """Unnormalised log-weights of the anchors x_0^m for one goal point y.

    log w_m(y) = log q(y | x_0^m) - c(x_0^m) [+ log p_0(x_0^m) / b(x_0^m)], c centred over the
    anchors, so that the free constant of the potential cannot wander from one iteration to the
    next. The importance term stands for anchors drawn from some other density b.

    Args:
        log_transitions: log q(y | x_0^m), shape `(num_anchors,)`.
        potentials: c(x_0^m), shape `(num_anchors,)`.
        log_importance: log p_0 / b at the anchors, up to a constant, shape `(num_anchors,)`;
            None for anchors drawn from p_0.

    Returns:
        Shape `(num_anchors,)`, in nats.
    """
    if log_importance is None:
        return log_transitions - (potentials - jnp.mean(potentials))
    shares = jax.nn.softmax(log_importance)
    centred = potentials - jnp.sum(shares * potentials)
    return log_transitions - centred + jnp.log(shares * shares.shape[0])


def log_potential(log_weights: Array) -> Array:
    """Minibatch estimate of log φ_T(y): log of the mean weight over the anchors.

    Args:
        log_weights: From `anchor_log_weights`, shape `(num_anchors,)`.

    Returns:
        A scalar, in nats.
    """
    return jax.nn.logsumexp(log_weights) - jnp.log(jnp.float32(log_weights.shape[0]))


def effective_anchors(log_weights: Array) -> Array:
    """Effective number of anchors behind one estimate: (Σ w)² / Σ w².

    A handful or fewer means that the estimate of φ_T is noise: raise the number of anchors or
    learn the opposite process instead.

    Args:
        log_weights: Shape `(num_anchors,)`.

    Returns:
        A scalar between 1 and num_anchors.
    """
    total = jax.nn.logsumexp(log_weights)
    return jnp.exp(2.0 * total - jax.nn.logsumexp(2.0 * log_weights))


def potential_loss(
    potentials: Array, log_ratios: Array, *, where: Array | None = None
) -> Array:
    """Regression of the potential on the log path ratios: E (c(x_0) + mean_n ℓ_n)².

    Args:
        potentials: c(x_0), shape `(num_starts,)`.
        log_ratios: ℓ, shape `(num_starts, num_paths)`; carries no gradient.
        where: Which of them count, same shape; None for all. The others may be NaN or infinite.
            A start without any is left out.

    Returns:
        A scalar, in nats².

    Raises:
        ValueError: If the shapes do not match.
    """
    if log_ratios.ndim != 2 or potentials.shape != log_ratios.shape[:1]:
        raise ValueError(
            f"log_ratios has shape {log_ratios.shape} and potentials {potentials.shape}: must "
            "be (num_starts, num_paths) and (num_starts,)"
        )
    log_ratios = masked(jax.lax.stop_gradient(log_ratios), where)
    target = -jnp.mean(log_ratios, axis=1)
    if where is None:
        return jnp.mean(jnp.square(potentials - target))
    counts = jnp.sum(where, axis=1, dtype=target.dtype)
    target *= log_ratios.shape[1] / jnp.maximum(counts, 1.0)
    return mean_where(jnp.square(potentials - target), counts > 0)
