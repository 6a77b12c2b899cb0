"""Particles: coordinates without a centre of mass, symmetries, and energies known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ortho_group

from d2ejax.endpoints import (
    double_well_particles,
    from_positions,
    lennard_jones,
    particle_systems,
    to_positions,
)
from tests.endpoints.agreement import assert_sound

SYSTEMS = {
    "DW-4": (double_well_particles(), 4, 2),
    "LJ-13": (lennard_jones(), 13, 3),
    "LJ-5, linear DW": (double_well_particles(num_particles=5, space_dim=3, linear=0.5), 5, 3),
}


def energies(endpoint, positions):
    """Energies of configurations `(n, num_particles, space_dim)`."""

    def energy(position):
        return -endpoint.log_density(from_positions(position))

    return np.asarray(jax.jit(jax.vmap(energy))(jnp.asarray(positions, jnp.float32)))


def test_coordinates_are_those_of_a_subspace(key):
    x = jax.random.normal(key, (12,))
    positions = to_positions(x, 5, 3)
    assert positions.shape == (5, 3) and positions.dtype == jnp.float32
    np.testing.assert_allclose(positions.mean(axis=0), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(from_positions(positions), x, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(positions**2), jnp.sum(x**2), rtol=1e-6)
    moved = positions + jnp.asarray([[1.0, -2.0, 3.0]])
    np.testing.assert_allclose(from_positions(moved), x, atol=2e-6)
    basis = particle_systems._basis(55)
    np.testing.assert_allclose(basis @ basis.T, np.eye(54), atol=1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_energies_know_neither_frame_nor_names(name, key):
    endpoint, num, space = SYSTEMS[name]
    assert endpoint.dim == (num - 1) * space
    assert endpoint.sample is None and endpoint.log_z is None
    # Particles of which none are close, for the differences of huge energies to be none.
    corners = np.stack(np.meshgrid(*[np.arange(3.0)] * space), -1).reshape(-1, space)[:num]
    position = 1.2 * corners + 0.2 * np.asarray(jax.random.normal(key, (num, space)))
    matrices = ortho_group.rvs(space, size=4, random_state=0)
    assert len(set(np.sign(np.linalg.det(matrices)))) == 2
    turned = position @ np.swapaxes(matrices, 1, 2) + 3.0
    renamed = np.stack([position[np.random.default_rng(i).permutation(num)] for i in range(4)])
    found = energies(endpoint, np.concatenate([position[None], turned, renamed]))
    np.testing.assert_allclose(found, found[0], rtol=1e-4, atol=1e-3)
    stretched = energies(endpoint, 1.1 * position[None])
    assert abs(stretched[0] - found[0]) > 0.1
    x = jnp.stack([from_positions(jnp.asarray(position, jnp.float32)), jnp.zeros(endpoint.dim)])
    assert_sound(endpoint, x, key=key)


def test_double_wells_of_a_square():
    square = 4.0 * np.array([[[0, 0], [0, 1], [1, 1], [1, 0]]])
    # Four sides of length 4 at the barrier, and two diagonals 1.65685 beyond it:
    # 2 (-4 · 2.745166 + 0.9 · 7.535937).
    np.testing.assert_allclose(energies(SYSTEMS["DW-4"][0], square), -8.396644, rtol=1e-5)
    # A pair 3 apart: (-0.5 - 4 + 0.9) / 2.
    pair = double_well_particles(num_particles=2, space_dim=1, linear=0.5, temperature=2.0)
    np.testing.assert_allclose(energies(pair, [[[0.0], [3.0]]]), -1.8, rtol=1e-5)


def test_lennard_jones_of_a_pair():
    pair = lennard_jones(num_particles=2, epsilon=3.0, radius=2.0, temperature=1.5)
    # At the bottom -ε/τ, and a spring of ½ (1 + 1); at twice the distance 2⁻¹² - 2⁻⁵, and 4.
    found = energies(pair, [[[0, 0, 0], [0, 2, 0]], [[0, 0, 0], [4, 0, 0]]])
    np.testing.assert_allclose(found, [-2.0 + 1.0, 2.0 * (2.0**-12 - 2.0**-5) + 4.0], rtol=1e-5)


def test_lennard_jones_13_has_the_published_minimum():
    # An icosahedron and its centre; -44.326801 ε of Hoare & Pal (1971), with next to no spring.
    golden = 0.5 * (1.0 + np.sqrt(5.0))
    ring = np.array([(0.0, s, t * golden) for s in (1, -1) for t in (1, -1)])
    shape = np.concatenate([np.roll(ring, shift, axis=1) for shift in range(3)])
    shape = np.concatenate([np.zeros((1, 3)), shape / np.linalg.norm(shape[0])])
    scales = np.linspace(0.9, 1.1, 2001)
    found = energies(lennard_jones(oscillator=1e-8), scales[:, None, None] * shape)
    np.testing.assert_allclose(found.min(), -44.326801, atol=1e-4)


def test_the_core_is_smooth_and_leaves_the_rest_alone():
    core = 0.65
    distance = jnp.asarray([0.0, 0.3, core - 1e-3, core + 1e-3, 0.8, 1.0, 2.0])

    def derivatives(core):
        def pair(d):
            return particle_systems._lennard_jones_pair(d, core)

        return [jax.jit(jax.vmap(f))(distance) for f in (pair, jax.grad(pair))]

    (cut, cut_slope), (exact, exact_slope) = derivatives(core), derivatives(0.0)
    np.testing.assert_allclose(cut[2:], exact[2:], rtol=1e-5)
    # The third derivative is what is wrong below.
    np.testing.assert_allclose(cut_slope[2:], exact_slope[2:], rtol=1e-3, atol=1e-5)
    assert np.all(np.isfinite(cut_slope)) and np.all(np.asarray(cut_slope[:4]) < 0.0)
    assert cut[0] > cut[1] > cut[2] > 149.0
    assert not np.isfinite(exact[0])
