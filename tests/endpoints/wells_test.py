"""Products of wells: log Z and samples against the density itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import metrics
from d2ejax.endpoints import double_wells, many_well
from tests.endpoints.agreement import (
    assert_mean_in_errors,
    assert_sound,
    assert_stein_identities,
    grid_density,
)


def line_masses(endpoint, num_cells):
    """Edges of cells, and the unnormalised mass of each by a fine rule in the density."""
    # Beyond the extent as well: log Z must not depend on it.
    edges = np.linspace(-5.0, 5.0, num_cells + 1)
    inner = (np.arange(200) + 0.5) / 200
    x = edges[:-1, None] + inner * np.diff(edges)[:, None]
    points = jnp.asarray(x.reshape(-1, 1), jnp.float32)
    log_p = np.asarray(jax.jit(jax.vmap(endpoint.log_density))(points), np.float64)
    return edges, np.exp(log_p).reshape(x.shape).mean(axis=1) * np.diff(edges)


@pytest.mark.parametrize("separation", [0.5, 4.0, 12.0])
def test_a_well_on_the_line_has_its_mass_and_its_samples(separation, key):
    endpoint = double_wells(dim=1, separation=separation)
    edges, masses = line_masses(endpoint, 50)
    np.testing.assert_allclose(endpoint.log_z, np.log(masses.sum()), atol=1e-5)
    x = np.asarray(endpoint.sample(key, 100_000))
    shares = (x >= edges[:-1]) & (x < edges[1:])
    likely = masses > 1e-3 * masses.sum()
    expected = (masses / masses.sum())[likely]
    assert_mean_in_errors(shares[:, likely].astype(np.float64), expected)
    low, high = endpoint.extent
    assert ((x >= low) & (x <= high)).all()


def test_a_block_of_many_well_in_the_plane():
    endpoint = many_well(dim=2)
    _, mass = grid_density(endpoint, 0.02)
    np.testing.assert_allclose(endpoint.log_z, np.log(mass.sum()), atol=1e-4)


def test_log_z_is_that_of_independent_parts():
    # Published by Midgley et al. (2023) for 32 dimensions.
    np.testing.assert_allclose(many_well(dim=32).log_z, 164.69567532, atol=1e-5)
    np.testing.assert_allclose(many_well(dim=64).log_z, 2 * 164.69567532, atol=2e-5)
    line = double_wells(dim=1).log_z
    mixed = double_wells(dim=5, num_wells=2).log_z
    np.testing.assert_allclose(mixed, 2 * line + 1.5 * np.log(2 * np.pi), rtol=1e-12)


@pytest.mark.parametrize(
    "endpoint",
    [many_well(dim=12), double_wells(), double_wells(dim=6, num_wells=2)],
    ids=["many_well", "MW-5", "two wells of six"],
)
def test_samples_follow_the_density(endpoint, key):
    assert_stein_identities(endpoint, key)
    assert_sound(endpoint, endpoint.sample(key, 5), key=key)


def test_modes_are_maxima_and_hold_their_masses(key):
    endpoint = many_well(dim=4)
    assert endpoint.modes.shape == (4, 4)
    gradient = jax.jit(jax.vmap(jax.grad(endpoint.log_density)))(jnp.asarray(endpoint.modes))
    np.testing.assert_allclose(gradient, np.zeros((4, 4)), atol=1e-4)
    # Wells of the x, nothing of the y.
    np.testing.assert_array_equal(endpoint.modes[:, 1::2], np.zeros((4, 2)))
    x = np.asarray(endpoint.sample(key, 50_000))
    error = np.sqrt(endpoint.mode_weights * (1 - endpoint.mode_weights) / 50_000)
    found = metrics.mode_weights(x, endpoint.modes)
    assert np.abs((found - endpoint.mode_weights) / error).max() < 4.5
    assert np.ptp(endpoint.mode_weights) > 0.3 and endpoint.mode_weights.sum() == 1.0
    assert double_wells().modes.shape == (32, 5)
    np.testing.assert_allclose(np.abs(double_wells().modes), 2.0, rtol=1e-6)
    assert many_well(dim=12).modes.shape == (64, 12)
    assert many_well(dim=14).modes is None and many_well(dim=14).mode_weights is None
