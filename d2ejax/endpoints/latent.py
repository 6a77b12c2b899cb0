"""Posteriors of a generator's latent: a Gaussian prior, tilted by a reward of what it makes.

With x = f(z), z ~ N(0, I) and a reward R, as log r(y | x) of a classifier, the target is
p(z) e^{R(f(z)) / τ} / Z (Tamogashev & Malkin 2026, "Data-to-Energy Stochastic Dynamics",
section 5; Venkatraman et al. 2025, arXiv:2502.06999). A bridge from the prior to it moves a
latent to a near one that is rewarded, and so makes of an image another one like it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint
from d2ejax.typing import Array, Key

Combine = Literal["sum", "max"]
COMBINES: tuple[Combine, ...] = get_args(Combine)

_LOG_2PI = math.log(2.0 * math.pi)
_EXTENT = (-5.5, 5.5)
_MAX_PROPOSED = 20_000_000
"""By rejection, however many are accepted: minutes on a core for small networks of images."""


def latent_posterior(
    dim: int,
    log_reward: Callable[[Array], Array],
    *,
    temperature: float = 1.0,
    bounded: bool = False,
    name: str = "latent_posterior",
) -> Endpoint:
    """N(0, I) times e^{R(z) / τ}, for any reward R of a latent, be it of a text or an image.

    Args:
        dim: Of the latent z.
        log_reward: R, `(dim,) -> ()`, in nats; differentiable, for whatever uses the score.
        temperature: τ > 0: below 1 it holds on to what is rewarded most.
        bounded: Whether R ≤ 0 everywhere, as a log-probability is; then there are samples too,
            by rejection from the prior, for metrics.
        name: What it is called in messages and plots.

    Returns:
        Endpoint with a log-density whose Z is E[e^{R(z) / τ}] under the prior, which is not
        known.

    Raises:
        ValueError: If the dimension is no positive integer, or the temperature not above zero.
    """
    dim = options.integer("dim", dim, minimum=1)
    temperature = options.positive("temperature", temperature)

    def log_accept(z: Array) -> Array:
        return log_reward(z) / temperature

    def log_density(z: Array) -> Array:
        chex.assert_shape(z, (dim,))
        return -0.5 * (jnp.sum(jnp.square(z)) + dim * _LOG_2PI) + log_accept(z)

    def sample(key: Key, n: int) -> Array:
        return rejection_samples(key, n, dim, log_accept)

    return Endpoint(
        name=name,
        dim=dim,
        sample=sample if bounded else None,
        log_density=log_density,
        extent=_EXTENT,
    )


def class_reward(
    log_probabilities: Callable[[Array], Array],
    classes: Sequence[int],
    *,
    combine: Combine = "sum",
) -> Callable[[Array], Array]:
    """The log-probability that an input is of one of some classes, or of the best of them.

    Args:
        log_probabilities: `(input) -> (num_classes,)`, normalised.
        classes: The classes asked for.
        combine: "sum": log Σ_c r(c | x), of any of them; "max": max_c log r(c | x), of one.

    Returns:
        Maps an input to a number that is at most zero.

    Raises:
        ValueError: If there are no classes, one is named twice, or the combination is unknown.
    """
    options.refuse_unknown("combine", combine, COMBINES)
    wanted = [options.integer("classes", label, minimum=0) for label in classes]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"classes = {tuple(classes)!r}: must name at least one, each once")

    def reward(x: Array) -> Array:
        chosen = log_probabilities(x)[jnp.asarray(wanted)]
        return jax.nn.logsumexp(chosen) if combine == "sum" else jnp.max(chosen)

    return reward


def rejection_samples(
    key: Key, n: int, dim: int, log_accept: Callable[[Array], Array]
) -> Array:
    """Exact samples of N(0, I) times a probability of being accepted.

    Args:
        key: A typed key.
        n: How many; as many are proposed in one round.
        dim: Of each.
        log_accept: `(dim,) -> ()`, at most zero.

    Returns:
        Samples `(n, dim)`. Those still missing after 20 million proposals are NaN.
    """
    max_rounds = max(1, _MAX_PROPOSED // n)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        number, count, _ = carry
        return (count < n) & (number < max_rounds)

    def propose(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, count, kept = carry
        own_key, level_key = jax.random.split(jax.random.fold_in(key, number))
        proposed = jax.random.normal(own_key, (n, dim))
        levels = -jax.random.exponential(level_key, (n,))
        accepted = levels <= jax.vmap(log_accept)(proposed)
        # Beyond the end, where they are dropped, go the refused and those that are too many.
        places = jnp.where(accepted, count + jnp.cumsum(accepted) - 1, n)
        kept = kept.at[places].set(proposed, mode="drop")
        return number + 1, count + jnp.sum(accepted), kept

    zero = jnp.zeros((), jnp.int32)
    start = (zero, zero, jnp.full((n, dim), jnp.nan))
    return jax.lax.while_loop(unfinished, propose, start)[2]
