"""Clusters of identical particles, as points without a centre of mass.

The energies do not change when all particles move together, so that over positions no density
exists. A point is therefore the coordinates of a configuration in an orthonormal basis of those
whose centre of mass is at the origin (Helmert's), (num_particles - 1) · space_dim of them.
Densities over them are proper, and Brownian motion of the coordinates is Brownian motion of the
positions without that of their centre: nothing else in the library needs to know.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint
from d2ejax.endpoints.numerics import safe_norm
from d2ejax.typing import Array

# Matrix products on accelerators round to ten bits by default, of which r⁻¹² would make
# several nats.
_PRECISION = jax.lax.Precision.HIGHEST


def to_positions(x: Array, num_particles: int, space_dim: int) -> Array:
    """The particles' positions at some coordinates, their centre of mass at the origin.

    Args:
        x: Coordinates, `((num_particles - 1) · space_dim,)`.
        num_particles: Number of particles.
        space_dim: Dimension of the space that they live in.

    Returns:
        Shape `(num_particles, space_dim)`, of the norm of x.
    """
    chex.assert_shape(x, ((num_particles - 1) * space_dim,))
    basis = jnp.asarray(_basis(num_particles), x.dtype)
    rows = x.reshape(num_particles - 1, space_dim)
    return jnp.matmul(basis.T, rows, precision=_PRECISION)


def from_positions(positions: Array) -> Array:
    """The coordinates of a configuration; the position of its centre of mass is lost.

    Args:
        positions: Shape `(num_particles, space_dim)`.

    Returns:
        Shape `((num_particles - 1) · space_dim,)`: the inverse of `to_positions`.
    """
    basis = jnp.asarray(_basis(positions.shape[0]), positions.dtype)
    return jnp.matmul(basis, positions, precision=_PRECISION).reshape(-1)


@functools.cache
def _basis(num_particles: int) -> np.ndarray:
    """Helmert's matrix without its constant row, `(num_particles - 1, num_particles)`.

    Row k holds k times 1 and once -k, in units of its norm.
    """
    count = np.arange(1, num_particles)[:, None]
    column = np.arange(num_particles)[None, :]
    rows = np.where(column < count, 1.0, np.where(column == count, -count, 0.0))
    return rows / np.sqrt(count * (count + 1.0))


def _pair_distances(x: Array, num_particles: int, space_dim: int) -> Array:
    """Distances of the pairs i < j, `(num_pairs,)`."""
    first, second = np.triu_indices(num_particles, 1)
    columns = _basis(num_particles).T
    # A product, not a selection of rows: the gradient of one is slow.
    differences = jnp.asarray(columns[first] - columns[second], x.dtype)
    rows = x.reshape(num_particles - 1, space_dim)
    return safe_norm(jnp.matmul(differences, rows, precision=_PRECISION))


def double_well_particles(
    *,
    num_particles: int = 4,
    space_dim: int = 2,
    linear: float = 0.0,
    quadratic: float = -4.0,
    quartic: float = 0.9,
    offset: float = 4.0,
    temperature: float = 1.0,
) -> Endpoint:
    """Particles with a double well between each two; the default is known as DW-4.

    E = Σ_{i<j} [a (d_ij - d_0) + b (d_ij - d_0)² + c (d_ij - d_0)⁴] / τ, each pair once, with
    d_ij the distance of two particles.

    Args:
        num_particles: Number of particles, at least 2.
        space_dim: Dimension of the space that they live in.
        linear: a.
        quadratic: b; negative for two wells.
        quartic: c, positive.
        offset: d_0, between the wells.
        temperature: τ, in units of the energy.

    Returns:
        Endpoint of dimension (num_particles - 1) · space_dim with an energy alone; points are
        coordinates for `to_positions`.

    Raises:
        ValueError: If an option is out of its range.

    Source: Köhler, Klein & Noé (2020, arXiv:2006.02425).
    """
    num_particles = options.integer("num_particles", num_particles, minimum=2)
    space_dim = options.integer("space_dim", space_dim, minimum=1)
    a, b = options.finite("linear", linear), options.finite("quadratic", quadratic)
    c, centre = options.positive("quartic", quartic), options.positive("offset", offset)
    temperature = options.positive("temperature", temperature)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, ((num_particles - 1) * space_dim,))
        apart = _pair_distances(x, num_particles, space_dim) - centre
        return -jnp.sum(apart * (a + apart * (b + c * jnp.square(apart)))) / temperature

    # A pair alone: b u² + c u⁴ is this many nats above its minimum, at u² = -b/2c.
    inner = max(-0.5 * b / c, 0.0)
    reach = centre + math.sqrt(inner + math.sqrt(15.0 * temperature / c))
    return Endpoint(
        name="double_well_particles",
        dim=(num_particles - 1) * space_dim,
        log_density=log_density,
        particles=(num_particles, space_dim),
        extent=(-reach, reach),
    )


def lennard_jones(
    *,
    num_particles: int = 13,
    epsilon: float = 1.0,
    radius: float = 1.0,
    oscillator: float = 1.0,
    temperature: float = 1.0,
    core: float = 0.65,
) -> Endpoint:
    """A Lennard-Jones cluster in space, held together by a spring: LJ-13 and LJ-55.

    E = ε/τ Σ_{i<j} [(r_m/d_ij)¹² - 2 (r_m/d_ij)⁶] + c/2 Σ_i |x_i - x̄|², each pair once, with
    d_ij the distance of two particles and x̄ their centre of mass. The code of iDEM
    (arXiv:2402.06121), and with it the published tables of Adjoint Sampling (arXiv:2504.11713)
    and ASBS (arXiv:2506.22565), counts each pair twice: that is `epsilon=2`.

    Args:
        num_particles: Number of particles, at least 2.
        epsilon: ε, the depth of a pair's well.
        radius: r_m, the distance at the well's bottom.
        oscillator: c, the spring's constant, positive; not divided by τ.
        temperature: τ, in units of ε.
        core: Distance, in units of r_m and below 1, under which a pair's energy is continued by
            its second-order expansion, which keeps the gradient finite where particles
            meet. At 0.65 r_m it is 149 ε above the sum of two free particles, so that the law
            is the same; 0 leaves the energy as it is, infinite in float32 below 6e-4 r_m.

    Returns:
        Endpoint of dimension 3 (num_particles - 1) with an energy alone; points are coordinates
        for `to_positions`.

    Raises:
        ValueError: If an option is out of its range.

    Source: Köhler, Klein & Noé (2020, arXiv:2006.02425); Klein, Krämer & Noé (2023,
    arXiv:2306.15030).
    """
    num_particles = options.integer("num_particles", num_particles, minimum=2)
    depth = options.positive("epsilon", epsilon) / options.positive("temperature", temperature)
    radius = options.positive("radius", radius)
    spring = options.positive("oscillator", oscillator)
    if not 0.0 <= options.finite("core", core) < 1.0:
        raise ValueError(f"core = {core!r} is not allowed: must be in [0, 1)")

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (3 * (num_particles - 1),))
        distances = _pair_distances(x, num_particles, 3) / radius
        pairs = jnp.sum(_lennard_jones_pair(distances, float(core)))
        # The basis is orthonormal: Σ_i |x_i - x̄|² is the square of the coordinates.
        return -depth * pairs - 0.5 * spring * jnp.sum(jnp.square(x))

    # Without attraction the coordinates have deviation 1/√c; attraction draws them inwards,
    # and repulsion keeps some three radii for a hundred particles.
    reach = 5.5 / math.sqrt(spring) + radius * num_particles ** (1.0 / 3.0)
    return Endpoint(
        name="lennard_jones",
        dim=3 * (num_particles - 1),
        log_density=log_density,
        particles=(num_particles, 3),
        extent=(-reach, reach),
    )


def _lennard_jones_pair(distance: Array, core: float) -> Array:
    """d⁻¹² - 2 d⁻⁶, and below `core` its expansion there to second order."""
    sixth = (1.0 / jnp.maximum(distance, core)) ** 6
    energy = sixth * (sixth - 2.0)
    if core == 0.0:
        return energy
    slope = 12.0 * (core**-7 - core**-13)
    curvature = 12.0 * (13.0 * core**-14 - 7.0 * core**-8)
    inside = jnp.minimum(distance - core, 0.0)
    return energy + inside * (slope + 0.5 * curvature * inside)
