"""Markov chains that move particles towards an unnormalised density.

One step size h for all methods, that of the unadjusted Langevin algorithm
x' = x + h ∇log p(x) + √(2h) ξ, so that they can be exchanged without retuning.

blackjax runs a computation when it is imported, which would start the devices before
`jax.distributed` can: so each chain imports it when it is made.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from d2ejax.non_finite import has_mass
from d2ejax.typing import Array, Key, LogDensity

METHODS = ("ula", "averaged_ula", "mala", "hmc")


class _Chain(NamedTuple):
    """One chain: `init(key, x) -> state`, `step(key, state) -> (proposal, accepted)`.

    A state has the fields `position`, `logdensity` and `logdensity_grad`.
    """

    init: Callable[[Key, Array], Any]
    step: Callable[[Key, Any], tuple[Any, Array]]


class _AveragedState(NamedTuple):
    position: Array
    logdensity: Array
    logdensity_grad: Array
    noise: Array


def refresh(
    key: Key,
    positions: Array,
    log_density: LogDensity,
    *,
    method: str,
    step_size: float | Array,
    num_steps: int,
    num_integration_steps: int = 5,
) -> tuple[Array, Array]:
    """Runs a short, independent chain on p ∝ exp(log_density) from each particle.

    - "ula": x' = x + h ∇log p(x) + √(2h) ξ; biased, O(h) in the variance.
    - "averaged_ula": x' = x + h ∇log p(x) + √(2h) (ξ + ξ')/2 with ξ' the ξ of the next step;
      O(h²), and stationary at the exact law of a Gaussian (Leimkuhler and Matthews 2013,
      https://arxiv.org/abs/1203.5428; BAOAB in the limit of high friction).
    - "mala": the first with a Metropolis correction; unbiased.
    - "hmc": `num_integration_steps` leapfrog steps of length √(2h), then a Metropolis
      correction; unbiased. One leapfrog step is MALA.

    Non-finite values never enter: a move to a position, log-density or gradient that is not
    finite is not taken, a log-density beyond `non_finite.LARGEST` counting as one. A particle
    that starts at a non-finite gradient stays there.

    Args:
        key: a typed key.
        positions: `(n, dim)`.
        log_density: maps `(dim,)` to `()`, differentiable; need not be normalised.
        method: one of `METHODS`.
        step_size: h > 0, in units of x² (a traced scalar is not checked).
        num_steps: number of steps of each chain, at least 1.
        num_integration_steps: leapfrog steps in one step of "hmc"; the others ignore it.

    Returns:
        The new positions `(n, dim)` and the fraction of the moves that were taken, `()`.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check(positions, method, step_size, num_steps, num_integration_steps)
    h = jnp.asarray(step_size, positions.dtype)
    chain = _make_chain(method, log_density, h, num_integration_steps)
    num_chains = positions.shape[0]

    def step(states: Any, key: Key) -> tuple[Any, Array]:
        return jax.vmap(_guarded(chain.step))(jax.random.split(key, num_chains), states)

    key_init, key_steps = jax.random.split(key)
    states = jax.vmap(chain.init)(jax.random.split(key_init, num_chains), positions)
    states, taken = jax.lax.scan(step, states, jax.random.split(key_steps, num_steps))
    return states.position, jnp.mean(taken, dtype=positions.dtype)


def _make_chain(
    method: str, log_density: LogDensity, h: Array, num_integration_steps: int
) -> _Chain:
    if method == "ula":
        return _ula(log_density, h)
    if method == "averaged_ula":
        return _averaged_ula(log_density, h)
    if method == "mala":
        return _mala(log_density, h)
    return _hmc(log_density, h, num_integration_steps)


def _ula(log_density: LogDensity, h: Array) -> _Chain:
    from blackjax.mcmc import diffusions

    value_and_grad = jax.value_and_grad(log_density)
    euler = diffusions.overdamped_langevin(value_and_grad)
    return _Chain(
        lambda _, x: diffusions.DiffusionState(x, *value_and_grad(x)),
        lambda key, state: (euler(key, state, h), jnp.asarray(True)),
    )


def _averaged_ula(log_density: LogDensity, h: Array) -> _Chain:
    value_and_grad = jax.value_and_grad(log_density)

    def init(key: Key, x: Array) -> _AveragedState:
        value, grad = value_and_grad(x)
        # At stationarity x carries the memory of its last noise, E[ξ | x] ≈ -√(h/2) ∇log p(x).
        # Without this term every refresh would start with a variance error of -h, worse
        # than plain ULA; with it the error is h²/4 (for a unit Gaussian) and then decays.
        noise = jax.random.normal(key, x.shape, x.dtype) - jnp.sqrt(h / 2) * grad
        return _AveragedState(x, value, grad, noise)

    def step(key: Key, state: _AveragedState) -> tuple[_AveragedState, Array]:
        noise = jax.random.normal(key, state.position.shape, state.position.dtype)
        x = state.position + h * state.logdensity_grad + jnp.sqrt(h / 2) * (state.noise + noise)
        return _AveragedState(x, *value_and_grad(x), noise), jnp.asarray(True)

    return _Chain(init, step)


def _mala(log_density: LogDensity, h: Array) -> _Chain:
    from blackjax.mcmc import mala

    kernel = mala.build_kernel()

    def step(key: Key, state: Any) -> tuple[Any, Array]:
        state, info = kernel(key, state, log_density, h)
        return state, jnp.asarray(info.is_accepted)

    return _Chain(lambda _, x: mala.init(x, log_density), step)


def _hmc(log_density: LogDensity, h: Array, num_integration_steps: int) -> _Chain:
    from blackjax.mcmc import hmc

    kernel = hmc.build_kernel()

    def step(key: Key, state: Any) -> tuple[Any, Array]:
        unit_mass = jnp.ones_like(state.position)
        leapfrog = jnp.sqrt(2 * h)
        state, info = kernel(
            key, state, log_density, leapfrog, unit_mass, num_integration_steps
        )
        return state, jnp.asarray(info.is_accepted)

    return _Chain(lambda _, x: hmc.init(x, log_density), step)


def _guarded(step: Callable[[Key, Any], tuple[Any, Array]]) -> Callable:
    """Lets a step through only if all of the new state is finite, and where there is mass."""

    def guarded_step(key: Key, state: Any) -> tuple[Any, Array]:
        proposal, accepted = step(key, state)
        finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(proposal)])
        taken = accepted & jnp.all(finite) & has_mass(proposal.logdensity)
        return jax.tree.map(lambda new, old: jnp.where(taken, new, old), proposal, state), taken

    return guarded_step


def _check(
    positions: Array,
    method: str,
    step_size: float | Array,
    num_steps: int,
    num_integration_steps: int,
) -> None:
    if positions.ndim != 2:
        raise ValueError(f"positions must have shape (n, dim), got {positions.shape}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if not isinstance(step_size, jax.core.Tracer) and not 0 < float(step_size) < math.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size}.")
    for name, value in (
        ("num_steps", num_steps),
        ("num_integration_steps", num_integration_steps),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
