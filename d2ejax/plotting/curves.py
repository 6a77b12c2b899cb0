"""Training curves: the loss of each half-step, and the quality against its optimum."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy import ndimage

from d2ejax.plotting import style
from d2ejax.plotting.style import Floats

HALF_STEPS = {"backward": style.TARGET, "forward": style.SOURCE}
"""Phases that come first, with their colours; all others follow, in ink."""

# Metric: its title, and what its ideal is called.
TRACKED = {
    "path_kl": ("Path KL [nats]", "optimum"),
    "bridge_gap": ("Bridge gap [nats]", "K-step limit"),
    "w2_squared": ("W₂² to the target", "sampling floor"),
}


def training_curves(
    records: Sequence[Mapping[str, Any]], optimal: Mapping[str, float | None] | None = None
) -> Figure:
    """Draws the loss of each phase and the tracked metrics against gradient steps.

    Args:
        records: in the order written, one mapping each, as in metrics.jsonl. Read are
            "gradient_steps" (a record without it is skipped), "loss" together with "phase"
            ("forward", "backward" or the name of another), and the metrics "path_kl",
            "bridge_gap", "w2_squared". What is missing, None or not finite is left out; other
            keys are ignored.
        optimal: ideal value for each metric, drawn dashed; missing or None: no line.

    Returns:
        The figure: one panel for each phase, and one for each metric that has a value.

    Raises:
        ValueError: if nothing in the records can be drawn.
    """
    optimal = optimal or {}
    named = (record.get("phase") for record in records)
    order = dict.fromkeys([*HALF_STEPS, *(phase for phase in named if phase)])
    losses = {phase: _series(records, "loss", phase) for phase in order}
    metrics = {name: _series(records, name) for name in TRACKED}
    metrics = {name: series for name, series in metrics.items() if len(series[0])}
    phases = {phase: series for phase, series in losses.items() if len(series[0])}
    if not phases and not metrics:
        raise ValueError(
            f"records must hold gradient_steps and a loss with its phase, or a metric; none of "
            f"the {len(records)} given does"
        )
    rows = [row for row in (list(phases), list(metrics)) if row]
    figure = style.new_figure(12.8, 3.7 * len(rows) + 0.6)
    subfigures = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    end = max(s[0].max() for s in (*phases.values(), *metrics.values()))
    for subfigure, names in zip(subfigures, rows, strict=True):
        panels = subfigure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            if name in phases:
                _loss_panel(axes, name, *losses[name])
            else:
                _metric_panel(axes, name, *metrics[name], optimal.get(name))
            axes.set_xlim(0, 1.02 * max(end, 1))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(steps_label))
            axes.set_xlabel("gradient steps")
            axes.grid(axis="y", color=style.FAINT, linewidth=0.6, alpha=0.7)
            style.clean_axes(axes)
    style.headline(figure, "Training")
    return figure


def _series(
    records: Sequence[Mapping[str, Any]], name: str, phase: str | None = None
) -> tuple[Floats, Floats]:
    """Collects (steps, values); a NaN value marks where another phase came between."""
    steps: list[float] = []
    values: list[float] = []
    broken = False
    for record in records:
        if phase is not None and record.get("phase") != phase:
            # Evaluations, which have no phase, do not interrupt a half-step.
            broken = broken or record.get("phase") is not None
            continue
        step, value = record.get("gradient_steps"), record.get(name)
        if step is None or value is None or not np.isfinite(value):
            continue
        if broken and steps:
            steps.append(float(step))
            values.append(np.nan)
        broken = False
        steps.append(float(step))
        values.append(float(value))
    return np.array(steps), np.array(values)


def _loss_panel(axes: Axes, phase: str, steps: Floats, values: Floats) -> None:
    """Draws the raw loss faintly and a running median firmly, broken between half-steps."""
    color = HALF_STEPS.get(phase, style.INK)
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=1.0)
    breaks = np.flatnonzero(np.isnan(values))
    for part in np.split(np.arange(len(values)), breaks):
        part = part[~np.isnan(values[part])]
        width = min(9, len(part))
        smooth = ndimage.median_filter(values[part], width)
        marker = "o" if len(part) == 1 else ""
        axes.plot(steps[part], smooth, color=color, linewidth=2.2, marker=marker, ms=4)
    finite = values[~np.isnan(values)]
    low, high = np.quantile(finite, [0.01, 0.99])
    if not log_scale(axes, finite):
        margin = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    title = f"Loss, {phase}" + (" half-step" if phase in HALF_STEPS else "")
    axes.set_title(title, size=style.PANEL_SIZE, color=style.INK)


def _metric_panel(
    axes: Axes, name: str, steps: Floats, values: Floats, ideal: float | None
) -> None:
    title, ideal_name = TRACKED[name]
    color = style.TIME_MAP(0.45)
    axes.plot(steps, values, color=color, linewidth=2.2, marker="o", markersize=5)
    axes.set_title(title, size=style.PANEL_SIZE, color=style.INK)
    if ideal is None or not np.isfinite(ideal):
        ideal = None
    shown = values if ideal is None else np.append(values, ideal)
    if not log_scale(axes, shown):
        # A gap and a distance are read from zero; the path KL from its optimum.
        low = shown.min() if name == "path_kl" else min(shown.min(), 0.0)
        margin = 0.15 * (shown.max() - low) or 0.5
        axes.set_ylim(low - (margin if low else 0.0), shown.max() + margin)
    if ideal is not None:
        axes.axhline(ideal, color=style.INK, linewidth=1.6, linestyle=(0, (5, 3)))
        above = bool(values[-1] < ideal)
        axes.annotate(
            f"{ideal_name} {ideal:.3g}",
            xy=(0.985, ideal),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 5 if above else -5),
            textcoords="offset points",
            ha="right",
            va="bottom" if above else "top",
            size=style.TICK_SIZE + 1,
            color=style.INK,
        )


def log_scale(axes: Axes, values: Floats) -> bool:
    """Makes the vertical axis logarithmic if positive values span more than a decade."""
    if values.min() <= 0 or values.max() < 10 * values.min():
        return False
    axes.set_yscale("log")
    few = values.max() < 1000 * values.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    room = (values.max() / values.min()) ** 0.12
    axes.set_ylim(values.min() / room, values.max() * room)
    return True


def steps_label(value: float, _: int) -> str:
    """Writes a number of gradient steps on an axis."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
