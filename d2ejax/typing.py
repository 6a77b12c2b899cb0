"""Names for the few types that cross the rooms of the library."""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
Key = jax.Array
"""A typed key, made by `jax.random.key`."""

Time = jax.Array | float
"""A point in time, a scalar."""

Params = Any
"""Any pytree; the library never looks inside."""

LogDensity = Callable[[Array], Array]
"""Maps one point of shape `(dim,)` to a scalar; need not be normalised."""

Network = Callable[[Params, Array, Array], tuple[Array, Array]]
"""Maps `(params, x, t)` to `(drift, log_variance)`, each of shape `(dim,)`.

Both are residuals: an output of zeros is the reference process.
"""
