"""Amortised over contexts: shared parameters, and to each what it has found."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import networks
from d2ejax.algorithms import base
from d2ejax.algorithms.contexts import amortised
from d2ejax.typing import Array

GOALS = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]], np.float32)


class Counted(NamedTuple):
    """The state of an algorithm with a memory of its own."""

    model: base.Model
    drawn: Array
    step: Array
    skipped: Array
    consecutive_skipped: Array
    key: Array


def make(context):
    """Fits a plane through one goal of each context, and remembers how often it did."""
    features = jax.nn.one_hot(context, len(GOALS), dtype=jnp.float32)
    optimiser = optax.sgd(0.2)

    def init(key):
        drawn = jnp.zeros((), jnp.int32)
        params = {"slope": jnp.zeros((len(GOALS), 2)), "offset": jnp.zeros(2)}
        given = base.init_state(key, lambda key: params, optimiser, None)
        return Counted(given.model, drawn, *given[1:])

    def step(state):
        def loss(params):
            found = jnp.matmul(features, params["slope"]) + params["offset"]
            return jnp.sum(jnp.square(found - jnp.asarray(GOALS)[context])), {}

        model, finite, metrics = base.gradient_step(
            loss, state.model, optimiser, decay=0.9, axis_name=None
        )
        return base.counted(state._replace(model=model, drawn=state.drawn + 1), finite), metrics

    return base.Algorithm(init, step, own=("drawn", "key"))


def run(algorithm, state, num_steps):
    return jax.lax.scan(lambda state, _: algorithm.step(state), state, length=num_steps)


def test_one_set_of_parameters_solves_all(key):
    algorithm = amortised(make, len(GOALS))
    state, metrics = run(algorithm, algorithm.init(key), 150)
    params = state.shared.model.params
    np.testing.assert_allclose(params["slope"] + params["offset"][None, :], GOALS, atol=1e-3)
    assert int(state.step) == 150 and metrics["loss"].shape == (150,)
    # What each context has of its own counts its own steps.
    drawn = np.asarray(state.own[0])
    assert drawn.sum() == 150
    assert drawn.min() > 150 / 3 - 4 * np.sqrt(150 * 2 / 9)


def test_a_step_is_one_of_the_algorithm_of_the_context_drawn(key):
    algorithm = amortised(make, len(GOALS))
    before, _ = run(algorithm, algorithm.init(key), 5)
    after, _ = algorithm.step(before)
    (context,) = np.flatnonzero(np.asarray(after.own[0]) - np.asarray(before.own[0]))
    own = jax.tree.map(lambda leaf: leaf[context], before.own)
    inner = before.shared._replace(drawn=own[0], key=own[1])
    expected, _ = make(jnp.int32(context)).step(inner)
    jax.tree.map(np.testing.assert_array_equal, after.shared.model, expected.model)


def test_each_context_draws_numbers_of_its_own(key):
    keys = jax.random.key_data(amortised(make, len(GOALS)).init(key).own[1])
    assert len(np.unique(np.asarray(keys), axis=0)) == len(GOALS)


def test_no_context_is_refused():
    with pytest.raises(ValueError, match="num_contexts = 0"):
        amortised(make, 0)


def test_a_network_says_another_thing_in_each_context(key):
    def out(context, params=None):
        features = jax.nn.one_hot(context, 3, dtype=jnp.float32)
        network = networks.drift_network(2, 1.0, width=8, affine=True, context=features)
        params = network.init(key) if params is None else params
        return params, network.apply(params, jnp.ones(2), jnp.float32(0.3))[0]

    params, _ = out(0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    found = np.stack([out(context, params)[1] for context in range(3)])
    assert np.abs(found[:, None] - found[None]).max(axis=2)[np.triu_indices(3, 1)].min() > 1e-4
