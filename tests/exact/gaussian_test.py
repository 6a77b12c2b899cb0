"""Gaussian bridges against independent identities; IPF against its own definition."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from d2ejax.exact import gaussian_bridge, gaussian_ipf
from d2ejax.references import (
    brownian,
    ornstein_uhlenbeck,
    variance_exploding,
    variance_preserving,
)

T_MAX = 0.7
REFERENCES = {
    "brownian": brownian(0.9),
    "ou": ornstein_uhlenbeck(1.1, 0.8),
    "ve": variance_exploding(0.2, 1.5, T_MAX),
    "vp": variance_preserving(0.3, 3.0, T_MAX),
}
START = (np.array([0.3, -0.5]), np.array([[0.8, 0.3], [0.3, 0.5]]))
END = (np.array([-0.4, 1.0]), np.array([[0.4, -0.2], [-0.2, 0.9]]))


@pytest.fixture(params=REFERENCES)
def reference(request):
    return REFERENCES[request.param]


def whole(reference):
    return float(reference.scale(0.0, T_MAX)), float(reference.variance(0.0, T_MAX))


def plan_law(bridge):
    return stats.multivariate_normal(*bridge.plan)


def test_symmetric_case_is_the_golden_ratio():
    # N(-0.1, 1) to N(0.1, 1), σ = T = 1: c solves c² + c = 1.
    eye = np.eye(3)
    ones = np.ones(3)
    bridge = gaussian_bridge(-0.1 * ones, eye, 0.1 * ones, eye, brownian(1.0), 1.0)
    np.testing.assert_allclose(bridge.plan.cov[:3, 3:], (np.sqrt(5) - 1) / 2 * eye, atol=1e-12)
    np.testing.assert_allclose(bridge.transport_cost, 3 * (0.04 + 3 - np.sqrt(5)), rtol=1e-12)


def test_plan_has_the_marginals_and_log_ratio_to_the_reference_that_splits(reference):
    bridge = gaussian_bridge(*START, *END, reference, T_MAX)
    np.testing.assert_allclose(bridge.plan.mean, np.concatenate([START[0], END[0]]))
    np.testing.assert_allclose(bridge.plan.cov[:2, :2], START[1])
    np.testing.assert_allclose(bridge.plan.cov[2:, 2:], END[1])
    # The Schrödinger system itself: π = q(x_1 | x_0) p_0(x_0) (φ/p_0)(x_0) ψ(x_1).
    x_0, x_1 = np.random.default_rng(0).normal(size=(2, 50, 2))
    scale, variance = whole(reference)
    reference_log = stats.multivariate_normal(*START).logpdf(x_0) + np.sum(
        stats.norm(scale * x_0, np.sqrt(variance)).logpdf(x_1), axis=1
    )
    at_start, at_end = bridge.log_potentials(x_0, x_1)
    expected = plan_law(bridge).logpdf(np.hstack([x_0, x_1])) - reference_log
    # The reference's scale and variance are read in float32 here.
    np.testing.assert_allclose(at_start + at_end, expected, rtol=2e-5, atol=2e-5)


def test_path_kl_is_the_mean_of_the_potentials(reference):
    bridge = gaussian_bridge(*START, *END, reference, T_MAX)
    scale, variance = whole(reference)
    # KL between two Gaussians on R⁴, the second being q p_0.
    reference_cov = np.block(
        [
            [START[1], scale * START[1]],
            [scale * START[1], scale**2 * START[1] + variance * np.eye(2)],
        ]
    )
    precision = np.linalg.inv(reference_cov)
    shift = bridge.plan.mean - np.concatenate([START[0], scale * START[0]])
    kl = 0.5 * (np.trace(precision @ bridge.plan.cov) - 4 + shift @ precision @ shift)
    kl += 0.5 * (np.linalg.slogdet(reference_cov)[1] - np.linalg.slogdet(bridge.plan.cov)[1])
    np.testing.assert_allclose(bridge.path_kl, kl, rtol=1e-5)

    x_0, x_1 = bridge.sample_plan(np.random.default_rng(1), 20_000)
    for values, mean in zip(bridge.log_potentials(x_0, x_1), (0.0, kl), strict=True):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - mean) < 4 * error
    squares = np.sum((x_1 - x_0) ** 2, axis=1)
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - bridge.transport_cost) < 4 * error


def test_kernels_carry_the_marginals_both_ways_and_chain_to_the_plan(reference):
    bridge = gaussian_bridge(*START, *END, reference, T_MAX)
    times = np.array([0.0, 0.1, 0.4, 0.65, T_MAX])
    forward, backward = bridge.forward_kernels(times), bridge.backward_kernels(times)
    regression = np.eye(2)
    mean, cov = START
    for k, t in enumerate(times[1:]):
        mean = forward.matrix[k] @ mean + forward.offset[k]
        cov = forward.matrix[k] @ cov @ forward.matrix[k].T + forward.cov[k]
        regression = forward.matrix[k] @ regression
        np.testing.assert_allclose(mean, bridge.marginal(t)[0], atol=1e-9)
        np.testing.assert_allclose(cov, bridge.marginal(t)[1], atol=1e-9)
    np.testing.assert_allclose(mean, END[0], atol=1e-9)
    np.testing.assert_allclose(cov, END[1], atol=1e-9)
    # Only a Markov chain's kernels multiply to the regression of x_T on x_0.
    np.testing.assert_allclose(regression @ START[1], bridge.plan.cov[2:, :2], atol=1e-9)
    for k in reversed(range(4)):
        mean = backward.matrix[k] @ mean + backward.offset[k]
        cov = backward.matrix[k] @ cov @ backward.matrix[k].T + backward.cov[k]
    np.testing.assert_allclose(mean, START[0], atol=1e-9)
    np.testing.assert_allclose(cov, START[1], atol=1e-9)


def test_kl_of_the_kernels_to_the_reference_adds_up_to_the_path_kl(reference):
    bridge = gaussian_bridge(*START, *END, reference, T_MAX)
    times = np.linspace(0.0, T_MAX, 8)
    kernels = bridge.forward_kernels(times)
    total = 0.0
    for k in range(7):
        scale = float(reference.scale(times[k], times[k + 1]))
        variance = float(reference.variance(times[k], times[k + 1]))
        mean, cov = bridge.marginal(times[k])
        matrix = kernels.matrix[k] - scale * np.eye(2)
        shift = matrix @ mean + kernels.offset[k]
        second = shift @ shift + np.trace(matrix @ cov @ matrix.T)
        logdet = np.linalg.slogdet(kernels.cov[k] / variance)[1]
        total += 0.5 * (second / variance + np.trace(kernels.cov[k]) / variance - 2 - logdet)
    np.testing.assert_allclose(total, bridge.path_kl, rtol=3e-4)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.6])
def test_the_two_drifts_add_up_to_the_score_and_match_the_kernels(reference, t):
    bridge = gaussian_bridge(*START, *END, reference, T_MAX)
    x = np.random.default_rng(2).normal(size=(6, 2))
    squared = float(reference.diffusion(np.float32(t))) ** 2
    law = stats.multivariate_normal(*bridge.marginal(t))
    step = 1e-5
    score = np.stack(
        [(law.logpdf(x + step * e) - law.logpdf(x - step * e)) / (2 * step) for e in np.eye(2)],
        axis=-1,
    )
    total = bridge.drift(x, t) + bridge.backward_drift(x, t)
    np.testing.assert_allclose(total, squared * score, rtol=1e-5, atol=1e-5)
    # A drift is the rate of change of the kernel's mean as the step shrinks.
    h = 1e-5
    mean, var = bridge.step_moments(x, t, t + h)
    np.testing.assert_allclose((mean - x) / h, bridge.drift(x, t), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(var / h, squared, rtol=1e-3)
    back = bridge.backward_kernels([t - h, t])
    back_mean = x @ back.matrix[0].T + back.offset[0]
    np.testing.assert_allclose(
        (back_mean - x) / h, bridge.backward_drift(x, t), rtol=2e-3, atol=2e-3
    )


def test_drift_moves_the_mean_along_its_ode(reference):
    # The mean of a linear SDE follows its drift; solved by scipy, not by the formula.
    bridge = gaussian_bridge(*START, *END, reference, T_MAX)
    t_end = 0.6
    solution = integrate.solve_ivp(
        lambda t, m: bridge.drift(m[None], t)[0], (0.0, t_end), START[0], rtol=1e-7, atol=1e-9
    )
    np.testing.assert_allclose(solution.y[:, -1], bridge.marginal(t_end)[0], atol=1e-5)


def test_ipf_keeps_one_conditional_replaces_one_marginal_and_converges(reference):
    bridge = gaussian_bridge(*START, *END, reference, T_MAX)
    iterates = gaussian_ipf(*START, *END, reference, T_MAX, num_iterations=60)
    for backward, forward in zip(*iterates, strict=True):
        np.testing.assert_allclose(backward.mean[2:], END[0], atol=1e-12)
        np.testing.assert_allclose(backward.cov[2:, 2:], END[1], atol=1e-12)
        np.testing.assert_allclose(forward.mean[:2], START[0], atol=1e-12)
        np.testing.assert_allclose(forward.cov[:2, :2], START[1], atol=1e-12)
        # Same law of x_T given x_0, hence the same regression.
        np.testing.assert_allclose(
            np.linalg.solve(backward.cov[:2, :2], backward.cov[:2, 2:]),
            np.linalg.solve(forward.cov[:2, :2], forward.cov[:2, 2:]),
            atol=1e-9,
        )
    for plan in (iterates.backward[-1], iterates.forward[-1]):
        np.testing.assert_allclose(plan.mean, bridge.plan.mean, atol=1e-8)
        np.testing.assert_allclose(plan.cov, bridge.plan.cov, atol=1e-8)
    assert np.abs(iterates.backward[0].cov - bridge.plan.cov).max() > 1e-3


def test_ipf_half_steps_are_those_of_sinkhorn_on_a_dense_grid():
    # Start ~ N(0.2, 0.5), end ~ N(-0.3, 0.8), one dimension; the full kernel matrix.
    reference = ornstein_uhlenbeck(1.0, 0.5)
    scale, variance = whole(reference)
    x, y = np.linspace(-6, 6, 400), np.linspace(-6.5, 6.5, 450)
    p_0 = stats.norm(0.2, np.sqrt(0.5)).pdf(x)
    p_1 = stats.norm(-0.3, np.sqrt(0.8)).pdf(y)
    p_0, p_1 = p_0 / p_0.sum(), p_1 / p_1.sum()
    joint = p_0[:, None] * stats.norm(scale * x[:, None], np.sqrt(variance)).pdf(y)
    joint /= joint.sum()

    def moments(joint):
        mean = np.array([joint.sum(1) @ x, joint.sum(0) @ y])
        cross = x @ joint @ y - mean[0] * mean[1]
        spread = [joint.sum(1) @ x**2 - mean[0] ** 2, joint.sum(0) @ y**2 - mean[1] ** 2]
        return mean, np.array([[spread[0], cross], [cross, spread[1]]])

    iterates = gaussian_ipf([0.2], [[0.5]], [-0.3], [[0.8]], reference, T_MAX, num_iterations=4)
    for backward, forward in zip(*iterates, strict=True):
        for plan, end in ((backward, 1), (forward, 0)):
            if end == 1:
                joint = joint / joint.sum(0) * p_1
            else:
                joint = joint / joint.sum(1, keepdims=True) * p_0[:, None]
            mean, cov = moments(joint)
            np.testing.assert_allclose(plan.mean, mean, atol=1e-6)
            np.testing.assert_allclose(plan.cov, cov, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [[-1.0]], [0.0], [[1.0]]), "cov_0"),
        (([0.0], [[1.0]], [0.0], [[1.0, 0.0]]), "mean_1, cov_1"),
        (([0.0], [[1.0]], [0.0, 0.0], np.eye(2)), "mean_1 has shape"),
    ],
)
def test_bad_gaussians_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_bridge(*arguments, brownian(1.0), 1.0)


@pytest.mark.parametrize("t_max", [0.0, -1.0, np.nan, np.inf])
def test_horizons_are_positive(t_max):
    with pytest.raises(ValueError, match=f"t_max is {t_max}; it must be positive and finite"):
        gaussian_bridge([0.0], [[1.0]], [0.0], [[1.0]], brownian(1.0), t_max)
    with pytest.raises(ValueError, match=f"t_max is {t_max}; it must be positive and finite"):
        gaussian_ipf([0.0], [[1.0]], [0.0], [[1.0]], brownian(1.0), t_max, num_iterations=1)


def test_integer_times_are_times_like_others():
    # A process of somebody's own, which takes its dtype from the time.
    reference = brownian(2**0.5)._replace(diffusion=lambda t: jnp.full_like(t, 2**0.5))
    bridge = gaussian_bridge([0.0], [[1.0]], [1.0], [[0.5]], reference, 2)
    x = np.array([[-0.5], [1.0]])
    for t in (0, 1):
        np.testing.assert_array_equal(bridge.drift(x, t), bridge.drift(x, float(t)))
    np.testing.assert_array_equal(bridge.backward_drift(x, 2), bridge.backward_drift(x, 2.0))
    # The drift is the slope of a short step.
    slope, offset = bridge.affine_drift(0)
    kernel = bridge.forward_kernels([0.0, 1e-6])
    np.testing.assert_allclose(slope, (kernel.matrix[0] - 1.0) / 1e-6, rtol=1e-4)
    np.testing.assert_allclose(offset, kernel.offset[0] / 1e-6, rtol=1e-4)


def test_times_outside_the_horizon_are_refused_and_float32_ends_accepted():
    bridge = gaussian_bridge([0.0], [[1.0]], [1.0], [[0.5]], brownian(1.0), 0.2)
    x = np.zeros((1, 1))
    with pytest.raises(ValueError, match=r"t is 0\.2"):
        bridge.drift(x, 0.2)
    with pytest.raises(ValueError, match="backward drift"):
        bridge.backward_drift(x, 0.0)
    with pytest.raises(ValueError, match="times are"):
        bridge.step_moments(x, 0.1, 0.3)
    rounded = float(np.float32(0.2))
    assert rounded > 0.2
    np.testing.assert_array_equal(bridge.marginal(rounded)[1], [[0.5]])
