"""Moments of simulated paths against a Gaussian bridge known in closed form."""

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.metrics.base import Estimate, HostArray


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
    x, m, s = _checked(paths, mean, covariance)
    std = np.sqrt(np.diag(s))
    # Of the sample covariance of a Gaussian: Var = (s_ii s_jj + s_ij²) / n.
    covariance_error = np.sqrt((np.outer(std, std) ** 2 + s**2) / len(x))
    return max(
        _worst(x.mean(axis=0) - m, std / np.sqrt(len(x)), tolerance * np.abs(m)),
        _worst(np.cov(x.T).reshape(s.shape) - s, covariance_error, tolerance * np.abs(s)),
    )


def fitted_kl(paths: ArrayLike, mean: ArrayLike, covariance: ArrayLike) -> Estimate:
    """KL(N(m̂, Ŝ) ‖ N(m, S)) between the Gaussian fitted to a sample and an exact one.

    Of a sample of the exact one it would be (d + d(d + 1)/2) / 2n on average, to leading
    order, which in many dimensions is more than what is to be measured: that is taken off, so
    that an estimate may be below zero.

    Args:
        paths: Points, shape `(n, dim)`, many more than dim.
        mean: Exact mean, shape `(dim,)`.
        covariance: Exact covariance, shape `(dim, dim)`.

    Returns:
        In nats; the standard error is that of a sample of the exact Gaussian.

    Raises:
        ValueError: If the shapes do not fit, or there are no more points than dimensions.
    """
    x, m, s = _checked(paths, mean, covariance)
    n, dim = x.shape
    if n <= dim:
        raise ValueError(f"paths has shape {x.shape}: must be more points than dimensions")
    root = np.linalg.cholesky(s)
    whitened = np.linalg.solve(root, (x - m).T)
    fitted = np.atleast_2d(np.cov(whitened))
    kl = 0.5 * (
        np.trace(fitted)
        - dim
        - np.linalg.slogdet(fitted)[1]
        + np.sum(np.square(whitened.mean(axis=1)))
    )
    freedom = dim + dim * (dim + 1) / 2
    # 2n KL is chi-squared with that many degrees of freedom.
    return Estimate(kl - freedom / (2 * n), np.sqrt(2 * freedom) / (2 * n))


def _checked(
    paths: ArrayLike, mean: ArrayLike, covariance: ArrayLike
) -> tuple[HostArray, HostArray, HostArray]:
    x, m, s = (np.asarray(a, np.float64) for a in (paths, mean, covariance))
    if x.ndim != 2 or m.shape != x.shape[1:] or s.shape != 2 * x.shape[1:]:
        raise ValueError(
            f"paths has shape {x.shape}, mean {m.shape} and covariance {s.shape}: must be "
            "(n, dim), (dim,) and (dim, dim)"
        )
    return x, m, s


def _worst(deviation: HostArray, standard_error: HostArray, tolerated: HostArray) -> float:
    return float(np.max(np.abs(deviation) / np.maximum(3.0 * standard_error, tolerated)))
