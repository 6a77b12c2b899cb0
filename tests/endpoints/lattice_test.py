"""The φ⁴ action against a sum over sites, and its symmetries."""

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.endpoints import phi4
from tests.endpoints.agreement import assert_sound


def action(field, mass_squared, coupling):
    """S in the form with neighbours on both sides, site by site."""
    side, total = len(field), 0.0
    for row in range(side):
        for column in range(side):
            here = field[row, column]
            neighbours = (
                field[(row + 1) % side, column]
                + field[row - 1, column]
                + field[row, (column + 1) % side]
                + field[row, column - 1]
            )
            total += here * (4.0 * here - neighbours)
            total += mass_squared * here**2 + coupling * here**4
    return total


def test_the_action(key):
    endpoint = phi4(side=4, mass_squared=-2.0, coupling=1.5)
    assert endpoint.dim == 16 and endpoint.sample is None and endpoint.log_z is None
    x = jax.random.normal(key, (5, 16))
    fields = np.asarray(x, np.float64).reshape(5, 4, 4)
    expected = [-action(field, -2.0, 1.5) for field in fields]
    log_density = jax.jit(jax.vmap(endpoint.log_density))
    np.testing.assert_allclose(log_density(x), expected, rtol=1e-5)
    # The sign, and the torus.
    rolled = np.roll(fields, (1, 2), (1, 2)).reshape(5, 16)
    np.testing.assert_allclose(log_density(-x), log_density(x), rtol=1e-6)
    np.testing.assert_allclose(log_density(jnp.asarray(rolled, x.dtype)), expected, rtol=1e-5)
    assert_sound(endpoint, x, key=key)


def test_the_rim_of_the_extent_is_seventeen_nats_from_the_minimum():
    for mass_squared in (-4.0, 3.0):
        endpoint = phi4(side=3, mass_squared=mass_squared, coupling=2.0)
        # A uniform field has only the sites' own potential.
        size = np.linspace(0.0, endpoint.extent[1], 1001)
        fields = jnp.asarray(np.repeat(size[:, None], 9, axis=1), jnp.float32)
        own = np.asarray(jax.jit(jax.vmap(endpoint.log_density))(fields)) / 9.0
        np.testing.assert_allclose(own.max() - own[-1], 17.0, rtol=1e-4)
