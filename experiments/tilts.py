"""What a process that was tilted by a reward is judged by: draws weighted by the reward."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax import rollouts
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.kernels import Process
from d2ejax.typing import Array, Key, LogDensity, Params

_DRAWS = 50
"""Draws of the data for each that is kept: its law is off by the inverse of their number."""

_ENDS = 256
"""Ends of the base from each start, of which one is kept."""

_AT_ONCE = 2**15
"""Paths of the base that are simulated together."""

_MEASURED_DRAWS = 100_000
_MEASURED_STARTS, _MEASURED_ENDS = 250, 1024
"""Behind the estimates of an optimum. Of weighted draws no KL divergence is above the logarithm
of their number, and where few of them count all estimates are biased: then there are none."""

_FEWEST_DRAWS, _FEWEST_ENDS = 100.0, 20.0
"""The effective numbers, of draws and of ends from a start on average, that are enough."""


class Tilt(NamedTuple):
    """A law p with the density p e^r / Z, where Z is one for all, or one for each start.

    Attributes:
        endpoint: Samples of it, and where the data have one its log-density, unnormalised.
        optimum: Maps a key to estimates of the mean reward and of the KL divergence from p,
            both in nats; None for either where too few draws carry the weight.
    """

    endpoint: Endpoint
    optimum: Callable[[Key], tuple[float | None, float | None]]


def of_data(data: Endpoint, reward: LogDensity) -> Tilt:
    """The tilt of a generative model's data: what remains once the start is forgotten.

    Args:
        data: Samples, and perhaps a log-density.
        reward: r.
    """

    def draws(key: Key, n: int) -> Array:
        return endpoints.sampler(data)(key, n)[None]

    log_density = data.log_density
    return _tilt(
        data._replace(
            log_density=None if log_density is None else lambda x: log_density(x) + reward(x)
        ),
        lambda key, n: draws(key, _DRAWS * n),
        reward,
        _optimum(lambda key: draws(key, _MEASURED_DRAWS), reward, _FEWEST_DRAWS),
    )


def of_process(
    base: Process, params: Params, source: Endpoint, target: Endpoint, reward: LogDensity
) -> Tilt:
    """The tilt of the ends of a process, from each start by itself.

    Args:
        base: The process.
        params: Its parameters.
        source: Samples of its starts.
        target: What its ends are compared with otherwise: the name and the extent.
        reward: r.
    """
    simulate = jax.vmap(rollouts.simulate, (0, None, None, None))

    def ends(key: Key, num_starts: int, num_ends: int) -> Array:
        start_key, path_key = jax.random.split(key)

        def from_one(given: tuple[Key, Array]) -> Array:
            return simulate(jax.random.split(given[0], num_ends), base, params, given[1])[:, -1]

        return jax.lax.map(
            from_one,
            (
                jax.random.split(path_key, num_starts),
                endpoints.sampler(source)(start_key, num_starts),
            ),
            batch_size=_AT_ONCE // num_ends,
        )

    return _tilt(
        target._replace(log_density=None),
        lambda key, n: ends(key, n, _ENDS),
        reward,
        _optimum(lambda key: ends(key, _MEASURED_STARTS, _MEASURED_ENDS), reward, _FEWEST_ENDS),
    )


def _tilt(
    known: Endpoint,
    pool: Callable[[Key, int], Array],
    reward: LogDensity,
    optimum: Callable[[Key], tuple[float | None, float | None]],
) -> Tilt:
    """Draws from each group of a pool `(num_groups, size, dim)`, together n of them."""

    def sample(key: Key, n: int) -> Array:
        pool_key, draw_key = jax.random.split(key)
        points = pool(pool_key, n)
        groups, size, dim = points.shape

        def draw(key: Key, log_weights: Array) -> Array:
            return jax.random.choice(key, size, (n // groups,), p=jax.nn.softmax(log_weights))

        drawn = jax.vmap(draw)(jax.random.split(draw_key, groups), _rewards(reward, points))
        return jnp.take_along_axis(points, drawn[..., None], axis=1).reshape(n, dim)

    endpoint = known._replace(
        name=f"tilted {known.name}",
        sample=jax.jit(sample, static_argnums=1),
        # Of the data themselves.
        log_z=None,
        modes=None,
        mode_weights=None,
        moments=None,
    )
    return Tilt(endpoint, optimum)


def _optimum(
    pool: Callable[[Key], Array], reward: LogDensity, fewest: float
) -> Callable[[Key], tuple[float | None, float | None]]:
    """By weighting each group of a pool, if that leaves enough of it."""

    @jax.jit
    def weighted(key: Key) -> tuple[Array, Array, Array]:
        found = _rewards(reward, pool(key))
        weights = jax.nn.softmax(found, axis=1)
        mean = jnp.sum(weights * found, axis=1)
        log_z = jax.nn.logsumexp(found, axis=1) - jnp.log(found.shape[1])
        effective = 1.0 / jnp.sum(weights**2, axis=1)
        return jnp.mean(mean), jnp.mean(mean - log_z), jnp.mean(effective)

    def optimum(key: Key) -> tuple[float | None, float | None]:
        mean, kl, effective = map(float, weighted(key))
        return (mean, kl) if effective >= fewest else (None, None)

    return optimum


def _rewards(reward: LogDensity, points: Array) -> Array:
    return jax.vmap(jax.vmap(reward))(points)
