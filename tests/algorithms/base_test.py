"""Guarded updates, moving averages, and what is shared between devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax.algorithms import base

OPTIMISER = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(0.1))


@jax.jit
def update(model, gradients, loss):
    return base.update_model(model, gradients, loss, OPTIMISER, decay=0.9)


@functools.cache
def make_model():
    params = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray(0.5)}
    model = base.init_model(params, OPTIMISER)
    # A step behind it, so that no part of the optimiser's state is zero.
    gradients = {"w": jnp.asarray([0.3, 0.1]), "b": jnp.asarray(-0.2)}
    return update(model, gradients, jnp.asarray(1.0))[0]


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_step_of_gradient_descent_worked_out_by_hand():
    model = base.init_model(jnp.asarray([1.0, 2.0]), optax.sgd(0.5))
    np.testing.assert_array_equal(model.average, model.params)
    descend = jax.jit(
        lambda model, slope: base.update_model(
            model, slope, jnp.asarray(3.0), optax.sgd(0.5), decay=0.75
        )
    )
    model, finite = descend(model, jnp.asarray([2.0, -4.0]))
    assert bool(finite)
    np.testing.assert_allclose(model.params, [0.0, 4.0])
    # 0.75 · (1, 2) + 0.25 · (0, 4).
    np.testing.assert_allclose(model.average, [0.75, 2.5])
    model, _ = descend(model, jnp.asarray([0.0, 0.0]))
    # 0.75 · (0.75, 2.5) + 0.25 · (0, 4): the average goes on moving while params rest.
    np.testing.assert_allclose(model.average, [0.5625, 2.875])


def test_decay_zero_has_no_memory():
    model = base.init_model(jnp.asarray([1.0]), optax.sgd(1.0))
    model, _ = base.update_model(
        model, jnp.asarray([3.0]), jnp.asarray(0.0), optax.sgd(1.0), decay=0.0
    )
    np.testing.assert_allclose(model.average, model.params)


@pytest.mark.parametrize("loss", [1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("slope", [0.1, np.nan, np.inf, 1e30])
def test_what_is_not_finite_leaves_the_model_as_it_was(loss, slope):
    model = make_model()
    gradients = {"w": jnp.asarray([0.2, slope], jnp.float32), "b": jnp.asarray(0.1)}
    after, finite = update(model, gradients, jnp.asarray(loss, jnp.float32))
    # The norm of 1e30 overflows float32: a step that clipping would turn into 0 or NaN.
    assert bool(finite) == (loss == 1.0 and slope == 0.1)
    if finite:
        for leaf, old in zip(jax.tree.leaves(after), jax.tree.leaves(model), strict=True):
            assert not np.array_equal(leaf, old)
    else:
        assert_identical(after, model)
    assert jax.tree.structure(after) == jax.tree.structure(model)
    jax.tree.map(
        lambda a, b: pytest.fail("dtype") if a.dtype != b.dtype else None, after, model
    )


def test_devices_share_means_and_nothing_else(key):
    count = jax.local_device_count()
    assert count == 8

    def one(x):
        own = jax.random.uniform(base.device_key(key, "devices"))
        return own, base.device_mean({"x": x}, "devices")["x"]

    draws, means = jax.pmap(one, axis_name="devices")(jnp.arange(8.0))
    assert len(set(np.asarray(draws).tolist())) == count
    np.testing.assert_allclose(means, np.full(8, 3.5))


def test_devices_wait_for_each_other_once():
    tree = {"x": jnp.zeros((8, 3)), "y": (jnp.zeros((8, 2, 2)), jnp.zeros((8,)))}
    mapped = jax.pmap(lambda t: base.device_mean(t, "devices"), axis_name="devices")
    assert str(jax.make_jaxpr(mapped)(tree)).count("psum") == 1
    jax.tree.map(np.testing.assert_array_equal, mapped(tree), tree)


def test_without_a_mapped_axis_nothing_changes(key):
    tree = {"x": jnp.arange(3.0)}
    assert_identical(base.device_mean(tree, None), tree)
    assert bool(base.device_key(key, None) == key)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_device_that_is_not_finite_is_left_out_of_the_mean(bad):
    def step(x):
        values = (jnp.sum(x), {"metric": x[0]}), 2.0 * x
        return base.mean_of_finite(values, "devices")

    given = jnp.asarray([[1.0, 2.0], [bad, 1.0], [3.0, 6.0]])
    (loss, _), gradient = jax.vmap(step, axis_name="devices")(given)
    np.testing.assert_allclose(loss, [6.0] * 3)
    np.testing.assert_allclose(gradient, [[4.0, 8.0]] * 3)
    (loss, _), gradient = jax.vmap(step, axis_name="devices")(jnp.full((2, 2), bad))
    assert np.isnan(loss).all() and np.isnan(gradient).all()


def test_a_step_beyond_float32_is_left_out():
    model = base.init_model({"w": jnp.ones(2)}, optax.sgd(1e38))
    gradients = {"w": jnp.asarray([1e3, 0.0])}
    after, taken = base.update_model(
        model, gradients, jnp.zeros(()), optax.sgd(1e38), decay=0.5
    )
    assert not taken
    np.testing.assert_array_equal(after.params["w"], model.params["w"])
