import itertools

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from scipy.stats import uniform as uniform_law

from d2ejax import metrics
from d2ejax.exact import gaussian_bridge
from d2ejax.references import brownian
from tests.metrics import joint_gaussians

MEAN_0, VARIANCE_0 = 0.5, 1.5
P_STEPS = [(1.1, 0.3, 0.3), (0.8, 0.2, 0.2), (0.9, -0.1, 0.4)]
Q_STEPS = [(1.0, 0.0, 0.25), (0.9, 0.0, 0.25), (1.0, 0.0, 0.5)]
P = joint_gaussians.chain(MEAN_0, VARIANCE_0, P_STEPS)
Q = joint_gaussians.chain(MEAN_0, VARIANCE_0, Q_STEPS)
N = 20_000


def _paths(n=N):
    return np.random.default_rng(0).multivariate_normal(P.mean, P.covariance, n)


def _step_kls(paths):
    """KL divergences of the steps at the states of each path."""
    columns = []
    for k, (p, q) in enumerate(zip(P_STEPS, Q_STEPS, strict=True)):
        mean_p, mean_q = (slope * paths[:, k] + shift for slope, shift, _ in (p, q))
        same_mean = joint_gaussians.kl_divergence(
            joint_gaussians.Joint(np.zeros(1), np.array([[p[2]]])),
            joint_gaussians.Joint(np.zeros(1), np.array([[q[2]]])),
        )
        columns.append(same_mean + (mean_p - mean_q) ** 2 / (2.0 * q[2]))
    return np.stack(columns, axis=1)


def _log_ratios(paths):
    """log P(τ | x_0) - log Q(τ | x_0): the start's density cancels."""
    return multivariate_normal.logpdf(paths, *P) - multivariate_normal.logpdf(paths, *Q)


def test_path_kl_is_that_of_the_joint_laws():
    estimate = metrics.path_kl(_step_kls(_paths()))
    exact = joint_gaussians.kl_divergence(P, Q)
    assert exact > 20.0 * estimate.standard_error
    assert abs(estimate.value - exact) < 4.0 * estimate.standard_error


def test_path_kl_counts_the_steps_of_a_path_as_one_draw():
    # Perfectly dependent steps: sums 0 and 6, hence 3 ± 3; as 6 draws the error were 1.3.
    estimate = metrics.path_kl([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    np.testing.assert_allclose(estimate, (3.0, 3.0))


def test_bridge_gap_is_the_divergence_of_the_joint_laws():
    # A bridge of Q: its precision changes at the two ends only, its mean anywhere.
    tilt_0, tilt_1 = np.diag([0.3, 0.0, 0.0, 0.0]), np.diag([0.0, 0.0, 0.0, 1.2])
    pull = np.array([0.4, 0.0, 0.0, 2.0])
    precision = np.linalg.inv(Q.covariance)
    covariance = np.linalg.inv(precision + tilt_0 + tilt_1)
    bridge = joint_gaussians.Joint(covariance @ (precision @ Q.mean + pull), covariance)
    zeros = np.zeros(4)
    log_normaliser = multivariate_normal.logpdf(zeros, *Q) - multivariate_normal.logpdf(
        zeros, *bridge
    )

    paths = _paths()
    x_0, x_1 = paths[:, 0], paths[:, -1]
    estimate = metrics.bridge_gap(
        _log_ratios(paths),
        pull[0] * x_0 - 0.5 * tilt_0[0, 0] * x_0**2,
        pull[-1] * x_1 - 0.5 * tilt_1[-1, -1] * x_1**2 - log_normaliser,
    )
    exact = joint_gaussians.kl_divergence(P, bridge)
    assert exact > 20.0 * estimate.standard_error
    assert abs(estimate.value - exact) < 4.0 * estimate.standard_error


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_gap_of_the_exact_bridge_is_zero_path_by_path_and_of_a_shifted_one_is_not(shift):
    sigma, num_steps, rng = 0.8, 5, np.random.default_rng(0)
    bridge = gaussian_bridge([MEAN_0], [[VARIANCE_0]], [-1.0], [[0.4]], brownian(sigma), 1.0)
    x_0 = MEAN_0 + VARIANCE_0**0.5 * rng.standard_normal((N, 1))
    state, log_ratios = x_0, np.zeros(N)
    times = np.linspace(0.0, 1.0, num_steps + 1)
    std_q = sigma / num_steps**0.5
    for t, t_next in itertools.pairwise(times):
        mean, variance = bridge.step_moments(state, t, t_next)
        mean = mean + shift / num_steps
        following = mean + np.sqrt(variance) * rng.standard_normal((N, 1))
        log_ratios += norm.logpdf(following, mean, np.sqrt(variance))[:, 0]
        log_ratios -= norm.logpdf(following, state, std_q)[:, 0]
        state = following
    gap = metrics.bridge_gap(log_ratios, *bridge.log_potentials(x_0, state))
    if shift:
        assert gap.value > 10.0 * gap.standard_error > 0.0
    else:
        np.testing.assert_allclose(gap, 0.0, atol=1e-9)


def test_potentials_of_float32_are_summed_in_float64():
    big = np.full(100_000, 1e4, dtype=np.float32)
    big[::2] += 1.0
    gap = metrics.bridge_gap(np.zeros(100_000, dtype=np.float32), big, -big)
    assert gap == (0.0, 0.0)
    assert metrics.path_kl(big[:, None]).value == 10_000.5


# ---- The terminal part of a gap


def condition_on_end(joint, ends, size, rng):
    """Draws of a chain given its last state, shape (n, size, 4)."""
    cov, cross = joint.covariance, joint.covariance[:-1, -1] / joint.covariance[-1, -1]
    means = joint.mean[:-1] + np.outer(ends - joint.mean[-1], cross)
    spread = np.linalg.cholesky(cov[:-1, :-1] - np.outer(cross, cov[-1, :-1]))
    inner = means[:, None] + rng.standard_normal((len(ends), size, 3)) @ spread.T
    return np.concatenate([inner, np.repeat(ends, size).reshape(-1, size, 1)], axis=-1)


NEAR_STEPS = [(1.0, 0.2, 0.3), (0.85, 0.2, 0.25), (0.9, 0.4, 0.4)]
NEAR = joint_gaussians.chain(MEAN_0, VARIANCE_0, NEAR_STEPS)


def bracket(bridge, size, n=4000, *, seed=1, gap=None):
    rng = np.random.default_rng(seed)
    paths = rng.multivariate_normal(P.mean, P.covariance, n)
    others = condition_on_end(bridge, paths[:, -1], size, rng)

    def log_weights(x):
        return multivariate_normal.logpdf(x, *P) - multivariate_normal.logpdf(x, *bridge)

    ends = [joint_gaussians.Joint(j.mean[-1:], j.covariance[-1:, -1:]) for j in (P, bridge)]
    exact = joint_gaussians.kl_divergence(*ends)
    return metrics.terminal_kl(
        log_weights(paths), log_weights(others).reshape(n, size), gap=gap
    ), exact


def test_terminal_bounds_bracket_the_divergence_of_the_ends_and_meet():
    few, exact = bracket(NEAR, 1)
    assert few.lower.value < exact - 4 * few.lower.standard_error
    assert few.upper.value > exact + 4 * few.upper.standard_error
    assert abs(few.middle.value - exact) < few.middle.standard_error
    many, exact = bracket(NEAR, 200)
    for bound in many:
        assert abs(bound.value - exact) < 4 * bound.standard_error
    assert many.upper.value - many.lower.value < 0.02
    assert many.lower.standard_error < 0.15 * exact


def test_the_gap_of_more_paths_steadies_the_bounds_without_moving_them():
    # Its end is tilted, and its inside a little.
    covariance = np.linalg.inv(np.linalg.inv(P.covariance) + np.diag([0.0, 0.0, 0.1, 0.5]))
    tilted = joint_gaussians.Joint(P.mean, covariance)
    gap = metrics.Estimate(joint_gaussians.kl_divergence(P, tilted), 0.0)
    plain, steadied = (
        np.array([bracket(tilted, 8, 200, seed=s, gap=g)[0].lower for s in range(100)])
        for g in (None, gap)
    )
    for values, errors in (plain.T, steadied.T):
        assert abs(errors.mean() / values.std() - 1) < 0.25
    assert steadied[:, 1].mean() < 0.8 * plain[:, 1].mean()
    difference = steadied[:, 0] - plain[:, 0]
    assert abs(difference.mean()) < 4 * difference.std() / 10


def test_all_of_a_gap_is_terminal_where_the_conditionals_agree():
    # P with another law of its end: the weight depends on the end alone.
    rng, n = np.random.default_rng(2), 50
    own = rng.normal(size=n)
    for bound in metrics.terminal_kl(own, np.repeat(own[:, None], 3, axis=1)):
        np.testing.assert_allclose(bound.value, own.mean())
        np.testing.assert_allclose(bound.standard_error, own.std(ddof=1) / n**0.5)
    gap = metrics.Estimate(0.3, 0.01)
    for bound in metrics.terminal_kl(own, np.repeat(own[:, None], 3, axis=1), gap=gap):
        np.testing.assert_allclose(bound, gap)


def test_the_width_of_a_bracket_counts_as_error():
    bounds = metrics.TerminalKL(metrics.Estimate(1.0, 0.3), metrics.Estimate(1.8, 0.2))
    uniform = uniform_law(1.0, 0.8)
    np.testing.assert_allclose(bounds.middle, (uniform.mean(), np.hypot(0.3, uniform.std())))


@pytest.mark.parametrize("shape", [(8,), (7, 2), (8, 0), (8, 2, 1)])
def test_other_paths_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"others has shape .* must be \(8, M\)"):
        metrics.terminal_kl(np.zeros(8), np.zeros(shape))


# ---- Drifts


def test_drift_error_weighs_the_steps_by_their_lengths():
    exact = np.array([[[3.0, 4.0]] * 2, [[0.0, 2.0]] * 2])
    learned = exact + np.array([[[1.0, 0.0]], [[0.0, 2.0]]])
    # (1 · 3 + 4 · 1) / (25 · 3 + 4 · 1).
    np.testing.assert_allclose(metrics.drift_error(learned, exact, [3.0, 1.0]), (7 / 79, 0.0))
    np.testing.assert_array_equal(metrics.drift_error(exact, exact, [3.0, 1.0]), 0.0)


def test_drift_error_of_a_drift_that_is_zero_is_nan():
    zeros = np.zeros((3, 8, 2))
    for learned in (zeros, zeros + 1.0):
        assert np.isnan(metrics.drift_error(learned, zeros, np.ones(3))).all()


def test_drift_error_spreads_as_it_says():
    rng = np.random.default_rng(4)
    found = []
    for _ in range(300):
        # Steps of one path move together.
        exact = rng.normal(size=(1, 100, 1)) + 0.2 * rng.normal(size=(3, 100, 2))
        learned = exact * (1 + 0.5 * rng.normal(size=(1, 100, 1)))
        found.append(metrics.drift_error(learned, exact, [0.2, 0.3, 0.5]))
    values, errors = np.array(found).T
    assert abs(values.mean() - 0.25) < 0.01
    assert abs(errors.mean() / values.std() - 1) < 0.15


@pytest.mark.parametrize("shapes", [((3, 8), (3, 8)), ((3, 8, 2), (3, 8, 1)), ((3, 1, 2),) * 2])
def test_drifts_of_other_shapes_are_refused(shapes):
    learned, exact = map(np.zeros, shapes)
    with pytest.raises(ValueError, match="must be one"):
        metrics.drift_error(learned, exact, np.ones(3))
    with pytest.raises(ValueError, match=r"weights has shape .* must be \(3,\)"):
        metrics.drift_error(np.zeros((3, 8, 2)), np.zeros((3, 8, 2)), np.ones(4))


def test_a_diverged_path_gives_nan():
    gap = metrics.bridge_gap(np.full(4, np.nan), np.zeros(4), np.zeros(4))
    assert np.isnan(gap).all()


@pytest.mark.parametrize("shape", [(8,), (1, 3), (8, 0), (8, 3, 1)])
def test_step_kls_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="step_kls has shape"):
        metrics.path_kl(np.zeros(shape))


@pytest.mark.parametrize("shape", [(8, 1), (7,), (), (3,)])
def test_potentials_of_another_shape_are_refused(shape):
    ratios, good, bad = np.zeros(8), np.zeros(8), np.zeros(shape)
    with pytest.raises(ValueError, match=r"log_phi_over_p_0 has shape .* must be \(8,\)"):
        metrics.bridge_gap(ratios, bad, good)
    with pytest.raises(ValueError, match=r"log_psi has shape .* must be \(8,\)"):
        metrics.bridge_gap(ratios, good, bad)
