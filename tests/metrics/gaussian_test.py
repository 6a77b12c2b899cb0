import numpy as np
import pytest

from d2ejax import metrics

MEAN = np.array([0.5, -1.0])
COVARIANCE = np.array([[0.5, 0.1], [0.1, 0.3]])


def _draws(n, seed=0):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, n)


def test_samples_of_the_gaussian_are_within_their_allowance():
    errors = [metrics.moment_error(_draws(5000, seed), MEAN, COVARIANCE) for seed in range(20)]
    # Five entries of three standard errors each: above 1 in about one seed of seventy.
    assert sum(error > 1.0 for error in errors) <= 2


@pytest.mark.parametrize("entry", ["mean", "variance", "covariance"])
def test_a_wrong_entry_is_seen(entry):
    mean, covariance = MEAN.copy(), COVARIANCE.copy()
    if entry == "mean":
        mean[1] += 0.05
    elif entry == "variance":
        covariance[0, 0] *= 1.1
    else:
        covariance[0, 1] = covariance[1, 0] = 0.13
    assert metrics.moment_error(_draws(200_000), mean, covariance) > 1.0


def test_a_deviation_of_the_tolerance_scores_one():
    # Two points at ±1: mean 0, variance 2. So many that only the tolerance counts.
    points = np.tile([[-1.0], [1.0]], (10**6, 1))
    error = metrics.moment_error(points, [0.0], [[0.96]], tolerance=0.02)
    np.testing.assert_allclose(error, (1.0 - 0.96) / (0.02 * 0.96), rtol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="paths has shape"):
        metrics.moment_error(_draws(10)[:, 0], MEAN, COVARIANCE)
    with pytest.raises(ValueError, match="covariance"):
        metrics.moment_error(_draws(10), MEAN, COVARIANCE[:1])


def test_the_fitted_kl_of_samples_of_the_gaussian_is_zero_on_average():
    rng, dim, n = np.random.default_rng(0), 10, 1000
    mean, covariance = np.arange(dim) * 0.1, 0.5 * np.eye(dim) + 0.2
    estimates = [
        metrics.fitted_kl(rng.multivariate_normal(mean, covariance, n), mean, covariance)
        for _ in range(100)
    ]
    values = np.array([estimate.value for estimate in estimates])
    # Ten standard deviations without the correction.
    assert abs(values.mean()) < 4 * values.std() / 10 + 0.002
    assert abs(values.std() / estimates[0].standard_error - 1) < 4 / np.sqrt(2 * 100)


@pytest.mark.parametrize("what", ["mean", "covariance"])
def test_the_fitted_kl_of_another_gaussian(what):
    points = _draws(200_000)
    if what == "mean":
        shift = np.array([0.1, -0.2])
        expected = 0.5 * shift @ np.linalg.solve(COVARIANCE, shift)
        found = metrics.fitted_kl(points, MEAN + shift, COVARIANCE)
    else:
        # KL(N(0, S) ‖ N(0, 2 S)) = ½ d (1/2 - 1 + log 2).
        expected = 0.5 - 1 + np.log(2)
        found = metrics.fitted_kl(points, MEAN, 2 * COVARIANCE)
    np.testing.assert_allclose(found.value, expected, rtol=0.02)


def test_the_fitted_kl_needs_more_points_than_dimensions():
    with pytest.raises(ValueError, match=r"shape \(2, 2\): must be more points"):
        metrics.fitted_kl(_draws(2), MEAN, COVARIANCE)
