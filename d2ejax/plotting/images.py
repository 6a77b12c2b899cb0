"""Images on their way: from what a source makes to what a target asks for."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2ejax.plotting import style

_COLUMNS = 16


def translations(
    starts: npt.ArrayLike, ends: npt.ArrayLike, neighbours: npt.ArrayLike, *, title: str
) -> Figure:
    """Draws images, what each was moved to, and the training image that is nearest to that.

    Args:
        starts: Images in [-1, 1], `(n, height, width, channels)`.
        ends: What they were moved to, of the same shape.
        neighbours: Of each end the nearest training image of the class, of the same shape.
        title: A headline.

    Returns:
        The figure: blocks of three rows, as many columns as fit.

    Raises:
        ValueError: If the shapes differ or a value is not finite.
    """
    names = ("source", "moved to", "nearest in training data")
    given = [_images(n, x) for n, x in zip(names, (starts, ends, neighbours), strict=True)]
    if len({images.shape for images in given}) > 1:
        shapes = ", ".join(str(images.shape) for images in given)
        raise ValueError(f"images have shapes {shapes}: must be the same")
    count = len(given[0])
    columns = min(_COLUMNS, count)
    blocks = -(-count // columns)
    figure = style.new_figure(0.75 * columns + 2.2, 2.6 * blocks + 0.6)
    grid = figure.subplots(3 * blocks, 1, squeeze=False)[:, 0]
    for row, axes in enumerate(grid):
        block, kind = divmod(row, 3)
        shown = given[kind][block * columns : (block + 1) * columns]
        _strip(axes, shown, columns)
        axes.set_ylabel(names[kind], rotation=0, ha="right", va="center", size=style.LABEL_SIZE)
    style.headline(figure, title)
    return figure


def morphs(times: npt.ArrayLike, images: npt.ArrayLike, *, title: str) -> Figure:
    """Draws what is made along some paths: a path a row, time from left to right.

    Args:
        times: Of the columns, `(num_times,)`.
        images: In [-1, 1], `(num_paths, num_times, height, width, channels)`.
        title: A headline.

    Returns:
        The figure.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.
    """
    drawn, moments = np.asarray(images, np.float64), np.asarray(times, np.float64)
    if drawn.ndim != 5 or drawn.shape[1:2] != moments.shape:
        raise ValueError(
            f"images has shape {drawn.shape}: must be (num_paths, {len(moments)}, height, "
            "width, channels)"
        )
    rows, columns = drawn.shape[:2]
    figure = style.new_figure(0.75 * columns + 0.8, 0.8 * rows + 1.2)
    grid = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for axes, path in zip(grid, drawn, strict=True):
        _strip(axes, _images("images", path), columns)
    width = drawn.shape[3]
    labels = [f"{share:.0%}" for share in (moments - moments[0]) / np.ptp(moments)]
    grid[-1].set_xticks((np.arange(columns) + 0.5) * width - 0.5, labels)
    grid[-1].tick_params(labelsize=style.TICK_SIZE, labelcolor=style.MUTED, length=0)
    grid[-1].set_xlabel("share of the time", size=style.LABEL_SIZE, color=style.INK)
    style.headline(figure, title)
    return figure


def _images(name: str, values: npt.ArrayLike) -> style.Floats:
    """Values in [0, 1] of images in [-1, 1]."""
    images = np.asarray(values, np.float64)
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{name}: has shape {images.shape}: must be (n, height, width, 1 or 3)"
        )
    if not np.isfinite(images).all():
        raise ValueError(f"{name}: holds values that are not finite")
    return np.clip(0.5 * (images + 1.0), 0.0, 1.0)


def _strip(axes: Axes, images: style.Floats, columns: int) -> None:
    """Some images side by side, blank where there are fewer than columns."""
    height, width, channels = images.shape[1:]
    blank = np.ones((columns - len(images), height, width, channels))
    strip = np.concatenate([*np.concatenate([images, blank])], axis=1)
    shown = np.repeat(strip, 3, axis=2) if channels == 1 else strip
    axes.imshow(shown, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
