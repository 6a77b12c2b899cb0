"""The checkerboard: samples only, for its density is zero on half of the board."""

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint
from d2ejax.typing import Array, Key


def checkerboard(*, num_squares: int = 4, half_width: float = 2.0) -> Endpoint:
    """Uniform law on every second square of a board centred at the origin.

    There is no log-density: it would be -∞ off the squares and flat on them, so no gradient
    leads to the mass.

    Args:
        num_squares: Squares along one side of the board; at least 2.
        half_width: Half the side of the board, which is [-half_width, half_width]².

    Returns:
        Endpoint in the plane with samples.

    Raises:
        ValueError: If an option is out of its range.
    """
    count = options.integer("num_squares", num_squares, minimum=2)
    half = options.positive("half_width", half_width)
    side = 2.0 * half / count
    columns, rows = np.divmod(np.arange(count**2), count)
    filled = (columns + rows) % 2 == 0
    cells = np.stack([columns[filled], rows[filled]], axis=-1)
    corners = (side * cells - half).astype(np.float32)

    def sample(key: Key, n: int) -> Array:
        key_square, key_inside = jax.random.split(key)
        square = jax.random.randint(key_square, (n,), 0, len(corners))
        inside = jax.random.uniform(key_inside, (n, 2), jnp.float32)
        return jnp.asarray(corners)[square] + side * inside

    return Endpoint(name="checkerboard", dim=2, sample=sample, extent=(-half, half))
