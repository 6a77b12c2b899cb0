"""Methods ranked: one number each, on a logarithmic axis, a line of dots per problem."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from d2ejax.plotting import style

# Inches: of a line, of what stands above and below them, and of a panel with its names.
_LINE, _MARGIN, _WIDTH = 0.32, 1.1, 6.4


class Ranking(NamedTuple):
    """One panel of `ranking`.

    Attributes:
        title: Above it.
        values: Names to positive numbers, the less the better; others are left out.
        label: What the numbers are.
        limit: What can be reached at best, drawn dashed.
    """

    title: str
    values: Mapping[str, float]
    label: str
    limit: float | None = None


def ranking(panels: Sequence[Ranking], *, title: str, columns: int = 2) -> Figure:
    """Draws panels of dots, the best on top.

    Args:
        panels: What to draw, row by row.
        title: Of the whole figure.
        columns: Panels in a row.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no panel, or one without a positive number.
    """
    for panel in panels:
        if not _shown(panel):
            raise ValueError(f"panels must hold positive numbers, {panel.title!r} has none")
    if not panels:
        raise ValueError("panels must not be empty")
    width = min(columns, len(panels))
    rows = [panels[start : start + width] for start in range(0, len(panels), width)]
    lines = [max(len(_shown(panel)) for panel in row) for row in rows]
    heights = [_LINE * count + _MARGIN for count in lines]
    figure = style.new_figure(_WIDTH * width, sum(heights) + 0.8)
    grid = figure.subplots(len(rows), width, squeeze=False, height_ratios=heights)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    style.headline(figure, title)
    return figure


def _draw(axes: Axes, panel: Ranking) -> None:
    values = _shown(panel)
    names = sorted(values, key=values.__getitem__, reverse=True)
    numbers = [values[name] for name in names]
    places = np.arange(len(names))
    low = min([*numbers, *([panel.limit] if panel.limit else [])])
    high = max(*numbers, 1.5 * low)
    axes.set(xscale="log", xlim=(low / 1.4, high * 2.2), ylim=(-0.6, len(names) - 0.4))
    axes.hlines(places, low / 1.4, numbers, color=style.FAINT, linewidth=1.2)
    axes.plot(numbers, places, "o", color=style.TIME_MAP(0.0), markersize=7)
    for place, number in zip(places, numbers, strict=True):
        axes.annotate(
            f"{number:.3g}", (number, place), (8, 0), textcoords="offset points", va="center"
        )
    if panel.limit is not None:
        axes.axvline(panel.limit, color=style.INK, linewidth=1.4, linestyle=(0, (5, 3)))
    axes.set_yticks(places, names)
    axes.set_xlabel(panel.label)
    # Over the names there is room for more of it than over the dots.
    axes.set_title(panel.title, size=style.PANEL_SIZE, color=style.INK, loc="right")
    style.clean_axes(axes)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _shown(panel: Ranking) -> dict[str, float]:
    return {name: x for name, x in panel.values.items() if np.isfinite(x) and x > 0}
