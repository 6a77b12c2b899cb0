"""A tiny algorithm in place of a real one: noisy gradient descent on |x - 1|²."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax import parallel
from d2ejax.algorithms.base import Algorithm
from experiments import loop


class State(NamedTuple):
    step: jax.Array
    consecutive_skipped: jax.Array
    key: jax.Array
    params: dict[str, jax.Array]
    empty: jax.Array


def algorithm(bad_from: int = 2**31 - 1, bad_until: int = 2**31 - 1) -> Algorithm:
    """Steps from `bad_from` to `bad_until` are not finite, and skipped."""

    def init(key):
        key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))
        params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
        return State(jnp.int32(0), jnp.int32(0), key, params, jnp.zeros((0, 2)))

    def step(state):
        key, key_noise = jax.random.split(state.key)
        noise = jax.lax.pmean(jax.random.normal(key_noise, (3,)), parallel.AXIS)
        loss = jnp.sum((state.params["w"] - 1.0) ** 2)
        good = (state.step < bad_from) | (state.step >= bad_until)
        w = 0.9 * state.params["w"] + 0.1 + 0.01 * noise
        moved = {"w": w, "b": state.params["b"] + jnp.sum(w)}
        params = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, state.params)
        skipped = jnp.where(good, jnp.int32(0), state.consecutive_skipped + 1)
        metrics = {"loss": jnp.where(good, loss, jnp.nan), "skipped": jnp.where(good, 0.0, 1.0)}
        return State(state.step + 1, skipped, key, params, state.empty), metrics

    return Algorithm(init, step)


@functools.cache
def trainer(num_devices: int = 2, **bad) -> parallel.Trainer:
    return parallel.data_parallel(algorithm(**bad), devices=jax.local_devices()[:num_devices])


def plan(
    total_steps: int = 60,
    *,
    phase_length: int = 25,
    steps_per_dispatch: int = 7,
    checkpoint_every: int = 20,
    max_consecutive_skipped: int = 10,
) -> loop.Plan:
    def phase_of(step):
        number = step // phase_length
        return f"phase {number}", (number + 1) * phase_length

    return loop.Plan(
        total_steps, phase_of, steps_per_dispatch, checkpoint_every, max_consecutive_skipped
    )
