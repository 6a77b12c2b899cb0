"""An optimiser's step on a few large arrays instead of many small ones.

A network of this library has dozens of small leaves, and an optimiser runs tens of operations
on each: as many programs to compile and to launch as the rest of a gradient step.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from d2ejax.typing import Array, Params

REST = "rest"
"""Name of the vector of everything that is not a matrix."""


def gathered(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs an optimiser on its parameters gathered by shape.

    It sees a dict of arrays: the matrices of each shape stacked, `(n, rows, columns)`, and one
    vector with everything else. What treats each entry by itself, or all of them alike, as
    Adam and clipping by the global norm do, gives what it would give leaf by leaf; what is for
    matrices must be told that the first axis counts them.

    Args:
        inner: The optimiser; all parameters and gradients are of one dtype.

    Returns:
        The same for a tree of parameters.

    Raises:
        ValueError: When it is run on leaves of more than one dtype.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> Any:
        return inner.init(_gather(params)[0])

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        found, scatter = _gather(updates)
        seen = None if params is None else _gather(params)[0]
        found, state = inner.update(found, state, seen, **extra)
        return scatter(found), state

    return optax.GradientTransformationExtraArgs(init, update)


def _gather(tree: Params) -> tuple[dict[str, Array], Callable[[dict[str, Array]], Params]]:
    """The arrays of a tree gathered by shape, and what undoes it."""
    leaves, structure = jax.tree.flatten(tree)
    dtypes = sorted({jnp.result_type(leaf).name for leaf in leaves})
    if len(dtypes) > 1:
        raise ValueError(f"the leaves are of the dtypes {dtypes}: must be of one")
    groups: dict[str, list[int]] = {}
    for index, leaf in enumerate(leaves):
        name = "x".join(map(str, leaf.shape)) if leaf.ndim == 2 else REST
        groups.setdefault(name, []).append(index)

    def scatter(arrays: dict[str, Array]) -> Params:
        result = list(leaves)
        for name, members in groups.items():
            shapes = [leaves[index].shape for index in members]
            if name == REST:
                ends = list(itertools.accumulate(leaves[index].size for index in members))
                parts = jnp.split(arrays[name], ends[:-1])
            else:
                parts = list(arrays[name])
            for index, part, shape in zip(members, parts, shapes, strict=True):
                result[index] = part.reshape(shape)
        return jax.tree.unflatten(structure, result)

    def array(name: str, members: list[int]) -> Array:
        chosen = [leaves[index] for index in members]
        if name == REST:
            return jnp.concatenate([leaf.reshape(-1) for leaf in chosen])
        return jnp.stack(chosen)

    return {name: array(name, members) for name, members in groups.items()}, scatter
