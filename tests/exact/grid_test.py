"""Grid bridges against closed forms, brute-force sums and known values."""

import numpy as np
import pytest
from scipy import stats

from d2ejax.exact import gaussian_bridge, grid_bridge
from d2ejax.references import (
    brownian,
    ornstein_uhlenbeck,
    variance_exploding,
    variance_preserving,
)
from tests.exact.densities import cross, gaussian, moons, ring

PLANE = ornstein_uhlenbeck(1.2, 0.6)
PLANE_T_MAX = 0.5
START = (np.array([0.2, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]]))
END = (np.array([-0.5, 0.4]), np.array([[0.25, -0.1], [-0.1, 0.4]]))


@pytest.fixture(scope="module")
def plane():
    """The same problem twice: correlated Gaussians in the plane, closed form and grid."""
    exact = gaussian_bridge(*START, *END, PLANE, PLANE_T_MAX)
    solved = grid_bridge(
        stats.multivariate_normal(*START).logpdf,
        # Up to a constant, as an energy would be.
        lambda x: stats.multivariate_normal(*END).logpdf(x) + 7.0,
        PLANE,
        PLANE_T_MAX,
        dim=2,
        extents=(((-4.0, 4.0), (-3.5, 3.0)), (-4.2, 4.2)),
        num_points=90,
    )
    return exact, solved


@pytest.fixture(scope="module")
def to_ring():
    return grid_bridge(
        gaussian(0.7), ring(), brownian(2**0.5), 0.2, dim=2, extents=((-4, 4), (-1.9, 1.9))
    )


def compare(exact, solved, x, t_max, times=(0.0, 0.4, 0.8, 0.97, 0.9995)):
    np.testing.assert_allclose(solved.path_kl, exact.path_kl, atol=1e-4)
    np.testing.assert_allclose(solved.transport_cost, exact.transport_cost, atol=1e-4)
    for ours, theirs in zip(
        solved.log_potentials(x, -x), exact.log_potentials(x, -x), strict=True
    ):
        # Far in the tails the cut at the edge of the boxes begins to show.
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
    # The last of the times lies where the kernel is narrower than a cell.
    for t in np.array(times) * t_max:
        np.testing.assert_allclose(solved.drift(x, t), exact.drift(x, t), atol=3e-4, rtol=1e-4)
        for t_next in (0.3 * t + 0.7 * t_max, t_max):
            mean, var = solved.step_moments(x, t, t_next)
            exact_mean, exact_var = exact.step_moments(x, t, t_next)
            np.testing.assert_allclose(mean, exact_mean, atol=1e-4)
            np.testing.assert_allclose(var, exact_var, rtol=1e-4)


@pytest.mark.parametrize(
    "reference",
    [
        brownian(1.0),
        ornstein_uhlenbeck(1.0, 1.5),
        variance_exploding(0.1, 1.2, 0.8),
        variance_preserving(0.5, 3.0, 0.8),
    ],
    ids=["brownian", "ou", "ve", "vp"],
)
def test_one_dimension_agrees_with_the_closed_form(reference):
    exact = gaussian_bridge([0.4], [[0.6]], [-0.5], [[0.2]], reference, 0.8)
    solved = grid_bridge(
        lambda x: stats.norm(0.4, np.sqrt(0.6)).logpdf(x[:, 0]),
        lambda x: stats.norm(-0.5, np.sqrt(0.2)).logpdf(x[:, 0]),
        reference,
        0.8,
        dim=1,
        extents=((-5.0, 5.5), (-4.0, 3.0)),
        num_points=200,
    )
    x = np.linspace(-1.5, 1.5, 13)[:, None]
    compare(exact, solved, x, 0.8)


def test_two_dimensions_agree_with_the_closed_form(plane):
    x = np.random.default_rng(0).normal(size=(40, 2))
    compare(*plane, x, PLANE_T_MAX)


def test_queries_outside_the_boxes_stay_finite(plane):
    _, solved = plane
    x = np.array([[5.0, 5.0], [-8.0, 6.5]])
    for values in (*solved.log_potentials(x, x), solved.drift(x, 0.1), solved.drift(x, 0.499)):
        assert np.all(np.isfinite(values))


def test_samples_of_the_plan_have_its_moments(plane):
    exact, solved = plane
    n = 20_000
    x_0, x_1 = solved.sample_plan(np.random.default_rng(3), n)
    joint = np.hstack([x_0, x_1])
    cov = exact.plan.cov
    standard = np.sqrt(np.diag(cov) / n)
    assert np.all(np.abs(joint.mean(0) - exact.plan.mean) < 4.5 * standard)
    # Var of an empirical covariance of Gaussians: (c_ii c_jj + c_ij²) / n.
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert np.all(np.abs(np.cov(joint.T) - cov) < 4.5 * spread)


def test_starts_given_an_end_have_the_law_of_the_plan_given_it(plane):
    exact, solved = plane
    n, mean, cov = 20_000, exact.plan.mean, exact.plan.cov
    for end in ([-0.5, 0.4], [0.6, -0.8]):
        # Regression of x_0 on x_T.
        gain = np.linalg.solve(cov[2:, 2:], cov[2:, :2]).T
        expected = mean[:2] + gain @ (np.array(end) - mean[2:])
        spread = cov[:2, :2] - gain @ cov[2:, :2]
        starts = np.full((n, 2), end)
        for bridge in (exact, solved):
            drawn = bridge.sample_starts(np.random.default_rng(6), starts)
            assert np.all(np.abs(drawn.mean(0) - expected) < 4.5 * np.sqrt(np.diag(spread) / n))
            error = np.sqrt((np.outer(np.diag(spread), np.diag(spread)) + spread**2) / n)
            assert np.all(np.abs(np.cov(drawn.T) - spread) < 4.5 * error)


def test_starts_given_ends_of_the_plan_are_the_source_in_one_dimension():
    # Two narrow modes, of 1.4 and 2.7 cells.
    def log_p0(x):
        return np.logaddexp(
            stats.norm(-0.5, 0.07).logpdf(x[:, 0]) - 0.5, stats.norm(0.4, 0.135).logpdf(x[:, 0])
        )

    def cdf(x):
        weight = np.exp(-0.5) / (1 + np.exp(-0.5))
        return weight * stats.norm(-0.5, 0.07).cdf(x) + (1 - weight) * stats.norm(
            0.4, 0.135
        ).cdf(x)

    reference = ornstein_uhlenbeck(1.0, 1.0)
    solved = grid_bridge(
        log_p0,
        lambda x: stats.norm(0.0, 0.3).logpdf(x[:, 0]),
        reference,
        0.3,
        dim=1,
        extents=((-1.0, 1.0), (-1.5, 1.5)),
        num_points=40,
    )
    rng = np.random.default_rng(7)
    x_1 = rng.normal(0.0, 0.3, size=(40_000, 1))
    x_0 = solved.sample_starts(rng, x_1)
    assert stats.kstest(x_0[:, 0], cdf).pvalue > 1e-3
    # And they are coupled to their ends as in the plan.
    joint = np.cov(np.hstack(solved.sample_plan(rng, 40_000)).T)
    np.testing.assert_allclose(np.cov(np.hstack([x_0, x_1]).T), joint, atol=0.006)


def test_samples_have_no_bias_from_the_cells():
    # A mode of 1.2 cells' standard deviation: uniform jitter alone would add 6 % to it.
    width = 0.06
    solved = grid_bridge(
        lambda x: stats.norm(0.0, width).logpdf(x[:, 0]),
        lambda x: stats.norm(0.02, width).logpdf(x[:, 0]),
        brownian(1.0),
        0.3,
        dim=1,
        extents=((-1.0, 1.0), (-1.0, 1.0)),
        num_points=40,
    )
    n = 40_000
    for x, mean in zip(
        solved.sample_plan(np.random.default_rng(4), n), (0.0, 0.02), strict=True
    ):
        assert stats.kstest(x[:, 0], stats.norm(mean, width).cdf).pvalue > 1e-3
        assert abs(np.var(x) / width**2 - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize("t", [0.0, 0.12, 0.19])
def test_drift_is_the_gradient_of_the_smoothed_potential(to_ring, t):
    # log ψ_t by brute force over all points of another grid; σ² = 2.
    nodes = np.linspace(-1.6, 1.6, 161)
    points = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
    log_psi = to_ring.log_potentials(points, points)[1]
    x = np.random.default_rng(5).uniform(-0.9, 0.9, size=(5, 2))

    def smoothed(x):
        exponent = log_psi - np.sum((x[:, None] - points) ** 2, -1) / (4 * (0.2 - t))
        return np.log(np.exp(exponent - exponent.max()).sum(1)) + exponent.max()

    step = 1e-4
    gradient = np.stack(
        [(smoothed(x + step * e) - smoothed(x - step * e)) / (2 * step) for e in np.eye(2)],
        axis=-1,
    )
    np.testing.assert_allclose(to_ring.drift(x, t), 2 * gradient, atol=2e-3)


def test_potentials_integrate_to_the_marginals(to_ring):
    # ∫ q(y | x) ψ(y) dy (φ/p_0)(x) = 1 at any x: the plan has the marginal p_0.
    nodes = np.linspace(-1.7, 1.7, 171)
    points = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2)
    log_psi = to_ring.log_potentials(points, points)[1]
    x = np.array([[0.0, 0.0], [1.1, -0.4], [-1.8, 0.3]])
    kernel = np.exp(-np.sum((x[:, None] - points) ** 2, -1) / 0.8) / (0.8 * np.pi)
    integral = np.sum(kernel * np.exp(log_psi), axis=1) * (nodes[1] - nodes[0]) ** 2
    at_start = to_ring.log_potentials(x, x)[0]
    np.testing.assert_allclose(integral * np.exp(at_start), 1.0, atol=1e-5)


# Optimal path KL and E|x_T - x_0|² for dX = √2 dW on [0, 0.2], from two other programs.
KNOWN = {
    "gaussian to ring": (gaussian(0.7), (-4.0, 4.0), ring(), (-1.9, 1.9), 2.03962, 0.67258),
    "moons to ring": (moons(400), (-1.5, 2.5), ring(), (-1.9, 1.9), 2.4389, 0.9857),
    "gaussian to moons": (gaussian(0.7), (-4.0, 4.0), moons(400), (-1.5, 2.5), 2.4976, 1.0618),
    "cross to ring": (cross(), (-1.5, 1.5), ring(), (-1.9, 1.9), 1.8563, 0.6895),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_values(name):
    log_p0, extent_0, log_p1, extent_1, path_kl, cost = KNOWN[name]
    solved = grid_bridge(
        log_p0,
        log_p1,
        brownian(2**0.5),
        0.2,
        dim=2,
        extents=(extent_0, extent_1),
        num_points=128,
    )
    # An arc's density depends in the fourth digit on how it is discretised.
    tolerance = 6e-4 if "moons" in name else 6e-5
    np.testing.assert_allclose(solved.path_kl, path_kl, atol=tolerance)
    np.testing.assert_allclose(solved.transport_cost, cost, atol=tolerance)


def test_default_resolution_is_converged(to_ring):
    np.testing.assert_allclose(to_ring.path_kl, 2.0396239, atol=2e-6)


def solve(**overrides):
    arguments = dict(
        dim=1, extents=((-3.0, 3.0), (-3.0, 3.0)), num_points=60, max_iterations=500
    )
    log_p = overrides.pop("log_p", lambda x: -np.sum(x**2, axis=1))
    sigma, t_max = overrides.pop("sigma", 1.0), overrides.pop("t_max", 1.0)
    return grid_bridge(log_p, log_p, brownian(sigma), t_max, **(arguments | overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dim": 3}, "dim is 3"),
        ({"t_max": 0.0, "dim": 3}, r"t_max is 0\.0; it must be positive"),
        ({"t_max": np.inf}, "t_max is inf"),
        ({"extents": ((3.0, -3.0), (-3.0, 3.0))}, "extent of log_p0"),
        ({"num_points": 2}, "num_points is 2"),
        ({"sigma": 0.05}, "cells of width"),
        ({"log_p": lambda x: x}, "returned shape"),
        ({"log_p": lambda x: np.full(len(x), np.nan)}, "largest value of log_p0"),
        ({"sigma": 0.2, "extents": ((-3.0, 3.0), (47.0, 53.0))}, "underflows"),
    ],
)
def test_bad_arguments_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        solve(**overrides)


def test_failure_to_converge_is_an_error():
    with pytest.raises(RuntimeError, match="max_iterations = 2"):
        solve(max_iterations=2)
