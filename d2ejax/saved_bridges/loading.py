"""Reads a trained bridge, without the code that trained it and without running any."""

import functools
import io
import operator
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import Exported

from d2ejax.gaussians import Gaussian
from d2ejax.saved_bridges import folder, programs, trained
from d2ejax.saved_bridges.trained import Density, Kernel, Parts, Samples, TrainedBridge
from d2ejax.typing import Array, Key


def load(directory: str | Path) -> TrainedBridge:
    """Reads a trained bridge from the workdir of a finished run, or from its folder `bridge`.

    No code is executed by it. The folder has a JSON file, arrays (read without pickle) and
    StableHLO programs: operations on arrays that XLA compiles when one of the functions is
    called, and that can do nothing but compute. Checksums, format, shapes and the calls that
    programs may make are checked. A checksum does not say who wrote a file: of a stranger's
    bridge the numbers are as trustworthy as the stranger.

    JAX reads programs for six months after the release that wrote them, or longer; a run can be
    evaluated anew to write them with a later one.

    Args:
        directory: The workdir, or what `save` wrote.

    Returns:
        The bridge. With a key and n of `--mode=sample` its paths are those, to float tolerance.

    Raises:
        FileNotFoundError: If there is no saved bridge.
        ValueError: If it is damaged, of another format or not what it says it is.
    """
    directory = Path(directory)
    if not (directory / folder.MANIFEST).exists():
        directory = directory / folder.FOLDER
    manifest, files = folder.read(directory)
    read = functools.partial(_program, directory, manifest, files)
    dim, most = manifest["dim"], manifest["draws"]
    times, arrays = jnp.asarray(manifest["times"], jnp.float32), _arrays(directory, files)
    forward, backward = (
        _kernel(read, name, arrays, dim, len(times) - 1)
        for name in ("forward_kernel", "backward_kernel")
    )
    if forward is None:
        raise ValueError(f"{directory / folder.MANIFEST}: has no program forward_kernel")
    parts = Parts(
        dim=dim,
        times=times,
        names=(manifest["source"], manifest["target"]),
        forward=forward,
        backward=backward,
        densities=(
            _density(read, "source_log_density", dim),
            _density(read, "target_log_density", dim),
        ),
        samples=(
            _samples(read, "source_samples", most, dim),
            _samples(read, "target_samples", most, dim),
        ),
        most=most,
        has_density=manifest["has_density"],
    )
    return trained.assemble(parts)


def _kernel(
    read: Callable, name: str, arrays: dict[str, np.ndarray], dim: int, num_steps: int
) -> Kernel | None:
    prefix = f"{name}/"
    own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    x, step = programs.spec("n", dim), programs.spec(dtype="int32")
    program = read(name, (own, x, step), (x, x))
    if program is None:
        return None
    params, call = jax.tree.map(jnp.asarray, own), jax.jit(program.call)

    def kernel(x: Array, step: int | Array) -> Gaussian:
        if not isinstance(step, jax.Array) and not 0 <= operator.index(step) < num_steps:
            raise ValueError(f"step = {step}: must be from 0 to {num_steps - 1}")
        points = trained.as_points(x, dim)
        return Gaussian(*call(params, points, jnp.asarray(step, jnp.int32)))

    return kernel


def _density(read: Callable, name: str, dim: int) -> Density | None:
    program = read(name, (programs.spec("n", dim),), programs.spec("n"))
    if program is None:
        return None
    call = jax.jit(program.call)
    return lambda x: call(trained.as_points(x, dim))


def _samples(read: Callable, name: str, most: int, dim: int) -> Samples | None:
    """At most as many as one call of the program draws."""
    words, result = programs.spec(2, dtype="uint32"), programs.spec(most, dim)
    program = read(name, (words,), result)
    if program is None:
        return None
    call = jax.jit(program.call)

    def draw(key: Key, n: int) -> Array:
        return call(jax.random.key_data(key))[:n]

    return draw


def _program(
    directory: Path,
    manifest: dict[str, Any],
    files: dict[str, bytes],
    name: str,
    args: tuple,
    result: Any,
) -> Exported | None:
    """A program with the signature that it must have, None if the bridge has none."""
    if name not in manifest["programs"]:
        return None
    path = directory / f"{name}{folder.PROGRAM}"
    if path.name not in files:
        raise ValueError(f"{directory / folder.MANIFEST}: lists no checksum of {path.name}")
    try:
        program = programs.read(files[path.name])
    except ValueError as error:
        raise ValueError(f"{path}: {error} (written by JAX {manifest['jax']})") from error
    wanted = jax.tree.structure((args, {})), jax.tree.structure(result)
    shapes = [programs.signature(jax.tree.leaves(tree)) for tree in (args, result)]
    found = [programs.signature(avals) for avals in (program.in_avals, program.out_avals)]
    if (program.in_tree, program.out_tree) != wanted or shapes != found:
        raise ValueError(
            f"{path}: maps {found[0]} to {found[1]}: must map {shapes[0]} to {shapes[1]}"
        )
    return program


def _arrays(directory: Path, files: dict[str, bytes]) -> dict[str, np.ndarray]:
    path = directory / folder.PARAMETERS
    if path.name not in files:
        raise ValueError(f"{directory / folder.MANIFEST}: lists no checksum of {path.name}")
    try:
        with np.load(io.BytesIO(files[path.name]), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}: must hold arrays of numbers") from error
