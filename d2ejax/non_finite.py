"""What is not finite, and what becomes of it: the rules of the library, in one place.

A log-density is *undefined* where it is NaN or +∞: it could not be evaluated. There is *no
mass* where it is -∞, which is information. Beyond ±`LARGEST` a number counts as infinite.

- A path that is not finite, or whose end is undefined, is left out of its loss. Metric: the
  share `invalid` of the paths of a gradient step.
- A path whose end has no mass is pushed away, in losses of log-ratios or of rewards: it counts
  as `MARGIN` nats worse than the worst of its group that has mass, and is left out where the
  group has nothing else. In losses by gradients, which say nothing there, it is left out.
  Metric: the share `outside`.
- A gradient of an energy that is not finite is zero where it is differentiated through a
  simulation or seen by a network; a pair of an adjoint method that has one is left out.
- A particle without mass or undefined is drawn only while there is no other, and restarts from
  noise at the next refresh. A point, or a pair, of that kind does not enter a buffer, and
  displaces nothing that is in it.
- A device, or shard, with nothing left of its part of a step, be it an empty replay, or whose
  loss or gradient is not finite for another reason, is left out of the mean over devices. Where
  simulation is differentiated, as in path-wise control, one path that is not finite suffices.
- A step in which no device is left is left out: parameters stay as they are. Metric: the share
  `skipped` of the steps. After `loop.max_consecutive_skipped` in a row a run saves its state
  and stops with an error that says so.
- In estimates of log Z and in effective sample sizes a path that ends without mass or undefined
  counts with weight zero; it is never a copy's original in sequential Monte Carlo.

A mean is over what is left on a device. Where all is finite nothing changes but the rounding of
compiled programs. A log-variance cannot explode: see `variance` in `d2ejax.kernels`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax.typing import Array, LogDensity

LARGEST = 1e12
"""Beyond this size a number counts as infinite, in nats: the squared norm of a gradient that is
larger by the slopes of a network must fit into float32."""

MARGIN = 2.0
"""How much worse a path that ends without mass is taken to be than the worst that has some, in
nats. The larger it is, the fewer paths end there, and the worse is the fit of the others: of
half a Gaussian in the plane 8.5, 3.0, 1.9, 1.3 and 0.9 per cent end outside at margins of 0, 2,
5, 10 and 30, and the effective sample size is 0.86, 0.78, 0.70, 0.62 and 0.54."""

SHARES = ("invalid", "outside")
"""Metrics: the shares of a gradient step's paths whose end is undefined, and has no mass."""


def has_mass(log_densities: Array) -> Array:
    """Whether log-densities are finite, elementwise; `LARGEST` counts as infinite."""
    return jnp.abs(log_densities) <= LARGEST


def masked(values: Array, where: Array | None) -> Array:
    """Values with zeros where they do not count, so that nothing there has a gradient.

    Args:
        values: `(*shape, ...)`.
        where: Which of them count, `shape`; None for all.

    Raises:
        ValueError: If the shapes do not match.
    """
    if where is None:
        return values
    if where.shape != values.shape[: where.ndim]:
        raise ValueError(f"where has shape {where.shape}: must be that of {values.shape}")
    return jnp.where(
        where.reshape(*where.shape, *(1,) * (values.ndim - where.ndim)), values, 0.0
    )


def mean_where(values: Array, where: Array | None) -> Array:
    """The mean of what counts; NaN if nothing does.

    Args:
        values: Any shape, finite also where they do not count: a gradient that is not would be
            NaN, were it multiplied by zero.
        where: Which of them count, same shape; None for all.

    Returns:
        A scalar.
    """
    if where is None:
        return jnp.mean(values)
    # Of all of them first: where all count the last factor is one, to the last digit.
    share = values.size / jnp.sum(where, dtype=values.dtype)
    return jnp.mean(masked(values, where)) * share


class Bounded(NamedTuple):
    """Log-ratios fit for a loss.

    Attributes:
        log_ratios: ℓ, finite everywhere, `(..., num_paths)`.
        where: Which of them count, of the same shape.
        inside: Which of them were finite to begin with, of the same shape.
        shares: The metrics `SHARES`.
    """

    log_ratios: Array
    where: Array
    inside: Array
    shares: dict[str, Array]


def bounded(log_ratios: Array) -> Bounded:
    """Bounds the log-ratios of paths that end without mass, and masks those that are undefined.

    Without mass ℓ is +∞, and so would be the loss. Set `MARGIN` above the highest finite ℓ of
    its group, such a path is always the worst of them, so that any of the losses makes it less
    likely, however rare it has become, and never by so much that it drowns the others. At the
    optimum there is no such path, and the optimum is that of the true log-ratios.

    Args:
        log_ratios: ℓ, `(..., num_paths)`, in nats: +∞ without mass, NaN or -∞ where undefined.
            The last axis is the group that is compared, of the same start if need be.

    Returns:
        The log-ratios, to be used with `where`. Their gradient is that of `log_ratios` where
        they count, also at those that were +∞, and zero elsewhere.
    """
    ours = jax.lax.stop_gradient(log_ratios)
    inside, outside = has_mass(ours), ours > LARGEST
    highest = jnp.max(jnp.where(inside, ours, -jnp.inf), axis=-1, keepdims=True)
    where = inside | (outside & (highest > -jnp.inf))
    shown = jnp.where(inside, ours, jnp.where(where, highest + MARGIN, 0.0))
    shares = {
        "invalid": jnp.mean(~(inside | outside), dtype=jnp.float32),
        "outside": jnp.mean(outside, dtype=jnp.float32),
    }
    return Bounded(_shown_as(log_ratios, shown, where), where, inside, shares)


@jax.custom_jvp
def _shown_as(values: Array, shown: Array, where: Array) -> Array:
    """Other values, with the tangent of the first: ∞ - ∞ has none."""
    del values, where
    return shown


@_shown_as.defjvp
def _shown_as_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    _, shown, where = primals
    return shown, jnp.where(where, tangents[0], 0.0)


def shares(log_densities: Array) -> dict[str, Array]:
    """The metrics `SHARES` of paths whose ends have these log-densities."""
    outside = log_densities < -LARGEST
    invalid = ~(has_mass(log_densities) | outside)
    return {
        "invalid": jnp.mean(invalid, dtype=jnp.float32),
        "outside": jnp.mean(outside, dtype=jnp.float32),
    }


def tempered(inverse_temperature: Array, log_densities: Array) -> Array:
    """β log p, which is -∞ without mass and NaN where it is undefined, at β = 0 too."""
    inside = has_mass(log_densities)
    bad = jnp.where(log_densities < -LARGEST, -jnp.inf, jnp.nan)
    return jnp.where(inside, inverse_temperature * jnp.where(inside, log_densities, 0.0), bad)


def finite_paths(paths: Array) -> tuple[Array, Array]:
    """Paths that can be scored: zeros in place of one that is not finite.

    Args:
        paths: `(..., num_steps + 1, dim)`.

    Returns:
        The paths, and which of them were finite, `(...)`.
    """
    finite = jnp.all(jnp.isfinite(paths), axis=(-2, -1))
    return jnp.where(finite[..., None, None], paths, 0.0), finite


def with_finite_gradient(log_density: LogDensity) -> LogDensity:
    """The same function, whose gradient is zero wherever it is not finite."""

    @jax.custom_vjp
    def value(x: Array) -> Array:
        return log_density(x)

    def forward(x: Array) -> tuple[Array, Callable]:
        return jax.vjp(log_density, x)

    def backward(pull_back: Callable, cotangent: Array) -> tuple[Array]:
        (gradient,) = pull_back(cotangent)
        return (jnp.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0),)

    value.defvjp(forward, backward)
    return value
