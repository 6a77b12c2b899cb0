"""The limit of K Gaussian steps: zero where the bridge is Gaussian, known values elsewhere."""

import itertools

import numpy as np
import pytest
from scipy import stats

from d2ejax import time_grids
from d2ejax.exact import MatchedChain, gaussian_bridge, grid_bridge, k_step_limit
from d2ejax.references import brownian, ornstein_uhlenbeck
from tests.exact.densities import gaussian, moons, ring

SIGMA, T_MAX = 2**0.5, 0.2


def test_gaussian_bridge_is_reached_exactly_with_a_learned_variance_only():
    reference = ornstein_uhlenbeck(1.0, 0.7)
    cov = np.diag([0.5, 1.5])
    bridge = gaussian_bridge([0.0, 1.0], cov, [1.0, 0.0], cov[::-1, ::-1], reference, 1.0)
    rng = np.random.default_rng(0)
    x_0 = rng.multivariate_normal([0.0, 1.0], cov, size=4000)
    times = time_grids.uniform(6, 1.0).times
    gap, error = k_step_limit(bridge, reference, times, x_0, rng)
    assert abs(gap) < 1e-5 and error < 1e-5
    gap, error = k_step_limit(bridge, reference, times, x_0, rng, variance="fixed")
    assert gap > 6 * error


@pytest.mark.parametrize("variance", ["learned", "fixed"])
def test_given_paths_are_scored_as_the_chains_own_and_as_a_joint_gaussian(variance):
    reference = ornstein_uhlenbeck(1.0, 0.7)
    bridge = gaussian_bridge([0.5], [[0.6]], [-0.8], [[0.3]], reference, 1.0)
    times = time_grids.end_refined(4, 1.0).times
    chain = MatchedChain(bridge, reference, times, variance=variance)
    rng = np.random.default_rng(3)
    x_0 = rng.normal(0.5, 0.6**0.5, size=(500, 1))
    paths, log_ratios = chain.simulate(rng, x_0)
    assert paths.shape == (500, 5, 1)
    np.testing.assert_array_equal(paths[:, 0], x_0)
    np.testing.assert_allclose(chain.log_ratios(paths), log_ratios, atol=1e-12)

    other = rng.normal(size=(20, 5, 1))
    kernels = bridge.forward_kernels(np.asarray(times, np.float64))
    expected = np.zeros(20)
    for k in range(4):
        s, t = float(times[k]), float(times[k + 1])
        noise = float(reference.variance(s, t))
        x, y = other[:, k, 0], other[:, k + 1, 0]
        mean = kernels.matrix[k, 0, 0] * x + kernels.offset[k, 0]
        std = noise**0.5 if variance == "fixed" else kernels.cov[k, 0, 0] ** 0.5
        expected += stats.norm.logpdf(y, mean, std)
        expected -= stats.norm.logpdf(y, float(reference.scale(s, t)) * x, noise**0.5)
    np.testing.assert_allclose(chain.log_ratios(other), expected, atol=1e-4)


@pytest.mark.parametrize("variance", ["learned", "fixed"])
def test_one_dimension_agrees_with_densities_pushed_through_the_chain(variance):
    def log_p1(x):
        pair = [stats.norm(m, 0.25).logpdf(x[:, 0]) for m in (-0.8, 0.8)]
        return np.logaddexp(*pair) - np.log(2)

    reference = brownian(1.0)
    bridge = grid_bridge(
        lambda x: stats.norm(0.1, 0.5).logpdf(x[:, 0]),
        log_p1,
        reference,
        0.5,
        dim=1,
        extents=((-3.0, 3.2), (-2.5, 2.5)),
    )
    # KL(P || P*) = Σ_k E KL(step || reference step) - E[log potentials], without sampling.
    nodes = np.linspace(-3.5, 3.5, 1401)[:, None]
    h = nodes[1, 0] - nodes[0, 0]
    density = stats.norm(0.1, 0.5).pdf(nodes[:, 0])
    times = np.asarray(time_grids.end_refined(5, 0.5).times, np.float64)
    at_start, at_end = bridge.log_potentials(nodes, nodes)
    exact = -h * density @ at_start
    for t, t_next in itertools.pairwise(times):
        mean, var = (m[:, 0] for m in bridge.step_moments(nodes, t, t_next))
        step = t_next - t
        var = var if variance == "learned" else np.full_like(var, step)
        kl = ((mean - nodes[:, 0]) ** 2 + var) / step - 1 - np.log(var / step)
        exact += 0.5 * h * density @ kl
        density = (
            h * density @ stats.norm(mean[:, None], np.sqrt(var)[:, None]).pdf(nodes[:, 0])
        )
    exact -= h * density @ at_end

    rng = np.random.default_rng(1)
    x_0 = rng.normal(0.1, 0.5, size=(20_000, 1))
    gap, error = k_step_limit(bridge, reference, times, x_0, rng, variance=variance)
    assert abs(gap - exact) < 4 * error
    assert error < 0.15 * exact


@pytest.fixture(scope="module")
def bridges():
    reference = brownian(SIGMA)
    options = dict(dim=2, num_points=128)
    box = (-1.8, 1.8)
    return {
        "gaussian": grid_bridge(
            gaussian(0.7), ring(), reference, T_MAX, extents=((-3.5, 3.5), box), **options
        ),
        "moons": grid_bridge(
            moons(), ring(), reference, T_MAX, extents=((-1.4, 2.4), box), **options
        ),
    }


# Means over 20 000 to 60 000 paths, with standard errors, from a run at a finer resolution. For
# the learned ones KL per step less potentials, far noisier, agreed within its own errors.
KNOWN = [
    ("gaussian", 20, 1.0, "learned", 0.2910, 0.005),
    ("gaussian", 20, 1.0, "fixed", 1.215, 0.009),
    ("gaussian", 20, 2.0, "learned", 0.0703, 0.0018),
    ("gaussian", 20, 2.0, "fixed", 0.368, 0.004),
    ("gaussian", 10, 2.0, "learned", 0.193, 0.003),
    ("gaussian", 40, 2.0, "learned", 0.0309, 0.0011),
    ("moons", 20, 1.0, "learned", 0.289, 0.008),
    ("moons", 20, 2.0, "learned", 0.0738, 0.003),
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "num_steps", "power", "variance", "known", "spread"), KNOWN)
def test_known_limits(bridges, source, num_steps, power, variance, known, spread):
    rng = np.random.default_rng(2)
    x_0 = bridges[source].sample_plan(rng, 5000)[0]
    times = time_grids.end_refined(num_steps, T_MAX, power=power).times
    gap, error = k_step_limit(
        bridges[source], brownian(SIGMA), times, x_0, rng, variance=variance
    )
    assert abs(gap - known) < 4 * np.hypot(error, spread)
    assert error < 0.2 * known


def test_unknown_variance_is_refused():
    bridge = gaussian_bridge([0.0], [[1.0]], [0.0], [[1.0]], brownian(1.0), 1.0)
    with pytest.raises(ValueError, match="'free'"):
        k_step_limit(
            bridge,
            brownian(1.0),
            [0.0, 1.0],
            np.zeros((2, 1)),
            np.random.default_rng(0),
            variance="free",  # type: ignore[arg-type]
        )
