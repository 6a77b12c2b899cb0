"""Adversarial losses in closed form, and that the game is played as described."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance

from d2ejax.images import adversarial, datasets, networks


def test_the_best_discriminator_measures_jensen_and_shannons_divergence():
    real, fake = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.1, 0.3, 0.6])

    def mean_loss(logits):
        losses = jax.vmap(adversarial.discriminator_loss, (0, None))(logits, jnp.float32(0.0))
        others = jax.vmap(adversarial.discriminator_loss, (None, 0))(jnp.float32(0.0), logits)
        # Each with one of the two terms at a logit of zero, where it is log 2.
        terms = jnp.asarray(real, jnp.float32) * (losses - jnp.log(2.0))
        return jnp.sum(terms + jnp.asarray(fake, jnp.float32) * (others - jnp.log(2.0)))

    best = jnp.asarray(np.log(real / fake), jnp.float32)
    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(best)
    divergence = scipy.spatial.distance.jensenshannon(real, fake) ** 2
    np.testing.assert_allclose(value, np.log(4.0) - 2.0 * divergence, rtol=1e-5)
    np.testing.assert_allclose(gradient, np.zeros(3), atol=1e-6)


def test_the_generators_loss_does_not_saturate():
    value, gradient = jax.value_and_grad(adversarial.generator_loss)(jnp.float32(-50.0))
    np.testing.assert_allclose([value, gradient], [50.0, -1.0], rtol=1e-6)


def test_the_penalty_is_half_the_squared_gradient(key):
    images = jax.random.normal(key, (3, 4, 4, 1))

    def discriminate(images):
        return 0.5 * jnp.sum(jnp.square(images), axis=(1, 2, 3)) + 7.0

    found = adversarial.r1_penalty(discriminate, images)
    np.testing.assert_allclose(found, 0.5 * np.square(images).sum(axis=(1, 2, 3)), rtol=1e-5)


@pytest.fixture(scope="module")
def trained():
    images, _ = datasets.load("digits")
    options = {"latent_dim": 4, "width": 4, "kind": "mlp"}
    params, metrics = adversarial.train_gan(
        jax.random.key(0),
        images,
        num_steps=150,
        batch_size=32,
        learning_rate=5e-3,
        penalty_every=3,
        shift=0,
        **options,
    )
    return images, networks.adversary((8, 8, 1), **options), params, metrics


def test_the_penalty_comes_every_third_step(trained):
    _, _, _, metrics = trained
    assert metrics["penalty"].shape == (150,)
    np.testing.assert_array_equal(metrics["penalty"] > 0.0, np.arange(150) % 3 == 0)


def test_generated_images_come_nearer_to_digits(trained):
    images, description, params, _ = trained
    latents = jax.random.normal(jax.random.key(1), (500, 4))
    module = networks.build(description)["generator"]
    fresh = {"generator": module.init(jax.random.key(2), latents[0])}
    means = datasets.to_unit(images.pixels).mean(axis=0)

    def distance(params):
        generated = jax.vmap(lambda z: networks.decode(description, params, z))(latents)
        return jnp.mean(jnp.square(jnp.mean(generated, axis=0) - means))

    distance = jax.jit(distance)
    assert distance(params) < 0.5 * distance(fresh)
