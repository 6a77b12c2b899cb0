"""Networks with a graph: what a missing edge means, the penalty, and a sparse drift found."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import graph_networks, metrics

T_MAX, DIM = 2.0, 4


def moved(network, key, size=0.5):
    """Parameters away from the start, where the head is zero."""
    leaves, tree = jax.tree.flatten(network.init(key))
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + size * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def slopes(network, params, x, t):
    """∂(drift_j)/∂x_i in row i and column j, as the edges have it."""
    return jax.jit(jax.jacfwd(lambda x: network.apply(params, x, t)[0]))(x).T


@pytest.mark.parametrize("num_frequencies", [0, 3])
def test_it_starts_at_zero_and_log_variances_stay_there(key, num_frequencies):
    network = graph_networks.graph_network(DIM, T_MAX, num_frequencies=num_frequencies)
    x, t = jnp.asarray([1.0, -2.0, 30.0, 0.0]), jnp.float32(0.7)
    for output in jax.jit(network.apply)(network.init(key), x, t):
        np.testing.assert_array_equal(output, np.zeros(DIM))
    drift, log_variance = jax.jit(network.apply)(moved(network, key), x, t)
    assert np.all(np.abs(drift) > 1e-3)
    np.testing.assert_array_equal(log_variance, np.zeros(DIM))


@pytest.mark.parametrize("num_frequencies", [0, 3])
@pytest.mark.parametrize("depth", [1, 3])
def test_without_an_edge_there_is_no_dependence_at_all(key, num_frequencies, depth):
    network = graph_networks.graph_network(
        DIM, T_MAX, width=5, depth=depth, num_frequencies=num_frequencies
    )
    params = moved(network, key)
    missing = np.zeros((DIM, DIM), bool)
    missing[[0, 2, 2, 3], [1, 0, 3, 3]] = True
    params["edges"] = jnp.where(missing[:, :, None], 0.0, params["edges"])
    x = jax.random.normal(key, (DIM,))
    found = np.asarray(slopes(network, params, x, jnp.float32(0.7)))
    np.testing.assert_array_equal(found == 0.0, missing)
    np.testing.assert_array_equal(graph_networks.edge_strengths(params) == 0.0, missing)


def test_time_enters_by_its_frequencies_alone(key):
    x, times = jnp.linspace(-1.0, 1.0, DIM), jnp.asarray([0.3, 1.3])
    for num_frequencies, differs in ((0, False), (2, True)):
        network = graph_networks.graph_network(DIM, T_MAX, num_frequencies=num_frequencies)
        params = moved(network, key)
        early, late = (network.apply(params, x, t)[0] for t in times)
        assert np.all((np.abs(early - late) > 1e-4) == differs)


def test_the_scale_is_that_of_the_output(key):
    plain, scaled = (
        graph_networks.graph_network(DIM, T_MAX, drift_scale=scale) for scale in (1.0, 2.5)
    )
    params, x, t = moved(plain, key), jnp.linspace(-1.0, 1.0, DIM), jnp.float32(0.7)
    np.testing.assert_allclose(
        scaled.apply(params, x, t)[0], 2.5 * plain.apply(params, x, t)[0], rtol=1e-5
    )


def test_strengths_and_penalty_are_norms_from_regulator_to_target():
    edges = jnp.zeros((2, 2, 2)).at[0, 1].set(jnp.asarray([3.0, 4.0])).at[1, 1, 0].set(-2.0)
    params = {"edges": edges, "head": jnp.ones((2, 2))}
    strengths = graph_networks.edge_strengths(params)
    np.testing.assert_allclose(strengths, [[0.0, 5.0], [0.0, 2.0]], rtol=1e-6)
    penalty, gradient = jax.value_and_grad(graph_networks.group_lasso)(params)
    np.testing.assert_allclose(penalty, 7.0, rtol=1e-6)
    # Unit vectors where there is an edge, and nothing where there is none.
    expected = np.zeros((2, 2, 2))
    expected[0, 1], expected[1, 1] = [0.6, 0.8], [-1.0, 0.0]
    np.testing.assert_allclose(gradient["edges"], expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient["head"], np.zeros((2, 2)))


def test_a_sparse_linear_drift_shows_its_graph(key):
    # A circle with a chord: none of the pairs that are no edges is linked both ways.
    edges = np.zeros((DIM, DIM), bool)
    edges[[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]] = True
    matrix = jnp.asarray(np.where(edges, 1.0, 0.0) - np.eye(DIM), jnp.float32)
    network = graph_networks.graph_network(DIM, T_MAX, width=8)
    optimiser = optax.adam(1e-2)

    def loss(params, x):
        drift, _ = jax.vmap(network.apply, (None, 0, None))(params, x, jnp.float32(0.0))
        error = jnp.mean(jnp.sum(jnp.square(drift - x @ matrix), axis=1))
        return error + 0.01 * graph_networks.group_lasso(params)

    def step(carry, key):
        params, state = carry
        # Correlated, so that a regression on one coordinate would be misled.
        x = jax.random.normal(key, (64, DIM)) + jax.random.normal(key, (64, 1))
        updates, state = optimiser.update(jax.grad(loss)(params, x), state)
        return (optax.apply_updates(params, updates), state), None

    params = network.init(key)
    with jax.numpy_dtype_promotion("standard"):
        (params, _), _ = jax.jit(jax.lax.scan, static_argnums=0)(
            step, (params, optimiser.init(params)), jax.random.split(key, 400)
        )
    strengths = np.asarray(graph_networks.edge_strengths(params))
    assert metrics.edge_auroc(strengths, edges) == 1.0
    others = ~(edges | np.eye(DIM, dtype=bool))
    assert strengths[edges].min() > 5.0 * strengths[others].max()
