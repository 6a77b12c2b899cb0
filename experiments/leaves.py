"""The leaves of a training state as host arrays by their paths, and as the bytes of these."""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def describe(array: np.ndarray) -> dict[str, Any]:
    """Shape, dtype and checksum of an array, as JSON types."""
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "crc32": zlib.crc32(np.ascontiguousarray(array).tobytes()),
    }


def pack(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The bytes of arrays one after the other, in the order of their names."""
    flat = (np.ascontiguousarray(arrays[name]).reshape(-1) for name in sorted(arrays))
    return np.concatenate([array.view(np.uint8) for array in flat])


def unpack(
    packed: np.ndarray, described: Mapping[str, Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """The inverse of `pack` for arrays described so, without those that are empty."""
    names = sorted(described)
    ends = np.cumsum([_size(described[name]) for name in names])
    parts = np.split(np.asarray(packed), ends[:-1])
    return {
        name: part.view(described[name]["dtype"]).reshape(described[name]["shape"])
        for name, part in zip(names, parts, strict=True)
        if part.size
    }


def packed_size(described: Mapping[str, Mapping[str, Any]]) -> int:
    """How many bytes arrays described so have."""
    return sum(_size(leaf) for leaf in described.values())


def _size(leaf: Mapping[str, Any]) -> int:
    return math.prod(leaf["shape"]) * np.dtype(leaf["dtype"]).itemsize


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _paths(state: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), x) for path, x in leaves]


def to_arrays(state: Any) -> dict[str, np.ndarray]:
    """Host arrays by leaf path; a typed key becomes its words, its kind named in the path."""
    arrays = {}
    for name, leaf in _paths(state):
        if _is_key(leaf):
            name, leaf = f"{name}:{jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
        if name in arrays:
            raise ValueError(f"two leaves of the state share the path {name!r}")
        arrays[name] = np.asarray(leaf)
    return arrays


def from_arrays(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """The inverse of `_to_arrays`, each leaf put where the leaf of `like` lies."""
    leaves = []
    for name, leaf in _paths(like):
        if _is_key(leaf):
            impl, words = jax.random.key_impl(leaf), jax.random.key_data(leaf)
            restored = _put(arrays[f"{name}:{impl}"], words)
            leaves.append(jax.random.wrap_key_data(restored, impl=impl))
        else:
            leaves.append(_put(arrays[name], leaf) if np.size(leaf) else leaf)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _put(array: np.ndarray, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return array
    # No aliasing: the trainer may donate the state, and this memory is not JAX's to give.
    return jax.device_put(array, like.sharding, may_alias=False)
