"""Sums over a 1-D or 2-D grid against Gaussian kernels, one axis at a time.

Float64 NumPy on the host. The kernel of a linear reference is isotropic, so that a sum over
all n² grid points, at each of Q query points, is a (Q, n) by (n, n) matrix product. One axis
is treated as two, the second of which has a single point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2ejax.exact.base import HostArray

HostIndices = NDArray[np.int64]
HostLogDensity = Callable[[HostArray], HostArray]
"""Maps points (n, dim) in float64 to log-densities (n,), up to a constant."""

_CHUNK = 4096
# Of another size, the same seed would draw other cells.
_DRAWN_AT_ONCE = 8192
_HERMITE_POINTS = 8
# Every query of the Gauss-Hermite rule asks for the density at 64 points in 2-D.
_HERMITE_CHUNK = 1024


class Grid(NamedTuple):
    """Cell centres of a box.

    Attributes:
        axes: One array of centres per dimension.
        spacing: (dim,), the cell widths.
        log_mass: Log-probabilities of the cells, (n,) * dim; sums to one.
        log_density: The normalised log-density at arbitrary points.
    """

    axes: tuple[HostArray, ...]
    spacing: HostArray
    log_mass: HostArray
    log_density: HostLogDensity

    @property
    def log_cell(self) -> float:
        """Logarithm of the volume of a cell."""
        return float(np.sum(np.log(self.spacing)))

    @property
    def points(self) -> HostArray:
        """All cell centres, (n^dim, dim)."""
        return grid_points(self.axes)


def grid_points(axes: tuple[HostArray, ...]) -> HostArray:
    """All points of the product grid, (n^dim, dim), the last axis fastest."""
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=-1)


def make_grid(
    log_p: HostLogDensity, dim: int, extent: ArrayLike, num_points: int, name: str
) -> Grid:
    """Tabulate a density on cell centres and normalise it there.

    Args:
        log_p: The log-density, up to a constant.
        dim: 1 or 2.
        extent: (lo, hi) of a square box, or one such pair per dimension.
        num_points: Cells per axis.
        name: How messages call the density.

    Returns:
        The grid.

    Raises:
        ValueError: If dim, extent or num_points is out of range, or the log-density is NaN,
            +inf, of the wrong shape, or -inf everywhere.
    """
    if dim not in (1, 2):
        raise ValueError(f"dim is {dim}; a grid bridge is 1- or 2-dimensional")
    if num_points < 4:
        raise ValueError(f"num_points is {num_points}; at least 4 are needed")
    box = np.broadcast_to(np.asarray(extent, np.float64), (dim, 2))
    if not np.all(np.isfinite(box)) or np.any(box[:, 0] >= box[:, 1]):
        raise ValueError(f"the extent of {name} is {extent!r}; needed: finite lo < hi")
    spacing = (box[:, 1] - box[:, 0]) / num_points
    axes = tuple(
        lo + step * (np.arange(num_points) + 0.5)
        for lo, step in zip(box[:, 0], spacing, strict=True)
    )
    values = np.asarray(log_p(grid_points(axes)), np.float64)
    if values.shape != (num_points**dim,):
        raise ValueError(f"{name} returned shape {values.shape} for {num_points**dim} points")
    top = np.max(values)
    if not np.isfinite(top):
        raise ValueError(f"the largest value of {name} on its grid is {top}; must be finite")
    log_sum = top + np.log(np.sum(np.exp(values - top)))
    log_z = log_sum + float(np.sum(np.log(spacing)))
    return Grid(
        axes=axes,
        spacing=spacing,
        log_mass=(values - log_sum).reshape((num_points,) * dim),
        log_density=lambda x: np.asarray(log_p(x), np.float64) - log_z,
    )


class Weights(NamedTuple):
    """Weights on a grid: exp(top) · table, with the largest entry of the table one.

    Attributes:
        nodes: Positions per axis, on the scale of the kernel's argument.
        table: (n, n), or (n, 1) in one dimension.
        top: The logarithm of the scale.
    """

    nodes: tuple[HostArray, ...]
    table: HostArray
    top: float


def make_weights(nodes: tuple[HostArray, ...], log_weights: HostArray) -> Weights:
    """Scale log-weights, (n,) * dim, so that none overflows."""
    top = float(np.max(log_weights))
    table = np.exp(log_weights - top).reshape(len(nodes[0]), -1)
    return Weights(nodes, table, top)


def _factors(
    centres: HostArray, nodes: tuple[HostArray, ...], variance: float
) -> tuple[list[HostArray], HostArray]:
    """Kernel values per axis, each row divided by its maximum, and the log of the divisor."""
    factors, log_scale = [], np.zeros(len(centres))
    for axis, positions in enumerate(nodes):
        # In place: these arrays are the largest there are here.
        exponent = centres[:, axis : axis + 1] - positions
        np.square(exponent, out=exponent)
        exponent /= -2 * variance
        row_max = exponent.max(axis=1)
        exponent -= row_max[:, None]
        factors.append(np.exp(exponent, out=exponent))
        log_scale += row_max
    if len(nodes) == 1:
        factors.append(np.ones((len(centres), 1)))
    return factors, log_scale - 0.5 * len(nodes) * np.log(2 * np.pi * variance)


def log_kernel_sum(centres: HostArray, weights: Weights, variance: float) -> HostArray:
    """Log-sums log Σ_y weight(y) N(y; centre, variance I) at each centre (Q, dim) -> (Q,)."""
    parts = []
    for start in range(0, len(centres), _CHUNK):
        factors, log_scale = _factors(centres[start : start + _CHUNK], weights.nodes, variance)
        total = np.sum((factors[0] @ weights.table) * factors[1], axis=1)
        with np.errstate(divide="ignore"):
            parts.append(np.log(total) + log_scale + weights.top)
    return np.concatenate(parts)


def kernel_moments(
    centres: HostArray, weights: Weights, variance: float
) -> tuple[HostArray, HostArray]:
    """Mean and variance per axis of the law ∝ weight(y) N(y; centre, variance I).

    Args:
        centres: (Q, dim).
        weights: The weights of the grid points y.
        variance: Of the kernel; its root should be at least 0.8 of the grid spacing.

    Returns:
        Mean and variance, each (Q, dim).
    """
    means, variances = [], []
    for start in range(0, len(centres), _CHUNK):
        chunk = centres[start : start + _CHUNK]
        (first, second), _ = _factors(chunk, weights.nodes, variance)
        onto_second = first @ weights.table
        marginals = [first * (second @ weights.table.T), second * onto_second]
        # A query far from all mass: the products underflow, their logarithms do not.
        for row in np.flatnonzero(marginals[0].sum(axis=1) < 1e-280):
            marginals[0][row], marginals[1][row] = _distant_row(chunk[row], weights, variance)
        moments = [
            _axis_moments(marginal, nodes - chunk[:, axis : axis + 1])
            for axis, (marginal, nodes) in enumerate(
                zip(marginals, weights.nodes, strict=False)
            )
        ]
        means.append(chunk + np.stack([mean for mean, _ in moments], axis=-1))
        variances.append(np.stack([var for _, var in moments], axis=-1))
    return np.concatenate(means), np.concatenate(variances)


def _axis_moments(marginal: HostArray, offsets: HostArray) -> tuple[HostArray, HostArray]:
    """Mean and variance of offsets (Q, n) under unnormalised weights (Q, n)."""
    total = marginal.sum(axis=1)
    mean = np.sum(marginal * offsets, axis=1) / total
    return mean, np.sum(marginal * (offsets - mean[:, None]) ** 2, axis=1) / total


def _distant_row(
    centre: HostArray, weights: Weights, variance: float
) -> tuple[HostArray, HostArray]:
    with np.errstate(divide="ignore"):
        log_joint = np.log(weights.table)
    for axis, nodes in enumerate(weights.nodes):
        exponent = -((centre[axis] - nodes) ** 2) / (2 * variance)
        log_joint = log_joint + (exponent[:, None] if axis == 0 else exponent)
    joint = np.exp(log_joint - log_joint.max())
    return joint.sum(axis=1), joint.sum(axis=0)


def narrow_moments(
    centres: HostArray, log_weight: HostLogDensity, variance: float
) -> tuple[HostArray, HostArray]:
    """`kernel_moments` by Gauss-Hermite nodes, for a kernel narrower than any grid.

    Args:
        centres: (Q, dim).
        log_weight: (n, dim) -> (n,), smooth on the scale of the kernel.
        variance: Of the kernel.

    Returns:
        Mean and variance, each (Q, dim).
    """
    dim = centres.shape[1]
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(_HERMITE_POINTS)
    offsets = np.sqrt(variance) * grid_points((nodes,) * dim)
    log_rule = np.log(node_weights)
    log_rule = np.sum(grid_points((log_rule,) * dim), axis=-1)
    means, variances = [], []
    for start in range(0, len(centres), _HERMITE_CHUNK):
        chunk = centres[start : start + _HERMITE_CHUNK]
        points = (chunk[:, None, :] + offsets).reshape(-1, dim)
        log_values = log_weight(points).reshape(len(chunk), -1) + log_rule
        values = np.exp(log_values - log_values.max(axis=1, keepdims=True))
        moments = [
            _axis_moments(values, np.broadcast_to(offsets[:, axis], values.shape))
            for axis in range(dim)
        ]
        means.append(chunk + np.stack([mean for mean, _ in moments], axis=-1))
        variances.append(np.stack([var for _, var in moments], axis=-1))
    return np.concatenate(means), np.concatenate(variances)


def sample_cells(
    rng: np.random.Generator,
    grid: Grid,
    log_target: HostLogDensity,
    propose: Callable[[], tuple[HostIndices, HostArray]],
    *,
    num_corrections: int = 4,
) -> HostArray:
    """Draw points from a density tabulated on cells, corrected for the shape within a cell.

    A cell is drawn by its mass, a point in it uniformly; a few independence
    Metropolis-Hastings steps on that proposal remove the piecewise-constant bias (the
    h²/12 it adds to the variance is not small beside modes a few cells wide).

    Args:
        rng: The generator.
        grid: Gives the axes and the cell widths.
        log_target: The target at points (n, dim), up to a constant per row.
        propose: () -> cell indices (n, dim) and the log-target at these cells' centres (n,).
        num_corrections: Number of Metropolis-Hastings steps.

    Returns:
        The points, (n, dim).
    """

    def draw() -> tuple[HostArray, HostArray]:
        indices, log_centre = propose()
        centres = np.stack([axis[indices[:, i]] for i, axis in enumerate(grid.axes)], axis=-1)
        points = centres + grid.spacing * rng.uniform(-0.5, 0.5, centres.shape)
        return points, log_target(points) - log_centre

    points, log_ratio = draw()
    for _ in range(num_corrections):
        candidate, candidate_ratio = draw()
        accept = np.log(rng.uniform(size=len(points))) < candidate_ratio - log_ratio
        points = np.where(accept[:, None], candidate, points)
        log_ratio = np.where(accept, candidate_ratio, log_ratio)
    return points


def sample_rows(rng: np.random.Generator, weights: HostArray) -> HostIndices:
    """One index per row of unnormalised weights (n, m), by inversion."""
    cumulative = np.cumsum(weights, axis=1)
    threshold = rng.uniform(size=(len(weights), 1)) * cumulative[:, -1:]
    return np.minimum(np.sum(cumulative < threshold, axis=1), weights.shape[1] - 1)


def sample_conditional_cells(
    rng: np.random.Generator, centres: HostArray, weights: Weights, variance: float
) -> tuple[HostIndices, HostArray]:
    """Cells y with probability ∝ weight(y) N(y; centre, variance I), axis by axis.

    Args:
        rng: The generator.
        centres: (n, dim).
        weights: The weights of the grid points.
        variance: Of the kernel.

    Returns:
        Cell indices (n, dim) and log(weight(y) exp(-|y - centre|² / (2 variance))) there (n,).
    """
    indices = np.zeros(centres.shape, dtype=np.int64)
    for start in range(0, len(centres), _DRAWN_AT_ONCE):
        rows = slice(start, start + _DRAWN_AT_ONCE)
        (first, second), _ = _factors(centres[rows], weights.nodes, variance)
        indices[rows, 0] = sample_rows(rng, first * (second @ weights.table.T))
        if centres.shape[1] == 2:
            indices[rows, 1] = sample_rows(rng, weights.table[indices[rows, 0]] * second)
    chosen = np.stack([nodes[indices[:, i]] for i, nodes in enumerate(weights.nodes)], axis=-1)
    columns = indices[:, 1] if centres.shape[1] == 2 else 0
    log_weight = np.log(weights.table[indices[:, 0], columns]) + weights.top
    return indices, log_weight - np.sum((chosen - centres) ** 2, axis=1) / (2 * variance)
