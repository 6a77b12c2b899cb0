"""What benchmarks share: runs by the runner, records in JSON lines, tables in Markdown."""

import argparse
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from ml_collections import ConfigDict

from experiments import arguments, validation, workdir
from experiments.errors import InputError
from experiments.tables import beside as beside
from experiments.tables import markdown as markdown
from experiments.tables import number as number

T = TypeVar("T")
Record = dict[str, Any]

RECORDS = "results.jsonl"
"""Where a benchmark keeps its records, in its folder."""

_BAD_INPUT = 2
_INTERRUPTED = 130
# A full disk, and SIGTERM.
_FROM_OUTSIDE = (3, 143)
# Keys by which no two cells differ: how far a run is watched, and over which devices it is
# spread (its record has `devices`; the objective is the same on any number of them, random
# numbers are not).
_FREE = ("loop.", "evaluate.", "parallel.")


class RunFailed(Exception):
    """A run that began and did not end well; the message is the last line it wrote."""


class RunKilled(Exception):
    """A run that was ended from outside, of which nothing is known."""


def train(
    config: str, overrides: Mapping[str, Any], directory: Path, *, cache: Path | None = None
) -> Record:
    """Runs a configuration to its end in a process of its own, and returns its summary.

    A finished run is not repeated, an interrupted one goes on from its last checkpoint.

    Args:
        config: The configuration file.
        overrides: Values of dotted keys.
        directory: The workdir.
        cache: Folder of compiled programs, which runs that differ in their seed share; None
            for the one that the runner takes by itself.

    Returns:
        The run's summary.json.

    Raises:
        RunFailed: If it stopped with an error, training that diverged for one.
        RunKilled: If a signal ended it, or a full disk.
        ValueError: If the runner refused the configuration or the workdir.
        KeyboardInterrupt: If it was interrupted.
    """
    command = [sys.executable, "-m", "experiments.run", *_flags(config, overrides)]
    command += [f"--workdir={directory}"]
    # More threads than cores make a small eigenvalue problem a hundred times slower.
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
    if cache is not None:
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.absolute()))
        # The hundred and more small programs of an evaluation as well, not only slow ones.
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    done = subprocess.run(
        command, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True
    )
    if done.returncode == 0:
        return json.loads((directory / workdir.SUMMARY).read_text())
    sys.stderr.write(done.stderr)
    if done.returncode == _INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode < 0:
        raise RunKilled(f"{directory}: signal {-done.returncode} ended its training")
    message = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if done.returncode in _FROM_OUTSIDE:
        raise RunKilled(message)
    if done.returncode == _BAD_INPUT:
        raise ValueError(message)
    raise RunFailed(message)


def outcome(
    config: str, overrides: Mapping[str, Any], directory: Path, *, cache: Path | None = None
) -> Record:
    """As `train`, but for a run that did not end well why, under "failed"."""
    try:
        return train(config, overrides, directory, cache=cache)
    except RunFailed as error:
        return {"failed": str(error)}


def checked(config: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """The validated configuration that `train` would run, as the runner itself reads it.

    Args:
        config: The configuration file.
        overrides: Values of dotted keys.

    Raises:
        InputError: If the runner would refuse it.
    """
    return arguments.parse(["experiments.run", *_flags(config, overrides)]).config


def _flags(config: str, overrides: Mapping[str, Any]) -> list[str]:
    settings = (f"--config.{name}={value}" for name, value in overrides.items())
    return [f"--config={config}", *settings]


def config_hash(config: ConfigDict) -> str:
    """Eight hexadecimal digits that tell what a configuration trains from what others do."""
    values = {
        name: value.to_dict() if isinstance(value, ConfigDict) else value
        for name, value in validation.flatten(config)
        if not name.startswith(_FREE)
    }
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def train_seconds(summary: Mapping[str, Any]) -> float:
    """Seconds that the gradient steps of a run took, its compilation left out."""
    rate = summary.get("steps_per_second")
    return summary["gradient_steps"] / rate if rate else float("nan")


def failure(record: Mapping[str, Any]) -> str | None:
    """Why a record of a run holds no result; None if it holds one."""
    if "failed" in record:
        return record["failed"]
    return "the bridge gap is not finite" if record.get("bridge_gap") is None else None


def median(records: Iterable[Record], name: str) -> float | None:
    """The median of a value over the records that have it, None if none has."""
    values = [record[name] for record in records if record.get(name) is not None]
    return float(np.median(values)) if values else None


def mode_shares(weights: Sequence[float] | None, true: npt.ArrayLike | None) -> np.ndarray:
    """The mass of each mode in units of its true mass.

    Args:
        weights: Of a summary; None, and so NaN here, where they are not finite.
        true: Weights of the target's modes; None, and so nothing here, if it has none.

    Returns:
        Shape `(num_modes,)`.
    """
    if true is None:
        return np.zeros(0)
    ideal = np.asarray(true, np.float64)
    found = [np.nan] * len(ideal) if weights is None else weights
    return np.asarray(found, np.float64) / ideal


def read_records(path: Path) -> list[Record]:
    """The records of a file of JSON lines, none if it is missing.

    A line that a killed process left unfinished is dropped.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record to a file of JSON lines; it survives a kill from here on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    start = "\n" if text and not text.endswith("\n") else ""
    with path.open("a") as file:
        file.write(start + json.dumps(record) + "\n")


class Cell(NamedTuple):
    """What is to be measured.

    Attributes:
        fields: What tells it from all others, as JSON values.
        config_hash: Of the configuration that it leads to with the defaults of now.
    """

    fields: Record
    config_hash: str


def identified(
    cells: Iterable[Record], configure: Callable[[Record], ConfigDict]
) -> list[Cell]:
    """Checks the configuration of every cell, before any of them costs time.

    Args:
        cells: The fields of each.
        configure: Maps them to a validated configuration.

    Raises:
        SystemExit: If a configuration is refused, with the reason.
    """
    found = []
    for fields in cells:
        try:
            found.append(Cell(fields, config_hash(configure(fields))))
        except InputError as error:
            raise SystemExit(f"error: {_shown(fields)}: {error}") from error
    return found


def complete(
    path: Path,
    cells: Iterable[Cell],
    measure: Callable[[Cell], Mapping[str, Any]],
    *,
    fresh: bool = False,
    retry_failed: bool = False,
) -> None:
    """Measures every cell that a file of JSON lines lacks, and adds it there at once.

    A record is the cell's fields, its `config_hash`, then what was found. A record with another
    hash is of other defaults, and does not count.

    Args:
        path: The file.
        cells: What to measure, in this order.
        measure: Maps a cell to what was found.
        fresh: Whether records without a hash do not count either.
        retry_failed: Whether records of failures do not count either.
    """
    for cell in cells:
        record = find(read_records(path), cell.fields)
        if record is not None and not (retry_failed and "failed" in record):
            known = record.get("config_hash", None if fresh else cell.config_hash)
            if known == cell.config_hash:
                continue
        print(_shown(cell.fields), file=sys.stderr, flush=True)
        hashed = {**cell.fields, "config_hash": cell.config_hash}
        append_record(path, {**hashed, **measure(cell)})


def run(
    args: argparse.Namespace,
    cells: Iterable[Record],
    configure: Callable[[Record], ConfigDict],
    measure: Callable[[Path, Cell], Mapping[str, Any]],
    write: Callable[[Path], None],
) -> None:
    """Measures what is missing, then writes what there is, also if it was interrupted.

    Args:
        args: The flags of `add_flags`.
        cells: The fields of each cell.
        configure: Maps them to a validated configuration.
        measure: Maps the folder and a cell to what was found.
        write: Writes the tables and figures of all records into the folder.

    Raises:
        SystemExit: If a configuration is refused, or another process is at work in the folder.
    """
    with locked(args.folder):
        planned = identified(cells, configure)
        try:
            complete(
                args.folder / RECORDS,
                planned,
                functools.partial(measure, args.folder),
                fresh=args.fresh,
                retry_failed=args.retry_failed,
            )
        finally:
            write(args.folder)


def _shown(fields: Record) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def find(records: Iterable[Record], fields: Mapping[str, Any]) -> Record | None:
    """The newest record with these fields, None if there is none."""
    same = (r for r in records if all(k in r and r[k] == fields[k] for k in fields))
    return next(iter(reversed(list(same))), None)


def newest(records: Iterable[Record], names: Sequence[str]) -> list[Record]:
    """The newest record of every cell, a cell being the values of some fields.

    Records that lack one of the fields are left out.
    """
    found = {}
    for record in records:
        if all(name in record for name in names):
            found[json.dumps([record[name] for name in names])] = record
    return list(found.values())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other benchmarks out of a folder, which is made where needed.

    Raises:
        SystemExit: If another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SystemExit(
                f"error: --folder={folder}: another benchmark is at work in it: wait until it "
                "has ended, or give another folder"
            ) from error
        yield


def add_flags(parser: argparse.ArgumentParser, folder: str) -> None:
    """The flags of every benchmark that keeps records."""
    parser.add_argument("--folder", type=Path, default=Path(folder), help="where all goes")
    parser.add_argument(
        "--fresh", action="store_true", help="measure anew what has a record without a hash"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="measure anew what has failed"
    )


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A command line with the flags of `add_flags`; `name` is the module's."""
    made = argparse.ArgumentParser(
        prog=f"benchmarks.{name}", description=(doc or "").partition("\n")[0]
    )
    add_flags(made, f"runs/{name}")
    return made


def write_table(
    folder: Path, fields: Sequence[str], table: Callable[[Sequence[Record]], str]
) -> None:
    """Writes and prints the table of the newest record of each cell."""
    text = table(newest(read_records(folder / RECORDS), fields))
    (folder / "results.md").write_text(text + "\n")
    print(text)


def reference_file(
    folder: Path, target: str, options: Mapping[str, Any], *, quick: bool = False
) -> Path:
    """Where benchmarks.reference_chains keeps its draws of a target with given options."""
    changed = [f"{name}={value}" for name, value in sorted(options.items())]
    return folder / f"{'_'.join([target, *changed, *quick * ['quick']])}.npz"


def listed(kind: Callable[[str], T], allowed: Iterable[T] = ()) -> Callable[[str], list[T]]:
    """A type for argparse: values between commas, all of them allowed ones if any are named."""
    names = list(allowed)

    def parse(text: str) -> list[T]:
        values = [kind(part) for part in text.split(",") if part]
        strange = [value for value in values if names and value not in names]
        if strange or not values:
            raise argparse.ArgumentTypeError(f"{strange or text!r}: must be among {names}")
        return values

    parse.__name__ = f"list of {kind.__name__}"
    return parse
