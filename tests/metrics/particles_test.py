"""Distances of configurations: copies that differ by a symmetry, and brute force."""

import itertools

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from d2ejax import metrics


def clusters(seed, n, num_particles, space_dim):
    x = np.random.default_rng(seed).standard_normal((n, num_particles, space_dim))
    return x - x.mean(axis=1, keepdims=True)


def copies(seed, x, *, turned=True, renamed=True):
    """Each configuration turned or mirrored, its particles named anew, all in another order."""
    generator = np.random.default_rng(seed)
    found = []
    for one in generator.permutation(x):
        turn = np.linalg.qr(generator.standard_normal((x.shape[2],) * 2))[0]
        order = generator.permutation(x.shape[1]) if renamed else slice(None)
        found.append(one[order] @ turn if turned else one[order])
    return np.stack(found)


def brute_force(distance, x, y):
    squares = np.array([[distance(a, b) ** 2 for b in y] for a in x])
    rows = range(len(x))
    totals = (sum(squares[i, order[i]] for i in rows) for order in itertools.permutations(rows))
    return (min(totals) / len(x)) ** 0.5


def turned_distance(a, b):
    return np.linalg.norm(a - b @ orthogonal_procrustes(b, a)[0])


def published_distance(a, b):
    return turned_distance(a, b[linear_sum_assignment(cdist(a, b))[1]])


def orbit_distance(a, b):
    return min(turned_distance(a, b[list(o)]) for o in itertools.permutations(range(len(b))))


@pytest.mark.parametrize(("num_particles", "space_dim"), [(4, 2), (3, 3)])
def test_copies_that_are_turned_mirrored_and_named_anew_are_the_same(num_particles, space_dim):
    x = clusters(0, 20, num_particles, space_dim)
    y = copies(1, x)
    assert metrics.w2_particles(x, y, optimal=True) < 1e-6
    assert metrics.w2_particles(x, y) > 0.01  # The match does not foresee the turn.
    assert metrics.distances_w2(x, y) < 1e-12
    assert metrics.w2_particles(x, copies(1, x, turned=False)) < 1e-6


def test_thirteen_particles_named_anew_are_the_same():
    x = clusters(0, 10, 13, 3)
    assert metrics.w2_particles(x, copies(1, x, turned=False)) < 1e-6


@pytest.mark.parametrize(("num_particles", "space_dim"), [(4, 2), (4, 3)])
def test_it_is_what_brute_force_finds(num_particles, space_dim):
    x = clusters(0, 5, num_particles, space_dim)
    y = 1.5 * clusters(1, 5, num_particles, space_dim)
    published, best = (brute_force(d, x, y) for d in (published_distance, orbit_distance))
    np.testing.assert_allclose(metrics.w2_particles(x, y), published, rtol=1e-10)
    np.testing.assert_allclose(metrics.w2_particles(x, y, optimal=True), best, rtol=1e-10)
    assert best < published


def test_of_two_particles_it_is_that_of_their_distances_over_root_two():
    # Aligned, each of them is half the difference away.
    x, y = clusters(0, 50, 2, 3), 2.0 * clusters(1, 50, 2, 3)
    expected = metrics.distances_w2(x, y) / 2**0.5
    np.testing.assert_allclose(metrics.w2_particles(x, y), expected, rtol=1e-10)
    assert metrics.interatomic_distances(x).shape == (50, 1)


def test_interatomic_distances_are_those_of_all_pairs():
    x = clusters(0, 3, 4, 2)
    expected = [np.linalg.norm(x[1, i] - x[1, j]) for i in range(4) for j in range(i + 1, 4)]
    np.testing.assert_allclose(metrics.interatomic_distances(x)[1], expected, rtol=1e-12)


def test_bad_arguments_are_refused():
    x = clusters(0, 3, 6, 2)
    with pytest.raises(ValueError, match=r"must be False for 6 particles, more than 5"):
        metrics.w2_particles(x, x, optimal=True)
    with pytest.raises(ValueError, match=r"must be \(3, 6, 2\), that of x"):
        metrics.w2_particles(x, x[:2])
    with pytest.raises(ValueError, match=r"must be \(n, num_particles, space_dim\)"):
        metrics.w2_particles(x[0], x[0])
    assert np.isnan(metrics.w2_particles(x, np.full_like(x, np.nan)))
