"""The workdir of a run: what lies where, whose it is, and files written whole or not at all.

    config.json     the configuration, written once everything given has been checked
    metrics.jsonl   one JSON object for each dispatch
    checkpoints/    see experiments.checkpoints
    plots/          figures
    bridge/         the trained processes, as d2ejax.load reads them
    report.md       all of this in words
    events/         what TensorBoard reads, with loop.tensorboard
    summary.json    what was measured; written last, with "finished": true it ends the run

A workdir belongs to one configuration. Keys under `loop` and `evaluate` may change between two
commands on it, because the trained parameters do not depend on them, and so may the devices
that share the work, whatever their number; every other key may not.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import validation
from experiments.errors import InputError, StorageError, cause_in_storage

CONFIG = "config.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"
BRIDGE = "bridge"
REPORT = "report.md"
EVENTS = "events"

_FREE = ("loop.", "evaluate.", "parallel.backend", "parallel.cpu_devices")
_MOST_DIFFERENCES_SHOWN = 4


def default(config_path: str) -> Path:
    """The workdir of a configuration file where none is given: runs/<name of the file>."""
    return Path("runs") / Path(config_path).stem


def check(workdir: Path, config: ConfigDict) -> None:
    """Refuses a workdir that cannot be written or belongs to another configuration.

    Reads only.

    Raises:
        InputError: Naming the fields that differ, or why it cannot be used.
    """
    _check_writable(workdir)
    if not (workdir / CONFIG).exists():
        strange = [n for n in (METRICS, SUMMARY, CHECKPOINTS) if (workdir / n).exists()]
        if strange:
            raise InputError(
                f"--workdir={workdir}: holds {strange[0]} but no {CONFIG}: must be new, or the "
                "workdir of this configuration"
            )
        return
    differing = list(_differences(read_config(workdir), config))
    if differing:
        shown = ", ".join(differing[:_MOST_DIFFERENCES_SHOWN])
        more = len(differing) - _MOST_DIFFERENCES_SHOWN
        raise InputError(
            f"--workdir={workdir}: belongs to another configuration: {shown}"
            + (f" and {more} more" if more > 0 else "")
            + ": must be new, or the workdir of this configuration"
        )


def create(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir where needed and writes its configuration.

    Raises:
        InputError: If it cannot be written.
        StorageError: If the disk is full.
    """
    try:
        with writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / CONFIG, config.to_dict())
    except OSError as error:
        raise _unwritable(workdir, error.strerror or str(error)) from error


def read_config(workdir: Path) -> ConfigDict:
    """The configuration that a workdir belongs to.

    Raises:
        InputError: If there is none or it cannot be read.
    """
    path = workdir / CONFIG
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return ConfigDict(values)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--workdir={workdir}: its {CONFIG} cannot be read ({type(error).__name__}): must "
            "be the workdir of a run"
        ) from error


def is_finished(workdir: Path) -> bool:
    """Whether the run of this workdir has been trained to its end and evaluated."""
    try:
        summary = json.loads((workdir / SUMMARY).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and bool(summary.get("finished"))


def steps(checkpoints: Path) -> list[int]:
    """The steps of the complete checkpoints, the newest first; reads names only."""
    # A checkpoint gets its name, digits alone, by a rename once it is complete.
    names = [path.name for path in checkpoints.glob("*")] if checkpoints.is_dir() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def latest_step(checkpoints: Path) -> int | None:
    """The step of the newest complete checkpoint, None if there is none; reads names only."""
    return next(iter(steps(checkpoints)), None)


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Makes one line of a full disk.

    Args:
        directory: To be named.

    Raises:
        StorageError: Naming the cause, if what is done within it finds the disk full or broken.
    """
    try:
        yield
    except Exception as error:  # what is written in C++ raises what it likes
        cause = cause_in_storage(error)
        if cause is None or isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{directory}: cannot be written: {cause}: once it can, the same command goes on "
            "from the last checkpoint"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; non-finite numbers become null."""
    _replace(path, json.dumps(_finite(value), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    _replace(path, text)


def append_metrics(workdir: Path, record: dict[str, Any]) -> None:
    """Adds one line to the metrics; it survives a kill of the process from here on.

    Raises:
        StorageError: If the disk is full; what there is of the line is trimmed on resume.
    """
    with writing(workdir), (workdir / METRICS).open("a") as file:
        file.write(json.dumps(_finite(record)) + "\n")


def read_records(workdir: Path, step: int) -> list[dict[str, Any]]:
    """The records of metrics.jsonl up to `step`, in order; what was not finite is None."""
    return [record for _, record in _records(workdir, step)]


def trim_metrics(workdir: Path, step: int) -> None:
    """Drops the records past `step`, which a killed run wrote after its last checkpoint.

    A last line cut short by the kill is past it too.
    """
    path = workdir / METRICS
    kept = "".join(line for line, _ in _records(workdir, step))
    if path.exists() and path.read_text() != kept:
        _replace(path, kept)


def _records(workdir: Path, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of metrics.jsonl up to `step`, each with its record."""
    path = workdir / METRICS
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            return
        if not line.endswith("\n") or record["step"] > step:
            return
        yield line, record


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path.parent):
            temporary.write_text(text)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _differences(old: ConfigDict, new: ConfigDict) -> Iterator[str]:
    # Through JSON, so that what it cannot tell apart (tuples and lists) does not differ.
    before = dict(validation.flatten(old))
    after = dict(validation.flatten(ConfigDict(json.loads(json.dumps(new.to_dict())))))
    for name in sorted(before.keys() | after.keys()):
        if not name.startswith(_FREE) and before.get(name) != after.get(name):
            yield f"{name} = {_show(before, name)} there and {_show(after, name)} here"


def _show(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return "absent"
    value = values[name]
    return repr(value.to_dict() if isinstance(value, ConfigDict) else value)


def _check_writable(workdir: Path) -> None:
    try:
        nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise _unwritable(workdir, f"{nearest} is not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise _unwritable(workdir, f"{nearest} is not writable")
    except OSError as error:
        raise _unwritable(workdir, error.strerror or str(error)) from error


def _unwritable(workdir: Path, why: str) -> InputError:
    return InputError(f"--workdir={workdir}: {why}: must be a directory that can be written")
