"""Posteriors against scipy's priors and likelihoods."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from d2ejax.endpoints import log_gaussian_cox, logistic_regression, make_endpoint, posteriors
from tests.endpoints.agreement import assert_sound


@pytest.mark.parametrize(
    ("dataset", "dim", "counts"),
    [
        ("breast_cancer", 31, (212, 357)),
        ("digits_3_5", 55, (183, 182)),
        ("iris_1_2", 5, (50, 50)),
        ("wine_1_2", 14, (71, 48)),
    ],
)
def test_examples_are_standardised_and_of_two_classes(dataset, dim, counts):
    features, labels = posteriors._examples(*posteriors._DATASETS[dataset])
    assert features.shape == (sum(counts), dim)
    assert ((~labels).sum(), labels.sum()) == counts
    np.testing.assert_allclose(features[:, :-1].mean(axis=0), 0.0, atol=1e-10)
    np.testing.assert_allclose(features[:, :-1].std(axis=0), 1.0, atol=1e-10)
    np.testing.assert_array_equal(features[:, -1], 1.0)
    assert logistic_regression(dataset=dataset).dim == dim


def test_logistic_regression_is_prior_times_likelihood(key):
    endpoint = logistic_regression(dataset="wine_1_2")
    assert endpoint.sample is None and endpoint.log_z is None
    features, labels = posteriors._examples(*posteriors._DATASETS["wine_1_2"])
    x = jax.random.normal(key, (6, 14))
    chances = special.expit(np.asarray(x, np.float64) @ features.T)
    expected = stats.bernoulli.logpmf(labels, chances).sum(axis=1)
    expected += stats.norm.logpdf(x).sum(axis=1)
    found = jax.jit(jax.vmap(endpoint.log_density))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert_sound(endpoint, x, key=key)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ValueError, match="scikit-learn, which is not installed: pip install"):
        make_endpoint("logistic_regression")


@pytest.mark.parametrize("side", [5, 20])
def test_cox_process_is_prior_times_likelihood_whitened_or_not(side, key):
    plain, white = (log_gaussian_cox(side=side, whitened=w) for w in (False, True))
    assert plain.dim == white.dim == side**2
    mean, factor, counts = posteriors._simulated_field(side, 0)
    z = jax.random.normal(key, (4, side**2))
    x = mean + np.asarray(z, np.float64) @ factor.T
    likelihood = stats.poisson.logpmf(counts, np.exp(x) / side**2).sum(axis=1)
    # The covariance by hand: of a cell with itself and with its neighbour in the row.
    covariance = factor @ factor.T
    np.testing.assert_allclose(covariance[1, :2], 1.91 * np.exp([-33.0 / side, 0.0]), rtol=1e-8)
    whole = likelihood + stats.norm.logpdf(z).sum(axis=1)
    found = jax.jit(jax.vmap(white.log_density))(z)
    np.testing.assert_allclose(found, whole, rtol=1e-5)
    assert_sound(white, z, key=key)
    if side == 5:
        prior = stats.multivariate_normal(np.full(25, mean), covariance).logpdf(x)
        found = jax.jit(jax.vmap(plain.log_density))(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(found, prior + likelihood, rtol=1e-5)
        assert_sound(plain, jnp.asarray(x, jnp.float32), key=key)


def test_counts_are_as_many_as_the_pines_and_depend_on_the_seed():
    _, _, counts = posteriors._simulated_field(16, 0)
    assert counts.shape == (256,) and 40 < counts.sum() < 400
    assert np.any(counts != posteriors._simulated_field(16, 1)[2])
