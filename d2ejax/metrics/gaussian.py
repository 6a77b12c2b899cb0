"""Moments of simulated paths against a Gaussian bridge known in closed form."""

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.metrics.base import HostArray


def moment_error(
    paths: ArrayLike, mean: ArrayLike, covariance: ArrayLike, *, tolerance: float = 0.02
) -> float:
    """The worst deviation of a sample's mean and covariance, in units of what is allowed.

    Allowed for an entry is the larger of three standard errors and `tolerance` times its
    size. At most 1 if every entry is within its allowance. For one marginal hand in x_t; for
    the coupling x_0 and x_T side by side.

    Args:
        paths: Points, shape `(n, dim)`.
        mean: Exact mean, shape `(dim,)`.
        covariance: Exact covariance, shape `(dim, dim)`.
        tolerance: Relative tolerance.

    Returns:
        The largest ratio of deviation to allowance over all entries.

    Raises:
        ValueError: If the shapes do not fit.
    """
    x, m, s = (np.asarray(a, np.float64) for a in (paths, mean, covariance))
    if x.ndim != 2 or m.shape != x.shape[1:] or s.shape != 2 * x.shape[1:]:
        raise ValueError(
            f"paths has shape {x.shape}, mean {m.shape} and covariance {s.shape}: must be "
            "(n, dim), (dim,) and (dim, dim)"
        )
    std = np.sqrt(np.diag(s))
    # Of the sample covariance of a Gaussian: Var = (s_ii s_jj + s_ij²) / n.
    covariance_error = np.sqrt((np.outer(std, std) ** 2 + s**2) / len(x))
    return max(
        _worst(x.mean(axis=0) - m, std / np.sqrt(len(x)), tolerance * np.abs(m)),
        _worst(np.cov(x.T).reshape(s.shape) - s, covariance_error, tolerance * np.abs(s)),
    )


def _worst(deviation: HostArray, standard_error: HostArray, tolerated: HostArray) -> float:
    return float(np.max(np.abs(deviation) / np.maximum(3.0 * standard_error, tolerated)))
