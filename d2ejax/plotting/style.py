"""What all figures share: palette, axes, limits, shading, and checks of their arrays."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from scipy import ndimage

Floats = npt.NDArray[np.float64]
Color = tuple[float, float, float, float]
Limits = tuple[tuple[float, float], tuple[float, float]]

INK = "#1f2430"
MUTED = "#667085"
FAINT = "#d0d5dd"
# Perceptually uniform and colour-blind safe. Plasma's last, yellow fifth vanishes on white.
TIME_MAP = LinearSegmentedColormap.from_list(
    "time", matplotlib.colormaps["plasma"](np.linspace(0.03, 0.76, 256))
)
SOURCE = TIME_MAP(0.0)
TARGET = TIME_MAP(1.0)

TITLE_SIZE = 19
PANEL_SIZE = 16
LABEL_SIZE = 14
TICK_SIZE = 12
DPI = 120


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure to a file, making its folder first; the suffix decides the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """Returns an empty figure with its own Agg canvas; sizes in inches."""
    figure = Figure(
        figsize=(width, height),
        dpi=DPI,
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1) if constrained else None,
    )
    FigureCanvasAgg(figure)
    return figure


def headline(figure: Figure, text: str) -> None:
    """Writes the title of a whole figure."""
    figure.suptitle(text, size=TITLE_SIZE, color=INK)


def legend_below(
    figure: Figure,
    handles: Sequence[Artist],
    labels: Sequence[str],
    *,
    columns: int | None = None,
) -> None:
    """Puts one legend for all panels beneath them, in at most so many columns."""
    figure.legend(
        list(handles),
        list(labels),
        loc="outside lower center",
        ncols=min(columns or len(labels), len(labels)),
        fontsize=LABEL_SIZE,
        labelcolor=INK,
        frameon=False,
        markerscale=2.2,
    )


def time_label(times: Floats, t: float) -> str:
    """Writes a time with a resolution of about a hundredth of the whole."""
    decimals = 2 - int(np.floor(np.log10(times[-1] - times[0])))
    return f"t = {round(float(t), decimals):g}"


def clean_axes(axes: Axes) -> None:
    """Leaves two thin spines, few ticks and readable labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=TICK_SIZE, color=FAINT, labelcolor=MUTED, length=3)
    axes.minorticks_off()
    axes.xaxis.label.set(size=LABEL_SIZE, color=INK)
    axes.yaxis.label.set(size=LABEL_SIZE, color=INK)


def space_axes(axes: Axes, limits: Limits, dim: int) -> None:
    """Makes `axes` a square window on the first two coordinates, at equal aspect."""
    axes.set(xlim=limits[0], ylim=limits[1], aspect="equal")
    axes.set(xlabel=coordinate_label(0, dim), ylabel=coordinate_label(1, dim))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    clean_axes(axes)


def coordinate_label(index: int, dim: int) -> str:
    """Names a coordinate, and says of how many when some are not shown."""
    if dim == 1:
        return "x"
    return f"coordinate {index + 1}" + (f" of {dim}" if dim > 2 else "")


def time_colorbar(figure: Figure, axes: Sequence[Axes], times: Floats) -> None:
    """Adds the colour scale of time beside `axes`."""
    mappable = ScalarMappable(Normalize(times[0], times[-1]), TIME_MAP)
    bar = figure.colorbar(mappable, ax=list(axes), fraction=0.03, shrink=0.75, aspect=28)
    bar.set_label("time t", size=LABEL_SIZE, color=INK)
    bar.ax.tick_params(labelsize=TICK_SIZE, labelcolor=MUTED, length=0)
    bar.locator = MaxNLocator(5)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.update_ticks()


def time_color(times: Floats, t: float) -> Color:
    """Returns the colour of time `t` on the scale of `times`."""
    return TIME_MAP(float((t - times[0]) / (times[-1] - times[0])))


def time_lines(
    times: Floats, curves: Floats, *, width: float = 1.0, alpha: float = 0.6
) -> LineCollection:
    """Turns planar curves (n, len(times), 2) into segments coloured by their time."""
    segments = np.stack([curves[:, :-1], curves[:, 1:]], axis=2)
    # Time-major order: later segments lie above earlier ones, of every path alike.
    segments = segments.swapaxes(0, 1).reshape(-1, 2, 2)
    middles = np.repeat((times[:-1] + times[1:]) / 2, len(curves))
    lines = LineCollection(list(segments), cmap=TIME_MAP, capstyle="round", zorder=1.5)
    lines.set(array=middles, linewidth=width, alpha=alpha, rasterized=True)
    lines.set_clim(times[0], times[-1])
    return lines


def spread(array: Floats, count: int) -> Floats:
    """Takes `count` rows evenly; samples may come ordered by mode, so not the first ones."""
    if len(array) <= count:
        return array
    return array[np.linspace(0, len(array) - 1, count).astype(int)]


def interval(values: Floats, *, cut: float = 0.001) -> tuple[float, float]:
    """Returns a padded interval; at most a part `cut` of `values` lies beyond either end."""
    low, high = np.quantile(values, [cut, 1 - cut])
    margin = 0.07 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def window(*arrays: Floats, cut: float = 0.001) -> Limits:
    """Returns a square window on the first two coordinates of the points given."""
    points = np.concatenate([array[..., :2].reshape(-1, 2) for array in arrays])
    bounds = np.array([interval(points[:, i], cut=cut) for i in range(2)])
    center, half = bounds.mean(axis=1), np.max(bounds[:, 1] - bounds[:, 0]) / 2
    (x0, x1), (y0, y1) = np.stack([center - half, center + half], axis=1).tolist()
    return (x0, x1), (y0, y1)


def tint(color: Color) -> Colormap:
    """Returns a map from transparent to `color`, for shading a density of that time."""
    red, green, blue = color[:3]
    stops = [(red, green, blue, 0.0), (red, green, blue, 0.6), (red, green, blue, 1.0)]
    return LinearSegmentedColormap.from_list("tint", stops)


def densities(batches: Sequence[Floats], limits: Limits) -> list[Floats]:
    """Returns a smoothed density image for each batch of (n, 2) points, row 0 at the bottom.

    The batches share the bandwidth, and a scale on which the highest peak of all is 1.
    """
    counts = [np.histogram2d(b[:, 1], b[:, 0], 120, limits[::-1])[0] for b in batches]
    images = _smooth(counts)
    peak = max(image.max() for image in images) or 1.0
    return [image / peak for image in images]


def densities_1d(
    batches: Sequence[Floats], limits: tuple[float, float]
) -> tuple[Floats, list[Floats]]:
    """Returns grid points, and the normalised density on them of each batch of (n,) values."""
    edges = np.linspace(*limits, 241)
    heights = _smooth([np.histogram(batch, edges)[0].astype(np.float64) for batch in batches])
    return (edges[:-1] + edges[1:]) / 2, [h / (edges[1] - edges[0]) for h in heights]


def _smooth(histograms: Sequence[Floats]) -> list[Floats]:
    """Smooths histograms by the Gaussian width of best leave-one-out likelihood.

    One width for all: a difference in smoothing would pass for a difference in law.
    """
    total = np.sum(histograms, axis=0)
    # A little uniform mass keeps single far points from deciding the width.
    uniform = 0.01 * total.sum() / total.size

    def score(width: float) -> float:
        own = (2 * np.pi * width**2) ** (-total.ndim / 2)
        others = np.maximum(ndimage.gaussian_filter(total, width) - own, 0.0)
        return float(np.sum(total * np.log(others + uniform + 1e-12)))

    best = max((1.0, 1.5, 2.2, 3.2, 4.5, 6.5, 9.0), key=score)
    return [ndimage.gaussian_filter(h / max(h.sum(), 1.0), best) for h in histograms]


def snapshot_indices(times: Floats, snapshots: int) -> list[int]:
    """Returns the grid indices nearest to `snapshots` times evenly spread over the grid."""
    if snapshots < 2:
        raise ValueError(f"snapshots must be at least 2, got {snapshots}")
    wanted = np.linspace(times[0], times[-1], snapshots)
    return sorted({int(np.argmin(np.abs(times - t))) for t in wanted})


def check_times(times: npt.ArrayLike, *, minimum: int = 2) -> Floats:
    """Returns increasing times as float64, or refuses them."""
    array = np.asarray(times, np.float64)
    if array.ndim != 1 or len(array) < minimum:
        raise ValueError(f"times must have shape (at least {minimum},), got {array.shape}")
    if not np.all(np.diff(array) > 0):
        raise ValueError(f"times must increase strictly, got {array}")
    return array


def check_array(
    name: str, array: npt.ArrayLike, shape: tuple[int | None, ...], meaning: str
) -> Floats:
    """Returns `array` as float64 if it is finite and has `shape` (None: any size above 0)."""
    result = np.asarray(array, np.float64)
    fits = result.ndim == len(shape) and all(
        size == wanted if wanted is not None else size > 0
        for size, wanted in zip(result.shape, shape, strict=True)
    )
    if not fits:
        wanted_shape = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(
            f"{name} must have shape {meaning} = ({wanted_shape}), got {result.shape}"
        )
    if not np.all(np.isfinite(result)):
        bad = int(np.sum(~np.isfinite(result)))
        raise ValueError(f"{name} must be finite, got {bad} non-finite values")
    return result


def check_paths(name: str, paths: npt.ArrayLike, times: Floats, dim: int | None) -> Floats:
    """Returns paths (n, len(times), dim) as float64, or refuses them."""
    return check_array(name, paths, (None, len(times), dim), "(n, K+1, dim)")
