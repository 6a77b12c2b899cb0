"""Sequential Monte Carlo along the paths of a process: its importance weights, with resampling.

A path's weight, log w = log R(τ | x_K) + log p̃_1(x_K) - log p_0(x_0) - log P(τ | x_0), is a sum
over the steps once there is an unnormalised density γ_k to be reached at each time, γ_0 = p_0
and γ_K = p̃_1 (Del Moral et al. 2006; of learned diffusions Chen et al. 2025, arXiv:2412.07081):

    log w = Σ_k log [γ_{k+1}(x_{k+1}) R(x_k | x_{k+1})] - log [γ_k(x_k) P(x_{k+1} | x_k)].

Paths that have lost their weight by some time are then replaced by copies of others, and the
product of the mean weights stays an unbiased estimate of Z_1, whatever is in between. A path
that comes where γ is zero or undefined weighs nothing from then on, and is never copied.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax import gaussians, non_finite
from d2ejax.kernels import EmbeddedStep, Process
from d2ejax.typing import Array, Key, LogDensity, Params


class Weighted(NamedTuple):
    """Particles at the end of the paths.

    Attributes:
        positions: `(n, dim)`.
        log_weights: Unnormalised, `(n,)`; their mean weight is the estimate of Z_1.
        log_z: Its logarithm, log Z_1, in nats; -∞ if none weighs anything.
        effective: Effective number of particles after each step, before it was resampled, as a
            fraction of n, `(num_steps,)`; NaN once none weighs anything.
    """

    positions: Array
    log_weights: Array
    log_z: Array
    effective: Array


def geometric_path(
    log_marginals: Callable[[Array, Array], Array], log_end: LogDensity, shares: Array
) -> Callable[[Array, Array], Array]:
    """From the densities of a reference to the target: log γ_k = (1 - s) log q_k + s log p̃_1.

    Args:
        log_marginals: Maps `(k, x)` to log q_k(x), with q_0 = p_0.
        log_end: log p̃_1.
        shares: s at the times of the grid, from 0 to 1, `(num_steps + 1,)`.

    Returns:
        Maps `(k, x)` to log γ_k(x).
    """

    def log_density(k: Array, x: Array) -> Array:
        share = shares[k]
        # At its ends one of the two counts for nothing, infinite as it may be there. Nor does
        # the target in between where it has no mass: a path may pass there, and be no worse.
        ours = jnp.where(share < 1, (1.0 - share) * log_marginals(k, x), 0.0)
        end = log_end(x)
        counts = (share >= 1) | ((share > 0) & non_finite.has_mass(end))
        theirs = jnp.where(counts, share * end, 0.0)
        return ours + theirs

    return log_density


def sequential_monte_carlo(
    key: Key,
    processes: tuple[Process, Process],
    params: tuple[Params, Params],
    starts: Array,
    log_densities: Callable[[Array, Array], Array],
    *,
    threshold: float = 0.5,
) -> Weighted:
    """Weights and resamples the paths of a process as they run.

    Args:
        key: A typed key.
        processes: The forward process P and the backward process R.
        params: The parameters of both.
        starts: Samples of p_0, `(n, dim)`.
        log_densities: Maps `(k, x)` to log γ_k(x), k from 0 to num_steps; see `geometric_path`.
        threshold: Fraction of n under which the effective number of particles is resampled, by
            the systematic scheme; 0 for never: importance weights of whole paths.

    Returns:
        The particles with their weights.

    Raises:
        ValueError: If a process runs the wrong way or the threshold is not in [0, 1].
    """
    forward, backward = processes
    if forward.backward or not backward.backward:
        raise ValueError("processes: must be a forward and a backward one, in this order")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}: must be from 0 to 1")
    n = starts.shape[0]

    def one(
        key: Key, x: Array, k: Array, steps: tuple[EmbeddedStep, EmbeddedStep]
    ) -> tuple[Array, Array]:
        law = forward.embedded_kernel(params[0], x, steps[0])
        y = gaussians.sample(law, jax.random.normal(key, x.shape, x.dtype))
        back = backward.embedded_kernel(params[1], y, steps[1])
        gained = log_densities(k + 1, y) - log_densities(k, x)
        return y, gained + gaussians.log_density(back, x) - gaussians.log_density(law, y)

    def advance(state: tuple[Array, Array], inputs: tuple) -> tuple[tuple[Array, Array], Array]:
        x, log_weights = state
        key, k, steps = inputs
        path_key, choice_key = jax.random.split(key)
        keys = jax.random.split(path_key, n)
        x, gained = jax.vmap(one, (0, 0, None, None))(keys, x, k, steps)
        # A path that has left where anything is defined weighs nothing, from then on.
        dead = jnp.isneginf(log_weights) | ~jnp.isfinite(gained)
        log_weights = jnp.where(dead, -jnp.inf, log_weights + gained)
        effective = effective_fraction(log_weights)
        resampled = effective < threshold
        return jax.lax.cond(
            resampled, _resample, lambda _, x, weights: (x, weights), choice_key, x, log_weights
        ), effective

    inputs = (
        jax.random.split(key, forward.num_steps),
        jnp.arange(forward.num_steps),
        (forward.embedded_steps(params[0]), backward.embedded_steps(params[1])),
    )
    state, effective = jax.lax.scan(advance, (starts, jnp.zeros(n)), inputs)
    log_z = jax.nn.logsumexp(state[1]) - jnp.log(float(n))
    return Weighted(*state, log_z, effective)


def effective_fraction(log_weights: Array) -> Array:
    """Kish's effective number of particles as a fraction of their number, a scalar."""
    total = jax.nn.logsumexp(log_weights)
    return jnp.exp(2.0 * total - jax.nn.logsumexp(2.0 * log_weights)) / log_weights.shape[0]


def _resample(key: Key, x: Array, log_weights: Array) -> tuple[Array, Array]:
    """Copies of particles, as many of each as its weight says; all of the mean weight."""
    # Imported here: blackjax runs a computation when it is imported.
    from blackjax.smc import resampling

    n = log_weights.shape[0]
    total = jax.nn.logsumexp(log_weights)
    weights = jnp.exp(log_weights - total)
    chosen = resampling.systematic(key, weights, n)
    # Their cumulative sum is rounded: past its end the last one would be chosen, dead or not.
    chosen = jnp.where(weights[chosen] > 0, chosen, jnp.argmax(weights))
    return x[chosen], jnp.full((n,), total - jnp.log(float(n)))
