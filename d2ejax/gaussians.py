"""Diagonal Gaussians, the one distribution that every step of a path has."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from d2ejax.typing import Array

_LOG_2PI = float(np.log(2.0 * np.pi))


class Gaussian(NamedTuple):
    """A Gaussian with diagonal covariance.

    Attributes:
        mean: Shape `(dim,)`.
        log_variance: Shape `(dim,)`.
    """

    mean: Array
    log_variance: Array


def sample(gaussian: Gaussian, noise: Array) -> Array:
    """Reparametrised draw: mean + std · noise, noise standard normal of shape `(dim,)`."""
    return gaussian.mean + jnp.exp(0.5 * gaussian.log_variance) * noise


def log_density(gaussian: Gaussian, x: Array) -> Array:
    """Log N(x; mean, diag(variance)), with its 2π constant; a scalar."""
    deviation = jnp.square(x - gaussian.mean) * jnp.exp(-gaussian.log_variance)
    return -0.5 * jnp.sum(deviation + gaussian.log_variance + _LOG_2PI)


def kl_divergence(p: Gaussian, q: Gaussian) -> Array:
    """KL(p || q) in nats, closed form; a scalar."""
    log_ratio = p.log_variance - q.log_variance
    deviation = jnp.square(p.mean - q.mean) * jnp.exp(-q.log_variance)
    return 0.5 * jnp.sum(jnp.expm1(log_ratio) - log_ratio + deviation)
