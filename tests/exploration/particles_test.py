"""Particles of an energy end: filled with noise, refreshed on time, restarted in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax.exploration import langevin, particles, replay_buffer
from d2ejax.exploration.particles import Particles
from tests import gaussian_case

SIZE = 64


def noise(key, n):
    return 100.0 + jax.random.normal(key, (n, 2))


def shift(key, positions, log_density):
    """Moves each particle by the score, so that the energy must have been handed over."""
    del key
    return positions + jax.vmap(jax.grad(log_density))(positions), jnp.asarray(0.25)


def log_density(x):
    return x[0] - 2.0 * x[1]


def explorer(**options):
    defaults = {
        "size": SIZE,
        "refresh": shift,
        "refresh_every": 3,
        "restart_fraction": 0.0,
        "restart": noise,
    }
    return Particles(**(defaults | options))


def run(key, which, buffer, step):
    refresh = gaussian_case.jit(
        lambda step: particles.refresh(key, which, buffer, log_density, step)
    )
    return refresh(jnp.asarray(step, jnp.int32))


def test_a_new_buffer_is_full_of_noise(key):
    buffer = particles.init(key, explorer(), log_density)
    assert int(buffer.num_filled) == SIZE
    np.testing.assert_array_equal(buffer.positions, noise(key, SIZE))


@pytest.mark.parametrize("step", range(7))
def test_all_particles_move_every_third_step_from_step_zero_on(key, step):
    buffer = particles.init(key, explorer(), log_density)
    after, acceptance = run(key, explorer(), buffer, step)
    if step % 3 == 0:
        moved = np.asarray(buffer.positions) + np.array([1.0, -2.0], np.float32)
        np.testing.assert_allclose(after.positions, moved)
        assert float(acceptance) == 0.25
    else:
        np.testing.assert_array_equal(after.positions, buffer.positions)
        assert np.isnan(acceptance)
    np.testing.assert_array_equal(after.log_weights, buffer.log_weights)
    assert int(after.next_slot) == int(buffer.next_slot)


def test_without_a_chain_nothing_moves(key):
    buffer = particles.init(key, explorer(), log_density)
    after, acceptance = run(key, explorer(refresh=None), buffer, 0)
    jax.tree.map(np.testing.assert_array_equal, after, buffer)
    assert np.isnan(acceptance)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_a_share_of_the_particles_restarts_from_noise(key, fraction):
    which = explorer(size=2000, restart_fraction=fraction)
    buffer = particles.init(key, which, log_density)
    buffer = buffer._replace(positions=jnp.zeros_like(buffer.positions))
    after, _ = run(jax.random.key(3), which, buffer, 0)
    share = np.mean(np.asarray(after.positions[:, 0]) > 50.0)
    assert abs(share - fraction) <= 4 * np.sqrt(fraction * (1 - fraction) / 2000)


def test_a_particle_whose_move_is_not_finite_stays(key):
    def broken(key, positions, log_density):
        return positions.at[5].set(jnp.nan), jnp.asarray(1.0)

    buffer = particles.init(key, explorer(), log_density)
    after, _ = run(key, explorer(refresh=broken), buffer, 0)
    np.testing.assert_array_equal(after.positions, buffer.positions)
    assert int(after.num_filled) == SIZE


def test_a_real_chain_brings_noise_to_the_energy(key):
    def refresh(key, positions, log_density):
        return langevin.refresh(
            key, positions, log_density, method="mala", step_size=0.3, num_steps=60
        )

    def restart(key, n):
        return 3.0 * jax.random.normal(key, (n, 1))

    which = Particles(1000, refresh, 1, 0.0, restart)
    buffer = particles.init(key, which, log_density)
    after, acceptance = gaussian_case.jit(
        lambda: particles.refresh(
            jax.random.key(4),
            which,
            buffer,
            lambda x: -0.5 * jnp.sum((x - 1.0) ** 2),
            jnp.asarray(0, jnp.int32),
        )
    )()
    x = np.asarray(after.positions[:, 0], np.float64)
    assert 0.5 < float(acceptance) < 1.0
    # N(1, 1): standard errors 1/√n of the mean and √(2/n) of the variance.
    assert abs(x.mean() - 1.0) < 4 / np.sqrt(1000)
    assert abs(x.var() - 1.0) < 4 * np.sqrt(2 / 1000)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_priorities_follow_the_density_where_a_particle_comes_in_and_where_it_moves(key, power):
    which = explorer(priority_power=power, refresh_every=1)
    buffer = particles.init(key, which, log_density)
    points = jnp.asarray([[1.0, 0.0], [0.0, 3.0]])
    buffer = gaussian_case.jit(
        lambda: particles.add(which, buffer, points, jax.vmap(log_density)(points))
    )()
    np.testing.assert_allclose(buffer.log_weights[:2], [power * 1.0, power * -6.0])
    after, _ = run(jax.random.key(1), which, buffer, 0)
    # Every move raises this log-density by 1² + 2².
    np.testing.assert_allclose(after.log_weights[:2], [power * 6.0, power * -1.0], atol=1e-6)


def test_noise_has_the_priority_of_its_density_and_the_least_where_that_is_not_finite(key):
    which = explorer(size=4, priority_power=2.0, restart=lambda key, n: jnp.eye(4, 2))
    buffer = particles.init(key, which, lambda x: jnp.log(x[0] + 2.0 * x[1]))
    assert int(buffer.num_filled) == 4
    np.testing.assert_allclose(buffer.log_weights[:2], [0.0, 2.0 * np.log(2.0)], atol=1e-6)
    assert (buffer.log_weights[2:] < -1e6).all()


def test_a_point_without_a_finite_energy_does_not_come_in(key):
    which = explorer(size=4)
    buffer = particles.init(key, which, log_density)
    points = jnp.asarray([[0.0, 3.0], [1.0, 0.0], [-1.0, 0.0]])
    after = particles.add(which, buffer, points, jnp.log(points[:, 0]))
    np.testing.assert_array_equal(after.positions[0], points[1])
    np.testing.assert_array_equal(after.positions[1:], buffer.positions[1:])
    assert int(after.num_filled) == 4


HALF_BAD = {
    "no mass": lambda x: jnp.where(x[0] > 100.0, log_density(x), -jnp.inf),
    "undefined": lambda x: jnp.where(x[0] > 100.0, log_density(x), jnp.nan),
    "+inf": lambda x: jnp.where(x[0] > 100.0, log_density(x), jnp.inf),
    "huge": lambda x: jnp.where(x[0] > 100.0, log_density(x), -1e30),
}


@pytest.mark.parametrize("bad", HALF_BAD)
def test_noise_without_mass_is_drawn_only_while_there_is_nothing_else(bad, key):
    buffer = particles.init(key, explorer(), HALF_BAD[bad])
    good = np.asarray(buffer.positions[:, 0]) > 100.0
    assert 10 < good.sum() < SIZE - 10 and int(buffer.num_filled) == SIZE
    indices, _ = replay_buffer.sample(key, buffer, 2000)
    assert set(np.asarray(indices).tolist()) == set(np.flatnonzero(good).tolist())
    nothing = particles.init(key, explorer(), lambda x: HALF_BAD[bad](-x))
    indices, drawn = replay_buffer.sample(key, nothing, 2000)
    assert len(np.unique(indices)) == SIZE and drawn.min() > 90.0


def test_a_particle_without_mass_restarts_from_noise_and_the_others_stay(key):
    which = explorer(refresh=lambda key, x, log_density: (x, jnp.asarray(1.0)))
    half = HALF_BAD["undefined"]
    buffer = particles.init(key, which, half)
    good = np.asarray(buffer.positions[:, :1]) > 100.0
    refresh = gaussian_case.jit(
        lambda key, buffer: particles.refresh(
            key, which, buffer, half, jnp.zeros((), jnp.int32)
        )[0]
    )
    after = refresh(jax.random.key(1), buffer)
    np.testing.assert_array_equal((after.positions == buffer.positions).all(1), good[:, 0])
    for seed in range(2, 12):
        after = refresh(jax.random.key(seed), after)
    # Half of the noise has mass: a thousandth is left after ten more refreshes.
    assert (after.log_weights == 0.0).sum() > SIZE - 3
