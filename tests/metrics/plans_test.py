"""BW²-UVP against closed forms, and against itself on true draws."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from d2ejax import metrics


def exactly(mean, covariance, n, seed=0):
    """Points whose sample moments are these, to round-off."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T).reshape(2 * (len(mean),)))).T
    return np.asarray(mean) + whitened @ np.linalg.cholesky(covariance).T


def test_diagonal_gaussians_by_hand():
    # |m - m'|² = 0.25, (2 - 1)² + (1 - 3)² = 5: 5.25 of half the variance 10 / 2.
    x = exactly([0.5, 1.0], np.diag([4.0, 1.0]), 50)
    assert metrics.bw_uvp(x, [0.0, 1.0], np.diag([1.0, 9.0])) == pytest.approx(105.0)
    assert metrics.bw_uvp(x, [0.5, 1.0], np.diag([4.0, 1.0])) == pytest.approx(0.0, abs=1e-9)


def test_covariances_that_do_not_commute():
    a = np.array([[2.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.5]])
    b = np.array([[0.7, -0.4, 0.1], [-0.4, 1.5, 0.2], [0.1, 0.2, 3.0]])
    mean_a, mean_b = np.array([0.1, 0.2, -0.3]), np.array([0.0, -0.5, 0.4])
    # tr (A^½ B A^½)^½ is also the trace of the root of A B, which is not symmetric.
    squared = np.sum((mean_a - mean_b) ** 2) + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    found = metrics.bw_uvp(exactly(mean_a, a, 40), mean_b, b)
    assert found == pytest.approx(200 * squared / np.trace(b), rel=1e-9)


def test_the_frechet_distance_is_that_of_the_fitted_gaussians():
    a = np.array([[2.0, 0.8], [0.8, 1.0]])
    b = np.array([[0.7, -0.4], [-0.4, 1.5]])
    x, y = exactly([0.1, 0.2], a, 40), exactly([0.0, -0.5], b, 25, seed=1)
    expected = 0.1**2 + 0.7**2 + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    # As many features as images have: of covariances without full rank too.
    few = np.random.default_rng(2).normal(size=(2, 5, 30))
    assert metrics.frechet_distance(few[0], few[0]) == pytest.approx(0.0, abs=1e-9)
    assert metrics.frechet_distance(*few) > 0.1
    assert np.isnan(metrics.frechet_distance(np.full_like(x, np.nan), y))
    assert np.isnan(metrics.frechet_distance(x, np.full_like(y, np.nan)))
    with pytest.raises(ValueError, match="must be"):
        metrics.frechet_distance(x, few[0])


def test_true_samples_score_what_their_number_leaves():
    rng, dim, n = np.random.default_rng(1), 4, 400
    found = [
        metrics.bw_uvp(rng.normal(size=(n, dim)), np.zeros(dim), np.eye(dim))
        for _ in range(200)
    ]
    expected = (250 + 50 * dim) / n
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / 200**0.5 + 0.02 * expected


def test_conditionals_are_averaged_over_starts():
    means = np.array([[0.0, 0.0], [1.0, -1.0], [0.5, 2.0]])
    covariances = np.stack([np.eye(2), np.diag([4.0, 1.0]), [[1.0, 0.5], [0.5, 1.0]]])
    shifts = np.array([[0.3, 0.0], [0.0, 0.6], [0.0, 0.0]])
    draws = np.stack(
        [exactly(m, c, 30) for m, c in zip(means + shifts, covariances, strict=True)]
    )
    found = metrics.conditional_bw_uvp(draws, means, covariances, 6.0)
    # 0.09, 0.36 and 0 of half of 6, in per cent.
    np.testing.assert_allclose(found, (5.0, np.std([3.0, 12.0, 0.0], ddof=1) / 3**0.5))


def test_a_wrong_coupling_is_seen_where_the_marginal_is_right():
    # x_T = x_0 + noise against an independent x_T of the same law N(0, 2).
    rng = np.random.default_rng(2)
    starts, noise = rng.normal(size=(200, 1)), rng.normal(size=(200, 300, 1))
    covariances = np.ones((200, 1, 1))
    right = metrics.conditional_bw_uvp(starts[:, None] + noise, starts, covariances, 2.0)
    wrong = metrics.conditional_bw_uvp(2**0.5 * noise, starts, covariances, 2.0)
    # E x_0² + (√2 - 1)² of half the variance, 1.
    assert abs(wrong.value - 100 * (1 + (2**0.5 - 1) ** 2)) < 4 * wrong.standard_error + 2
    assert right.value < 1.5
    pooled = (2**0.5 * noise).reshape(-1, 1)
    assert metrics.bw_uvp(pooled, [0.0], [[2.0]]) < 0.1


def test_fewer_draws_than_dimensions_agree_with_the_formula():
    rng, dim, n = np.random.default_rng(5), 6, 4
    a = rng.normal(size=(dim, dim))
    covariance = a @ a.T + 0.1 * np.eye(dim)
    x = rng.normal(size=(n, dim))
    found = np.cov(x.T)
    root = sqrtm(covariance)
    spread = np.trace(covariance + found) - 2 * np.sum(
        np.sqrt(np.maximum(np.linalg.eigvalsh(root @ found @ root), 0.0))
    )
    expected = 200 * (np.sum(x.mean(axis=0) ** 2) + spread) / np.trace(covariance)
    assert metrics.bw_uvp(x, np.zeros(dim), covariance) == pytest.approx(expected, rel=1e-6)


def test_many_dimensions_score_by_the_number_of_draws():
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(16, 800, 128))
    covariances = np.broadcast_to(np.eye(128), (16, 128, 128))
    found = metrics.conditional_bw_uvp(draws, np.zeros((16, 128)), covariances, 128.0)
    # The next order of the covariance's error is still seen.
    assert found.value == pytest.approx((250 + 50 * 128) / 800, rel=0.08)


def test_diverged_draws_give_nan():
    draws = np.zeros((2, 3, 1))
    draws[1, 1] = np.inf
    found = metrics.conditional_bw_uvp(draws, np.zeros((2, 1)), np.ones((2, 1, 1)), 1.0)
    assert np.isnan(found).all()
    assert np.isnan(metrics.bw_uvp(draws[1], [0.0], [[1.0]]))


@pytest.mark.parametrize(
    ("draws", "means", "covariances", "variance", "message"),
    [
        ((4, 3), (4, 3), (4, 3, 3), 1.0, "draws has shape"),
        ((4, 1, 3), (4, 3), (4, 3, 3), 1.0, "draws has shape"),
        ((4, 5, 3), (3,), (4, 3, 3), 1.0, "4 Gaussians in 3 dimensions"),
        ((4, 5, 3), (4, 3), (4, 3), 1.0, "4 Gaussians in 3 dimensions"),
        ((4, 5, 3), (4, 3), (4, 3, 3), 0.0, "target_variance = 0.0"),
    ],
)
def test_other_shapes_are_refused(draws, means, covariances, variance, message):
    with pytest.raises(ValueError, match=message):
        metrics.conditional_bw_uvp(
            np.zeros(draws), np.zeros(means), np.zeros(covariances), variance
        )
