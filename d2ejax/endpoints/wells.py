"""Products of double wells and Gaussians: many modes, and everything known about them.

A well is the law on the line with log p(x) = -(x² - δ)² + tilt · x + const. Its mass and its
distribution function come from the trapezoidal rule, in float64, when the endpoint is built:
spectrally accurate for a smooth density that vanishes at both ends of the rule.
"""

import itertools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint
from d2ejax.typing import Array, Key

# Beyond, the density is below e^-60 of its peak.
_DEPTH = 60.0
_NODES_PER_STD = 50
_MOST_MODES = 64
# Of a float32 uniform number the smallest are multiples of 1.2e-7.
_SMALLEST_QUANTILE = 1e-8
_LARGEST_SEPARATION = 100.0


class _Well(NamedTuple):
    """One well: log ∫ e^{-(x² - δ)² + tilt x} dx, its table of quantiles, and its modes."""

    separation: float
    tilt: float
    log_z: float
    cdf: np.ndarray
    points: np.ndarray
    modes: np.ndarray  # (2,), from left to right
    weights: np.ndarray  # (2,)


def many_well(*, dim: int = 32) -> Endpoint:
    """Blocks of a tilted double well x and a Gaussian y, (x, y, x, y, ...).

    log p = Σ_blocks (-x⁴ + 6x² + x/2 - y²/2), unnormalised, with two modes per block. log Z is
    dim/2 times that of a block, 164.696 for dim = 32.

    Args:
        dim: Number of coordinates; even.

    Returns:
        Endpoint with exact samples, log-density and log Z; modes up to dim = 12.

    Raises:
        ValueError: If `dim` is odd or below 2.

    Source: Noé et al. (2019, arXiv:1812.01729); Midgley et al. (2023, arXiv:2208.01893).
    """
    if options.integer("dim", dim, minimum=2) % 2:
        raise ValueError(f"dim = {dim!r} is not allowed: must be even")
    # -x⁴ + 6x² = -(x² - 3)² + 9.
    well = _tabulate(3.0, 0.5)
    return _product("many_well", dim, slice(0, None, 2), slice(1, None, 2), well, 9.0)


def double_wells(
    *, dim: int = 5, num_wells: int | None = None, separation: float = 4.0
) -> Endpoint:
    """Double wells in the first coordinates and Gaussians in the others.

    log p = -Σ_{i ≤ num_wells} (x_i² - separation)² - ½ Σ_{i > num_wells} x_i², unnormalised.
    The default is the target known as MW-5.

    Args:
        dim: Number of coordinates.
        num_wells: Number of wells; all coordinates when None.
        separation: δ > 0: the modes are at ±√δ, with a barrier of δ² nats; at most 100.

    Returns:
        Endpoint with exact samples, log-density and log Z; modes up to 64.

    Raises:
        ValueError: If an option is out of its range.

    Source: Chen et al. (2025, SCLD, arXiv:2412.07081); Liu et al. (2025, ASBS,
    arXiv:2506.22565).
    """
    dim = options.integer("dim", dim, minimum=1)
    num_wells = options.integer("num_wells", dim if num_wells is None else num_wells, minimum=1)
    if num_wells > dim:
        raise ValueError(f"num_wells = {num_wells!r} is not allowed: dim = {dim}")
    if not options.positive("separation", separation) <= _LARGEST_SEPARATION:
        raise ValueError(
            f"separation = {separation!r} is not allowed: must be at most"
            f" {_LARGEST_SEPARATION:g}"
        )
    well = _tabulate(float(separation), 0.0)
    wells, rest = slice(0, num_wells), slice(num_wells, None)
    return _product("double_wells", dim, wells, rest, well, 0.0)


def _tabulate(separation: float, tilt: float) -> _Well:
    # The tilt raises the far ends a little, which the depth has room for.
    edge = math.sqrt(separation + math.sqrt(_DEPTH))
    # 8δ is the curvature at the modes; without a barrier the quartic is of width one.
    spacing = 1.0 / (_NODES_PER_STD * math.sqrt(max(8.0 * separation, 1.0)))
    x = np.linspace(-edge, edge, 2 * math.ceil(edge / spacing) + 1)
    exponent = -((x**2 - separation) ** 2) + tilt * x
    top = exponent.max()
    mass = np.exp(exponent - top)
    # Halves of the first and last node are of no account: e^-60.
    log_z = top + math.log(mass.sum() * (x[1] - x[0]))
    below = np.concatenate([[0.0], np.cumsum(0.5 * (mass[1:] + mass[:-1]))])
    cdf = below / below[-1]
    kept = (cdf > _SMALLEST_QUANTILE) & (cdf < 1.0 - _SMALLEST_QUANTILE)
    left, barrier, right = np.sort(np.roots([-4.0, 0.0, 4.0 * separation, tilt]).real)
    share = float(np.interp(barrier, x, cdf))
    return _Well(
        separation,
        tilt,
        log_z,
        cdf[kept].astype(np.float32),
        x[kept].astype(np.float32),
        np.array([left, right]),
        np.array([share, 1.0 - share]),
    )


def _product(
    name: str, dim: int, wells: slice, rest: slice, well: _Well, constant: float
) -> Endpoint:
    """Independent wells and standard Gaussians, a well's log-density raised by a constant."""
    num_wells = len(range(dim)[wells])
    num_rest = dim - num_wells

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (dim,))
        inside, outside = x[wells], x[rest]
        energies = jnp.square(jnp.square(inside) - well.separation) - well.tilt * inside
        gaussian = 0.5 * jnp.sum(jnp.square(outside))
        return num_wells * constant - jnp.sum(energies) - gaussian

    def sample(key: Key, n: int) -> Array:
        key_wells, key_rest = jax.random.split(key)
        uniform = jax.random.uniform(key_wells, (n, num_wells), jnp.float32)
        inside = jnp.interp(uniform, jnp.asarray(well.cdf), jnp.asarray(well.points))
        outside = jax.random.normal(key_rest, (n, num_rest), jnp.float32)
        x = jnp.zeros((n, dim), jnp.float32)
        return x.at[:, wells].set(inside).at[:, rest].set(outside)

    modes = weights = None
    if 2**num_wells <= _MOST_MODES:
        choices = np.array(list(itertools.product((0, 1), repeat=num_wells)))
        modes = np.zeros((len(choices), dim), np.float32)
        modes[:, wells] = well.modes[choices]
        weights = well.weights[choices].prod(axis=1).astype(np.float32)
    reach = max(float(np.abs(well.points).max()), 5.5 if num_rest else 0.0)
    return Endpoint(
        name=name,
        dim=dim,
        sample=sample,
        log_density=log_density,
        log_z=num_wells * (well.log_z + constant) + 0.5 * num_rest * math.log(2.0 * math.pi),
        modes=modes,
        mode_weights=weights,
        extent=(-reach, reach),
    )
