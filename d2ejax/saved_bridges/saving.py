"""Writes a trained bridge: its kernels and its ends as programs, its parameters as arrays."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d2ejax.endpoints.base import Endpoint
from d2ejax.kernels import Process
from d2ejax.saved_bridges import folder, programs
from d2ejax.saved_bridges.trained import IMPLEMENTATION
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Params

_LARGEST = 20_000_000
"""Bytes of a program."""

_Signature = tuple[Callable, tuple, bool]
"""A function, its arguments, and whether it is to be differentiable."""


def save(
    directory: str | Path,
    *,
    grid: TimeGrid,
    source: Endpoint,
    target: Endpoint,
    forward: tuple[Process, Params],
    backward: tuple[Process, Params] | None,
    has_density: bool = True,
    draws: int = 2000,
) -> dict[str, Any]:
    """Writes a bridge for `load`, in place of what was there.

    What is written is described in `d2ejax.saved_bridges.folder`: no pickle and no Python.
    What of the two ends cannot be exported, a host callback for instance, is left out.

    Args:
        directory: The folder; made where it does not exist.
        grid: The time grid of both processes.
        source: What is known of p_0; of which `sample` and `log_density` are written.
        target: The same of p_1.
        forward: The forward process and its parameters.
        backward: The backward process and its parameters; None where no reversal is known.
        has_density: Whether paths have densities worth the name; False for a flow.
        draws: How many samples of an end one call of its program draws.

    Returns:
        The fields of bridge.json: among them `left_out`, the reason for each program that
        could not be written.

    Raises:
        ValueError: If a kernel cannot be exported, or parameters are no NumPy arrays.
    """
    parameters: dict[str, np.ndarray] = {}
    wanted: dict[str, _Signature] = {}
    for name, side in (("forward_kernel", forward), ("backward_kernel", backward)):
        if side is not None:
            own = named_arrays(side[1])
            parameters |= {f"{name}/{leaf}": array for leaf, array in own.items()}
            wanted[name] = _kernel(*side, own, source.dim)
    for name, end in (("source", source), ("target", target)):
        wanted |= _end(name, end, draws)

    files, written, left_out = {}, {}, {}
    for name, (function, args, differentiable) in wanted.items():
        try:
            content, platforms = programs.write(function, args, differentiable=differentiable)
        except ValueError as error:
            if name.endswith("_kernel"):
                raise ValueError(f"{name}: {error}") from error
            left_out[name] = " ".join(str(error).split())[:300]
            continue
        if len(content) > _LARGEST:
            # A data set is no part of a bridge.
            left_out[name] = f"{len(content) / 1e6:.0f} MB of constants: at most 20 are written"
            continue
        files[name + folder.PROGRAM] = content
        written[name] = {"platforms": list(platforms)}
    manifest = {
        "dim": source.dim,
        "times": [float(t) for t in np.asarray(grid.times)],
        "source": source.name,
        "target": target.name,
        "has_density": has_density,
        "draws": draws,
        "jax": jax.__version__,
        "programs": written,
        "left_out": left_out,
    }
    buffer = io.BytesIO()
    single: dict[str, Any] = parameters
    np.savez(buffer, **single)
    folder.write(Path(directory), manifest, {folder.PARAMETERS: buffer.getvalue(), **files})
    return manifest


def named_arrays(params: Params) -> dict[str, np.ndarray]:
    """The leaves of a tree by their paths.

    Raises:
        ValueError: If one is no array of numbers, or has a dtype that NumPy does not know.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array = np.asarray(leaf)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"parameter {name!r}: dtype {array.dtype}: must be one of NumPy's")
        found[name] = array
    return found


def _kernel(
    process: Process, params: Params, own: Mapping[str, np.ndarray], dim: int
) -> _Signature:
    """Maps (parameters by name, points (n, dim), step) to mean and log-variance, (n, dim)."""
    structure, names = jax.tree.structure(params), tuple(own)

    def kernel(arrays: dict[str, Array], x: Array, step: Array) -> tuple[Array, Array]:
        params = jax.tree.unflatten(structure, [arrays[name] for name in names])
        chosen = jax.tree.map(lambda leaf: leaf[step], process.steps)
        embedded = process.embed(params, chosen)
        law = jax.vmap(process.embedded_kernel, (None, 0, None))(params, x, embedded)
        return law.mean, law.log_variance

    arrays = {name: programs.spec(*a.shape, dtype=a.dtype) for name, a in own.items()}
    return kernel, (arrays, programs.spec("n", dim), programs.spec(dtype="int32")), True


def _end(name: str, end: Endpoint, draws: int) -> dict[str, _Signature]:
    wanted: dict[str, _Signature] = {}
    if end.sample is not None:
        draw = end.sample

        def sample(words: Array) -> Array:
            return draw(jax.random.wrap_key_data(words, impl=IMPLEMENTATION), draws)

        wanted[f"{name}_samples"] = sample, (programs.spec(2, dtype="uint32"),), False
    if end.log_density is not None:
        density = jax.vmap(end.log_density)
        wanted[f"{name}_log_density"] = density, (programs.spec("n", end.dim),), True
    return wanted
