import numpy as np
import pytest

from d2ejax import metrics

CENTRES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])


def test_samples_count_for_their_nearest_mode():
    x = np.array([[1.0, -1.0], [4.9, 0.0], [5.1, 0.0], [100.0, 0.0]])
    np.testing.assert_array_equal(metrics.mode_weights(x, CENTRES), [0.5, 0.5, 0.0])


def test_weights_of_a_mixture_are_found():
    rng, true = np.random.default_rng(0), np.array([0.6, 0.3, 0.1])
    n = 5000
    x = CENTRES[rng.choice(3, n, p=true)] + rng.standard_normal((n, 2))
    errors = metrics.mode_weights(x, CENTRES) - true
    assert (np.abs(errors) < 4.0 * np.sqrt(true * (1.0 - true) / n)).all()


def test_coverage_compares_each_mode_with_its_own_true_weight():
    # Against a common threshold of 0.25 the second mode would be lost.
    true = [0.5, 0.3, 0.2]
    assert metrics.mode_coverage([0.8, 0.2, 0.0], true) == pytest.approx(2 / 3)
    assert metrics.mode_coverage([0.8, 0.14, 0.06], true) == pytest.approx(1 / 3)
    assert metrics.mode_coverage(true, true, threshold=1.0) == 1.0


def test_the_threshold_itself_counts_as_covered():
    assert metrics.mode_coverage([0.75, 0.25], [0.5, 0.5]) == 1.0
    assert metrics.mode_coverage([0.75, 0.25], [0.5, 0.5], threshold=0.51) == 0.5


def test_a_target_of_one_mode_is_covered():
    weights = metrics.mode_weights(np.zeros((3, 2)), np.ones((1, 2)))
    assert metrics.mode_coverage(weights, [1.0]) == 1.0


def test_a_sample_that_is_not_finite_gives_nan_not_a_mode():
    weights = metrics.mode_weights(np.array([[0.0, 0.0], [np.nan, 0.0]]), CENTRES)
    assert np.isnan(weights).all()
    assert np.isnan(metrics.mode_coverage(weights, [0.5, 0.3, 0.2]))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="to fit x"):
        metrics.mode_weights(np.zeros((4, 3)), CENTRES)
    with pytest.raises(ValueError, match=r"weights has shape \(2,\): must be \(3,\)"):
        metrics.mode_coverage([0.5, 0.5], [0.5, 0.3, 0.2])
    with pytest.raises(ValueError, match="all > 0"):
        metrics.mode_coverage([0.5, 0.5], [1.0, 0.0])
    with pytest.raises(ValueError, match="threshold = 0"):
        metrics.mode_coverage([0.5, 0.5], [0.5, 0.5], threshold=0.0)
