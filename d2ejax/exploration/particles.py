"""Particles that explore an end known by its energy alone: a replay buffer kept fresh.

A particle where there is no mass, or where the energy is undefined, has the least priority: it
is drawn only while there is no other, which is the noise that a buffer starts with. At the next
refresh it restarts from noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax.exploration import replay_buffer
from d2ejax.exploration.replay_buffer import ReplayBuffer
from d2ejax.non_finite import has_mass
from d2ejax.typing import Array, Key, LogDensity

Refresh = Callable[[Key, Array, LogDensity], tuple[Array, Array]]
"""Maps `(key, positions (n, dim), log_density)` to new positions and an acceptance rate."""


_LEAST = -1e30
"""The log-priority of particles without mass; never an empty slot's -∞."""


class Particles(NamedTuple):
    """How an energy end is explored.

    Attributes:
        size: Particles that the end keeps, on each device.
        refresh: A short Markov chain on the energy; None never refreshes.
        refresh_every: Gradient steps between refreshes of the whole buffer.
        restart_fraction: Share of the particles that restart from noise at each refresh.
        restart: Maps a key and a number n to noise `(n, dim)`.
        priority_power: A particle is drawn with probability ∝ density^power; 0 is uniform.
    """

    size: int
    refresh: Refresh | None
    refresh_every: int
    restart_fraction: float
    restart: Callable[[Key, int], Array]
    priority_power: float = 0.0


def init(key: Key, particles: Particles, log_density: LogDensity) -> ReplayBuffer:
    """A buffer filled with noise, be the energy finite there or not."""
    positions = particles.restart(key, particles.size)
    buffer = replay_buffer.init(particles.size, positions.shape[1])
    return replay_buffer.add(buffer, positions, _scored(particles, positions, log_density))


def add(
    particles: Particles, buffer: ReplayBuffer, positions: Array, log_densities: Array
) -> ReplayBuffer:
    """Adds points, but for those without mass or with an undefined log-density.

    Such a point would come back as a goal and spoil that gradient step as well.

    Args:
        particles: How the end is explored.
        buffer: The particles.
        positions: `(n, dim)`.
        log_densities: The end's log-density at each, `(n,)`: whoever has points to add has
            evaluated it already, and it may be dear.

    Returns:
        The buffer.
    """
    priorities = _priorities(particles, log_densities)
    kept = jnp.where(has_mass(log_densities), priorities, -jnp.inf)
    return replay_buffer.add(buffer, positions, kept)


def _scored(particles: Particles, positions: Array, log_density: LogDensity) -> Array:
    """Log-priorities of positions."""
    return _priorities(particles, jax.vmap(log_density)(positions))


def _priorities(particles: Particles, log_densities: Array) -> Array:
    """Log-priorities of points by their log-densities."""
    values = jnp.zeros_like(log_densities)
    if particles.priority_power:
        values = particles.priority_power * log_densities
    return jnp.where(has_mass(log_densities), values, _LEAST)


def refresh(
    key: Key,
    particles: Particles,
    buffer: ReplayBuffer,
    log_density: LogDensity,
    step: Array,
) -> tuple[ReplayBuffer, Array]:
    """Moves all particles towards the energy, every `refresh_every` gradient steps.

    Args:
        key: A typed key.
        particles: How to explore.
        buffer: The particles.
        log_density: The end's log-density.
        step: The number of gradient steps so far; the first refresh is at step 0.

    Returns:
        The buffer, and the chains' acceptance rate; NaN in a step without a refresh.
    """
    chain = particles.refresh
    if chain is None:
        return buffer, jnp.full((), jnp.nan)
    return jax.lax.cond(
        step % particles.refresh_every == 0,
        lambda: _refresh_all(key, particles, chain, buffer, log_density),
        lambda: (buffer, jnp.full((), jnp.nan)),
    )


def _refresh_all(
    key: Key,
    particles: Particles,
    chain: Refresh,
    buffer: ReplayBuffer,
    log_density: LogDensity,
) -> tuple[ReplayBuffer, Array]:
    restart_key, choice_key, chain_key = jax.random.split(key, 3)
    noise = particles.restart(restart_key, buffer.size)
    restarted = jax.random.bernoulli(choice_key, particles.restart_fraction, (buffer.size,))
    restarted |= buffer.log_weights <= _LEAST
    positions = jnp.where(restarted[:, None], noise, buffer.positions)
    positions, acceptance = chain(chain_key, positions, log_density)
    slots = jnp.arange(buffer.size, dtype=jnp.int32)
    priorities = _scored(particles, positions, log_density)
    return replay_buffer.update(buffer, slots, positions, priorities), acceptance
