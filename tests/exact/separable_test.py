"""Sums over grids against closed forms for Gaussian weights."""

import numpy as np
import pytest

from d2ejax.exact import separable

NODES = (np.linspace(-3.0, 3.0, 200), np.linspace(-2.0, 2.5, 190))
MEAN, STD = np.array([0.2, -0.1]), np.array([0.4, 0.3])


def log_weight(x):
    return -0.5 * np.sum(((x - MEAN) / STD) ** 2, axis=-1)


def posterior(centres, std, variance):
    """Moments of N(MEAN, std²) tilted by N(centre, variance)."""
    precision = 1 / std**2 + 1 / variance
    mean = (MEAN / std**2 + centres / variance) / precision
    return mean, np.broadcast_to(1 / precision, mean.shape)


@pytest.mark.parametrize("variance", [0.004, 0.1])
def test_moments_match_the_product_of_gaussians(variance):
    centres = np.random.default_rng(0).uniform(-1, 1, size=(9000, 2))
    table = log_weight(separable.grid_points(NODES)).reshape(200, 190)
    weights = separable.make_weights(NODES, table)
    exact = posterior(centres, STD, variance)
    for ours in (
        separable.kernel_moments(centres, weights, variance),
        separable.narrow_moments(centres, log_weight, min(variance, 0.004)),
    ):
        for value, expected in zip(ours, exact, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        exact = posterior(centres, STD, min(variance, 0.004))


def test_moments_survive_underflow():
    # Weights of e^-840 against kernels of e^-840: only their logarithms can be multiplied.
    std, variance = np.array([0.05, 0.05]), 0.05**2
    points = separable.grid_points(NODES)
    table = -0.5 * np.sum(((points - MEAN) / std) ** 2, axis=-1).reshape(200, 190)
    weights = separable.make_weights(NODES, table)
    centres = np.array([[2.2, -0.1], [0.2, -0.1], [1.7, -1.6]])
    mean, var = separable.kernel_moments(centres, weights, variance)
    exact_mean, exact_var = posterior(centres, std, variance)
    np.testing.assert_allclose(mean, exact_mean, atol=1e-6)
    np.testing.assert_allclose(var, exact_var, rtol=1e-3)


def test_sampled_cells_follow_the_conditional():
    variance = 0.05
    table = log_weight(separable.grid_points(NODES)).reshape(200, 190)
    weights = separable.make_weights(NODES, table)
    n = 20_000
    centre = np.array([0.5, 0.4])
    indices, log_target = separable.sample_conditional_cells(
        np.random.default_rng(1), np.broadcast_to(centre, (n, 2)), weights, variance
    )
    points = np.stack([NODES[0][indices[:, 0]], NODES[1][indices[:, 1]]], axis=-1)
    mean, var = posterior(centre[None], STD, variance)
    assert np.all(np.abs(points.mean(0) - mean[0]) < 4 * np.sqrt(var[0] / n))
    assert np.all(np.abs(points.var(0) / var[0] - 1) < 4 * np.sqrt(2 / n))
    expected = log_weight(points) - np.sum((points - centre) ** 2, -1) / (2 * variance)
    np.testing.assert_allclose(log_target, expected, atol=1e-9)
