"""How far samples, and the plan behind them, are from true first and second moments.

BW² is the squared 2-Wasserstein distance between Gaussians (Bures-Wasserstein); in per cent of
half the true variance it is the "unexplained variance percentage" of Gushchin et al. (2023),
arXiv:2306.10161, section 5. Higher moments, modes among them, are not seen.
"""

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.metrics.base import Estimate, HostArray, mean_estimate, points


def bw_uvp(samples: ArrayLike, mean: ArrayLike, covariance: ArrayLike) -> float:
    """BW²-UVP: 100 BW²(N(samples), N(mean, covariance)) / (½ trace(covariance)), in per cent.

    N(samples) is the Gaussian of the samples' own mean and covariance,
    BW² = |m - m'|² + tr(S + S' - 2 (S^½ S' S^½)^½).

    Args:
        samples: Shape `(n, dim)`. True samples of an isotropic Gaussian would score about
            (250 + 50 dim) / n.
        mean: The true mean, shape `(dim,)`.
        covariance: The true covariance, shape `(dim, dim)`.

    Returns:
        A percentage, ≥ 0; NaN if a sample is not finite.

    Raises:
        ValueError: If the shapes do not fit.
    """
    drawn = points("samples", samples)[None]
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    distances = _squared_distances(drawn, mean[None], covariance[None])
    return float(distances[0] / (0.5 * np.trace(covariance)) * 100)


def conditional_bw_uvp(
    draws: ArrayLike, means: ArrayLike, covariances: ArrayLike, target_variance: float
) -> Estimate:
    """cBW²-UVP: BW²-UVP of the plan's conditionals, averaged over starts, in per cent.

    100 E_{x_0} BW²(N(draws given x_0), N(mean(x_0), covariance(x_0))) / (½ Var p_1). It sees a
    wrong coupling, which the marginal BW²-UVP cannot.

    The moments of finitely many draws are off even for a perfect plan, by an amount that grows
    with dim over their number: give true draws from the same starts to the same function for
    the floor, and show it beside.

    Args:
        draws: Ends of the plan that is judged, shape `(num_starts, num_draws, dim)`: row i are
            independent draws of x_T given the i-th start, the starts being drawn from p_0.
        means: True conditional means, shape `(num_starts, dim)`.
        covariances: True conditional covariances, shape `(num_starts, dim, dim)`.
        target_variance: Var p_1, the trace of the covariance of p_1.

    Returns:
        A percentage with its standard error over starts; NaN if a draw is not finite.

    Raises:
        ValueError: If the shapes do not fit or the variance is not positive.
    """
    drawn = np.asarray(draws, np.float64)
    if drawn.ndim != 3 or min(drawn.shape[:2]) < 2:
        raise ValueError(
            f"draws has shape {drawn.shape}: must be (num_starts, num_draws, dim), both >= 2"
        )
    if not target_variance > 0:
        raise ValueError(f"target_variance = {target_variance}: must be > 0")
    distances = _squared_distances(
        drawn, np.asarray(means, np.float64), np.asarray(covariances, np.float64)
    )
    return mean_estimate(distances / (0.5 * target_variance) * 100)


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """BW² of the Gaussians fitted to two sets of points, as features of images.

    In the features of an Inception network it is the Fréchet inception distance (Heusel et al.
    2017, arXiv:1706.08500). Two sets of one law are apart by an amount that grows with dim over
    their sizes: give two true sets to the same function for the floor, and show it beside.

    Args:
        x: One set, `(n, dim)`.
        y: The other, `(m, dim)`.

    Returns:
        The distance, ≥ 0, in squared units of the points; NaN if one is not finite.

    Raises:
        ValueError: If the shapes do not fit.
    """
    drawn, other = points("x", x)[None], points("y", y)
    if not np.isfinite(other).all():
        return float("nan")
    mean, covariance = other.mean(axis=0), np.cov(other, rowvar=False, ddof=1)
    dim = other.shape[1]
    return float(_squared_distances(drawn, mean[None], covariance.reshape(1, dim, dim))[0])


def _squared_distances(draws: HostArray, means: HostArray, covariances: HostArray) -> HostArray:
    """BW² of each batch of draws (s, n, dim) from its Gaussian, `(s,)`."""
    num, n, dim = draws.shape
    if means.shape != (num, dim) or covariances.shape != (num, dim, dim):
        raise ValueError(
            f"means and covariances have shapes {means.shape} and {covariances.shape}: must be "
            f"those of {num} Gaussians in {dim} dimensions"
        )
    if not np.isfinite(draws).all():
        return np.full(num, np.nan)
    centres = draws.mean(axis=1)
    scaled = (draws - centres[:, None]) / np.sqrt(n - 1)
    # The root's trace is the sum of singular values of `scaled` S'^½: those of whichever Gram
    # matrix is the smaller, round-off pushing some eigenvalues below zero.
    if n < dim:
        gram = scaled @ covariances @ np.swapaxes(scaled, 1, 2)
    else:
        values, vectors = np.linalg.eigh(covariances)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None]) @ np.swapaxes(
            vectors, 1, 2
        )
        rotated = scaled @ root
        gram = np.swapaxes(rotated, 1, 2) @ rotated
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0)).sum(axis=1)
    traces = np.sum(scaled**2, axis=(1, 2)) + np.trace(covariances, axis1=1, axis2=2)
    spread = traces - 2.0 * shared
    return np.sum((centres - means) ** 2, axis=1) + np.maximum(spread, 0.0)
