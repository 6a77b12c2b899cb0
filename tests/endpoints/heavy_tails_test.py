"""The funnel and mixtures of Student's t, against scipy and by transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from d2ejax.endpoints import funnel, student_mixture
from tests.endpoints.agreement import (
    assert_mean_in_errors,
    assert_sound,
    assert_stein_identities,
)


def assert_equal_log_density(endpoint, points, expected):
    found = jax.jit(jax.vmap(endpoint.log_density))(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def assert_extent_leaves_out_one_in_a_thousand(endpoint, key):
    x = np.asarray(endpoint.sample(key, 20_000))
    low, high = endpoint.extent
    outside = ((x < low) | (x > high)).any(axis=1)
    assert_mean_in_errors(outside[:, None].astype(np.float64), 1e-3)


@pytest.mark.parametrize(("dim", "std"), [(10, 3.0), (2, 1.0)])
def test_funnel(dim, std, key):
    endpoint = funnel(dim=dim, std=std)
    x = np.asarray(endpoint.sample(key, 50_000), np.float64)
    assert x.shape == (50_000, dim)
    # Standard normal coordinates, by hand.
    z = np.concatenate([x[:, :1] / std, np.exp(-0.5 * x[:, :1]) * x[:, 1:]], axis=1)
    assert_mean_in_errors(z, np.zeros(dim))
    products = (z[:, :, None] * z[:, None, :]).reshape(-1, dim**2)
    assert_mean_in_errors(products, np.eye(dim).ravel())
    assert stats.kstest(z[:, 0], "norm").pvalue > 1e-4
    expected = stats.norm.logpdf(x[:20, 0], scale=std) + stats.norm.logpdf(
        x[:20, 1:], scale=np.exp(0.5 * x[:20, :1])
    ).sum(axis=1)
    assert_equal_log_density(endpoint, x[:20], expected)
    assert_extent_leaves_out_one_in_a_thousand(endpoint, key)
    assert_sound(endpoint, endpoint.sample(key, 5), key=key)


@pytest.mark.parametrize(("dim", "df"), [(2, 2.0), (50, 2.0), (3, 4.5)])
def test_density_of_a_student_mixture(dim, df, key):
    endpoint = student_mixture(dim=dim, df=df)
    x = 10.0 * jax.random.normal(key, (20, dim))
    points = np.asarray(x, np.float64)[:, None, :]
    parts = stats.t.logpdf(points, df, loc=endpoint.modes.astype(np.float64))
    expected = np.logaddexp.reduce(parts.sum(axis=2), axis=1) - np.log(10)
    assert_equal_log_density(endpoint, x, expected)
    assert_sound(endpoint, x, key=key)


def test_samples_of_a_student_mixture(key):
    endpoint = student_mixture(dim=3)
    assert_stein_identities(endpoint, key, scale=5.0)
    assert_extent_leaves_out_one_in_a_thousand(endpoint, key)


@pytest.mark.parametrize("df", [2.0, 3.0])
def test_deviates_are_students(df, key):
    x = np.asarray(student_mixture(dim=1, num_modes=1, df=df).sample(key, 10_000))
    centre = student_mixture(dim=1, num_modes=1).modes[0]
    assert stats.kstest((x - centre).ravel(), stats.t(df).cdf).pvalue > 1e-4


def test_centres_depend_on_the_seed_alone():
    # Of the frozen stream of seed 0: these are the target, whatever is installed.
    np.testing.assert_allclose(
        student_mixture().modes[:2], [[0.976270, 4.303787], [2.055268, 0.897664]], atol=1e-6
    )
    other = student_mixture(seed=1).modes
    assert np.abs(other - student_mixture().modes).min() > 1e-3
    assert np.abs(student_mixture(half_width=3.0).modes).max() < 3.0
