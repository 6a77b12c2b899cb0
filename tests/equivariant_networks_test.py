"""Equivariant networks: what symmetries do to their outputs, and zero at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ortho_group

from d2ejax import equivariant_networks, networks
from d2ejax.endpoints import double_well_particles, from_positions, to_positions

NUM, SPACE, T_MAX = 4, 2, 2.0
ENERGY = double_well_particles(num_particles=NUM, space_dim=SPACE).log_density
SIZES = {"width": 8, "depth": 2, "num_frequencies": 3}


def equivariant(**settings):
    return equivariant_networks.equivariant_network(NUM, SPACE, T_MAX, **SIZES, **settings)


def moved(network, key, size=0.3):
    """Parameters away from the start, where the drift is zero."""
    return jax.jit(_moved, static_argnums=0)(network.init, key, size)


def _moved(init, key, size):
    leaves, tree = jax.tree.flatten(init(key))
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + size * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def transformed(x, matrix, order):
    """The coordinates of the same configuration turned and with its particles renamed."""
    positions = to_positions(x, NUM, SPACE)
    return from_positions(jnp.matmul(positions, matrix.T)[order])


@pytest.fixture(scope="module")
def symmetries():
    """States, and what they and a vector at them are under a rotation and a permutation."""
    matrices = ortho_group.rvs(SPACE, size=8, random_state=0).astype(np.float32)
    # Reflections as well.
    assert set(np.sign(np.linalg.det(matrices))) == {-1.0, 1.0}
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(NUM) for _ in matrices])
    x = 2.0 * jax.random.normal(jax.random.key(1), (len(matrices), (NUM - 1) * SPACE))
    transform = jax.jit(jax.vmap(transformed))
    return x, lambda v: transform(v, matrices, orders)


def symmetry_errors(network, key, symmetries):
    """Largest errors of drift and log-variance in units of their sizes."""
    params = moved(network, key)
    x, transform = symmetries
    apply = jax.jit(jax.vmap(network.apply, (None, 0, None)))
    drift, log_variance = apply(params, x, jnp.float32(0.7))
    other, other_variance = apply(params, transform(x), jnp.float32(0.7))
    assert np.abs(drift).min() > 1e-4 and np.abs(log_variance).min() > 1e-4
    drift_error = np.abs(other - transform(drift)).max() / np.abs(drift).max()
    return drift_error, np.abs(other_variance - log_variance).max() / np.abs(log_variance).max()


def test_turning_and_renaming_the_particles_turns_and_renames_the_drift(key, symmetries):
    network = equivariant(log_density=ENERGY, affine=True)
    drift_error, variance_error = symmetry_errors(network, key, symmetries)
    assert drift_error < 1e-4 and variance_error < 1e-4


def test_the_check_fails_for_a_network_that_knows_no_symmetry(key, symmetries):
    plain = networks.drift_network((NUM - 1) * SPACE, T_MAX, width=8, depth=2)
    assert min(symmetry_errors(plain, key, symmetries)) > 0.05


def test_it_starts_at_zero_and_learns_from_there(key):
    network = equivariant(log_density=ENERGY, affine=True)
    params, x, t = jax.jit(network.init)(key), jnp.linspace(-2.0, 3.0, 6), jnp.float32(0.7)
    for output in jax.jit(network.apply)(params, x, t):
        np.testing.assert_array_equal(output, np.zeros(6))

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: sum(jnp.sum(o) for o in network.apply(p, x, t)))(params)

    slopes = gradient(params)
    zeros = {"moves", "outputs", "outputs_bias", "slope", "slope_bias"}
    for name in zeros:
        assert np.any(slopes[name] != 0.0), name
    # Away from the start every parameter matters.
    slopes = gradient(moved(network, key))
    assert all(np.any(leaf != 0.0) for leaf in slopes.values())


def test_outputs_depend_on_time(key):
    network = equivariant()
    params, x = moved(network, key), jnp.linspace(-2.0, 3.0, 6)
    times = jnp.asarray([0.3, 1.3])
    apply = jax.jit(jax.vmap(network.apply, (None, None, 0)))
    drift, log_variance = apply(params, x, times)
    assert np.all(np.abs(drift[0] - drift[1]) > 1e-5)
    assert drift.shape == (2, 6) and np.ptp(log_variance, axis=1).max() == 0.0


def test_the_gain_multiplies_the_score_of_each_particle(key):
    network = equivariant(log_density=ENERGY, score_clip=1e9, drift_scale=2.5)
    params, x = jax.jit(network.init)(key), jnp.linspace(-2.0, 3.0, 6)
    params["outputs_bias"] = jnp.asarray([0.2, 0.5])
    drift, log_variance = jax.jit(network.apply)(params, x, jnp.float32(0.7))
    np.testing.assert_allclose(drift, 2.5 * 0.5 * jax.grad(ENERGY)(x), rtol=1e-5)
    np.testing.assert_allclose(log_variance, np.full(6, 0.2), rtol=1e-6)


def test_gradients_are_finite_where_particles_meet_and_far_away(key):
    network = equivariant()
    params = moved(network, key)
    x = jnp.stack([jnp.zeros(6), jnp.full(6, 1e4), jnp.asarray([0.0, 0.0, 1.0, 2.0, 3.0, 4.0])])

    def loss(params, x):
        drift, log_variance = network.apply(params, x, jnp.float32(0.0))
        return jnp.sum(jnp.square(drift)) + jnp.sum(log_variance)

    # Through the state as well, as path-wise losses have it.
    gradients = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, 0)))(params, x)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradients))
