"""A learned dependency graph beside the true one."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from d2ejax.plotting import style
from d2ejax.plotting.style import Floats


def graph(
    names: Sequence[str], edges: npt.ArrayLike, strengths: npt.ArrayLike, *, note: str = ""
) -> Figure:
    """Draws two matrices: who regulates whom, and the strengths that were learned of it.

    Rows are regulators, columns what they regulate. On the right the true edges have a frame,
    so that what was missed and what was made up can be seen. The diagonal is left out.

    Args:
        names: Of the nodes.
        edges: The true graph, shape (dim, dim); row i, column j for the edge i → j.
        strengths: Learned, non-negative, shape (dim, dim).
        note: A line beneath.

    Returns:
        The figure.

    Raises:
        ValueError: If a shape does not fit or a value is not finite.
    """
    dim = len(names)
    truth = style.check_array("edges", edges, (dim, dim), "(dim, dim)") > 0
    learned = style.check_array("strengths", strengths, (dim, dim), "(dim, dim)")
    off = ~np.eye(dim, dtype=bool)
    figure = style.new_figure(12.8, 7.0)
    left, right = figure.subplots(1, 2, sharey=True)
    _matrix(left, names, np.where(truth, 1.0, 0.0), 1.0, "true graph")
    top = float(learned[off].max()) or 1.0
    _matrix(right, names, learned, top, f"learned strength, from 0 to {top:.2g}")
    for i, j in np.argwhere(truth & off):
        frame = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=style.INK, lw=1.6)
        right.add_patch(frame)
    left.set_ylabel("regulator")
    style.headline(figure, "Which gene regulates which")
    if note:
        figure.supxlabel(note, size=style.LABEL_SIZE, color=style.MUTED)
    return figure


def _matrix(axes: Axes, names: Sequence[str], values: Floats, top: float, title: str) -> None:
    shown = np.ma.masked_array(values, np.eye(len(names), dtype=bool))
    colors = matplotlib.colormaps["Purples"].with_extremes(bad=style.FAINT)
    axes.imshow(shown, cmap=colors, vmin=0.0, vmax=top)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names)
    axes.set_xlabel("regulated gene")
    axes.set_title(title, size=style.PANEL_SIZE, color=style.INK)
    style.clean_axes(axes)
