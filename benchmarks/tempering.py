"""Tempered sequential Monte Carlo from a Gaussian to a target, by blackjax."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import adaptive_tempered, resampling

from d2ejax.typing import Array, Key, LogDensity

LEAPFROGS = 16
"""Of one step of HMC."""

_TARGET_ESS = 0.7
_TARGET_ACCEPTANCE = 0.7
_MOST_LEVELS = 500

LevelStep = Callable[[Key, Any, float], tuple[Any, Array, Array]]
"""`(key, state, step_size)` to the state, the increment of log Z and the acceptance rate."""


class Tempering(NamedTuple):
    """One run.

    Attributes:
        particles: Of the target, `(num_particles, dim)`, in the order of their ancestors.
        log_z: An estimate of log Z.
        num_levels: Temperatures that it took.
    """

    particles: np.ndarray
    log_z: float
    num_levels: int


def level_step(log_density: LogDensity, base_std: float, num_moves: int) -> LevelStep:
    """One temperature: resample, move by HMC, weigh; compiled once for all runs.

    The next temperature is where the effective sample size falls to 0.7 of the particles. HMC
    has the particles' variances for its inverse masses.

    Args:
        log_density: Of the target.
        base_std: Deviation of the Gaussian N(0, base_std² I).
        num_moves: Steps of HMC.
    """

    def log_base(x: Array) -> Array:
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, scale=base_std))

    kernel = adaptive_tempered.build_kernel(
        log_base,
        lambda x: log_density(x) - log_base(x),
        functools.partial(blackjax.hmc.build_kernel(), num_integration_steps=LEAPFROGS),
        blackjax.hmc.init,
        resampling.systematic,
        _TARGET_ESS,
    )

    @jax.jit
    def step(key: Key, state: Any, step_size: float) -> tuple[Any, Array, Array]:
        weights = state.weights[:, None]
        mean = jnp.sum(weights * state.particles, axis=0)
        variances = jnp.sum(weights * jnp.square(state.particles - mean), axis=0)
        # A leading axis of one: shared by all particles.
        parameters = {
            "step_size": jnp.reshape(step_size, (1,)),
            "inverse_mass_matrix": variances[None],
        }
        state, info = kernel(key, state, num_moves, parameters)
        acceptance = jnp.mean(info.update_info.acceptance_rate)
        return state, info.log_likelihood_increment, jnp.nan_to_num(acceptance)

    return step


def temper(key: Key, step: LevelStep, base_std: float, shape: tuple[int, int]) -> Tempering:
    """One run, whose step size follows the acceptance rate from one temperature to the next.

    Args:
        key: A key.
        step: Of `level_step`.
        base_std: Deviation of the Gaussian, that of the step.
        shape: `(num_particles, dim)`.

    Raises:
        RuntimeError: If the target is not reached; its density is not finite somewhere, or the
            Gaussian is far from it.
    """
    start_key, last_key, *keys = jax.random.split(key, 2 + _MOST_LEVELS)
    state = adaptive_tempered.init(base_std * jax.random.normal(start_key, shape))
    log_z, step_size, level = 0.0, 0.5 * shape[1] ** -0.25, 0
    while state.tempering_param < 1.0 and np.isfinite(log_z) and level < _MOST_LEVELS:
        state, increment, acceptance = step(keys[level], state, step_size)
        log_z += float(increment)
        step_size *= float(np.exp(acceptance - _TARGET_ACCEPTANCE))
        level += 1
    if not (state.tempering_param >= 1.0 and np.isfinite(log_z)):
        raise RuntimeError(
            f"tempering stopped at {float(state.tempering_param):.3g} after {level} levels"
            f" with log Z = {log_z}"
        )
    chosen = resampling.systematic(last_key, state.weights, shape[0])
    return Tempering(np.asarray(state.particles[chosen]), log_z, level)
