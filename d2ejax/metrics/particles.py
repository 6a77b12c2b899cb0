"""Distances between configurations of identical particles, blind to what changes no energy.

Turning or mirroring a configuration, or naming its particles anew, leaves its energy as it is:
samples that differ in nothing else are the same. Positions have shape
`(n, num_particles, space_dim)`, each configuration with its centre of mass at the origin.
"""

import itertools

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from d2ejax.metrics.base import HostArray
from d2ejax.metrics.distances import w2_on_line

_MOST_PERMUTED = 5
"""Particles whose permutations, 120, can still be tried one by one."""


def w2_particles(x: ArrayLike, y: ArrayLike, *, optimal: bool = False) -> float:
    """The 2-Wasserstein distance between two batches of configurations up to symmetries.

    W₂ = (min_π (1/n) Σ_i d(x_i, y_π(i))²)^½ over permutations π of the batch, not squared.
    Between two configurations d is the distance of one to the other once it is aligned: its
    particles are first matched at the least total distance |a_i - b_j| as both lie, then it is
    turned, or mirrored, to the least sum of squares (Kabsch). This is the "geometric W2" of
    iDEM (arXiv:2402.06121), Adjoint Sampling (arXiv:2504.11713) and ASBS (arXiv:2506.22565), by
    the two steps of their code, after Klein et al. (2023, arXiv:2306.15030); they take n = 1000
    or so. As the match does not foresee the turn, d exceeds the distance of the two orbits, and
    is not zero for a copy that is turned and named anew. `optimal` is that distance.

    Like every distance of samples it is biased upwards: read it beside that of two batches of
    true samples. Of n = 1000 on one core: 3 s for 4 particles, 12 s for 13.

    Args:
        x: Shape `(n, num_particles, space_dim)`.
        y: Shape `(n, num_particles, space_dim)`.
        optimal: Whether to try all permutations of the particles, of which there are at most 5.

    Returns:
        The distance, in units of the positions; NaN if one is not finite.

    Raises:
        ValueError: If the shapes are not equal or there are too many particles to permute.
    """
    x = _configurations("x", x)
    y = _configurations("y", y)
    if x.shape != y.shape:
        raise ValueError(f"y has shape {y.shape}: must be {x.shape}, that of x")
    if optimal and x.shape[1] > _MOST_PERMUTED:
        raise ValueError(
            f"optimal = True: must be False for {x.shape[1]} particles, more than "
            f"{_MOST_PERMUTED}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    overlaps = _best_overlaps if optimal else _matched_overlaps
    norms = [np.sum(np.square(batch), axis=(1, 2)) for batch in (x, y)]
    rows = (overlaps(one, y) for one in x)
    # min over turns R of |a - b R|² = |a|² + |b|² - 2 ‖aᵀb‖₁, with the sum of singular values.
    squares = norms[0][:, None] + norms[1] - 2.0 * np.stack(list(rows))
    return float(np.maximum(squares[linear_sum_assignment(squares)], 0.0).mean() ** 0.5)


def interatomic_distances(x: ArrayLike) -> HostArray:
    """The distances of all pairs of particles.

    Args:
        x: Shape `(n, num_particles, space_dim)`.

    Returns:
        Shape `(n, num_pairs)`, pairs i < j.

    Raises:
        ValueError: If the shape is any other.
    """
    x = _configurations("x", x)
    first, second = np.triu_indices(x.shape[1], 1)
    return np.linalg.norm(x[:, first] - x[:, second], axis=-1)


def distances_w2(x: ArrayLike, y: ArrayLike) -> float:
    """The 2-Wasserstein distance between the interatomic distances of two batches.

    Of all pairs of all configurations taken together, on the line. Not squared; the code of
    ASBS (arXiv:2506.22565) gives the square.

    Args:
        x: Shape `(n, num_particles, space_dim)`.
        y: Shape `(m, num_particles, space_dim)`.

    Returns:
        The distance, in units of the positions; NaN if one is not finite.

    Raises:
        ValueError: If a shape is any other.
    """
    return w2_on_line(interatomic_distances(x).ravel(), interatomic_distances(y).ravel())


def _matched_overlaps(one: HostArray, others: HostArray) -> HostArray:
    """‖aᵀb‖₁ of a configuration and each of others, matched as both lie, `(n,)`."""
    flat = others.reshape(-1, others.shape[-1])
    costs = cdist(one, flat).reshape(len(one), *others.shape[:2]).swapaxes(0, 1)
    orders = np.stack([linear_sum_assignment(cost)[1] for cost in costs])
    matched = np.take_along_axis(others, orders[..., None], axis=1)
    return _nuclear_norms(np.matmul(one.T, matched))


def _best_overlaps(one: HostArray, others: HostArray) -> HostArray:
    """The largest ‖aᵀb‖₁ of a configuration and each of others, over all permutations."""
    orders = itertools.permutations(range(len(one)))
    return np.max([_nuclear_norms(np.matmul(one[list(o)].T, others)) for o in orders], axis=0)


def _nuclear_norms(matrices: HostArray) -> HostArray:
    """The sum of the singular values of each of some matrices `(n, dim, dim)`."""
    if matrices.shape[-1] == 2:  # Many times as fast: (s_1 + s_2)² = s_1² + s_2² + 2 s_1 s_2.
        (a, b), (c, d) = np.moveaxis(matrices, 0, -1)
        return np.sqrt(a * a + b * b + c * c + d * d + 2.0 * np.abs(a * d - b * c))
    return np.linalg.svd(matrices, compute_uv=False).sum(axis=-1)


def _configurations(name: str, values: ArrayLike) -> HostArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3 or min(array.shape[:2]) < 2 or array.shape[2] < 1:
        raise ValueError(
            f"{name} has shape {array.shape}: must be (n, num_particles, space_dim), n and "
            "num_particles >= 2"
        )
    return array
