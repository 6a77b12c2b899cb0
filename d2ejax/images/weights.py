"""Trained parameters on disk, with what they are the parameters of.

    NAME.json                 format, description, name and checksum of the other file
    NAME-CHECKSUM.msgpack     the parameters, as flax.serialization writes them

The parameters come first and under a name of their own, and the JSON, replaced in one piece,
says which they are: killed at any moment, what was there before is there still. A checksum
finds a file that was cut short or changed by accident, not one that was forged; but of either
nothing but numbers and strings is read, nothing that could be executed.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.typing import Params

FORMAT = 1


def save(folder: str | Path, name: str, params: Params, description: Mapping[str, Any]) -> Path:
    """Writes parameters and their description, in place of those of the same name.

    Args:
        folder: Made if it does not exist.
        name: Of letters, digits, "_" and "-".
        params: Nested dicts of arrays, with strings for keys.
        description: A dict of JSON types.

    Returns:
        The path of the JSON.

    Raises:
        ValueError: If the name, the parameters or the description are none of these.
    """
    path = _path(folder, name)
    _check_params(params)
    try:
        same = json.loads(json.dumps(dict(description), allow_nan=False)) == dict(description)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"description = {description!r} is not allowed: must go through JSON unchanged"
        )
    content = flax.serialization.msgpack_serialize(jax.tree.map(np.asarray, params))
    checksum = hashlib.sha256(content).hexdigest()
    file = f"{name}-{checksum[:16]}.msgpack"
    path.parent.mkdir(parents=True, exist_ok=True)
    replaced = _named_file(path)
    _write(path.with_name(file), content)
    manifest = {
        "format": FORMAT,
        "description": dict(description),
        "file": file,
        "sha256": checksum,
    }
    _write(path, (json.dumps(manifest, indent=2) + "\n").encode())
    if replaced not in (None, file):
        path.with_name(str(replaced)).unlink(missing_ok=True)
    return path


def load(folder: str | Path, name: str) -> tuple[Params, dict[str, Any]]:
    """Reads what `save` wrote.

    Args:
        folder: Where.
        name: Under which name.

    Returns:
        The parameters, nested dicts of NumPy arrays of the dtypes that they were saved with,
        and their description.

    Raises:
        FileNotFoundError: If there are none of this name.
        ValueError: If a file is damaged, or of another format.
    """
    path = _path(folder, name)
    manifest = _manifest(path)
    weights = path.with_name(manifest["file"])
    try:
        content = weights.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{weights}: is missing, though {path} names it") from error
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise ValueError(
            f"{weights}: does not match its checksum: it is damaged or was changed"
        )
    # Of NumPy, so that a function that is being traced may read them and keep them.
    return flax.serialization.msgpack_restore(content), manifest["description"]


def _path(folder: str | Path, name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(
            f'name = {name!r} is not allowed: must be of letters, digits, "_" and "-"'
        )
    return Path(folder) / f"{name}.json"


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        near = sorted(other.stem for other in path.parent.glob("*.json"))
        raise FileNotFoundError(
            f"{path}: does not exist; its folder holds the weights: {', '.join(near) or 'none'}"
        ) from error
    except ValueError as error:  # Of JSON, and of UTF-8.
        raise ValueError(f"{path}: is no JSON: it is damaged or was changed") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: format = {found!r} is not allowed: must be {FORMAT}")
    for field, kind in (("description", dict), ("file", str), ("sha256", str)):
        if not isinstance(manifest.get(field), kind):
            raise ValueError(
                f"{path}: {field} = {manifest.get(field)!r} is not allowed: must be of type "
                f"{kind.__name__}"
            )
    # Never a file outside of the folder, whatever the JSON says.
    if not re.fullmatch(re.escape(path.stem) + r"-[0-9a-f]{16}\.msgpack", manifest["file"]):
        raise ValueError(
            f"{path}: file = {manifest['file']!r} is not allowed: must be "
            f"{path.stem}-CHECKSUM.msgpack"
        )
    return manifest


def _named_file(path: Path) -> str | None:
    """The file of parameters that is about to be replaced, if any that can be told."""
    try:
        return _manifest(path)["file"]
    except (FileNotFoundError, ValueError):
        return None


def _check_params(params: Any, where: str = "params") -> None:
    """Anything else would come back as something else, or not at all."""
    if isinstance(params, Mapping):
        for key, value in params.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r} is not allowed: must be a string")
            _check_params(value, f"{where}[{key!r}]")
        return
    is_array = isinstance(params, np.ndarray | np.generic | jax.Array)
    if not is_array or not jnp.issubdtype(params.dtype, np.number):
        raise ValueError(
            f"{where} of type {type(params).__name__} is not allowed: must be nested dicts of "
            "arrays of numbers"
        )


def _write(path: Path, content: bytes) -> None:
    """Writes a file in one piece, on disk before it takes its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
