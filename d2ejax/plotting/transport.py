"""Marginals, paths and couplings: where the mass is, how it moves, and who goes where."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d2ejax.plotting import style
from d2ejax.plotting.style import Floats, Limits


def marginals(
    times: npt.ArrayLike,
    learned: npt.ArrayLike,
    exact: npt.ArrayLike | None = None,
    *,
    snapshots: int = 5,
) -> Figure:
    """Draws the marginals at a few times, the learned ones beside the exact ones.

    In one dimension both densities share a panel; otherwise the exact ones form a second row,
    and the two panels of a column share one shading scale.

    Args:
        times: the time grid, shape (K+1,).
        learned: sampled paths, shape (n, K+1, dim).
        exact: paths of the exact bridge, shape (any n, K+1, dim), or None.
        snapshots: number of times shown, evenly spread and moved to the nearest grid times.

    Returns:
        The figure.

    Raises:
        ValueError: if a shape does not fit, a value is not finite, or snapshots < 2.
    """
    times = style.check_times(times)
    learned, exact = _pair(times, "learned", learned, "exact", exact)
    indices = style.snapshot_indices(times, snapshots)
    if learned.shape[-1] == 1:
        return _marginals_1d(times, learned, exact, indices)
    dim = learned.shape[-1]
    rows = [("learned", learned)] + ([] if exact is None else [("exact", exact)])
    limits = style.window(*[points[:, indices] for _, points in rows])
    figure = style.new_figure(2.6 * len(indices) + 1.0, 2.6 * len(rows) + 1.2)
    grid = figure.subplots(len(rows), len(indices), sharex=True, sharey=True, squeeze=False)
    for column, index in enumerate(indices):
        snapshot = [points[:, index, :2] for _, points in rows]
        images = style.densities(snapshot, limits)
        color = style.time_color(times, times[index])
        for axes, points, image in zip(grid[:, column], snapshot, images, strict=True):
            shade(axes, points, image, limits, color)
            style.space_axes(axes, limits, dim)
            axes.label_outer()
        grid[0, column].set_title(
            style.time_label(times, times[index]), size=style.PANEL_SIZE, color=style.INK
        )
    for row, (name, _) in enumerate(rows):
        _row_name(grid[row, 0], name)
    what = "learned" if exact is None else "learned above, exact below"
    style.headline(figure, f"Marginals in time: {what}")
    return figure


def _marginals_1d(
    times: Floats, learned: Floats, exact: Floats | None, indices: list[int]
) -> Figure:
    """Draws learned densities filled and exact ones as lines, a panel for each time."""
    figure = style.new_figure(2.8 * len(indices) + 0.6, 4.2)
    panels = figure.subplots(1, len(indices), sharex=True, squeeze=False)[0]
    batches = [learned] if exact is None else [learned, exact]
    limits = style.interval(np.concatenate([b[:, indices].ravel() for b in batches]))
    for axes, index in zip(panels, indices, strict=True):
        color = style.time_color(times, times[index])
        x, heights = style.densities_1d([b[:, index, 0] for b in batches], limits)
        axes.fill_between(x, heights[0], color=color, alpha=0.4, linewidth=0, label="learned")
        if exact is not None:
            axes.plot(x, heights[1], color=style.INK, linewidth=1.8, label="exact")
        axes.set(xlim=limits, ylim=(0, None), xlabel="x", yticks=[])
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(
            style.time_label(times, times[index]), size=style.PANEL_SIZE, color=style.INK
        )
        style.clean_axes(axes)
        axes.spines["left"].set_visible(False)
    panels[0].set_ylabel("density", size=style.LABEL_SIZE)
    if exact is not None:
        style.legend_below(figure, *panels[0].get_legend_handles_labels())
    style.headline(
        figure, "Marginals in time: " + ("learned" if exact is None else "learned and exact")
    )
    return figure


def sample_paths(
    times: npt.ArrayLike,
    paths: npt.ArrayLike,
    exact_paths: npt.ArrayLike | None = None,
    *,
    num_paths: int = 20,
) -> Figure:
    """Draws trajectories coloured by their time, over faint start and end points.

    Args:
        times: the time grid, shape (K+1,).
        paths: sampled paths, shape (n, K+1, dim).
        exact_paths: paths of the exact bridge, shape (any n, K+1, dim), or None.
        num_paths: how many trajectories to draw of each.

    Returns:
        The figure; in one dimension, time is the horizontal axis.

    Raises:
        ValueError: if a shape does not fit or a value is not finite.
    """
    times = style.check_times(times)
    paths, exact_paths = _pair(times, "paths", paths, "exact_paths", exact_paths)
    dim = paths.shape[-1]
    figure, panels = _panels(exact_paths is not None, "Sample paths", flat=dim == 1)
    batches = [paths] if exact_paths is None else [paths, exact_paths]
    curves = [plane(times, batch) for batch in batches]
    drawn = [style.spread(batch, num_paths) for batch in curves]
    ends = [style.spread(batch[:, [0, -1]], 1500) for batch in curves]
    shown = [*drawn, *ends]
    for axes, lines, points in zip(panels, drawn, ends, strict=True):
        axes.add_collection(style.time_lines(times, lines, width=1.3, alpha=0.75))
        for index, color in ((0, style.SOURCE), (-1, style.TARGET)):
            faint_points(axes, points[:, index], color)
            dots = lines[:, index]
            axes.scatter(
                dots[:, 0], dots[:, 1], s=26, color=color, ec="white", lw=0.6, zorder=4
            )
        if dim == 1:
            values = np.concatenate([points[..., 1].ravel() for points in shown])
            axes.set(ylim=style.interval(values, cut=0.0), xlabel="time t", ylabel="x")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            style.clean_axes(axes)
        else:
            style.space_axes(axes, style.window(*shown, cut=0.0), dim)
        axes.label_outer()
    if dim > 1:
        style.time_colorbar(figure, panels, times)
    return figure


def coupling(
    x0: npt.ArrayLike,
    x1: npt.ArrayLike,
    exact_x0: npt.ArrayLike | None = None,
    exact_x1: npt.ArrayLike | None = None,
    *,
    num_lines: int = 150,
) -> Figure:
    """Joins each start x_0 with its end x_1 by a line, learned beside exact.

    Args:
        x0: starts, shape (n, dim).
        x1: their ends, shape (n, dim).
        exact_x0: starts drawn from the exact plan, shape (m, dim), or None.
        exact_x1: their ends, shape (m, dim), or None.
        num_lines: how many pairs to draw of each.

    Returns:
        The figure; in one dimension starts lie on the left edge and ends on the right.

    Raises:
        ValueError: if a shape does not fit, a value is not finite, or only one exact end is
            given.
    """
    ends = [_ends("x0", x0, "x1", x1, None)]
    dim = ends[0].shape[-1]
    if (exact_x0 is None) != (exact_x1 is None):
        missing = "exact_x0" if exact_x0 is None else "exact_x1"
        raise ValueError(f"{missing} is None, but exact_x0 and exact_x1 come together")
    if exact_x0 is not None and exact_x1 is not None:
        ends.append(_ends("exact_x0", exact_x0, "exact_x1", exact_x1, dim))
    figure, panels = _panels(len(ends) == 2, "Coupling of starts and ends", flat=dim == 1)
    parameter = np.array([0.0, 1.0])
    for axes, pairs in zip(panels, ends, strict=True):
        flat = plane(parameter, pairs)
        chosen = style.spread(flat, num_lines)
        fractions = np.linspace(0, 1, 17)
        fine = chosen[:, :1] + fractions[:, None] * (chosen[:, 1:] - chosen[:, :1])
        axes.add_collection(style.time_lines(fractions, fine, width=0.9, alpha=0.45))
        for index, color, name in ((0, style.SOURCE, "start"), (1, style.TARGET, "end")):
            dots = chosen[:, index]
            axes.scatter(dots[:, 0], dots[:, 1], s=13, color=color, label=name, zorder=3, lw=0)
        if dim == 1:
            values = np.concatenate([pair[..., 0].ravel() for pair in ends])
            axes.set(xlim=(-0.03, 1.03), ylim=style.interval(values), ylabel="x")
            axes.set_xticks([0, 1], ["start", "end"])
            style.clean_axes(axes)
            axes.tick_params(axis="x", labelsize=style.LABEL_SIZE, labelcolor=style.INK)
        else:
            style.space_axes(axes, style.window(*ends), dim)
        axes.label_outer()
    if dim > 1:
        style.legend_below(figure, *panels[0].get_legend_handles_labels())
    return figure


def plane(times: Floats, paths: Floats) -> Floats:
    """Maps paths (n, K+1, dim) to the plane: (t, x) if dim is 1, else coordinates 1 and 2."""
    if paths.shape[-1] > 1:
        return paths[..., :2]
    return np.stack([np.broadcast_to(times, paths.shape[:2]), paths[..., 0]], axis=-1)


def shade(
    axes: Axes,
    points: Floats,
    image: Floats,
    limits: Limits,
    color: style.Color,
    *,
    shift: float = 0.0,
) -> None:
    """Shades a density image under some of its (n, 2) points, all `shift` to the right."""
    left, right = limits[0][0] + shift, limits[0][1] + shift
    axes.imshow(
        image**0.65,
        cmap=style.tint(color),
        extent=(left, right, *limits[1]),
        origin="lower",
        vmin=0.0,
        vmax=1.15,
        interpolation="bilinear",
        zorder=2,
    )
    dots = style.spread(points, 700) + np.array([shift, 0.0])
    axes.scatter(
        dots[:, 0], dots[:, 1], s=2.0, color=color, alpha=0.5, lw=0, rasterized=True, zorder=3
    )


def faint_points(axes: Axes, points: Floats, color: style.Color) -> None:
    """Scatters (n, 2) points as a pale backdrop."""
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=7,
        color=color,
        alpha=0.16,
        lw=0,
        rasterized=True,
        zorder=1,
    )


def _pair(
    times: Floats, name: str, paths: npt.ArrayLike, other: str, exact: npt.ArrayLike | None
) -> tuple[Floats, Floats | None]:
    checked = style.check_paths(name, paths, times, None)
    if exact is None:
        return checked, None
    return checked, style.check_paths(other, exact, times, checked.shape[-1])


def _ends(
    name0: str, x0: npt.ArrayLike, name1: str, x1: npt.ArrayLike, dim: int | None
) -> Floats:
    """Checks starts and ends and stacks them to (n, 2, dim)."""
    starts = style.check_array(name0, x0, (None, dim), "(n, dim)")
    ends = style.check_array(name1, x1, starts.shape, "(n, dim)")
    return np.stack([starts, ends], axis=1)


def _panels(has_exact: bool, title: str, *, flat: bool) -> tuple[Figure, list[Axes]]:
    """Makes one or two titled panels side by side; `flat` ones are not square."""
    count = 2 if has_exact else 1
    figure = style.new_figure((6.0 if flat else 5.4) * count + 0.8, 5.4 if flat else 6.1)
    panels = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for axes, name in zip(panels, ["learned", "exact"][:count], strict=True):
        axes.set_title(name, size=style.PANEL_SIZE, weight="bold", color=style.INK)
    style.headline(figure, title)
    return figure, panels


def _row_name(axes: Axes, name: str) -> None:
    axes.text(
        -0.52,
        0.5,
        name,
        transform=axes.transAxes,
        rotation=90,
        ha="center",
        va="center",
        size=style.PANEL_SIZE,
        weight="bold",
        color=style.INK,
    )
