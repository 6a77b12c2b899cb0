"""The φ⁴ field on a periodic square lattice."""

import math

import chex
import jax.numpy as jnp

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint
from d2ejax.typing import Array

# Nats of one site's own potential above its minimum, at the rim of the extent.
_DEPTH = 17.0


def phi4(*, side: int = 8, mass_squared: float = -4.0, coupling: float = 6.008) -> Endpoint:
    """A scalar field with a quartic interaction, log p = -S.

    S(φ) = Σ_x [ Σ_μ (φ(x + μ) - φ(x))² + mass² φ(x)² + coupling φ(x)⁴ ] on a torus of
    side × side sites, μ one step along either axis. A point is the field row by row. The
    default is symmetric and near critical; with a smaller coupling, or a more negative mass²,
    all sites share a sign and the law has two modes, φ and -φ.

    Args:
        side: Sites along one side; at least 3.
        mass_squared: Factor of φ², which may be negative.
        coupling: Factor of φ⁴, positive.

    Returns:
        Endpoint of dimension side² with an energy alone.

    Raises:
        ValueError: If an option is out of its range.

    Source: Albergo, Kanwar & Shanahan (2019, arXiv:1904.12072), whose ensemble E2 is the
    default.
    """
    side = options.integer("side", side, minimum=3)
    mass_squared = options.finite("mass_squared", mass_squared)
    coupling = options.positive("coupling", coupling)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (side**2,))
        field = x.reshape(side, side)
        steps = (field - jnp.roll(field, 1, axis) for axis in range(2))
        kinetic = sum(jnp.sum(jnp.square(step)) for step in steps)
        squares = jnp.square(field)
        return -kinetic - jnp.sum(squares * (mass_squared + coupling * squares))

    # Where mass² u + coupling u², u = φ² ≥ 0, exceeds its minimum, at `lowest`, by _DEPTH.
    half = 0.5 * mass_squared / coupling
    lowest = max(-half, 0.0)
    reach = math.sqrt(math.sqrt((half + lowest) ** 2 + _DEPTH / coupling) - half)
    return Endpoint(name="phi4", dim=side**2, log_density=log_density, extent=(-reach, reach))
