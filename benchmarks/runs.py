"""What benchmarks share: runs by the runner, records in JSON lines, tables in Markdown."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments import workdir

T = TypeVar("T")
Record = dict[str, Any]

_BAD_INPUT = 2
_INTERRUPTED = 130


class RunFailed(Exception):
    """A run that began and did not end well; the message is the last line it wrote."""


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
            to compile anew, where compilation is to be measured.

    Returns:
        The run's summary.json.

    Raises:
        RunFailed: If it stopped with an error, training that diverged for one.
        ValueError: If the runner refused the configuration or the workdir.
        KeyboardInterrupt: If it was interrupted.
    """
    command = [sys.executable, "-m", "experiments.run", f"--config={config}"]
    command += [f"--config.{name}={value}" for name, value in overrides.items()]
    command += [f"--workdir={directory}"]
    # More threads than cores make a small eigenvalue problem a hundred times slower.
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
    if cache is not None:
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.absolute()))
    done = subprocess.run(
        command, env=environment, stdout=sys.stderr, stderr=subprocess.PIPE, text=True
    )
    if done.returncode == 0:
        return json.loads((directory / workdir.SUMMARY).read_text())
    sys.stderr.write(done.stderr)
    if done.returncode == _INTERRUPTED:
        raise KeyboardInterrupt
    message = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if done.returncode == _BAD_INPUT:
        raise ValueError(message)
    raise RunFailed(message)


def train_seconds(summary: Mapping[str, Any]) -> float:
    """Seconds that the gradient steps of a run took, its compilation left out."""
    rate = summary.get("steps_per_second")
    return summary["gradient_steps"] / rate if rate else float("nan")


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


def complete(
    path: Path, cells: Iterable[Record], measure: Callable[[Record], Mapping[str, Any]]
) -> list[Record]:
    """Measures every cell that a file of JSON lines lacks, and adds it there at once.

    Args:
        path: The file.
        cells: What tells a cell from all others, as JSON values.
        measure: Maps a cell to what was found.

    Returns:
        The record of every cell, in their order: the cell's own fields, then what was found.
    """
    found = []
    for cell in cells:
        record = find(read_records(path), cell)
        if record is None:
            print(" ".join(f"{k}={v}" for k, v in cell.items()), file=sys.stderr, flush=True)
            record = {**cell, **measure(cell)}
            append_record(path, record)
        found.append(record)
    return found


def find(records: Iterable[Record], cell: Mapping[str, Any]) -> Record | None:
    """The newest record of a cell, None if it has none."""
    same = (r for r in records if all(k in r and r[k] == cell[k] for k in cell))
    return next(iter(reversed(list(same))), None)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table, a dash for one that is not defined."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def beside(value: float | None, ideal: float | None, digits: int = 3) -> str:
    """A value with its ideal in brackets."""
    if value is None or ideal is None:
        return number(value, digits)
    return f"{number(value, digits)} ({number(ideal, digits)})"


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
