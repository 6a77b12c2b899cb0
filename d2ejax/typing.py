"""Names for the few types that cross the rooms of the library."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.typing

Array = jax.Array
Key = jax.Array
"""A typed key, made by `jax.random.key`."""

AxisName = str | tuple[str, ...]
"""The name of a mapped axis, or of several that count as one."""

DType = jax.typing.DTypeLike
"""What `jax.numpy` takes for a dtype."""

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


@dataclasses.dataclass(frozen=True)
class EmbeddedNetwork:
    """A `Network` in two parts, of which the first sees the time alone.

    All paths of a batch share the times of the grid, so that the first part is computed once
    for each of them, whatever the batch.

    Attributes:
        embed: Maps `(params, t)` to an array or a tree of them.
        apply: Maps `(params, x, embedding)` to `(drift, log_variance)`.
    """

    embed: Callable[[Params, Array], Any]
    apply: Callable[[Params, Array, Any], tuple[Array, Array]]

    def __call__(self, params: Params, x: Array, t: Array) -> tuple[Array, Array]:
        """The whole network."""
        return self.apply(params, x, self.embed(params, t))
