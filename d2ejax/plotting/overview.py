"""One wide picture of a whole result, made for a talk."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from d2ejax.plotting import style, transport
from d2ejax.plotting.style import Floats

# Inches.
WIDTH, HEAD, STRIP, FOOT = 16.0, 1.2, 2.8, 2.2
# Room between two snapshots, in widths of a snapshot.
GAP = 0.2
MOST_NUMBERS = 6


def overview(
    times: npt.ArrayLike,
    learned: npt.ArrayLike,
    exact: npt.ArrayLike | None = None,
    *,
    numbers: Mapping[str, tuple[float | None, float | None]],
    title: str,
    source: str = "source",
    target: str = "target",
    snapshots: int = 5,
    num_paths: int = 60,
) -> Figure:
    """Draws the transport as a strip in time, the exact one beneath, and the key numbers.

    A strip shows the marginals side by side at a few times, and paths that run through them:
    a point x at time t lies at (position of t + x[0], x[1]); in one dimension at (t, x).

    Args:
        times: the time grid, shape (K+1,).
        learned: sampled paths, shape (n, K+1, dim).
        exact: paths of the exact bridge, shape (any n, K+1, dim), or None.
        numbers: label -> (value, ideal), one to six of them; None where not defined.
        title: the headline, up to about sixty characters.
        source: what the source is, written under the first marginal.
        target: what the target is, written under the last marginal.
        snapshots: number of marginals, evenly spread over time.
        num_paths: number of paths drawn in a strip.

    Returns:
        The figure: 16:9, or lower without the exact paths.

    Raises:
        ValueError: if a shape does not fit, a value is not finite, snapshots < 2, or there are
            no or too many numbers.
    """
    times = style.check_times(times)
    learned = style.check_paths("learned", learned, times, None)
    strips = {"learned": learned}
    if exact is not None:
        strips["exact"] = style.check_paths("exact", exact, times, learned.shape[-1])
    if not 1 <= len(numbers) <= MOST_NUMBERS:
        raise ValueError(f"numbers must hold 1 to {MOST_NUMBERS} entries, got {len(numbers)}")
    indices = style.snapshot_indices(times, snapshots)
    height = HEAD + STRIP * len(strips) + FOOT
    figure = style.new_figure(WIDTH, height, constrained=False)
    top = 1 - 0.32 / height
    figure.text(0.025, top, title, size=28, weight="bold", color=style.INK, va="top")
    caption = "Marginals at a few times, and sample paths between them"
    figure.text(0.025, 1 - 1.05 / height, caption, size=17, color=style.MUTED)
    draw = _strip_1d if learned.shape[-1] == 1 else _strip
    for row, (name, paths) in enumerate(strips.items()):
        bottom = height - HEAD - STRIP * (row + 1)
        axes = figure.add_axes((0.072, bottom / height, 0.903, (STRIP - 0.15) / height))
        draw(axes, times, paths, list(strips.values()), indices, num_paths)
        _finish_strip(axes, name)
    axes.set_xticklabels([style.time_label(times, times[i]) for i in indices])
    axes.tick_params(axis="x", labelsize=17, labelcolor=style.INK, pad=2)
    _end_names(figure, axes, (source, target), (FOOT - 0.37) / height)
    _tiles(figure, numbers, height)
    return figure


def _strip(
    axes: Axes,
    times: Floats,
    paths: Floats,
    everything: list[Floats],
    indices: list[int],
    num_paths: int,
) -> None:
    """Draws marginals of two or more dimensions, and paths through them."""
    limits = style.window(*[batch[:, indices] for batch in everything], cut=0.003)
    span = limits[0][1] - limits[0][0]
    # Shading fades out over a wider frame than the distances need, so no edge shows.
    (x0, x1), (y0, y1) = limits
    edge = 0.15 * span
    frame = ((x0 - edge, x1 + edge), (y0 - edge, y1 + edge))
    # Equal distances, even where an uneven grid has no time quite in between.
    centers = np.arange(len(indices)) * span * (1 + GAP)
    curves = style.spread(paths[..., :2], num_paths).copy()
    curves[..., 0] += np.interp(times, times[indices], centers)
    axes.add_collection(style.time_lines(times, curves, width=1.0, alpha=0.4))
    own = next(i for i, batch in enumerate(everything) if batch is paths)
    for center, index in zip(centers, indices, strict=True):
        images = style.densities([batch[:, index, :2] for batch in everything], frame)
        color = style.time_color(times, times[index])
        points = paths[:, index, :2]
        transport.shade(axes, points, images[own], frame, color, shift=center)
    room = 0.04 * span
    axes.set(xlim=(x0, x1 + centers[-1]), ylim=(y0 - room, y1 + room))
    axes.set(aspect="equal", anchor="S")
    axes.set_xticks(centers + (x0 + x1) / 2)
    dim = paths.shape[-1]
    axes.set_ylabel("coordinate 2" if dim == 2 else f"coordinates 1, 2 of {dim}")


def _strip_1d(
    axes: Axes,
    times: Floats,
    paths: Floats,
    everything: list[Floats],
    indices: list[int],
    num_paths: int,
) -> None:
    """Draws paths over time, and the marginals as ridges standing on their times."""
    limits = style.interval(np.concatenate([batch[:, indices].ravel() for batch in everything]))
    curves = style.spread(transport.plane(times, paths), num_paths)
    axes.add_collection(style.time_lines(times, curves, width=1.0, alpha=0.45))
    reach = 0.7 * np.min(np.diff(times[indices]))
    own = next(i for i, batch in enumerate(everything) if batch is paths)
    for index in indices:
        x, heights = style.densities_1d([b[:, index, 0] for b in everything], limits)
        base, color = times[index], style.time_color(times, times[index])
        ridge = base + reach * heights[own] / max(h.max() for h in heights)
        axes.fill_betweenx(x, base, ridge, color=color, alpha=0.4, lw=0, zorder=3)
        axes.plot(ridge, x, color=color, lw=1.6, zorder=3)
    axes.set(xlim=(times[0], times[-1] + reach * 1.02), ylim=limits, ylabel="x")
    axes.set_xticks(times[indices])


def _finish_strip(axes: Axes, name: str) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    style.clean_axes(axes)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticklabels([])
    axes.yaxis.set_label_coords(-0.027, 0.5)
    axes.text(
        -0.053,
        0.5,
        name,
        transform=axes.transAxes,
        rotation=90,
        va="center",
        ha="center",
        size=22,
        weight="bold",
        color=style.INK,
    )


def _end_names(figure: Figure, axes: Axes, names: tuple[str, str], y: float) -> None:
    """Writes what stands at the two ends beneath their times, moved in if it is long."""
    axes.apply_aspect()
    to_figure = figure.transFigure.inverted()
    for name, tick in zip(names, axes.get_xticks()[[0, -1]], strict=True):
        x = to_figure.transform(axes.transData.transform((tick, 0.0)))[0]
        text = figure.text(
            x, y, name, ha="center", va="top", size=18, weight="bold", color=style.INK
        )
        half = text.get_window_extent().transformed(to_figure).width / 2
        text.set_x(float(np.clip(x, 0.025 + half, 0.975 - half)))


def _tiles(
    figure: Figure, numbers: Mapping[str, tuple[float | None, float | None]], height: float
) -> None:
    """Writes each number large, with its ideal beneath, in a row along the lower edge."""
    figure.add_artist(Line2D([0.025, 0.975], [1.4 / height] * 2, color=style.FAINT, lw=1))
    width = 0.95 / len(numbers)
    for i, (label, (value, ideal)) in enumerate(numbers.items()):
        x = 0.025 + i * width
        figure.text(x, 1.08 / height, label, size=16, color=style.MUTED)
        number = _number(value)
        figure.text(x, 0.55 / height, number, size=31, weight="bold", color=style.INK)
        if ideal is not None:
            text = f"ideal {_number(ideal)}"
            figure.text(x, 0.2 / height, text, size=16, color=style.MUTED)


def _number(value: float | None) -> str:
    """Writes three significant digits, or an integer as it is."""
    if value is None or not np.isfinite(value):
        return "–"
    if isinstance(value, int) or value == 0:
        return f"{value:g}"
    decimals = 2 - int(np.floor(np.log10(abs(value))))
    return f"{value:.{max(decimals, 0)}f}" if -4 < decimals < 7 else f"{value:.2e}"
