"""Diagonal Gaussians against scipy and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from d2ejax import gaussians
from d2ejax.gaussians import Gaussian


def make(mean, std):
    return Gaussian(jnp.asarray(mean), 2 * jnp.log(jnp.asarray(std)))


def test_log_density_matches_scipy():
    gaussian = make([0.5, -2.0, 3.0], [0.1, 1.0, 5.0])
    covariance = np.diag([0.01, 1.0, 25.0])
    rng = np.random.default_rng(0)
    points = np.float32([0.5, -2.0, 3.0] + rng.normal(size=(20, 3)) * [0.2, 2.0, 10.0])
    truth = stats.multivariate_normal([0.5, -2.0, 3.0], covariance).logpdf(points)
    values = jax.vmap(gaussians.log_density, (None, 0))(gaussian, points)
    assert values.shape == (20,)
    np.testing.assert_allclose(values, truth, rtol=1e-5, atol=1e-4)


def test_samples_have_the_mean_and_the_covariance(key):
    gaussian, n = make([0.5, -2.0], [0.1, 3.0]), 20_000
    noise = jax.random.normal(key, (n, 2))
    draws = np.asarray(jax.vmap(gaussians.sample, (None, 0))(gaussian, noise), np.float64)
    std = np.array([0.1, 3.0])
    assert np.all(np.abs(draws.mean(0) - [0.5, -2.0]) < 4 * std / np.sqrt(n))
    error = np.cov(draws.T) - np.diag(std**2)
    allowed = np.outer(std, std) * np.sqrt((1 + np.eye(2)) / n)
    assert np.all(np.abs(error) < 4 * allowed)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ((0.0, 1.0), (1.0, 1.0)),
        ((0.3, 0.5), (-0.2, 2.0)),
        ((0.3, 2.0), (-0.2, 0.5)),
    ],
)
def test_kl_matches_quadrature(p, q):
    p_law, q_law = stats.norm(*p), stats.norm(*q)
    truth, _ = integrate.quad(
        lambda x: p_law.pdf(x) * (p_law.logpdf(x) - q_law.logpdf(x)), -20, 20, limit=200
    )
    value = gaussians.kl_divergence(make(p[:1], p[1:]), make(q[:1], q[1:]))
    np.testing.assert_allclose(value, truth, rtol=1e-5)


def test_kl_adds_up_over_coordinates_and_vanishes_at_equality():
    p, q = make([0.3, -1.0], [0.5, 2.0]), make([0.1, 1.0], [1.5, 0.7])
    parts = jax.vmap(gaussians.kl_divergence)(*jax.tree.map(lambda leaf: leaf[:, None], (p, q)))
    np.testing.assert_allclose(gaussians.kl_divergence(p, q), np.sum(parts), rtol=1e-6)
    assert gaussians.kl_divergence(p, p) == 0.0


def test_kl_of_nearly_equal_variances_keeps_its_digits():
    # KL = δ²/4 + O(δ³) for a log-variance off by δ; the naive v - 1 - log v would be noise.
    delta = np.float32(1e-3)
    p, q = Gaussian(jnp.zeros(1), jnp.full(1, delta)), Gaussian(jnp.zeros(1), jnp.zeros(1))
    np.testing.assert_allclose(gaussians.kl_divergence(p, q), delta**2 / 4, rtol=1e-2)
