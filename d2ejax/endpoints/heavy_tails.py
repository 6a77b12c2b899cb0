"""Laws whose scales differ by orders of magnitude: the funnel, and mixtures of Student's t.

Nearly all of their mass lies in a small part of a square that would hold all of it. Their
extents leave out one part in a thousand, for the sake of grids and plots.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint
from d2ejax.endpoints.numerics import bounded_exp
from d2ejax.typing import Array, Key

_MASS_OUTSIDE = 1e-3
# e^40 is the precision of an x_i thirteen standard deviations of x_0 from the mode, and leaves
# float32 room for what it multiplies.
_LAST_EXPONENT = 40.0


def funnel(*, dim: int = 10, std: float = 3.0) -> Endpoint:
    """Neal's funnel: x_0 ~ N(0, std²) and x_i | x_0 ~ N(0, e^{x_0}), i = 1, ..., dim - 1.

    Its extent holds all but 1e-3 of the mass.

    Args:
        dim: Number of coordinates; at least 2.
        std: Standard deviation of x_0.

    Returns:
        Endpoint with exact samples and normalised log-density.

    Raises:
        ValueError: If an option is out of its range.

    Source: Neal (2003), "Slice sampling", section 8, with ten coordinates as usual for samplers
    (Zhang & Chen 2022, arXiv:2111.15141; some published tables have std = 1).
    """
    dim = options.integer("dim", dim, minimum=2)
    std = options.positive("std", std)
    constant = -0.5 * dim * math.log(2.0 * math.pi) - math.log(std)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (dim,))
        neck, rest = x[0], x[1:]
        precision = bounded_exp(-neck, _LAST_EXPONENT)
        exponent = jnp.square(neck / std) + (dim - 1) * neck
        return constant - 0.5 * (exponent + precision * jnp.sum(jnp.square(rest)))

    def sample(key: Key, n: int) -> Array:
        z = jax.random.normal(key, (n, dim), jnp.float32)
        neck = std * z[:, :1]
        return jnp.concatenate([neck, jnp.exp(0.5 * neck) * z[:, 1:]], axis=1)

    # Nodes and weights for the law of x_0, at whose deviations the tail of x_i is wanted.
    neck = std * np.linspace(-8.0, 8.0, 801)
    weights = np.exp(-0.5 * (neck / std) ** 2) / np.exp(-0.5 * (neck / std) ** 2).sum()

    def mass_within(half: float) -> float:
        inside = scipy.special.erf(half * np.exp(-0.5 * neck) / math.sqrt(2.0)) ** (dim - 1)
        return float(weights @ (inside * (np.abs(neck) < half)))

    return Endpoint(
        name="funnel",
        dim=dim,
        sample=sample,
        log_density=log_density,
        log_z=0.0,
        extent=_extent(mass_within, std),
    )


def student_mixture(
    *,
    dim: int = 2,
    num_modes: int = 10,
    df: float = 2.0,
    half_width: float = 10.0,
    seed: int = 0,
) -> Endpoint:
    """Equal mixture of products of Student's t, of scale 1 about centres drawn once.

    The centres are uniform in [-half_width, half_width]^dim and depend on the seed alone. With
    two degrees of freedom no variance exists: second moments and W2² say nothing here. Its
    extent holds all but 1e-3 of the mass.

    Args:
        dim: Number of coordinates.
        num_modes: Number of components.
        df: Degrees of freedom.
        half_width: Half the side of the cube that the centres lie in.
        seed: Of the centres.

    Returns:
        Endpoint with exact samples and normalised log-density.

    Raises:
        ValueError: If an option is out of its range.

    Source: Blessing et al. (2024), "Beyond ELBOs" (arXiv:2406.07423), with a draw of our own.
    """
    dim = options.integer("dim", dim, minimum=1)
    num_modes = options.integer("num_modes", num_modes, minimum=1)
    df = options.positive("df", df)
    half_width = options.positive("half_width", half_width)
    seed = options.integer("seed", seed, minimum=0)
    # The stream of `RandomState` is frozen: the same target with every version of NumPy.
    means = np.random.RandomState(seed).uniform(-half_width, half_width, (num_modes, dim))
    gammas = scipy.special.gammaln(0.5 * (df + 1.0)) - scipy.special.gammaln(0.5 * df)
    offset = dim * float(gammas - 0.5 * math.log(math.pi * df)) - math.log(num_modes)
    centres = means.astype(np.float32)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (dim,))
        squares = jnp.square(x[None, :] - jnp.asarray(centres))
        parts = -0.5 * (df + 1.0) * jnp.sum(jnp.log1p(squares / df), axis=-1)
        return offset + jax.nn.logsumexp(parts)

    def sample(key: Key, n: int) -> Array:
        key_mode, key_t = jax.random.split(key)
        modes = jax.random.randint(key_mode, (n,), 0, num_modes)
        return jnp.asarray(centres)[modes] + _student(key_t, df, (n, dim))

    def mass_within(half: float) -> float:
        sides = (scipy.special.stdtr(df, side - means) for side in (half, -half))
        return float(np.mean(np.prod(next(sides) - next(sides), axis=1)))

    return Endpoint(
        name="student_mixture",
        dim=dim,
        sample=sample,
        log_density=log_density,
        log_z=0.0,
        modes=centres,
        mode_weights=np.full(num_modes, 1.0 / num_modes, np.float32),
        extent=_extent(mass_within, 1.0),
    )


def _student(key: Key, df: float, shape: tuple[int, ...]) -> Array:
    if df != 2.0:
        return jax.random.t(key, df, shape, jnp.float32)
    # Half a chi-square of two degrees is exponential: no rejection, a hundred times as fast.
    key_normal, key_rate = jax.random.split(key)
    normal = jax.random.normal(key_normal, shape, jnp.float32)
    # Of a uniform number that is exactly 0 once in 2²³ draws the exponential is 0 as well.
    rate = jnp.maximum(jax.random.exponential(key_rate, shape, jnp.float32), 2.0**-25)
    return normal / jnp.sqrt(rate)


def _extent(mass_within: Callable[[float], float], start: float) -> tuple[float, float]:
    """The square about the origin that holds all but 1e-3; `mass_within` of half its side."""
    high = start
    while mass_within(high) < 1.0 - _MASS_OUTSIDE:
        high *= 2.0
    half = scipy.optimize.brentq(
        lambda h: mass_within(h) - (1.0 - _MASS_OUTSIDE), 0.0, high, rtol=1e-3
    )
    return -float(half), float(half)
