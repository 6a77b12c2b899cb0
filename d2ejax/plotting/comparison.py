"""Methods compared: one quantity against another, on logarithmic axes, a line per method."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from d2ejax.plotting import style
from d2ejax.plotting.style import Floats

Series = tuple[npt.ArrayLike, npt.ArrayLike]

_MARKERS = "os^Dv"
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_SHADES = 5
# Of an axis, between two ticks.
_TICK_SHARE = 0.05
# Inches that a name of about twenty letters takes.
_LEGEND_ENTRY = 2.8


class Panel(NamedTuple):
    """One panel of `comparison`.

    Attributes:
        title: Above it.
        lines: Names to (x, y). Values that a logarithm cannot show, NaN too, are left out.
        x_label: What x is.
        y_label: What y is.
        limit: (x, y) of what can be reached at best, drawn dashed.
    """

    title: str
    lines: Mapping[str, Series]
    x_label: str
    y_label: str
    limit: Series | None = None


def comparison(
    panels: Sequence[Panel],
    *,
    title: str,
    columns: int = 3,
    limit_name: str = "limit",
    share_y: bool = True,
) -> Figure:
    """Draws panels of lines on logarithmic axes; a name has the same looks in all of them.

    Args:
        panels: What to draw, row by row.
        title: Of the whole figure.
        columns: Panels in a row.
        limit_name: What the dashed lines are called.
        share_y: Whether the panels of a row have the same vertical axis.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no panel, or no line in any that can be drawn.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    drawable = [s for p in panels for s in p.lines.values() if len(_positive(p.title, s)[0])]
    if not drawable:
        raise ValueError(f"panels must hold a line with a positive point, got {len(panels)}")
    width = min(columns, len(panels))
    rows = -(-len(panels) // width)
    figure = style.new_figure(max(4.8 * width, 6.4), 4.2 * rows + 1.2)
    grid = figure.subplots(rows, width, squeeze=False, sharey="row" if share_y else False)
    shown: dict[str, Artist] = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, names, limit_name, shown)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    labels = [name for name in (*names, limit_name) if name in shown]
    handles = [shown[name] for name in labels]
    fitting = int(figure.get_figwidth() // _LEGEND_ENTRY)
    style.legend_below(figure, handles, labels, columns=fitting)
    style.headline(figure, title)
    return figure


def _draw_panel(
    axes: Axes, panel: Panel, names: Sequence[str], limit_name: str, shown: dict[str, Artist]
) -> None:
    ticks = set()
    for name, series in panel.lines.items():
        x, y = _positive(panel.title, series)
        if not len(x):
            continue
        ticks |= set(x.tolist())
        (shown[name],) = axes.plot(x, y, linewidth=2.0, markersize=6, **_looks(name, names))
    if panel.limit is not None:
        x, y = _positive(panel.title, panel.limit)
        if len(x):
            (shown[limit_name],) = axes.plot(
                x, y, color=style.INK, linewidth=1.6, linestyle=(0, (5, 3)), zorder=1
            )
    axes.set(xscale="log", yscale="log", xlabel=panel.x_label, ylabel=panel.y_label)
    axes.set_title(panel.title, size=style.PANEL_SIZE, color=style.INK)
    axes.grid(axis="y", color=style.FAINT, linewidth=0.6, alpha=0.7)
    style.clean_axes(axes)
    axes.xaxis.set_major_locator(FixedLocator(_apart(ticks)))
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _apart(ticks: set[float]) -> list[float]:
    """Those whose names find room: the largest, and what is not too near to one kept."""
    places = sorted(ticks, reverse=True)
    room = _TICK_SHARE * np.log(places[0] / places[-1]) if places else 0.0
    kept: list[float] = []
    for place in places:
        if not kept or np.log(kept[-1] / place) >= room:
            kept.append(place)
    return kept[::-1]


def _looks(name: str, names: Sequence[str]) -> dict:
    """Colours along the scale of time; markers, then dashes, tell apart what is close."""
    index = names.index(name)
    shades = min(len(names), _SHADES)
    place = index % shades / max(shades - 1, 1)
    return {
        "color": style.TIME_MAP(place),
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index // _SHADES % len(_DASHES)],
    }


def _positive(title: str, series: Series) -> tuple[Floats, Floats]:
    """The points that logarithmic axes can show."""
    x, y = (np.asarray(part, np.float64) for part in series)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"panels must hold equally many x and y, {title!r} has {x.shape}, {y.shape}"
        )
    keep = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    return x[keep], y[keep]
