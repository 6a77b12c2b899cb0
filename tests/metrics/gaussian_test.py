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
