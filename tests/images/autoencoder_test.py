"""Autoencoders: the bound against evidence that is known, and a short training on digits."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from d2ejax.images import autoencoder, datasets, networks

# x = W z + b + s ε with orthogonal columns: evidence and posterior are Gaussian, and the latter
# has a diagonal covariance.
FACTORS = np.asarray([[1.0, 0.5], [1.0, -0.5], [0.0, 0.0]])
OFFSET = np.asarray([0.3, -0.2, 0.1])
VARIANCE = 0.4
X = np.asarray([1.1, 0.4, -0.5])
LOG_EVIDENCE = scipy.stats.multivariate_normal.logpdf(
    X, OFFSET, FACTORS @ FACTORS.T + VARIANCE * np.eye(3)
)
POSTERIOR_VARIANCE = 1.0 / (1.0 + (FACTORS**2).sum(axis=0) / VARIANCE)
POSTERIOR_MEAN = POSTERIOR_VARIANCE * (FACTORS.T @ (X - OFFSET)) / VARIANCE
# A q(z | x) that is off.
MEAN = POSTERIOR_MEAN + np.asarray([0.3, -0.2])
LOG_VARIANCE = np.log(POSTERIOR_VARIANCE) + np.asarray([0.4, -0.3])


def single(array):
    return jnp.asarray(array, jnp.float32)


def gaussian(mean, log_variance):
    return distrax.MultivariateNormalDiag(single(mean), jnp.exp(0.5 * single(log_variance)))


GAP = float(
    gaussian(MEAN, LOG_VARIANCE).kl_divergence(
        gaussian(POSTERIOR_MEAN, np.log(POSTERIOR_VARIANCE))
    )
)


def posterior_of(mean, log_variance):
    def posterior(images):
        shape = (len(images), 2)
        return tuple(
            jnp.broadcast_to(single(value)[None, :], shape) for value in (mean, log_variance)
        )

    return posterior


def log_likelihood(latents, images):
    means = latents @ single(FACTORS).T + single(OFFSET)[None, :]
    each = jax.vmap(autoencoder.gaussian, (0, None, 0))
    return each(means, jnp.log(jnp.float32(VARIANCE)), images)


@pytest.mark.parametrize(
    ("mean", "log_variance", "gap"),
    [(POSTERIOR_MEAN, np.log(POSTERIOR_VARIANCE), 0.0), (MEAN, LOG_VARIANCE, GAP)],
    ids=["exact", "off"],
)
def test_the_bound_is_the_evidence_less_the_posteriors_divergence(key, mean, log_variance, gap):
    n = 20_000
    images = jnp.broadcast_to(single(X)[None, :], (n, 3))
    posterior = posterior_of(mean, log_variance)
    loss = jax.jit(lambda key: autoencoder.vae_loss(key, images, posterior, log_likelihood))
    losses, bound = loss(key)
    error = float(losses.std()) / np.sqrt(n)
    assert error < 0.02
    assert abs(float(losses.mean()) + LOG_EVIDENCE - gap) < 4.0 * error
    np.testing.assert_allclose(losses, bound.reconstruction + bound.kl, rtol=1e-5)


def test_importance_weights_close_the_gap(key):
    def estimate(mean, log_variance, num_samples):
        posterior = posterior_of(mean, log_variance)
        one = jax.jit(
            jax.vmap(
                lambda key: autoencoder.importance_log_evidence(
                    key, single(X), posterior, log_likelihood, num_samples=num_samples
                )
            )
        )
        values = np.asarray(one(jax.random.split(key, 200)), np.float64)
        return values, values.std() / np.sqrt(200)

    # From the posterior itself every weight is the evidence.
    exact, _ = estimate(POSTERIOR_MEAN, np.log(POSTERIOR_VARIANCE), 1)
    np.testing.assert_allclose(exact, LOG_EVIDENCE, atol=2e-5)
    one, one_error = estimate(MEAN, LOG_VARIANCE, 1)
    assert abs(one.mean() - (LOG_EVIDENCE - GAP)) < 4.0 * one_error
    many, many_error = estimate(MEAN, LOG_VARIANCE, 1000)
    assert many_error < 0.05 * GAP
    assert abs(many.mean() - LOG_EVIDENCE) < 4.0 * many_error + 0.01 * GAP


def test_kl_is_that_of_gaussians():
    prior = gaussian(np.zeros(2), np.zeros(2))
    found = autoencoder.kl_from_prior(single(MEAN), single(LOG_VARIANCE))
    expected = gaussian(MEAN, LOG_VARIANCE).kl_divergence(prior)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert autoencoder.kl_from_prior(jnp.zeros(3), jnp.zeros(3)) == 0.0


def test_likelihoods_are_scipys(key):
    logits, noise = jax.random.normal(key, (2, 4, 3, 1))
    white = np.asarray(noise > 0.0)
    chances = scipy.special.expit(np.asarray(logits, np.float64))
    image = jnp.where(white, 1.0, -1.0)
    expected = scipy.stats.bernoulli.logpmf(white, chances).sum()
    np.testing.assert_allclose(autoencoder.bernoulli(logits, image), expected, rtol=1e-5)
    found = autoencoder.gaussian(logits, jnp.float32(-1.5), noise)
    expected = scipy.stats.norm.logpdf(noise, logits, np.exp(-0.75)).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_grey_is_the_mean_of_black_and_white():
    logit, grey = jnp.asarray([0.7]), 0.3
    black, white = (autoencoder.bernoulli(logit, jnp.asarray([x])) for x in (-1.0, 1.0))
    found = autoencoder.bernoulli(logit, jnp.asarray([2.0 * grey - 1.0]))
    np.testing.assert_allclose(found, (1.0 - grey) * black + grey * white, rtol=1e-6)


SMALL = {"latent_dim": 4, "width": 4, "kind": "mlp"}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    return autoencoder.train_autoencoder(
        jax.random.key(0),
        digits[0],
        num_steps=300,
        batch_size=32,
        learning_rate=1e-2,
        kl_weight=1.0,
        shift=0,
        **SMALL,
    )


def test_new_digits_are_more_likely_than_under_independent_pixels(digits, trained):
    train, test = digits
    params, metrics = trained
    description = networks.autoencoder((8, 8, 1), **SMALL)
    found = autoencoder.evaluate_autoencoder(jax.random.key(1), description, params, test)
    assert found["elbo"] == pytest.approx(-found["reconstruction"] - found["kl"])
    # The best that a latent without information can do.
    chances = np.clip(train.pixels.mean(axis=0) / 255.0, 1e-4, 1.0 - 1e-4)
    white = test.pixels / 255.0
    each = white * np.log(chances) + (1.0 - white) * np.log1p(-chances)
    independent = each.sum(axis=(1, 2, 3)).mean()
    assert found["elbo"] > independent
    assert found["kl"] > 1.0
    assert metrics["loss"].shape == (300,)
    assert metrics["loss"][-50:].mean() < metrics["loss"][:50].mean()


def test_a_misspelt_likelihood_is_refused_before_anything_is_compiled(digits):
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        autoencoder.train_autoencoder(jax.random.key(0), digits[0], likelihood="gausian")
    with pytest.raises(ValueError, match="kl_weight = 0"):
        autoencoder.train_autoencoder(jax.random.key(0), digits[0], kl_weight=0)
