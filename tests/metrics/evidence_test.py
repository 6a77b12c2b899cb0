import numpy as np
import pytest
from scipy.stats import norm

from d2ejax import metrics
from tests.metrics import joint_gaussians

# p_0 = N(0, 1), p_1 = N(1, 0.5²); two steps each way, neither the reversal of the other.
LOG_Z = 3.7
FORWARD = [(0.8, 0.4, 0.5), (0.7, 0.5, 0.3)]
BACKWARD = [(0.9, -0.3, 0.3), (0.8, -0.3, 0.5)]
P = joint_gaussians.chain(0.0, 1.0, FORWARD)
R = joint_gaussians.reverse(joint_gaussians.chain(1.0, 0.25, BACKWARD))


def _steps(path, steps):
    return sum(
        norm.logpdf(path[:, k + 1], slope * path[:, k] + shift, variance**0.5)
        for k, (slope, shift, variance) in enumerate(steps)
    )


def _log_weights(law, n, seed=0):
    paths = np.random.default_rng(seed).multivariate_normal(law.mean, law.covariance, n)
    return metrics.log_weights(
        log_start=norm.logpdf(paths[:, 0]),
        log_forward=_steps(paths, FORWARD),
        log_backward=_steps(paths[:, ::-1], BACKWARD),
        log_end=LOG_Z + norm.logpdf(paths[:, -1], 1.0, 0.5),
    )


def test_lower_bound_is_short_of_log_z_by_the_divergence_of_the_path_laws():
    gap = joint_gaussians.kl_divergence(P, R)
    lower = metrics.log_z_lower(_log_weights(P, 20_000))
    assert gap > 10.0 * lower.standard_error
    assert abs(lower.value - (LOG_Z - gap)) < 4.0 * lower.standard_error


def test_upper_bound_is_above_log_z_by_the_other_divergence():
    gap = joint_gaussians.kl_divergence(R, P)
    upper = metrics.log_z_upper(_log_weights(R, 20_000))
    assert gap > 10.0 * upper.standard_error
    assert abs(upper.value - (LOG_Z + gap)) < 4.0 * upper.standard_error


def test_importance_estimate_is_unbiased_with_a_calibrated_error():
    repeats = [metrics.log_z_importance(_log_weights(P, 2000, seed)) for seed in range(200)]
    values, errors = np.array(repeats).T
    # Unbiased is Ẑ, not its logarithm.
    ratios = np.exp(values - LOG_Z)
    assert abs(ratios.mean() - 1.0) < 4.0 * ratios.std(ddof=1) / 200**0.5
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2)), values.std(ddof=1), rtol=0.25)


def test_effective_sample_size_is_that_of_the_exact_second_moment():
    # 1 / E_P[(dR/dP)²]: for Gaussians an integral of exp of a quadratic form.
    inverse_p, inverse_r = np.linalg.inv(P.covariance), np.linalg.inv(R.covariance)
    mixed = 2.0 * inverse_r - inverse_p
    assert np.linalg.eigvalsh(mixed).min() > 0.0
    linear = 2.0 * inverse_r @ R.mean - inverse_p @ P.mean
    quadratic = 2.0 * R.mean @ inverse_r @ R.mean - P.mean @ inverse_p @ P.mean
    determinants = [np.linalg.slogdet(m)[1] for m in (R.covariance, P.covariance, mixed)]
    log_moment = 0.5 * (linear @ np.linalg.solve(mixed, linear) - quadratic)
    log_moment += 0.5 * (-2.0 * determinants[0] + determinants[1] - determinants[2])
    share = metrics.effective_sample_size(_log_weights(P, 100_000))
    np.testing.assert_allclose(share, np.exp(-log_moment), rtol=0.1)


def test_bounds_are_exact_when_backward_reverses_forward():
    constant = np.full(10, -2.0)
    for estimate in (metrics.log_z_lower, metrics.log_z_upper, metrics.log_z_importance):
        np.testing.assert_allclose(estimate(constant), (-2.0, 0.0), atol=1e-12)


def test_effective_sample_size_of_equal_and_of_one_hot_weights():
    assert metrics.effective_sample_size(np.full(7, 1234.5)) == pytest.approx(1.0, rel=1e-12)
    one_hot = np.full(8, -np.inf)
    one_hot[3] = -5.0
    assert metrics.effective_sample_size(one_hot) == pytest.approx(1 / 8, rel=1e-12)
    # Weights 1, 1, 2: (1 + 1 + 2)² / (3 · 6).
    assert metrics.effective_sample_size(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 18)


def test_importance_estimate_by_hand_and_far_from_the_range_of_exp():
    # Weights 1 and 3: mean 2, standard error √2 / √2 = 1, so 1/2 on the logarithm.
    logs = np.log([1.0, 3.0])
    np.testing.assert_allclose(metrics.log_z_importance(logs), (np.log(2.0), 0.5))
    np.testing.assert_allclose(metrics.log_z_importance(logs + 5e4), (5e4 + np.log(2.0), 0.5))


def test_paths_without_weight_are_counted():
    value = metrics.log_z_importance([0.0, -np.inf]).value
    assert value == pytest.approx(np.log(0.5))
    assert metrics.log_z_lower([0.0, -np.inf]).value == -np.inf
    assert np.isnan(metrics.effective_sample_size([-np.inf, -np.inf]))


@pytest.mark.parametrize(
    "estimate",
    [
        metrics.log_z_lower,
        metrics.log_z_upper,
        metrics.log_z_importance,
        metrics.effective_sample_size,
    ],
)
@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (), (1,)])
def test_grouped_or_single_weights_are_refused(estimate, shape):
    with pytest.raises(ValueError, match="log_weights has shape"):
        estimate(np.zeros(shape))


@pytest.mark.parametrize("wrong", ["log_start", "log_forward", "log_backward", "log_end"])
@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (), (8, 2)])
def test_parts_of_another_shape_are_refused_by_name(wrong, shape):
    parts = dict.fromkeys(("log_start", "log_forward", "log_backward", "log_end"), np.zeros(8))
    with pytest.raises(ValueError, match=f"{wrong} has shape"):
        metrics.log_weights(**{**parts, wrong: np.zeros(shape)})


def test_parts_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"log_end has shape \(7,\): must be \(8,\)"):
        metrics.log_weights(
            log_start=np.zeros(8),
            log_forward=np.zeros(8),
            log_backward=np.zeros(8),
            log_end=np.zeros(7),
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_path_that_ends_without_mass_or_undefined_counts_with_weight_zero(bad):
    zeros = np.zeros(4)
    weights = metrics.log_weights(
        log_start=zeros, log_forward=zeros, log_backward=zeros, log_end=[0.0, bad, 1.0, bad]
    )
    np.testing.assert_array_equal(weights, [0.0, -np.inf, 1.0, -np.inf])
    estimate = metrics.log_z_importance(weights)
    np.testing.assert_allclose(estimate.value, np.log((1 + np.e) / 4))
    assert np.isfinite(estimate.standard_error)
    nothing = metrics.log_z_importance(np.full(4, -np.inf))
    assert nothing.value == -np.inf and np.isnan(nothing.standard_error)
    # What a process that diverged says is another matter.
    diverged = metrics.log_weights(
        log_start=zeros, log_forward=zeros + np.nan, log_backward=zeros, log_end=zeros
    )
    assert np.isnan(metrics.log_z_importance(diverged).value)
