"""Joint Gaussian laws of two points: conditioning, swapping, extending. Float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.exact.base import HostArray


class GaussianPlan(NamedTuple):
    """A joint Gaussian law of (x_0, x_T): mean (2 dim,), cov (2 dim, 2 dim)."""

    mean: HostArray
    cov: HostArray


class AffineMap(NamedTuple):
    """x -> matrix x + offset: matrix (dim, dim), offset (dim,)."""

    matrix: HostArray
    offset: HostArray

    def __call__(self, x: HostArray) -> HostArray:
        """Apply the map to a batch x (n, dim)."""
        return x @ self.matrix.T + self.offset


Joint = tuple[HostArray, HostArray, HostArray, HostArray, HostArray]
"""A joint Gaussian law of (x, y): means of both, Cov(x), Cov(x, y), Cov(y)."""

Moments = tuple[HostArray, HostArray]
"""Mean and covariance."""


def swap(joint: Joint) -> Joint:
    """The law of (y, x)."""
    mean_x, mean_y, cov_x, cross, cov_y = joint
    return mean_y, mean_x, cov_y, cross.T, cov_x


def regress(joint: Joint) -> tuple[AffineMap, HostArray]:
    """The law of y given x: the affine mean and the covariance."""
    mean_x, mean_y, cov_x, cross, cov_y = joint
    matrix = np.asarray(np.linalg.solve(cov_x, cross).T, np.float64)
    residual = cov_y - matrix @ cross
    return AffineMap(matrix, mean_y - matrix @ mean_x), (residual + residual.T) / 2


def extend(start: Moments, kernel: AffineMap, cov: HostArray) -> Joint:
    """The joint law of x ~ start and y | x ~ N(kernel(x), cov)."""
    mean, cov_x = start
    cross = cov_x @ kernel.matrix.T
    return mean, kernel.matrix @ mean + kernel.offset, cov_x, cross, kernel.matrix @ cross + cov


def as_plan(joint: Joint) -> GaussianPlan:
    """The same law as one mean and one covariance."""
    mean_x, mean_y, cov_x, cross, cov_y = joint
    return GaussianPlan(
        np.concatenate([mean_x, mean_y]), np.block([[cov_x, cross], [cross.T, cov_y]])
    )


def as_joint(plan: GaussianPlan) -> Joint:
    """The same law block by block."""
    dim = len(plan.mean) // 2
    mean, cov = plan
    return mean[:dim], mean[dim:], cov[:dim, :dim], cov[:dim, dim:], cov[dim:, dim:]


def check_gaussian(mean: ArrayLike, cov: ArrayLike, end: str) -> Moments:
    """The moments of one end in float64.

    Raises:
        ValueError: If the shapes do not fit or the covariance is not positive definite.
    """
    m, c = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if m.ndim != 1 or c.shape != (len(m), len(m)):
        raise ValueError(
            f"mean_{end}, cov_{end} have shapes {m.shape}, {c.shape}; not (dim,), (dim, dim)"
        )
    if not np.allclose(c, c.T) or np.linalg.eigvalsh(c)[0] <= 0:
        raise ValueError(f"cov_{end} is {c}; it must be symmetric and positive definite")
    return m, c
