"""Readers of the file formats in which public image data are handed out.

Each returns bytes as they lie in the file, as `(n, height, width, channels)`; whatever is
wrong with a file is a ValueError that names it. What data sets there are is told in
`datasets`.
"""

import gzip
import importlib.metadata
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR_SHAPE = (3, 32, 32)
"""Channels, rows and columns, in the order in which CIFAR's files hold them."""

_UNSIGNED_BYTES = 0x08
"""The type of IDX files that hold images and labels; there are others."""


def existing_folder(folder: str | Path) -> Path:
    """The path of a folder; raises ValueError unless there is one."""
    if isinstance(folder, str | Path) and Path(folder).is_dir():
        return Path(folder)
    raise ValueError(f"folder = {folder!r} is not allowed: must be a folder that exists")


def existing_file(folder: Path, names: Sequence[str]) -> Path:
    """The first of some names under which a file lies in a folder.

    Args:
        folder: Where to look.
        names: In the order in which they are tried.

    Returns:
        The path of the file.

    Raises:
        ValueError: If there is none of them.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"folder {str(folder)!r} lacks a file: needs {' or '.join(names)}")


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, MNIST's format; compressed where it ends in .gz.

    Two zero bytes, the type, the number of axes, their lengths as big-endian integers of four
    bytes, and the values, the last axis fastest (Y. LeCun, the MNIST database).

    Args:
        path: Of the file.

    Returns:
        uint8 array with as many axes as the file says.

    Raises:
        ValueError: If the file is none of unsigned bytes, or holds fewer or more of them than
            its header says.
    """
    raw = _bytes_of(path)
    magic = raw[:4]
    if len(magic) < 4 or magic[:3] != bytes((0, 0, _UNSIGNED_BYTES)) or magic[3] == 0:
        raise ValueError(
            f"{path}: magic number {magic.hex() or 'missing'} is not allowed: an IDX file of"
            " unsigned bytes starts with 000008 and its number of axes, one at least"
        )
    start = 4 + 4 * magic[3]
    if len(raw) < start:
        raise ValueError(f"{path}: truncated: {len(raw)} bytes, and its header has {start}")
    shape = tuple(int(length) for length in np.frombuffer(raw, ">u4", magic[3], 4))
    if len(raw) - start != math.prod(shape):
        what = "truncated" if len(raw) - start < math.prod(shape) else "too long"
        raise ValueError(
            f"{path}: {what}: {len(raw) - start} values, and the header says {shape},"
            f" which is {math.prod(shape)}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read_cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch of the binary version of CIFAR-10.

    An image is a byte for its class and 3 · 32 · 32 for its planes of red, green and blue
    (Krizhevsky 2009, "Learning multiple layers of features from tiny images").

    Args:
        path: Of the file.

    Returns:
        Pixels, uint8 `(n, 32, 32, 3)`, and labels, int32 `(n,)`.

    Raises:
        ValueError: If the file holds no whole number of images, or none.
    """
    raw = _bytes_of(path)
    record = 1 + math.prod(CIFAR_SHAPE)
    if not raw or len(raw) % record:
        raise ValueError(
            f"{path}: truncated: {len(raw)} bytes are not allowed: must be a multiple of"
            f" {record}, one at least"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return channels_last(records[:, 1:]), records[:, 0].astype(np.int32)


def channels_last(planes: np.ndarray) -> np.ndarray:
    """Rows of CIFAR, `(n, 3072)`, as images, `(n, 32, 32, 3)`."""
    images = planes.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images)


def read_attributes(path: Path, attribute: str) -> tuple[list[str], np.ndarray]:
    """Reads one attribute of CelebA's `list_attr_celeba.txt`.

    Its first line is the number of images, its second the names of the attributes; then a
    line for each image: its file, and 1 or -1 for each attribute (Liu et al. 2015,
    arXiv:1411.7766).

    Args:
        path: Of the file.
        attribute: One of the names in it.

    Returns:
        The files, and whether each has the attribute, int32 `(n,)` of 0 and 1.

    Raises:
        ValueError: If a line is not as it should be, or one is missing.
    """
    lines = _bytes_of(path).decode("utf-8", "replace").splitlines()
    names = attribute_names(path)
    column = 1 + names.index(attribute)
    rows = [line.split() for line in lines[2:] if line.strip()]
    if lines[0].strip() != str(len(rows)):
        raise ValueError(
            f"{path}: {len(rows)} images, and its first line says {lines[0].strip()!r}"
        )
    for row in rows:
        if len(row) != 1 + len(names) or row[column] not in ("1", "-1"):
            raise ValueError(
                f"{path}: line {' '.join(row[:4])!r} is not allowed: must be a file and 1 or -1"
                f" for each of {len(names)} attributes"
            )
    return [row[0] for row in rows], np.asarray([row[column] == "1" for row in rows], np.int32)


def attribute_names(path: Path) -> list[str]:
    """The names of the attributes, the second line of CelebA's `list_attr_celeba.txt`."""
    lines = _bytes_of(path).decode("utf-8", "replace").splitlines()
    if len(lines) < 3:
        raise ValueError(f"{path}: truncated: {len(lines)} lines, and two precede the images")
    return lines[1].split()


def read_partition(path: Path) -> dict[str, int]:
    """Reads CelebA's `list_eval_partition.txt`: 0 (train), 1 (validation), 2 (test) by file."""
    partition = {}
    for line in _bytes_of(path).decode("utf-8", "replace").splitlines():
        file, _, part = line.strip().partition(" ")
        if part.strip() not in ("0", "1", "2"):
            raise ValueError(
                f"{path}: line {line!r} is not allowed: must be a file and 0, 1 or 2"
            )
        partition[file] = int(part)
    return partition


def read_photographs(folder: Path, files: Sequence[str], size: int) -> np.ndarray:
    """Reads JPEG files, each cropped to the largest square in its middle and resized.

    Args:
        folder: Where they lie.
        files: Their names.
        size: Rows and columns of the result, by pillow's bilinear filter, which averages where
            it makes smaller.

    Returns:
        uint8 `(n, size, size, 3)`.

    Raises:
        ValueError: If one is missing, or is no whole JPEG file.
    """
    pixels = np.empty((len(files), size, size, 3), np.uint8)
    for slot, file in zip(pixels, files, strict=True):
        path = existing_file(folder, (file,))
        try:
            with Image.open(path, formats=("JPEG",)) as image:
                slot[:] = _square(image.convert("RGB"), size)
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: is no whole JPEG file: {error}") from error
    return pixels


def _square(image: Image.Image, size: int) -> np.ndarray:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    # Not the box of `resize`, whose filter reaches across its edges.
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def read_packaged_table(package: str, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a compressed table that an installed package ships, of rows of pixels and a class.

    Args:
        package: Its name where packages are installed from.
        file: Where the table lies among its files.

    Returns:
        Pixels, uint8 `(n, num_pixels)`, and labels, int32 `(n,)`.

    Raises:
        ValueError: If the package is not installed, or lacks the file.
    """
    try:
        # Its file alone: importing the package would take longer than reading it.
        path = Path(str(importlib.metadata.distribution(package).locate_file(file)))
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"its images come with the package {package}, which is not installed:"
            ' pip install "d2ejax[data]"'
        ) from error
    if not path.is_file():
        raise ValueError(
            f"the installed {package} lacks {file}: pip install --upgrade {package}"
        )
    table = np.loadtxt(path, np.uint8, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int32)


def _bytes_of(path: Path) -> bytes:
    """All of a file, decompressed where its name ends in .gz."""
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: truncated, or no gzip file: {error}") from error
