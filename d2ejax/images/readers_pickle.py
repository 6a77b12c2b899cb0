"""Reads the Python version of CIFAR-10, whose files are pickles, and runs nothing in them.

A pickle is a program: it may call whatever it names. These call for three names of numpy, and
even those are not given to them: stand-ins record what an array is built from, and it is
built here. Any other name is refused.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np

from d2ejax.images.readers import CIFAR_SHAPE, channels_last

_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Record:
    """Stands in for what numpy would have built: its arguments and its state."""

    arguments: tuple[Any, ...] = ()
    state: Any = ()

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            allowed = ", ".join(sorted(".".join(known) for known in _KNOWN))
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not allowed: {allowed}"
            )
        # A new class each time: a pickle can alter it, and takes it along.
        return type("_Record", (_Record,), {})


def read_cifar_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch of the Python version of CIFAR-10, without running anything in it.

    A dictionary with `data`, bytes of shape `(n, 3072)`, and `labels`, a list of integers
    (Krizhevsky 2009, "Learning multiple layers of features from tiny images"), as Python 2
    pickled it.

    Args:
        path: Of the file.

    Returns:
        Pixels, uint8 `(n, 32, 32, 3)`, and labels, int32 `(n,)`.

    Raises:
        ValueError: If the file holds anything else, or is truncated.
    """
    try:
        batch = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    # What is no pickle, or a damaged one, can fail in any way.
    except Exception as error:
        raise ValueError(f"{path}: is no batch of CIFAR-10, or truncated: {error}") from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= set(batch):
        raise ValueError(f"{path}: must hold a dictionary with data and labels")
    pixels = channels_last(_byte_rows(path, batch[b"data"]))
    labels = batch[b"labels"]
    is_list = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not is_list or not all(0 <= label < 256 for label in labels):
        raise ValueError(f"{path}: labels must be a list of integers in 0..255")
    return pixels, np.asarray(labels, np.int32)


def _byte_rows(path: Path, record: Any) -> np.ndarray:
    """The array whose making was recorded, uint8 `(n, 3072)`.

    The state of an array is (version, shape, dtype, whether the first axis is the fastest,
    bytes).
    """
    dim = math.prod(CIFAR_SHAPE)
    message = f"{path}: data must be an array of bytes with {dim} columns, in rows"
    if not isinstance(record, _Record):
        raise ValueError(message)
    match record.state:
        case (1, (int(rows), int(columns)), _Record() as dtype, bool(is_fortran), bytes(raw)):
            is_right = dtype.arguments[:1] == (b"u1",) and columns == dim and rows > 0
        case _:
            is_right = False
    if not is_right:
        raise ValueError(message)
    if len(raw) != rows * dim:
        raise ValueError(f"{path}: {len(raw)} bytes of data, and its shape is {rows} × {dim}")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    return np.frombuffer(raw, np.uint8).reshape((rows, dim), order=order)
