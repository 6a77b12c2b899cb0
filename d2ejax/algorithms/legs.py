"""Legs: the times between one observed marginal and the next, and how to treat them at once.

Arrays of all legs have them as their first axis. A network need not know of them: before it is
evaluated, legs and the times in each become one axis of times.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from d2ejax import time_grids
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key

_FURTHER = 0x6C656773
"""Sets the keys of further legs apart from those that a key is split into elsewhere."""


def spans(grid: TimeGrid, knots: Sequence[int]) -> tuple[Array, Array]:
    """When each leg starts and how long it is.

    Args:
        grid: The time grid.
        knots: Points of the grid, counted from 0, at which one leg ends and the next begins.

    Returns:
        Times and lengths, `(num_legs,)` each.

    Raises:
        ValueError: If the knots are not points between the ends of the grid, in order.
    """
    pieces = time_grids.cut(grid, knots)
    starts = jnp.stack([piece.times[0] for piece in pieces])
    return starts, jnp.stack([piece.t_max for piece in pieces]) - starts


def keys(key: Key, num_legs: int) -> tuple[Key, ...]:
    """A key for each leg; the first has the key itself, so that one leg draws as if alone."""
    further = jax.random.split(jax.random.fold_in(key, _FURTHER), num_legs)
    return (key, *further[1:])


def split(num_legs: int, times: Array, *ends: Array) -> tuple[Array, ...]:
    """Times and ends of pairs with an axis of legs, whether they came with one or not.

    Args:
        num_legs: How many.
        times: Leg after leg, as many in each, `(num_legs * leg_times,)`.
        *ends: `(num_legs, n, dim)`, or `(n, dim)` of a single leg.

    Returns:
        Shapes `(num_legs, leg_times)` and, for each end, `(num_legs, n, dim)`.
    """
    parts = (end.reshape(num_legs, -1, end.shape[-1]) for end in ends)
    return times.reshape(num_legs, -1), *parts


def along(values: Array) -> Array:
    """Merges legs and the times in each, `(n, num_legs, leg_times, ...)`, into one axis."""
    return values.reshape(values.shape[0], -1, *values.shape[3:])
