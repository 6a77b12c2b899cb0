"""How the mass of samples spreads over the known modes of a target."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

from d2ejax.metrics.base import HostArray, points, vector


def mode_weights(x: ArrayLike, modes: ArrayLike) -> HostArray:
    """The share of samples that lie nearest to each mode.

    A sample far from every mode counts for its nearest one: this tells missing modes, not bad
    samples.

    Args:
        x: Samples, shape `(n, dim)`.
        modes: Centres, shape `(num_modes, dim)`.

    Returns:
        Shares of shape `(num_modes,)` that sum to 1; NaN if a sample is not finite.

    Raises:
        ValueError: If the shapes do not fit.
    """
    x = points("x", x)
    centres = np.asarray(modes, dtype=np.float64)
    if centres.ndim != 2 or len(centres) < 1 or centres.shape[1] != x.shape[1]:
        raise ValueError(
            f"modes has shape {centres.shape}: must be (num_modes, {x.shape[1]}) to fit x"
        )
    if not np.isfinite(x).all():
        return np.full(len(centres), np.nan)
    nearest = np.argmin(cdist(x, centres, "sqeuclidean"), axis=1)
    return np.bincount(nearest, minlength=len(centres)) / len(x)


def mode_coverage(
    weights: ArrayLike, true_weights: ArrayLike, *, threshold: float = 0.5
) -> float:
    """The fraction of modes that hold at least `threshold` times their true mass.

    Args:
        weights: Shares of the samples, shape `(num_modes,)`, as `mode_weights` gives them.
        true_weights: Mass of each mode under the target, shape `(num_modes,)`, all > 0.
        threshold: In (0, 1].

    Returns:
        A fraction in [0, 1]; NaN if the weights are.

    Raises:
        ValueError: If the shapes differ, a true weight is not positive, or the threshold is
            out of range.
    """
    true = np.asarray(true_weights, dtype=np.float64)
    if true.ndim != 1 or not len(true) or not (true > 0).all():
        raise ValueError(f"true_weights = {true}: must be (num_modes,) and all > 0")
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold = {threshold}: must be in (0, 1]")
    shares = vector("weights", weights, size=len(true))
    if np.isnan(shares).any():
        return float("nan")
    return float(np.mean(shares >= threshold * true))
