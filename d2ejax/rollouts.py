"""Simulating paths and scoring them.

Paths are data: in every loss of this library the samples carry no gradient. So a path is first
simulated, step after step, without keeping activations, and then scored: the log-densities of
all K steps are evaluated as one batch over time.
"""

import math

import jax
import jax.numpy as jnp

from d2ejax import gaussians
from d2ejax.kernels import Process
from d2ejax.typing import Array, Key, Params


def simulate(key: Key, process: Process, params: Params, x: Array) -> Array:
    """Runs a process from one end to the other.

    Args:
        key: A typed key; all noise of the path is drawn from it at once.
        process: The process; a backward one starts at t = T.
        params: Parameters of its network.
        x: Where it starts, shape `(dim,)`.

    Returns:
        The path in the order of time, shape `(num_steps + 1, dim)`; differentiable in params.
    """
    noise = jax.random.normal(key, (process.num_steps, *x.shape), x.dtype)

    def advance(state, inputs):
        step, step_noise = inputs
        state = gaussians.sample(process.kernel(params, state, step), step_noise)
        return state, state

    _, states = jax.lax.scan(advance, x, (process.steps, noise), reverse=process.backward)
    ends = (states, x[None]) if process.backward else (x[None], states)
    return jnp.concatenate(ends)


def step_log_densities(process: Process, params: Params, paths: Array) -> Array:
    """Log-densities of the steps of one or many paths under a process, as one batch of rows.

    Args:
        process: Forward: log P(x_{k+1} | x_k). Backward: log R(x_k | x_{k+1}).
        params: Parameters of its network.
        paths: Shape `(..., num_steps + 1, dim)`, in the order of time. Hand over a batch as it
            is, rather than under `vmap`: see below.

    Returns:
        Shape `(..., num_steps)`, with all constants.
    """
    early, late = paths[..., :-1, :], paths[..., 1:, :]
    given, drawn = (late, early) if process.backward else (early, late)
    dim, batch = paths.shape[-1], given.shape[:-1]
    # All steps of all paths are rows of one matrix. Nested batch axes, of paths and of time,
    # are the same work, but XLA's loops over them take half as long again on a CPU.
    copies = math.prod(batch[:-1])
    steps = jax.tree.map(lambda leaf: jnp.tile(leaf, copies), process.steps)

    def score(step, x, y):
        return gaussians.log_density(process.kernel(params, x, step), y)

    scores = jax.vmap(score)(steps, given.reshape(-1, dim), drawn.reshape(-1, dim))
    return scores.reshape(batch)


def log_density(process: Process, params: Params, paths: Array) -> Array:
    """Log-density of paths given the end that the process starts from.

    Args:
        process: The process.
        params: Parameters of its network.
        paths: Shape `(..., num_steps + 1, dim)`, in the order of time.

    Returns:
        Σ_k log P(x_{k+1} | x_k), or Σ_k log R(x_k | x_{k+1}) for a backward process, of shape
        `(...)`.
    """
    return jnp.sum(step_log_densities(process, params, paths), axis=-1)


def step_kl_divergences(
    process: Process, params: Params, other: Process, other_params: Params, path: Array
) -> Array:
    """KL divergences between the steps of two processes of one direction, along a path.

    The sum over the steps, averaged over paths of the first process, is the KL divergence
    between the two path laws (given the same start).

    Args:
        process: The process that is averaged over.
        params: Its parameters.
        other: The process that it is compared with, same direction and grid.
        other_params: Its parameters.
        path: Shape `(num_steps + 1, dim)`, a path of the first process.

    Returns:
        Shape `(num_steps,)`, in nats.
    """
    given = path[1:] if process.backward else path[:-1]

    def divergence(step, other_step, x):
        p = process.kernel(params, x, step)
        q = other.kernel(other_params, x, other_step)
        return gaussians.kl_divergence(p, q)

    return jax.vmap(divergence)(process.steps, other.steps, given)
