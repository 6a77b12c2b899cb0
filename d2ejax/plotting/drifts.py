"""The drift as a field of arrows (or a curve in one dimension), learned against exact."""

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from d2ejax.plotting import style
from d2ejax.plotting.style import Floats

EXACT = "#b9c0cc"
# Arrows are drawn where the marginal has at least this part of its peak density.
VISIBLE = 0.05
# The longest usual arrow, in widths of the panel.
ARROW = 0.085


def drift_field(
    times: npt.ArrayLike,
    points: npt.ArrayLike,
    learned_drift: npt.ArrayLike,
    exact_drift: npt.ArrayLike | None = None,
    *,
    weights: npt.ArrayLike | None = None,
) -> Figure:
    """Draws the drift at a few times: learned arrows, thin, over exact ones, broad and grey.

    Each panel has its own arrow scale, stated in its corner: drifts grow like 1/(T - t).

    Args:
        times: the times shown, shape (S,), three or four for a readable figure.
        points: where the drift is evaluated, usually a grid, shape (m, dim).
        learned_drift: drifts at those points, shape (S, m, dim).
        exact_drift: drifts of the exact bridge, shape (S, m, dim), or None.
        weights: marginal densities at the points, any positive scale per time, shape (S, m).
            Points below five percent of the peak are left out, and the error is weighted by
            them; None shows and counts all points alike.

    Returns:
        The figure; each title gives the error sqrt(Σ w|b - b*|² / Σ w|b*|²).

    Raises:
        ValueError: if a shape does not fit or a value is not finite.
    """
    times = style.check_times(times, minimum=1)
    points = style.check_array("points", points, (None, None), "(m, dim)")
    shape = (len(times), *points.shape)
    learned_drift = style.check_array("learned_drift", learned_drift, shape, "(S, m, dim)")
    if exact_drift is not None:
        exact_drift = style.check_array("exact_drift", exact_drift, shape, "(S, m, dim)")
    weights = np.ones(shape[:2]) if weights is None else weights
    weights = style.check_array("weights", weights, shape[:2], "(S, m)")
    if np.any(weights < 0) or np.any(weights.max(axis=1) <= 0):
        raise ValueError("weights must be non-negative with a positive one at each time")
    figure = style.new_figure(4.3 * len(times) + 0.6, 5.7 if shape[-1] > 1 else 4.8)
    panels = figure.subplots(1, len(times), squeeze=False)[0]
    draw = _curves if shape[-1] == 1 else _arrows
    for i, axes in enumerate(panels):
        exact = None if exact_drift is None else exact_drift[i]
        color = style.TIME_MAP(i / max(len(times) - 1, 1))
        draw(axes, points, learned_drift[i], exact, weights[i], color)
        title = f"t = {times[i]:.3g}"
        if exact is not None:
            title += f"   (error {_error(learned_drift[i], exact, weights[i]):.0%})"
        axes.set_title(title, size=style.PANEL_SIZE, color=style.INK)
        if i:
            axes.set_ylabel("")
    _legend(figure, exact_drift is not None)
    what = "learned" if exact_drift is None else "learned against exact"
    style.headline(figure, f"Forward drift: {what}")
    return figure


def _error(learned: Floats, exact: Floats, weights: Floats) -> float:
    size = np.sum(weights * np.sum(exact**2, axis=-1))
    error = np.sum(weights * np.sum((learned - exact) ** 2, axis=-1))
    return float(np.sqrt(error / size)) if size > 0 else float("nan")


def _arrows(
    axes: Axes,
    points: Floats,
    learned: Floats,
    exact: Floats | None,
    weights: Floats,
    color: style.Color,
) -> None:
    shown = weights >= VISIBLE * weights.max()
    at, dim = points[shown, :2], points.shape[-1]
    fields = [learned[shown, :2]] if exact is None else [exact[shown, :2], learned[shown, :2]]
    lengths = np.linalg.norm(np.concatenate(fields), axis=-1)
    limits = style.window(points)
    span = limits[0][1] - limits[0][0]
    unit = float(np.quantile(lengths, 0.97)) / (ARROW * span) or 1.0
    colors = [color] if exact is None else [EXACT, color]
    widths = [0.0055] if exact is None else [0.0125, 0.0045]
    for field, shade, width in zip(fields, colors, widths, strict=True):
        axes.quiver(*at.T, *field.T, color=shade, **_arrow_style(unit, width))
    style.space_axes(axes, limits, dim)
    _scale_arrow(axes, unit, span)


def _scale_arrow(axes: Axes, unit: float, span: float) -> None:
    """States the arrow scale by one arrow of a round length in the panel's upper right."""
    longest = ARROW * span * unit
    magnitude = 10 ** np.floor(np.log10(longest))
    value = magnitude * max(m for m in (1, 2, 5) if m * magnitude <= longest)
    right, y = axes.get_xlim()[1] - 0.02 * span, axes.get_ylim()[1] - 0.035 * span
    left = right - value / unit
    axes.quiver(left, y, value / unit, 0, color=style.INK, **_arrow_style(1.0, 0.0045))
    axes.text(
        left - 0.02 * span,
        y,
        f"{value:g}",
        ha="right",
        va="center",
        size=style.TICK_SIZE,
        color=style.INK,
    )


def _arrow_style(unit: float, width: float) -> dict[str, Any]:
    head = 3.0 if width > 0.01 else 4.5
    return {
        "angles": "xy",
        "scale_units": "xy",
        "scale": unit,
        "width": width,
        "headwidth": head,
        "headlength": head,
        "headaxislength": 0.9 * head,
    }


def _curves(
    axes: Axes,
    points: Floats,
    learned: Floats,
    exact: Floats | None,
    weights: Floats,
    color: style.Color,
) -> None:
    order = np.argsort(points[:, 0])
    x, heights = points[order, 0], weights[order] / weights.max()
    shown = heights >= VISIBLE
    fields: list[tuple[Floats, Any, float]] = [(learned[order, 0], color, 2.2)]
    if exact is not None:
        fields.insert(0, (exact[order, 0], EXACT, 6.0))
    for values, shade, width in fields:
        axes.plot(x, np.where(shown, values, np.nan), color=shade, lw=width)
    limits = style.interval(np.concatenate([values[shown] for values, _, _ in fields]))
    ground, height = limits[0], 0.25 * (limits[1] - limits[0])
    axes.fill_between(x, ground, ground + height * heights, color=style.FAINT, alpha=0.5, lw=0)
    axes.set(xlim=(x[0], x[-1]), ylim=limits, xlabel="x", ylabel="drift")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    style.clean_axes(axes)


def _legend(figure: Figure, has_exact: bool) -> None:
    if has_exact:
        learned = Line2D([], [], color=style.TIME_MAP(0.45), lw=2.2)
        exact = Line2D([], [], color=EXACT, lw=7)
        style.legend_below(figure, [learned, exact], ["learned", "exact"])
