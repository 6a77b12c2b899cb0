"""The loop of all trainers, gradient descent in closed form, and what is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax.images import datasets, training
from d2ejax.images.datasets import Images

SLOPE, RATE, DECAY = 2.0, 0.125, 0.9


def noisy_step(state, key, data):
    """A random walk in the data."""
    move = data[jax.random.randint(key, (), 0, len(data))]
    return state + move, {"loss": state, "move": move}


def test_the_result_does_not_depend_on_the_dispatches(key):
    data = np.asarray([1.0, -0.3, 0.01, 7.0], np.float32)
    reports = []

    def run(steps_per_dispatch):
        return training.fit(
            jax.random.normal,
            noisy_step,
            7,
            key,
            data,
            steps_per_dispatch=steps_per_dispatch,
            report=lambda taken, metrics: reports.append((taken, len(metrics["loss"]))),
        )

    state, metrics = run(3)
    whole, whole_metrics = run(7)
    assert state == whole
    assert reports == [(3, 3), (6, 3), (7, 1), (7, 7)]
    for name in ("loss", "move"):
        assert metrics[name].shape == (7,)
        np.testing.assert_array_equal(metrics[name], whole_metrics[name])
    # Each step has a key of its own, and its loss is that of the state before it.
    assert len(set(metrics["move"].tolist())) > 1
    np.testing.assert_allclose(np.diff(metrics["loss"]), metrics["move"][:-1], rtol=1e-5)
    other, _ = training.fit(jax.random.normal, noisy_step, 7, jax.random.key(1), data)
    assert other != state


def test_a_loss_that_is_not_finite_is_named(key):
    def step(state, key, data):
        return state + 1.0, {"loss": jnp.where(state == 5.0, jnp.nan, state)}

    with pytest.raises(FloatingPointError, match="loss of step 5 is not finite"):
        training.fit(lambda key: jnp.float32(0.0), step, 8, key, (), steps_per_dispatch=4)


@pytest.mark.parametrize("name", ["num_steps", "steps_per_dispatch"])
def test_no_steps_are_refused(key, name):
    numbers = {"num_steps": 4, "steps_per_dispatch": 2} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} = 0 is not allowed"):
        training.fit(
            jax.random.normal, noisy_step, numbers.pop("num_steps"), key, (), **numbers
        )


def test_descent_and_its_average_in_closed_form():
    """Down a slope the parameters move at one speed, and the average lags behind."""
    steps = training.descent(
        lambda x, slope: (slope * x, {"twice": 2.0 * x}), optax.sgd(RATE), decay=DECAY
    )

    @functools.partial(jax.jit, static_argnums=1)
    def after(start, num_steps):
        def advance(state, _):
            return steps.step(state, jnp.float32(SLOPE))

        return jax.lax.scan(advance, steps.init(start), None, length=num_steps)

    state, metrics = after(jnp.float32(1.0), 1)
    assert state.params == 1.0 - RATE * SLOPE
    # A ninth of what it was initialised to is forgotten at once.
    np.testing.assert_allclose(state.average, 1.0 - 0.9 * RATE * SLOPE, rtol=1e-6)
    assert metrics["loss"] == SLOPE and metrics["twice"] == 2.0
    state, _ = after(jnp.float32(1.0), 400)
    assert state.taken == 400
    np.testing.assert_allclose(state.params, 1.0 - 400 * RATE * SLOPE, rtol=1e-6)
    lag = RATE * SLOPE * DECAY / (1.0 - DECAY)
    np.testing.assert_allclose(state.average - state.params, lag, rtol=1e-3)


def test_random_shifts_are_all_shifts_equally_often(key):
    image = jnp.arange(1, 31, dtype=jnp.uint8).reshape(5, 6, 1)
    shift = jax.jit(jax.vmap(functools.partial(training.random_shift, largest=1), (0, None)))
    n = 4500
    found, counts = np.unique(
        shift(jax.random.split(key, n), image), axis=0, return_counts=True
    )
    padded = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)), mode="edge")
    expected = [padded[i : i + 5, j : j + 6] for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(found, np.unique(np.stack(expected), axis=0))
    error = np.sqrt(n * (1 / 9) * (8 / 9))
    assert np.abs(counts - n / 9).max() < 4.0 * error


@pytest.mark.parametrize("shift", [0, 2])
def test_a_batch_keeps_images_with_their_labels(key, shift):
    # Of one colour each, which no shift changes.
    labels = np.arange(10, dtype=np.int32)
    pixels = np.broadcast_to((25 * labels).astype(np.uint8)[:, None, None, None], (10, 4, 4, 1))
    data = training.on_device(Images("plain", pixels, labels, tuple("0123456789")))
    draw = jax.jit(lambda key: training.draw(key, data, 200, shift=shift))
    images, drawn = draw(key)
    assert images.shape == (200, 4, 4, 1) and images.dtype == jnp.float32
    np.testing.assert_allclose(images, datasets.to_unit(pixels[np.asarray(drawn)]), atol=1e-6)
    assert set(np.asarray(drawn).tolist()) == set(range(10))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 4, 4, 1), np.float32),
        np.zeros((2, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 1), np.uint8),
    ],
    ids=["floats", "no channels", "none"],
)
def test_what_are_no_images_is_refused(pixels):
    with pytest.raises(ValueError, match="not allowed: must be uint8"):
        training.on_device(Images("bad", pixels, np.zeros(len(pixels), np.int32), ("a", "b")))
