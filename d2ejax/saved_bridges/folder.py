"""The files of a saved bridge: what they are called, and that they are whole.

    bridge.json     format, dimension, times, names of the ends, checksums of the other files
    parameters.npz  the networks' arrays by name
    *.stablehlo     one program each, see `d2ejax.saved_bridges.programs`

A checksum finds a file that was cut short or changed by accident, not one that was forged.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

FOLDER = "bridge"
"""Where the workdir of a run has it."""

FORMAT = 1
MANIFEST = "bridge.json"
PARAMETERS = "parameters.npz"
PROGRAM = ".stablehlo"

_FIELDS: dict[str, type] = {
    "dim": int,
    "times": list,
    "source": str,
    "target": str,
    "has_density": bool,
    "draws": int,
    "jax": str,
    "programs": dict,
    "files": dict,
    "left_out": dict,
}


def write(directory: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Writes a folder whole, in place of what was there; killed midway, it leaves none.

    Args:
        directory: The folder: new, empty or a saved bridge.
        manifest: Fields of bridge.json, to which format and checksums are added.
        files: The others by name.
    """
    if directory.exists() and not (directory / MANIFEST).exists() and any(directory.iterdir()):
        raise ValueError(
            f"{directory}: holds something else: must be new, empty or a saved bridge, which "
            "is then replaced"
        )
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        sums = {name: checksum(content) for name, content in files.items()}
        text = json.dumps({"format": FORMAT, **manifest, "files": sums}, indent=2) + "\n"
        (temporary / MANIFEST).write_text(text)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.replace(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(directory: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads a folder and checks that it is whole.

    Returns:
        The fields of bridge.json, and the content of the other files by name.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another format, or a file is missing or changed.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{directory}: holds no {MANIFEST}, which a run leaves when it ends: "
            f"{_again(directory)}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON: {_again(directory)}") from error
    _check(path, manifest)
    files = {}
    for name, expected in manifest["files"].items():
        if Path(name).name != name:
            raise ValueError(f"{path}: names the file {name!r}: must be one of its own folder")
        try:
            content = (directory / name).read_bytes()
        except OSError as error:
            raise ValueError(
                f"{directory / name}: cannot be read: {_again(directory)}"
            ) from error
        if checksum(content) != expected:
            raise ValueError(
                f"{directory / name}: does not match its checksum, it is damaged or was "
                f"changed: {_again(directory)}"
            )
        files[name] = content
    return manifest, files


def checksum(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _check(path: Path, manifest: Any) -> None:
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path}: format = {found!r}: must be {FORMAT}: load it with the version of d2ejax "
            "that wrote it"
        )
    for name, kind in _FIELDS.items():
        value = manifest.get(name)
        # True is an int to Python.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{path}: {name} = {value!r}: must be of type {kind.__name__}")
    times = manifest["times"]
    numbers = all(isinstance(t, (int, float)) and math.isfinite(t) for t in times)
    if len(times) < 2 or not numbers or any(b <= a for a, b in pairwise(times)):
        raise ValueError(f"{path}: times = {times!r}: must be two or more, and increase")
    for name in ("dim", "draws"):
        if manifest[name] < 1:
            raise ValueError(f"{path}: {name} = {manifest[name]}: must be ≥ 1")


def _again(directory: Path) -> str:
    # What is not in the workdir of a run was written by `save`, where nobody knows.
    workdir = directory.parent if directory.name == FOLDER else "WORKDIR"
    command = f"python -m experiments.run --workdir={workdir} --mode=evaluate"
    return f"`{command}` writes it anew"
