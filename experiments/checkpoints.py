"""Checkpoints of a training state: atomic, written while training goes on, bit for bit.

A state is any pytree of arrays and typed keys. Orbax stores the bytes of all its leaves as one
array, so that no container type is written to disk, and that a save costs what one array costs;
beside it lies a JSON record with the shape, dtype and checksum of every leaf by its path, and a
score where the best is kept.

A save returns once the state has been copied and waits for the one before it, so that at any
time one checkpoint at most is unfinished. What a kill loses is what came after the last one
that was finished.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from d2ejax import parallel
from d2ejax.parallel import Trainer
from experiments import leaves, scores, workdir
from experiments.errors import InputError

Which = Literal["newest", "best"]

_PACKED = "leaves"
"""The name of the one array of a checkpoint."""


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
def manager(
    directory: Path, *, keep: int, keep_best: bool = False, after: int | None = None
) -> Iterator[ocp.CheckpointManager]:
    """Opens a directory to save checkpoints in; on leaving, all of them have been written.

    Args:
        directory: Made if it does not exist.
        keep: How many of the newest stay.
        keep_best: Whether the one of the lowest score stays beside them.
        after: Checkpoints past this step, found damaged, are set aside under another name.

    Raises:
        StorageError: If the disk is full, as may be found out while it is written to in the
            background: on leaving, or at the next `save` or `wait`.
    """
    directory = Path(directory).resolve()
    if parallel.is_first():
        _set_aside(directory, after)
    parallel.wait()
    kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
    if keep_best:
        kept.append(
            policies.BestN(
                get_metric_fn=scores.rank,
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        best_fn=scores.rank if keep_best else None,  # For without it no score is written.
        best_mode="min",
        enable_async_checkpointing=True,
        # What a killed process left half-written.
        cleanup_tmp_directories=True,
    )
    with _quiet():
        with workdir.writing(directory):
            opened = ocp.CheckpointManager(directory, options=options)
        try:
            yield opened
            wait(opened)
        finally:
            # What had gone wrong has been raised, or something else is being raised.
            with suppress(Exception):
                opened.close()


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: Any,
    metadata: dict[str, Any],
    score: Mapping[str, float] | None = None,
) -> None:
    """Copies a state, unless this step has been saved, and writes it in the background.

    Killed midway, it leaves no checkpoint. What the state refers to may be donated after it.

    Args:
        checkpoints: From `manager`.
        step: Gradient steps taken.
        state: What to save.
        metadata: What to save with it, JSON types only.
        score: From `scores.score`; not written where the best is not kept.

    Raises:
        StorageError: If the disk is full, be it for the save before this one.
    """
    if step in checkpoints.all_steps():
        return
    arrays = leaves.to_arrays(state)
    record = {"leaves": {name: leaves.describe(array) for name, array in arrays.items()}}
    with workdir.writing(Path(checkpoints.directory)):
        checkpoints.save(
            step,
            metrics=score,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave({_PACKED: leaves.pack(arrays)}),
                record=ocp.args.JsonSave(record | {"metadata": metadata}),
            ),
        )


def wait(checkpoints: ocp.CheckpointManager) -> None:
    """Returns once what has been saved is on disk.

    Raises:
        StorageError: If the disk is full.
    """
    with workdir.writing(Path(checkpoints.directory)):
        checkpoints.wait_until_finished()


def read(directory: Path, *, which: Which = "newest", fall_back: bool = False) -> Saved:
    """Reads and checks a checkpoint; compiles nothing and changes nothing on disk.

    Args:
        directory: Of the checkpoints.
        which: The newest, or the one of the lowest score.
        fall_back: Whether, in place of a damaged one, the newest that is sound is read, and
            one line on stderr says so.

    Raises:
        InputError: If there is none or it is damaged; with `fall_back`, if all are.
    """
    directory = Path(directory).resolve()
    steps = workdir.steps(directory)
    if not steps:
        raise InputError(f"{directory}: holds no checkpoint: train first, with --mode=train")
    if which == "best":
        best = scores.best(directory, steps)
        if best is None:
            raise InputError(
                f"--checkpoint=best: {directory}: none was kept as the best: train with "
                "--config.loop.keep_best=True, or give --checkpoint=newest"
            )
        return _read_step(directory / str(best))
    if not fall_back:
        return _read_step(directory / str(steps[0]))
    for step in steps:
        with suppress(InputError):
            saved = _read_step(directory / str(step))
            if step != steps[0]:
                bad = ", ".join(f"step {later}" for later in steps if later > step)
                print(
                    f"{directory}: {bad}: damaged or truncated: going on from step {step}",
                    file=sys.stderr,
                )
            return saved
    raise InputError(
        f"{directory}: every checkpoint in it is damaged or truncated (steps "
        f"{', '.join(map(str, steps))}): delete that directory to begin anew"
    )


def _read_step(path: Path) -> Saved:
    try:
        record = _read(path / "record", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())
        described, metadata = record["leaves"], record["metadata"]
        template = {_PACKED: np.zeros(leaves.packed_size(described), np.uint8)}
        handler, args = ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(template)
        arrays = leaves.unpack(_read(path / "state", handler, args)[_PACKED], described)
        for name, array in arrays.items():
            if leaves.describe(array) != described[name]:
                raise ValueError(f"{name} does not match its checksum")
    except Exception as error:  # orbax raises whatever its file formats raise
        raise _damaged(path, error) from error
    return Saved(path, int(path.name), described, arrays, metadata)


def _set_aside(directory: Path, after: int | None) -> None:
    """Renames checkpoints past a step, and those over whose score orbax would stumble."""
    for step in workdir.steps(directory):
        path = directory / str(step)
        try:
            damaged = after is not None and step > after
            scores.read(path)
        except ValueError:
            damaged = True
        if damaged:
            aside = path.with_name(f"{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax from writing to stderr what it raises as well."""
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook

    def closed_loops_aside(unraisable: Any) -> None:
        # Of files that were still being written when one of them failed.
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = closed_loops_aside
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        sys.unraisablehook = hook


def place(saved: Saved, like: Any, own: Sequence[str] = ()) -> Any:
    """Puts a checkpoint where a training state goes.

    Of what each shard has of its own, as many shards as before find what they had. Of another
    number each goes on from what one of those before had, with a key of its own; what was drawn
    for the whole batch, and cut up, is cut up anew.

    Args:
        saved: From `read`.
        like: What `Trainer.gather` makes of a state of the same structure and dtypes.
        own: The fields of it that each shard has of its own, see `Trainer`.

    Returns:
        The state that was saved, equal in every bit but for shards of another number.

    Raises:
        InputError: If the checkpoint holds a state of another kind.
    """
    expected = {name: leaves.describe(array) for name, array in leaves.to_arrays(like).items()}
    arrays = dict(saved.arrays)
    for name in sorted(saved.leaves.keys() | expected.keys()):
        there, here = (
            f"{leaf['dtype']}{leaf['shape']}" if (leaf := described.get(name)) else "absent"
            for described in (saved.leaves, expected)
        )
        if there == here:
            continue
        dealt = None
        if _is_own(name, own) and name in arrays and name in expected:
            dealt = _dealt(name, arrays[name], expected[name])
        if dealt is None:
            raise InputError(
                f"{saved.path}: holds another kind of state: {name} is {there} there: must be "
                f"{here}: use the version that wrote it"
            )
        arrays[name] = dealt
    return leaves.from_arrays(arrays, like)


def to_judge(saved: Saved, trainer: Trainer, seed: int) -> Any:
    """The state of a checkpoint on the devices of a trainer, whatever those that trained it.

    What each shard had of its own, of which judgements read nothing, begins anew.

    Args:
        saved: From `read`.
        trainer: Of the same algorithm.
        seed: Of the run.

    Raises:
        InputError: If the checkpoint holds a state of another kind.
    """
    state = trainer.init(jax.random.key(seed))
    like = trainer.gather(state)
    here = {n: x for n, x in leaves.to_arrays(like).items() if _is_own(n, trainer.own)}
    described = {name: leaves.describe(array) for name, array in here.items()}
    shared = saved._replace(
        leaves={n: x for n, x in saved.leaves.items() if not _is_own(n, trainer.own)}
        | described,
        arrays={n: x for n, x in saved.arrays.items() if not _is_own(n, trainer.own)} | here,
    )
    return trainer.place(place(shared, like), state)


def _is_own(name: str, own: Sequence[str]) -> bool:
    """Whether a leaf is of a field that each shard has of its own."""
    return re.split(r"[.:]", name, maxsplit=1)[0] in own


def _dealt(name: str, array: np.ndarray, wanted: dict[str, Any]) -> np.ndarray | None:
    """Rows of one number of shards dealt to another; None where they do not fit."""
    shape, count = tuple(wanted["shape"]), len(array)
    if array.dtype.name != wanted["dtype"]:
        return None
    if array.shape[1:] != shape[1:]:
        return array.reshape(shape) if array.size == np.prod(shape) else None
    rows = array[np.arange(shape[0]) % count]
    if ":" not in name:
        return rows
    # Words of keys: no two shards may draw the same.
    keys = jax.random.wrap_key_data(jnp.asarray(rows), impl=name.rpartition(":")[2])
    folded = jax.vmap(jax.random.fold_in)(keys, jnp.arange(shape[0]))
    return np.asarray(jax.random.key_data(folded))


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
