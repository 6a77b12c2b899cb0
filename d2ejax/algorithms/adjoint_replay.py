"""The replay of adjoint methods: ends of simulated paths with the energy's gradient there.

One rollout and one gradient of the energy serve many gradient steps, each of which draws the
interior of the path anew from the reference pinned at both ends (Adjoint Sampling, Havens et
al. 2025, arXiv:2504.11713). The ring is a `ReplayBuffer` whose particles are whole rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax import non_finite
from d2ejax.exploration import replay_buffer
from d2ejax.exploration.replay_buffer import ReplayBuffer
from d2ejax.typing import Array, Key, LogDensity


class Pairs(NamedTuple):
    """Coupled ends of paths.

    Attributes:
        starts: x_0, `(n, dim)`.
        ends: x_T, `(n, dim)`.
        gradients: ∇E_1(x_T), `(n, dim)`.
    """

    starts: Array
    ends: Array
    gradients: Array


def init(size: int, dim: int) -> ReplayBuffer:
    """An empty replay of so many pairs."""
    return replay_buffer.init(size, 3 * dim)


def add(
    replay: ReplayBuffer,
    starts: Array,
    ends: Array,
    log_density: LogDensity,
    *,
    max_gradient: float,
) -> tuple[ReplayBuffer, dict[str, Array]]:
    """Writes pairs over the oldest ones.

    A pair whose energy, or its gradient, is not finite is left out and displaces nothing.

    Args:
        replay: The replay.
        starts: `(n, dim)`.
        ends: `(n, dim)`.
        log_density: The target's log-density, -E_1.
        max_gradient: Largest norm of ∇E_1 that is kept; longer ones are cut to it.

    Returns:
        The replay, and the metrics `non_finite.SHARES` of the pairs.
    """
    values, scores = jax.vmap(jax.value_and_grad(log_density))(ends)
    gradients = jax.vmap(clipped, (0, None))(-scores, max_gradient)
    rows = jnp.concatenate([starts, ends, gradients], axis=1)
    kept = jnp.where(non_finite.has_mass(values), jnp.zeros_like(values), -jnp.inf)
    return replay_buffer.add(replay, rows, kept), non_finite.shares(values)


def sample(key: Key, replay: ReplayBuffer, n: int) -> Pairs:
    """Draws pairs with replacement; from an empty replay they are NaN."""
    _, rows = replay_buffer.sample(key, replay, n)
    starts, ends, gradients = jnp.split(rows, 3, axis=1)
    # Zeros would be trained on: what is not finite is left out.
    return Pairs(starts, ends, jnp.where(replay.num_filled > 0, gradients, jnp.nan))


def clipped(gradient: Array, max_norm: float) -> Array:
    """A vector scaled down to a largest norm."""
    # Scaled by its largest entry before it is squared: a huge one must not overflow.
    largest = jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-30)
    norm = largest * jnp.sqrt(jnp.sum(jnp.square(gradient / largest)))
    return gradient * jnp.minimum(1.0, max_norm / norm)
