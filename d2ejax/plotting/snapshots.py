"""A process as it was observed, snapshot by snapshot, above what a bridge makes of it."""

from collections.abc import Sequence

import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2ejax.plotting import style
from d2ejax.plotting.style import Floats
from d2ejax.plotting.transport import shade

_TRAILS = 60
_LEFT_OUT = "#b42318"


def snapshots(
    times: npt.ArrayLike,
    paths: npt.ArrayLike,
    observed: Sequence[npt.ArrayLike],
    knots: Sequence[int],
    *,
    labels: Sequence[str],
    left_out: int | None = None,
    notes: Sequence[str] | None = None,
) -> Figure:
    """Draws the samples of each snapshot above the learned marginal there.

    Lines lead to the learned points from where they were at the snapshot before. What was left
    out of training has a frame.

    Args:
        times: The time grid, shape (K+1,).
        paths: Sampled paths, shape (n, K+1, dim) with dim ≥ 2; the first two coordinates are
            drawn.
        observed: Samples of each snapshot, shape (any n, dim).
        knots: The grid index of each snapshot.
        labels: What each is called.
        left_out: Which of them was not trained on; None for none.
        notes: A line beneath each column; None for none.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, or there is one coordinate.
    """
    times = style.check_times(times)
    paths = style.check_paths("paths", paths, times, None)
    dim = paths.shape[-1]
    if dim < 2:
        raise ValueError(f"paths have {dim} coordinate: must have at least 2")
    clouds = [style.check_array("observed", x, (None, dim), "(n, dim)") for x in observed]
    learned = [paths[:, knot] for knot in knots]
    limits = style.window(*clouds, *learned)
    figure = style.new_figure(2.7 * len(knots) + 1.0, 6.9)
    grid = figure.subplots(2, len(knots), sharex=True, sharey=True, squeeze=False)
    for column, knot in enumerate(knots):
        color = style.time_color(times, times[knot])
        both = [clouds[column][:, :2], learned[column][:, :2]]
        images = style.densities(both, limits)
        for axes, points, image in zip(grid[:, column], both, images, strict=True):
            shade(axes, points, image, limits, color)
            style.space_axes(axes, limits, dim)
            axes.label_outer()
        if column:
            _trails(grid[1, column], times, paths, knots[column - 1], knot)
        _name(grid[0, column], labels[column], left_out=column == left_out)
        if notes is not None:
            grid[1, column].set_xlabel(
                f"{grid[1, column].get_xlabel()}\n{notes[column]}", linespacing=1.6
            )
        if column == left_out:
            for axes in grid[:, column]:
                _frame(axes)
    for row, name in enumerate(("observed", "learned")):
        grid[row, 0].set_ylabel(f"{name}\n\n{grid[row, 0].get_ylabel()}", linespacing=0.9)
    what = "observed above, learned below"
    style.headline(figure, f"A process through its snapshots: {what}")
    return figure


def _trails(axes: Axes, times: Floats, paths: Floats, first: int, last: int) -> None:
    """The way of some paths from one point of the grid to another."""
    pieces = style.spread(paths, _TRAILS)[:, first : last + 1, :2]
    lines = style.time_lines(times[first : last + 1], pieces, width=0.8, alpha=0.55)
    lines.set_clim(times[0], times[-1])
    axes.add_collection(lines)


def _name(axes: Axes, label: str, *, left_out: bool) -> None:
    axes.set_title(
        f"{label}, left out" if left_out else label,
        size=style.PANEL_SIZE,
        color=_LEFT_OUT if left_out else style.INK,
        weight="bold" if left_out else "normal",
    )


def _frame(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=_LEFT_OUT, linewidth=1.6)
