"""Settings compared over several seeds: means with their standard errors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from d2ejax.plotting import style
from d2ejax.plotting.curves import log_scale, steps_label
from d2ejax.plotting.style import Floats

Curves = tuple[npt.ArrayLike, npt.ArrayLike]

_MARKERS = "os^Dv"
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_SHADES = 5
# Inches: of a panel, of a line of dots, and of what stands above and below these.
_WIDTH, _HEIGHT, _LINE, _MARGIN = 5.6, 3.6, 0.42, 1.3


class Outcome(NamedTuple):
    """One quantity, a column of `sweep`.

    Attributes:
        title: What it is.
        finals: Names of settings to its value in the end, one for each seed.
        curves: Names of settings to gradient steps, `(num_steps,)`, and its values there,
            `(num_seeds, num_steps)`; fewer than two steps are no curve.
        limit: What it is called and how large it is where all is perfect, drawn dashed.
    """

    title: str
    finals: Mapping[str, Sequence[float]]
    curves: Mapping[str, Curves]
    limit: tuple[str, float] | None = None


def sweep(outcomes: Sequence[Outcome], *, title: str) -> Figure:
    """Draws curves of means over seeds, and beneath them where each setting ends.

    Bands and bars are standard errors; the faint dots are the single seeds.

    Args:
        outcomes: What to draw, from left to right.
        title: Of the whole figure.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw.
    """
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.finals))
    if not names:
        raise ValueError("outcomes must hold the value of a setting in the end, got none")
    has_curves = any(_drawn(outcome) for outcome in outcomes)
    heights = [_HEIGHT] * has_curves + [_LINE * len(names) + _MARGIN]
    figure = style.new_figure(max(_WIDTH * len(outcomes), 8.0), sum(heights) + 0.6)
    grid = figure.subplots(len(heights), len(outcomes), squeeze=False, height_ratios=heights)
    for column, outcome in enumerate(outcomes):
        top, bottom = grid[0, column], grid[-1, column]
        if has_curves and not _drawn(outcome):
            top.set_visible(False)
            top = bottom
        elif has_curves:
            _draw_curves(top, outcome, names)
        _draw_finals(bottom, outcome, names, labelled=column == 0)
        top.set_title(outcome.title, size=style.PANEL_SIZE, color=style.INK)
    style.headline(figure, title)
    return figure


def _draw_curves(axes: Axes, outcome: Outcome, names: Sequence[str]) -> None:
    shown = [] if outcome.limit is None else [outcome.limit[1]]
    for name, (steps, values) in _drawn(outcome).items():
        mean, error = values.mean(axis=0), _standard_error(values)
        color, marker, dashes = _looks(names.index(name), len(names))
        axes.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, lw=0)
        axes.plot(steps, mean, color=color, marker=marker, linestyle=dashes, lw=2.2, ms=6)
        shown += mean.tolist()
    log_scale(axes, np.asarray(shown))
    if outcome.limit is not None:
        name, limit = outcome.limit
        axes.axhline(limit, color=style.INK, linewidth=1.4, linestyle=(0, (5, 3)), zorder=1)
        below = limit > np.mean(shown)
        axes.annotate(
            f"{name} {limit:.3g}",
            (0.985, limit),
            (0, -5 if below else 5),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="top" if below else "bottom",
            size=style.TICK_SIZE,
            color=style.INK,
        )
    axes.set_xlabel("gradient steps")
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=style.FAINT, linewidth=0.6, alpha=0.7)
    style.clean_axes(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(steps_label))


def _draw_finals(axes: Axes, outcome: Outcome, names: Sequence[str], *, labelled: bool) -> None:
    for place, name in enumerate(names):
        values = np.asarray(outcome.finals.get(name, ()), np.float64)
        if not len(values):
            continue
        color, marker, _ = _looks(place, len(names))
        axes.plot(values, np.full(len(values), place), ".", color=color, alpha=0.35, ms=9)
        error = _standard_error(values[:, None]) if len(values) > 1 else None
        axes.errorbar(
            [values.mean()],
            [place],
            xerr=error,
            color=color,
            marker=marker,
            ms=8,
            linewidth=2.2,
            capsize=4,
        )
    if outcome.limit is not None:
        axes.axvline(
            outcome.limit[1], color=style.INK, linewidth=1.4, linestyle=(0, (5, 3)), zorder=1
        )
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names if labelled else [""] * len(names))
    axes.set_xlabel("in the end: mean ± standard error")
    axes.grid(axis="x", color=style.FAINT, linewidth=0.6, alpha=0.7)
    axes.margins(x=0.08)
    style.clean_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for place, label in enumerate(axes.get_yticklabels()):
        # The key to the curves above.
        label.set_color(_looks(place, len(names))[0])


def _drawn(outcome: Outcome) -> dict[str, tuple[Floats, Floats]]:
    """The curves that are some."""
    arrays = {
        name: (np.asarray(steps, np.float64), np.asarray(values, np.float64))
        for name, (steps, values) in outcome.curves.items()
    }
    return {name: curve for name, curve in arrays.items() if len(curve[0]) > 1}


def _standard_error(values: Floats) -> Floats:
    """Over the first axis; zero for one seed, of which nothing is known."""
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _looks(index: int, count: int) -> tuple[style.Color, str, Any]:
    """Colours along the scale of time; markers, then dashes, tell apart what is close."""
    shades = min(count, _SHADES)
    place = index % shades / max(shades - 1, 1)
    dashes = _DASHES[index // _SHADES % len(_DASHES)]
    return style.TIME_MAP(place), _MARKERS[index % len(_MARKERS)], dashes
