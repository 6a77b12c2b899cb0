"""Classifiers: temperatures and calibration in closed form, and a short training on digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from d2ejax.images import classification, datasets, networks


def two_classes(margin, right, wrong):
    """Logits that name class 0 by a margin, of images of which some are of class 1."""
    logits = jnp.broadcast_to(jnp.asarray([[margin, 0.0]]), (right + wrong, 2))
    return logits, jnp.asarray([0] * right + [1] * wrong)


def test_cross_entropy_is_scipys(key):
    logits = 3.0 * jax.random.normal(key, (5,))
    found = classification.cross_entropy(logits, jnp.int32(2))
    np.testing.assert_allclose(found, -scipy.special.log_softmax(logits)[2], rtol=1e-5)


@pytest.mark.parametrize("margin", [0.5, 4.0, 20.0])
def test_the_temperature_makes_confidence_accuracy(margin):
    # At margin / T the log-odds are those of being right, log (8 / 2).
    logits, labels = two_classes(margin, 8, 2)
    found = jax.jit(classification.calibrate)(logits, labels)
    np.testing.assert_allclose(found, np.log(margin / np.log(4.0)), atol=1e-3)
    cooled = jax.nn.log_softmax(logits * jnp.exp(-found))
    before = classification.expected_calibration_error(jax.nn.log_softmax(logits), labels)
    after = classification.expected_calibration_error(cooled, labels)
    np.testing.assert_allclose(before, abs(0.8 - scipy.special.expit(margin)), atol=1e-5)
    assert after < 1e-3


def test_a_classifier_that_is_never_wrong_has_a_temperature():
    logits, labels = two_classes(0.1, 10, 0)
    assert jax.jit(classification.calibrate)(logits, labels) == -3.0


def test_calibration_error_is_taken_bin_by_bin():
    """Too sure in one bin and too unsure in the other, which would cancel in the mean."""
    confidence = np.repeat([0.6, 0.9], [10, 30])
    right = np.concatenate([np.arange(10) < 9, np.arange(30) < 18])
    log_probabilities = jnp.log(
        jnp.asarray(np.stack([confidence, 1 - confidence], 1), jnp.float32)
    )
    labels = jnp.asarray(np.where(right, 0, 1))
    found = classification.expected_calibration_error(log_probabilities, labels)
    np.testing.assert_allclose(found, 0.25 * 0.3 + 0.75 * 0.3, rtol=1e-5)
    one = classification.expected_calibration_error(log_probabilities, labels, num_bins=1)
    np.testing.assert_allclose(one, abs(0.25 * 0.3 - 0.75 * 0.3), rtol=1e-5)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    return classification.train_classifier(
        jax.random.key(0),
        digits[0],
        num_steps=300,
        batch_size=32,
        width=4,
        learning_rate=1e-2,
        shift=0,
    )


def test_new_digits_are_told_apart(digits, trained):
    params, metrics = trained
    description = networks.classifier((8, 8, 1), num_classes=10, width=4)
    found = classification.evaluate_classifier(description, params, digits[1])
    assert found["accuracy"] > 0.9
    # Chance has log 10.
    assert found["nll"] < 0.5
    assert metrics["nll"] <= metrics["raw_nll"]
    assert metrics["loss"].shape == (300,)
    predicted = classification.outputs(
        networks.log_probabilities, description, params, digits[1]
    )
    labels = digits[1].labels
    np.testing.assert_allclose(np.exp(predicted).sum(axis=1), 1.0, atol=1e-5)
    accuracy = (np.asarray(predicted).argmax(axis=1) == labels).mean()
    np.testing.assert_allclose(found["accuracy"], accuracy, rtol=1e-6)
    nll = -np.asarray(predicted)[np.arange(len(labels)), labels].mean()
    np.testing.assert_allclose(found["nll"], nll, rtol=1e-5)


def test_images_held_out_are_none_of_those_trained_on(key, digits):
    images = digits[0]._replace(labels=np.arange(len(digits[0].labels), dtype=np.int32))
    kept, rest = classification._split(key, images, 0.1)
    assert len(rest.labels) == round(0.1 * len(images.labels))
    both = np.concatenate([kept.labels, rest.labels])
    np.testing.assert_array_equal(np.sort(both), images.labels)
    np.testing.assert_array_equal(rest.pixels, images.pixels[rest.labels])


@pytest.mark.parametrize("held_out", [1.0, 1e-9])
def test_none_held_out_or_none_trained_on_is_refused(key, digits, held_out):
    with pytest.raises(ValueError, match="held_out = "):
        classification.train_classifier(key, digits[0], held_out=held_out)
