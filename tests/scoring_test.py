"""Scoring in parts of a path, and networks that embed the time once for all paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, networks, references, rollouts, time_grids
from d2ejax.typing import EmbeddedNetwork
from tests.reference_cases import REFERENCES, T_MAX
from tests.rollouts_test import GRID, PARAMS, affine_network, affine_process, both_directions


@both_directions
def test_parts_of_a_path_score_as_the_whole(backward, key):
    grid = time_grids.end_refined(6, T_MAX)
    network = networks.drift_network(2, T_MAX, width=8, depth=2)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), jax.jit(network.init)(key)
    )
    paths = jax.random.normal(key, (3, 2, 7, 2))

    def found(steps_at_once):
        process = kernels.process(
            network.apply,
            REFERENCES["ornstein_uhlenbeck"],
            grid,
            backward=backward,
            steps_at_once=steps_at_once,
        )
        reference = kernels.process(
            kernels.zero_network, references.brownian(1.1), grid, backward=backward
        )

        def total(params):
            scores = rollouts.step_log_densities(process, params, paths)
            return jnp.sum(jnp.square(scores)), scores

        @jax.jit
        def run(params):
            (_, scores), gradient = jax.value_and_grad(total, has_aux=True)(params)
            kl = rollouts.step_kl_divergences(process, params, reference, None, paths)
            return scores, kl, gradient

        return run(params)

    whole = found(None)
    assert whole[0].shape == whole[1].shape == (3, 2, 6)
    for steps_at_once in (1, 2, 6):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4),
            found(steps_at_once),
            whole,
        )


def peak_elements(function, *args):
    """The number of elements of the largest array that a function makes."""
    sizes = [0]

    def look(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(out.aval.size for out in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                look(inner)

    look(jax.make_jaxpr(function)(*args).jaxpr)
    return max(sizes)


def test_parts_of_a_path_keep_their_activations_small(key):
    width, num_steps, paths = 32, 40, jnp.zeros((8, 41, 2))
    grid = time_grids.uniform(num_steps, T_MAX)
    network = networks.drift_network(2, T_MAX, width=width, depth=2)

    def gradient(steps_at_once):
        process = kernels.process(
            network.apply, references.brownian(1.0), grid, steps_at_once=steps_at_once
        )
        return jax.grad(lambda p: jnp.sum(rollouts.log_density(process, p, paths)))

    params = jax.eval_shape(network.init, key)
    assert peak_elements(gradient(None), params) >= 8 * num_steps * width
    # The time terms of all layers and steps are there at once in either case.
    assert peak_elements(gradient(5), params) <= max(8 * 5 * width, num_steps * 2 * width)


def test_time_is_embedded_once_for_all_paths(key):
    """Cosines are of the network's time features alone."""
    network = networks.drift_network(2, T_MAX, width=8, depth=1, num_frequencies=3)
    process = kernels.process(network.apply, references.brownian(1.0), GRID)
    params = jax.eval_shape(network.init, key)
    seen = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "cos":
                seen.append(equation.outvars[0].aval.shape)
            for inner in jax.core.jaxprs_in_params(equation.params):
                look(inner)

    def run(key, params):
        keys = jax.random.split(key, 7)
        paths = jax.vmap(rollouts.simulate, (0, None, None, None))(
            keys, process, params, jnp.zeros(2)
        )
        return rollouts.log_density(process, params, paths)

    look(jax.make_jaxpr(run)(key, params).jaxpr)
    assert seen == [(GRID.num_steps, 2, 3)] * 2


@both_directions
def test_a_network_in_two_parts_is_the_network(backward, key):
    parts = EmbeddedNetwork(
        lambda params, t: {"cos": jnp.cos(t)},
        lambda params, x, embedding: (
            params["slope"] * x + params["push"] * embedding["cos"],
            params["spread"] * jnp.tanh(x) + params["level"],
        ),
    )
    whole = affine_process(backward)
    split = kernels.process(
        parts, REFERENCES["ornstein_uhlenbeck"], GRID, backward=backward, variance="bridge"
    )
    paths = jax.vmap(rollouts.simulate, (0, None, None, None))(
        jax.random.split(key, 3), split, PARAMS, jnp.ones(2)
    )
    expected = jax.vmap(rollouts.simulate, (0, None, None, None))(
        jax.random.split(key, 3), whole, PARAMS, jnp.ones(2)
    )
    np.testing.assert_allclose(paths, expected, rtol=1e-5)
    np.testing.assert_allclose(
        rollouts.log_density(split, PARAMS, paths),
        rollouts.log_density(whole, PARAMS, paths),
        rtol=1e-5,
    )
    drift, log_variance = parts(PARAMS, jnp.ones(2), jnp.float32(0.3))
    np.testing.assert_allclose(
        (drift, log_variance), affine_network(PARAMS, jnp.ones(2), jnp.float32(0.3)), rtol=1e-6
    )


@both_directions
def test_paths_of_another_length_are_refused(backward):
    process = affine_process(backward)
    for score in (
        rollouts.log_density,
        lambda p, params, x: rollouts.step_kl_divergences(p, params, p, params, x),
    ):
        with pytest.raises(ValueError, match="paths have 5 points: must have 6"):
            score(process, PARAMS, jnp.zeros((3, 5, 2)))
