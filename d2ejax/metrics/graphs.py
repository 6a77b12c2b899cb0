"""How well scores of directed edges tell those of the true graph from the others.

An edge from a node to itself does not count: that is the convention of the field, where
everything depends on itself by its decay.
"""

import numpy as np
import numpy.typing as npt
from scipy import stats


def edge_auroc(scores: npt.ArrayLike, edges: npt.ArrayLike) -> float:
    """The probability that a true edge scores higher than a pair that has none.

    The area under the ROC curve, which is the statistic of Mann and Whitney; ties count half.
    Chance is 0.5.

    Args:
        scores: Of the edges i → j, `(dim, dim)`.
        edges: Which of them there are, `(dim, dim)`.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If the shapes are not one square, or there are no edges or no others.
    """
    true, false = _split(scores, edges)
    return float(stats.mannwhitneyu(true, false).statistic / (true.size * false.size))


def edge_average_precision(scores: npt.ArrayLike, edges: npt.ArrayLike) -> float:
    """The share of true edges among those that score as high as one of them, on average.

    The area under the precision-recall curve without interpolation, as scikit-learn's
    `average_precision_score` has it. Chance is the share of true edges among all pairs.

    Args:
        scores: Of the edges i → j, `(dim, dim)`.
        edges: Which of them there are, `(dim, dim)`.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If the shapes are not one square, or there are no edges or no others.
    """
    true, false = _split(scores, edges)
    among_true = stats.rankdata(-true, "max")
    among_all = stats.rankdata(-np.concatenate([true, false]), "max")[: true.size]
    return float(np.mean(among_true / among_all))


def _split(scores: npt.ArrayLike, edges: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the edges that there are, and of the others; none of a node to itself."""
    values, truth = np.asarray(scores, np.float64), np.asarray(edges, bool)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.shape != truth.shape:
        raise ValueError(
            f"scores have shape {values.shape} and edges {truth.shape}: must be (dim, dim) both"
        )
    others = ~np.eye(len(truth), dtype=bool)
    true, false = values[truth & others], values[~truth & others]
    if not (true.size and false.size):
        raise ValueError(
            f"edges: {true.size} between different nodes, {false.size} pairs without: must be "
            "some of either"
        )
    return true, false
