"""Replay buffer of fixed size, as pure functions on a pytree.

An empty slot has log-weight -∞, so no shape depends on how full the buffer is and the whole
buffer lives inside `jit` and `scan` (the layout of FAB, Midgley et al. 2023,
https://arxiv.org/abs/2208.01893). Everything a resume needs is in the pytree.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax.typing import Array, Key


class ReplayBuffer(NamedTuple):
    """Particles with a sampling priority each.

    Attributes:
        positions: `(size, dim)`; zeros in empty slots.
        log_weights: `(size,)`; -∞ marks an empty slot, anything else is finite.
        next_slot: `()`, int32; the slot that the next added row goes to.
    """

    positions: Array
    log_weights: Array
    next_slot: Array

    @property
    def size(self) -> int:
        """Number of slots, full or empty."""
        return self.log_weights.shape[0]

    @property
    def num_filled(self) -> Array:
        """Number of slots that can be sampled, `()`, int32."""
        return jnp.sum(jnp.isfinite(self.log_weights), dtype=jnp.int32)


def init(size: int, dim: int) -> ReplayBuffer:
    """Makes an empty buffer.

    Args:
        size: number of slots, at least 1.
        dim: dimension of a particle, at least 1.

    Returns:
        A buffer whose slots are all empty.

    Raises:
        ValueError: if `size` or `dim` is not positive.
    """
    for name, value in (("size", size), ("dim", dim)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    return ReplayBuffer(
        positions=jnp.zeros((size, dim), jnp.float32),
        log_weights=jnp.full((size,), -jnp.inf, jnp.float32),
        next_slot=jnp.zeros((), jnp.int32),
    )


def add(
    buffer: ReplayBuffer, positions: Array, log_weights: Array | None = None
) -> ReplayBuffer:
    """Writes rows over the oldest slots, wrapping around at the end.

    A row that is not finite (in its position or its log-weight) is left out and uses up no
    slot: what a diverged path brings in is never sampled, and displaces nothing.

    Args:
        buffer: the buffer.
        positions: `(n, dim)`, n at most the buffer's size.
        log_weights: `(n,)` log-priorities, unnormalised; None gives each row 0.

    Returns:
        The buffer with those of the n rows in it that are finite.

    Raises:
        ValueError: if the shapes do not fit the buffer.
    """
    _check_rows(buffer, positions, log_weights)
    num_rows = positions.shape[0]
    if num_rows > buffer.size:
        raise ValueError(
            f"positions has {num_rows} rows, but the buffer only {buffer.size} slots; "
            "add at most that many at once."
        )
    if log_weights is None:
        log_weights = jnp.zeros((num_rows,), jnp.float32)
    finite = _is_finite_row(positions, log_weights)
    order = jnp.cumsum(finite, dtype=jnp.int32)
    # Those left out go to places of their own beyond the end, where they are dropped.
    beyond = buffer.size + jnp.arange(num_rows, dtype=jnp.int32)
    slots = jnp.where(finite, (buffer.next_slot + order - 1) % buffer.size, beyond)
    return ReplayBuffer(
        positions=buffer.positions.at[slots].set(positions, mode="drop", unique_indices=True),
        log_weights=buffer.log_weights.at[slots].set(
            log_weights, mode="drop", unique_indices=True
        ),
        next_slot=(buffer.next_slot + order[-1]) % buffer.size,
    )


def sample(key: Key, buffer: ReplayBuffer, n: int) -> tuple[Array, Array]:
    """Draws particles with replacement, P(slot i) ∝ exp(log_weights[i]).

    Inverse of the cumulative distribution, in integers: each probability is rounded up to a
    multiple of 2⁻³¹. A priority more than 87 nats below the highest counts as never. The cost
    is O(size + n log size).

    Args:
        key: a typed key.
        buffer: the buffer. An entirely empty one gives its last slot's index and zeros:
            look at `buffer.num_filled`. `update` ignores such rows.
        n: number of draws.

    Returns:
        Slot indices `(n,)`, int32, and the positions there, `(n, dim)`.
    """
    filled = jnp.isfinite(buffer.log_weights)
    highest = jnp.max(buffer.log_weights)
    weights = jnp.where(filled, jnp.exp(buffer.log_weights - highest), 0.0)
    # A float32 cumulative sum need not be monotone, and its rounding can give an empty slot a
    # sliver of probability; integers are exact. The total fits in 32 bits up to size 2³⁰.
    quanta = jnp.ceil(weights * (2.0**31 / jnp.sum(weights)))
    cumulative = jnp.cumsum(jnp.where(filled, quanta, 0.0).astype(jnp.uint32))
    draws = jax.random.randint(key, (n,), jnp.uint32(0), cumulative[-1], dtype=jnp.uint32)
    # The first slot with cumulative > draw has cumulative[i - 1] <= draw: it is not empty.
    indices = jnp.searchsorted(cumulative, draws, side="right").astype(jnp.int32)
    indices = jnp.minimum(indices, buffer.size - 1)
    return indices, buffer.positions[indices]


def update(
    buffer: ReplayBuffer,
    indices: Array,
    positions: Array,
    log_weights: Array | None = None,
) -> ReplayBuffer:
    """Writes refreshed particles back to the slots they were drawn from.

    Where an index occurs more than once the last row wins, whole. A row that is not finite
    leaves its slot as it was, and an empty slot stays empty.

    Args:
        buffer: the buffer.
        indices: `(n,)` slots, as `sample` gives them.
        positions: `(n, dim)`.
        log_weights: `(n,)` new log-priorities; None keeps those in the buffer.

    Returns:
        The buffer with those slots overwritten; `next_slot` does not move.

    Raises:
        ValueError: if the shapes do not fit the buffer or each other.
    """
    _check_rows(buffer, positions, log_weights)
    num_rows = positions.shape[0]
    if indices.shape != (num_rows,):
        raise ValueError(f"indices must have shape {(num_rows,)}, got {indices.shape}.")
    old_log_weights = buffer.log_weights[indices]
    if log_weights is None:
        log_weights = old_log_weights
    valid = _is_finite_row(positions, log_weights) & jnp.isfinite(old_log_weights)
    # A scatter with repeated indices has no order: on an accelerator it may mix two rows.
    rows = jnp.where(valid, jnp.arange(num_rows, dtype=jnp.int32), -1)
    last_row = jnp.full((buffer.size,), -1, jnp.int32).at[indices].max(rows)
    slots = jnp.where(valid & (last_row[indices] == rows), indices, buffer.size)
    return buffer._replace(
        positions=buffer.positions.at[slots].set(positions, mode="drop"),
        log_weights=buffer.log_weights.at[slots].set(log_weights, mode="drop"),
    )


def _check_rows(buffer: ReplayBuffer, positions: Array, log_weights: Array | None) -> None:
    dim = buffer.positions.shape[1]
    if positions.ndim != 2 or positions.shape[1] != dim:
        raise ValueError(f"positions must have shape (n, {dim}), got {positions.shape}.")
    if log_weights is not None and log_weights.shape != positions.shape[:1]:
        raise ValueError(
            f"log_weights must have shape {positions.shape[:1]}, got {log_weights.shape}."
        )


def _is_finite_row(positions: Array, log_weights: Array) -> Array:
    return jnp.all(jnp.isfinite(positions), axis=-1) & jnp.isfinite(log_weights)
