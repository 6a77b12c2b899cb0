"""Checkpoints of a training state: atomic, the newest few kept, restored bit for bit.

A state is any pytree of arrays and typed keys. It is stored by orbax as a flat dict from the
path of a leaf to its array, so that no container type is written to disk; beside it lies a JSON
record with the shape, dtype and checksum of every leaf.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from d2ejax.parallel import Trainer
from experiments import workdir
from experiments.errors import InputError

_CACHES = "caches."
"""The start of the names of what gradient steps simulate and draw from."""


class Saved(NamedTuple):
    """A checkpoint as it lies on disk, checked but not yet on a device.

    Attributes:
        path: Its directory.
        step: Gradient steps taken.
        leaves: Shape, dtype and checksum of every leaf.
        arrays: The leaves that are not empty.
        metadata: What was saved with the state, JSON types only.
    """

    path: Path
    step: int
    leaves: dict[str, dict[str, Any]]
    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


@contextmanager
def manager(directory: Path, *, keep: int) -> Iterator[ocp.CheckpointManager]:
    """Opens `directory`, made if it does not exist, to save the newest `keep` checkpoints."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        # What a killed process left half-written.
        cleanup_tmp_directories=True,
    )
    opened = ocp.CheckpointManager(Path(directory).resolve(), options=options)
    try:
        yield opened
    finally:
        opened.close()


def save(
    checkpoints: ocp.CheckpointManager, step: int, state: Any, metadata: dict[str, Any]
) -> None:
    """Saves a state unless this step has one; killed midway, it leaves no checkpoint."""
    if step in checkpoints.all_steps():
        return
    leaves = _to_arrays(state)
    record = {"leaves": {name: _describe(array) for name, array in leaves.items()}}
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            # Orbax refuses empty arrays; there is nothing in them to save.
            state=ocp.args.StandardSave({k: v for k, v in leaves.items() if v.size}),
            record=ocp.args.JsonSave(record | {"metadata": metadata}),
        ),
    )


def read(directory: Path) -> Saved:
    """Reads and checks the newest checkpoint; compiles nothing and changes nothing on disk.

    Raises:
        InputError: If there is none or it is damaged.
    """
    step = workdir.latest_step(directory)
    if step is None:
        raise InputError(f"{directory}: holds no checkpoint: train first, with --mode=train")
    path = Path(directory).resolve() / str(step)
    try:
        record = _read(path / "record", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())
        leaves, metadata = record["leaves"], record["metadata"]
        template = {
            name: np.zeros(leaf["shape"], leaf["dtype"])
            for name, leaf in leaves.items()
            if 0 not in leaf["shape"]
        }
        handler, args = ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(template)
        arrays = _read(path / "state", handler, args)
        for name, array in arrays.items():
            if _describe(array) != leaves[name]:
                raise ValueError(f"{name} does not match its checksum")
    except Exception as error:  # orbax raises whatever its file formats raise
        raise _damaged(path, error) from error
    return Saved(path, step, leaves, arrays, metadata)


def place(saved: Saved, like: Any) -> Any:
    """Puts a checkpoint where a training state goes.

    Args:
        saved: From `read`.
        like: A state of the same structure, shapes and dtypes, whose devices are used.

    Returns:
        The state that was saved, equal in every bit.

    Raises:
        InputError: If the checkpoint holds a state of another kind.
    """
    expected = {name: _describe(array) for name, array in _to_arrays(like).items()}
    for name in sorted(saved.leaves.keys() | expected.keys()):
        there, here = (
            f"{leaf['dtype']}{leaf['shape']}" if (leaf := leaves.get(name)) else "absent"
            for leaves in (saved.leaves, expected)
        )
        if there != here:
            raise InputError(
                f"{saved.path}: holds another kind of state: {name} is {there} there: must be "
                f"{here}: use the number of devices and the version that wrote it (the first "
                "axis counts devices; on a CPU, parallel.cpu_devices is how many there are)"
            )
    return _from_arrays(saved.arrays, like)


def of_first_device(saved: Saved, like: Any) -> Saved:
    """A checkpoint in which every device has the state of the first, to be judged elsewhere.

    Args:
        saved: From `read`.
        like: A state on the devices that are to judge it. Of its caches, which no judgement
            reads, the size depends on the number of devices: they stay as they are in it.
    """
    here = _to_arrays(like)

    def moved(name: str, array: np.ndarray) -> np.ndarray:
        if name.startswith(_CACHES) and name in here:
            return here[name]
        return np.repeat(array[:1], num_devices, axis=0)

    num_devices = len(next(iter(here.values())))
    arrays = {name: moved(name, array) for name, array in saved.arrays.items()}
    empty = {
        name: leaf | {"shape": [num_devices, *leaf["shape"][1:]]}
        for name, leaf in saved.leaves.items()
    }
    described = {name: _describe(array) for name, array in arrays.items()}
    return saved._replace(leaves=empty | described, arrays=arrays)


def to_judge(saved: Saved, trainer: Trainer, seed: int) -> Any:
    """The state of a checkpoint on the devices of a trainer, whatever those that trained it.

    Args:
        saved: From `read`.
        trainer: Of the same algorithm.
        seed: Of the run.

    Returns:
        The state of all devices, each with that of the first.

    Raises:
        InputError: If the checkpoint holds a state of another kind.
    """
    like = trainer.init(jax.random.key(seed))
    return place(of_first_device(saved, like), like)


def _read(path: Path, handler: Any, args: Any) -> Any:
    with ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(path, args=args)


def _damaged(path: Path, error: Exception) -> InputError:
    earlier = [int(p.name) for p in path.parent.iterdir() if p.name.isdigit() and p != path]
    go_on = f"from step {max(earlier)}" if earlier else "from the start"
    return InputError(
        f"{path}: this checkpoint is damaged or truncated ({type(error).__name__}): delete "
        f"that directory to go on {go_on}"
    )


def _describe(array: np.ndarray) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "crc32": zlib.crc32(np.ascontiguousarray(array).tobytes()),
    }


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _paths(state: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), x) for path, x in leaves]


def _to_arrays(state: Any) -> dict[str, np.ndarray]:
    """Host arrays by leaf path; a typed key becomes its words, its kind named in the path."""
    arrays = {}
    for name, leaf in _paths(state):
        if _is_key(leaf):
            name, leaf = f"{name}:{jax.random.key_impl(leaf)}", jax.random.key_data(leaf)
        if name in arrays:
            raise ValueError(f"two leaves of the state share the path {name!r}")
        arrays[name] = np.asarray(leaf)
    return arrays


def _from_arrays(arrays: dict[str, np.ndarray], like: Any) -> Any:
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
