"""Reference processes dX = f(X, t) dt + g(t) dW, with their transitions in closed form.

Every reference here is linear with isotropic noise, so that for s ≤ t

    x_t | x_s ~ N(scale(s, t) x_s, variance(s, t) I),

and transitions, pinned bridges and kernels for all of them follow from these two functions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax.gaussians import Gaussian
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key, Time


class Reference(NamedTuple):
    """A linear diffusion with isotropic noise.

    Attributes:
        drift: f(x, t), maps `(dim,)` and a time to `(dim,)`.
        diffusion: g(t), a standard deviation per square root of time.
        scale: `(s, t)` to the factor of x_s in the mean of x_t given x_s.
        variance: `(s, t)` to the variance per coordinate of x_t given x_s.
    """

    drift: Callable[[Array, Array], Array]
    diffusion: Callable[[Array], Array]
    scale: Callable[[Time, Time], Array]
    variance: Callable[[Time, Time], Array]


def brownian(sigma: float) -> Reference:
    """Brownian motion dX = σ dW.

    Args:
        sigma: Diffusion coefficient σ > 0.

    Raises:
        ValueError: If sigma is not positive.
    """
    _check_positive(sigma=sigma)
    return _at_float_times(
        drift=lambda x, t: jnp.zeros_like(x),
        diffusion=lambda t: jnp.full_like(t, sigma),
        scale=lambda s, t: jnp.ones_like(jnp.asarray(t) - s),
        variance=lambda s, t: sigma**2 * (jnp.asarray(t) - s),
    )


def ornstein_uhlenbeck(sigma: float, rate: float) -> Reference:
    """Ornstein-Uhlenbeck process dX = -α X dt + σ dW.

    Args:
        sigma: Diffusion coefficient σ > 0.
        rate: Mean reversion α > 0, per unit of time.

    Raises:
        ValueError: If an argument is not positive.
    """
    _check_positive(sigma=sigma, rate=rate)
    return _at_float_times(
        drift=lambda x, t: -rate * x,
        diffusion=lambda t: jnp.full_like(t, sigma),
        scale=lambda s, t: jnp.exp(-rate * (jnp.asarray(t) - s)),
        variance=lambda s, t: (
            -(sigma**2) / (2 * rate) * jnp.expm1(-2 * rate * (jnp.asarray(t) - s))
        ),
    )


def variance_exploding(sigma_min: float, sigma_max: float, t_max: float) -> Reference:
    """Variance-exploding process: no drift and g(t)² = d(ς(t)²)/dt.

    ς(t) = σ_min (σ_max / σ_min)^(t/T), so that g(t) = ς(t) √(2 log(σ_max / σ_min) / T) and
    x_t | x_0 has variance ς(t)² - σ_min² (Song et al. 2021, arXiv:2011.13456, eq. 30).

    Args:
        sigma_min: ς(0) > 0.
        sigma_max: ς(T) > sigma_min.
        t_max: The final time T > 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_positive(sigma_min=sigma_min, t_max=t_max)
    if not sigma_max > sigma_min:
        raise ValueError(f"sigma_max = {sigma_max}: must be > sigma_min = {sigma_min}")
    log_growth = 2.0 * math.log(sigma_max / sigma_min) / t_max

    def spread(t):
        return sigma_min**2 * jnp.exp(log_growth * t)

    return _at_float_times(
        drift=lambda x, t: jnp.zeros_like(x),
        diffusion=lambda t: jnp.sqrt(spread(t) * log_growth),
        scale=lambda s, t: jnp.ones_like(jnp.asarray(t) - s),
        variance=lambda s, t: spread(s) * jnp.expm1(log_growth * (jnp.asarray(t) - s)),
    )


def variance_preserving(beta_min: float, beta_max: float, t_max: float) -> Reference:
    """Variance-preserving process dX = -β(t) X / 2 dt + √β(t) dW.

    β rises linearly from beta_min to beta_max; given x_0, x_t ~ N(√ᾱ_t x_0, (1 - ᾱ_t) I) with
    ᾱ_t = exp(-∫_0^t β) (Song et al. 2021, arXiv:2011.13456, eq. 33).

    Args:
        beta_min: β(0) > 0, per unit of time.
        beta_max: β(T) ≥ beta_min.
        t_max: The final time T > 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    _check_positive(beta_min=beta_min, t_max=t_max)
    if not beta_max >= beta_min:
        raise ValueError(f"beta_max = {beta_max}: must be ≥ beta_min = {beta_min}")
    slope = (beta_max - beta_min) / t_max

    def beta(t):
        return beta_min + slope * t

    def integral(s, t):
        return (jnp.asarray(t) - s) * (beta(s) + beta(t)) / 2.0

    return _at_float_times(
        drift=lambda x, t: -0.5 * beta(t) * x,
        diffusion=lambda t: jnp.sqrt(beta(t)),
        scale=lambda s, t: jnp.exp(-0.5 * integral(s, t)),
        variance=lambda s, t: -jnp.expm1(-integral(s, t)),
    )


def reverse(reference: Reference, t_max: float) -> Reference:
    """The reference by the clock T - t, under a flat marginal.

    Given x_t, the density of x_s at an earlier s is q(x_t | x_s) up to a constant, that is
    N(x_t / scale(s, t), variance(s, t) / scale(s, t)² I). Pinned at both ends it is the
    reference itself, so that a bridge over one is a bridge over the other, its ends swapped.

    Args:
        reference: The process.
        t_max: The final time T.

    Returns:
        The process of that clock.
    """

    def scale(s: Time, t: Time) -> Array:
        return 1.0 / reference.scale(t_max - t, t_max - s)

    return Reference(
        drift=lambda x, t: -reference.drift(x, t_max - t),
        diffusion=lambda t: reference.diffusion(t_max - t),
        scale=scale,
        variance=lambda s, t: (
            reference.variance(t_max - t, t_max - s) * jnp.square(scale(s, t))
        ),
    )


def time_reversed(reference: Reference, t_max: float) -> Reference:
    """The reference by the clock T - t, under the measure that it leaves as it is.

    The references here are reversible: under their stationary Gaussian, or where there is no
    drift a flat measure, a path read backward is a path of the same process but for its noise
    schedule, which is read backward as well. So where that rises to T this one falls, as that
    of a diffusion model does on its way from noise to data.

    Args:
        reference: The process.
        t_max: The final time T.

    Returns:
        The process of that clock; for a noise that is always the same, the reference again.
    """
    return Reference(
        drift=lambda x, t: reference.drift(x, t_max - t),
        diffusion=lambda t: reference.diffusion(t_max - t),
        scale=lambda s, t: reference.scale(t_max - t, t_max - s),
        variance=lambda s, t: reference.variance(t_max - t, t_max - s),
    )


def transition(reference: Reference, x_s: Array, s: Time, t: Time) -> Gaussian:
    """The exact law of x_t given x_s.

    Args:
        reference: The process.
        x_s: Shape `(dim,)`.
        s: Time of x_s.
        t: Time of x_t, later than s.

    Returns:
        A Gaussian over `(dim,)`.
    """
    log_variance = jnp.log(reference.variance(s, t))
    return Gaussian(reference.scale(s, t) * x_s, jnp.broadcast_to(log_variance, x_s.shape))


def gaussian_marginals(
    reference: Reference, grid: TimeGrid, *, mean: Array, variance: float
) -> Callable[[Array], Array]:
    """The log-densities that a reference started in a Gaussian has along a path.

    Args:
        reference: The process.
        grid: The time grid.
        mean: Of the Gaussian at time 0, shape `(dim,)`.
        variance: Of the same, per coordinate.

    Returns:
        Maps a path `(num_steps + 1, dim)` to log q_t(x_t), `(num_steps + 1,)`.
    """
    scales = reference.scale(grid.times[0], grid.times)
    variances = scales**2 * variance + reference.variance(grid.times[0], grid.times)

    def log_densities(path: Array) -> Array:
        squares = jnp.sum(jnp.square(path - scales[:, None] * mean[None]), axis=-1)
        return -0.5 * (squares / variances + path.shape[-1] * jnp.log(2 * math.pi * variances))

    return log_densities


def pinned(
    reference: Reference, x_s: Array, x_u: Array, t: Array, *, start: Array, end: Array
) -> tuple[Array, Array]:
    """Moments of x_t given x_s and x_u: the reference's bridge pinned at both ends.

    Written so that both ends, t = s and t = u, are exact and free of 0/0.

    Args:
        reference: The process.
        x_s: Where it is at the start, shape `(dim,)`.
        x_u: Where it is at the end, shape `(dim,)`.
        t: A time in [s, u].
        start: The time s < u.
        end: The time u.

    Returns:
        Mean of shape `(dim,)` and the scalar variance per coordinate.
    """
    of_start, of_end, variance = pinned_weights(reference, t, start=start, end=end)
    return of_start * x_s + of_end * x_u, variance


def pinned_weights(
    reference: Reference, t: Array, *, start: Array, end: Array
) -> tuple[Array, Array, Array]:
    """Factors of the two ends in the mean of a pinned bridge, and its variance; see `pinned`.

    Args:
        reference: The process.
        t: A time in [s, u].
        start: The time s < u.
        end: The time u.

    Returns:
        The factor of x_s, that of x_u, and the variance per coordinate.
    """
    before, after = reference.variance(start, t), reference.variance(t, end)
    scale_before, scale_after = reference.scale(start, t), reference.scale(t, end)
    total = after + scale_after**2 * before
    return after * scale_before / total, scale_after * before / total, before * after / total


def pinned_rates(
    reference: Reference, x_s: Array, x_u: Array, t: Array, *, start: Array, end: Array
) -> tuple[Array, Array]:
    """Derivatives in t of the moments of a pinned bridge; see `pinned`.

    Args:
        reference: The process.
        x_s: Where it is at the start, shape `(dim,)`.
        x_u: Where it is at the end, shape `(dim,)`.
        t: A time in [s, u].
        start: The time s < u.
        end: The time u.

    Returns:
        Those of the mean, shape `(dim,)`, and of the variance per coordinate, a scalar.
    """

    def moments(t: Array) -> tuple[Array, Array]:
        return pinned(reference, x_s, x_u, t, start=start, end=end)

    return jax.jvp(moments, (t,), (jnp.ones_like(t),))[1]


def pinned_step(
    reference: Reference, paths: Array, grid: TimeGrid, *, backward: bool = False
) -> tuple[Array, Array]:
    """Moments of each step of a path, given where it is and where the path ends.

    Forward those of x_{k+1} given x_k and x_K; backward those of x_k given x_{k+1} and x_0.

    Args:
        reference: The process.
        paths: Shape `(..., num_steps + 1, dim)`, in the order of time.
        grid: The time grid.
        backward: Which of the two.

    Returns:
        Means, `(..., num_steps, dim)`, and the variances per coordinate, `(num_steps,)`.
    """
    early, late = grid.times[:-1], grid.times[1:]
    if backward:
        x_s, x_u, t = paths[..., :1, :], paths[..., 1:, :], early
        start, end = jnp.broadcast_to(grid.times[0], early.shape), late
    else:
        x_s, x_u, t = paths[..., :-1, :], paths[..., -1:, :], late
        start, end = early, jnp.broadcast_to(grid.times[-1], late.shape)
    moments = jax.vmap(
        lambda s, u, t, start, end: pinned(reference, s, u, t, start=start, end=end),
        in_axes=(-2, -2, 0, 0, 0),
        out_axes=(-2, 0),
    )
    steps = (*paths.shape[:-2], grid.num_steps, paths.shape[-1])
    return moments(jnp.broadcast_to(x_s, steps), jnp.broadcast_to(x_u, steps), t, start, end)


def pinned_path(
    key: Key, reference: Reference, x_0: Array, x_1: Array, grid: TimeGrid
) -> Array:
    """A path of the reference on a grid, pinned at both ends, from one draw of noise.

    A free path X started in x_0 is bent to end in x_1: x_t = X_t - G_t (X_T - x_1), where
    G_t = Cov(X_t, X_T) / Var(X_T). For Gaussian processes this has the law of the bridge.

    Args:
        key: A typed key.
        reference: The process.
        x_0: Start, shape `(dim,)`.
        x_1: End, shape `(dim,)`.
        grid: The time grid.

    Returns:
        A path of shape `(num_steps + 1, dim)` whose first and last rows are x_0 and x_1.
    """
    start, inner, t_max = grid.times[0], grid.times[1:], grid.t_max
    scale = reference.scale(start, inner)
    # X_t = scale_t (x_0 + Σ noise_j / scale_j): a cumulative sum, not a scan.
    std = jnp.sqrt(reference.variance(grid.times[:-1], inner)) / scale
    noise = std[:, None] * jax.random.normal(key, (grid.num_steps, *x_0.shape), x_0.dtype)
    free = scale[:, None] * (x_0[None] + jnp.cumsum(noise, axis=0))
    gain = (
        reference.scale(inner, t_max)
        * reference.variance(start, inner)
        / reference.variance(start, t_max)
    )
    bent = free - gain[:, None] * (free[-1] - x_1)[None]
    return jnp.concatenate([x_0[None], bent[:-1], x_1[None]])


def _at_float_times(
    drift: Callable[[Array, Time], Array],
    diffusion: Callable[[Time], Array],
    scale: Callable[[Time, Time], Array],
    variance: Callable[[Time, Time], Array],
) -> Reference:
    """The reference of these functions, which see floats: at an integer σ would be cut."""
    return Reference(
        drift=lambda x, t: drift(x, _as_float(t)),
        diffusion=lambda t: diffusion(_as_float(t)),
        scale=lambda s, t: scale(_as_float(s), _as_float(t)),
        variance=lambda s, t: variance(_as_float(s), _as_float(t)),
    )


def _as_float(t: Time) -> Time:
    if jnp.issubdtype(jnp.result_type(t), jnp.floating):
        return t
    return jnp.asarray(t, float)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} = {value}: must be > 0")
