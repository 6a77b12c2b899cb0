"""Posteriors of latents against a linear generator, for which they are Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from d2ejax.endpoints import class_reward, latent_posterior
from d2ejax.endpoints.latent import rejection_samples

DIM = 3
SLOPE, SHIFT = np.array([1.0, -0.5, 2.0]), 1.5
TEMPERATURE = 0.5
# -(w·z - b)²/2 at the temperature τ is a measurement of w·z with the variance τ.
PRECISION = np.eye(DIM) + np.outer(SLOPE, SLOPE) / TEMPERATURE
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ SLOPE * SHIFT / TEMPERATURE


def reward(z):
    slope = jnp.asarray(SLOPE, jnp.float32)
    return -0.5 * jnp.square(jnp.vdot(slope, z) - SHIFT)


def test_it_is_the_gaussian_posterior_of_a_linear_generator(key):
    endpoint = latent_posterior(DIM, reward, temperature=TEMPERATURE)
    z = jax.random.normal(key, (5, DIM))
    evidence = stats.norm.logpdf(SHIFT, 0.0, np.sqrt(SLOPE @ SLOPE + TEMPERATURE))
    log_z = evidence + 0.5 * np.log(2.0 * np.pi * TEMPERATURE)
    expected = stats.multivariate_normal(MEAN, COVARIANCE).logpdf(np.asarray(z)) + log_z
    np.testing.assert_allclose(jax.vmap(endpoint.log_density)(z), expected, rtol=1e-5)
    scores = jax.vmap(jax.grad(endpoint.log_density))(z)
    np.testing.assert_allclose(scores, (MEAN - np.asarray(z)) @ PRECISION, rtol=1e-4, atol=1e-5)


def test_without_a_bound_there_is_no_sampler():
    assert latent_posterior(DIM, reward).sample is None


def test_rejection_gives_samples_of_it(key):
    endpoint = latent_posterior(DIM, reward, temperature=TEMPERATURE, bounded=True)
    n = 20_000
    samples = np.asarray(jax.jit(endpoint.sample, static_argnums=1)(key, n), np.float64)
    whitened = (samples - MEAN) @ np.linalg.cholesky(PRECISION)
    # Means of as many standard normal numbers, and of their products.
    assert np.abs(whitened.mean(axis=0)).max() < 4.0 / np.sqrt(n)
    assert np.abs(whitened.T @ whitened / n - np.eye(DIM)).max() < 4.0 * np.sqrt(2.0 / n)


def test_samples_of_what_is_rarely_accepted_are_distinct(key):
    samples = rejection_samples(key, 200, 2, lambda z: jnp.full((), jnp.log(0.01)))
    assert np.isfinite(samples).all()
    assert len(np.unique(np.asarray(samples), axis=0)) == 200


@pytest.mark.parametrize("combine", ["sum", "max"])
def test_a_reward_of_classes_adds_their_probabilities_or_takes_the_best(combine):
    logits = np.array([0.3, -1.0, 2.0, 0.5])
    chances = special.softmax(logits)
    combined = {"sum": chances[1] + chances[2], "max": chances[2]}[combine]
    found = class_reward(jax.nn.log_softmax, (1, 2), combine=combine)(jnp.asarray(logits))
    np.testing.assert_allclose(found, np.log(combined), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: latent_posterior(0, reward), "dim = 0"),
        (lambda: latent_posterior(2, reward, temperature=0.0), "temperature = 0.0"),
        (lambda: class_reward(jax.nn.log_softmax, ()), r"classes = \(\): must name at least"),
        (lambda: class_reward(jax.nn.log_softmax, (1, 1)), r"classes = \(1, 1\)"),
        (lambda: class_reward(jax.nn.log_softmax, (-1,)), "classes = -1"),
        (
            lambda: class_reward(jax.nn.log_softmax, (1,), combine="summ"),
            "unknown combine 'summ': did you mean 'sum'",
        ),
    ],
)
def test_bad_input_is_refused_by_name(build, text):
    with pytest.raises(ValueError, match=text):
        build()
