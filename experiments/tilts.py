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

_ENDS = 64
"""Ends of the base from each start, of which one is kept."""

_MEASURED = 2000


class Tilt(NamedTuple):
    """A law p with the density p e^r / Z, where Z is one for all, or one for each start.

    Attributes:
        endpoint: Samples of it, and where the data have one its log-density, unnormalised.
        optimum: Maps a key to estimates of the mean reward and of the KL divergence from p,
            both in nats.
    """

    endpoint: Endpoint
    optimum: Callable[[Key], tuple[Array, Array]]


def of_data(data: Endpoint, reward: LogDensity) -> Tilt:
    """The tilt of a generative model's data: what remains once the start is forgotten.

    Args:
        data: Samples, and perhaps a log-density.
        reward: r.
    """

    def pool(key: Key, n: int) -> Array:
        return endpoints.sampler(data)(key, _DRAWS * n)[None]

    log_density = data.log_density
    return _tilt(
        data._replace(
            log_density=None if log_density is None else lambda x: log_density(x) + reward(x)
        ),
        pool,
        reward,
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

    def pool(key: Key, n: int) -> Array:
        start_key, path_key = jax.random.split(key)
        starts = endpoints.sampler(source)(start_key, n)
        simulate = jax.vmap(rollouts.simulate, (0, None, None, None))
        return jax.lax.map(
            lambda given: simulate(jax.random.split(given[0], _ENDS), base, params, given[1])[
                :, -1
            ],
            (jax.random.split(path_key, n), starts),
            batch_size=_ENDS,
        )

    return _tilt(target._replace(log_density=None), pool, reward)


def _tilt(known: Endpoint, pool: Callable[[Key, int], Array], reward: LogDensity) -> Tilt:
    """Draws from each group of a pool `(num_groups, size, dim)`, together n of them."""

    def rewards(points: Array) -> Array:
        return jax.vmap(jax.vmap(reward))(points)

    def sample(key: Key, n: int) -> Array:
        pool_key, draw_key = jax.random.split(key)
        points = pool(pool_key, n)
        groups, size, dim = points.shape

        def draw(key: Key, log_weights: Array) -> Array:
            return jax.random.choice(key, size, (n // groups,), p=jax.nn.softmax(log_weights))

        drawn = jax.vmap(draw)(jax.random.split(draw_key, groups), rewards(points))
        return jnp.take_along_axis(points, drawn[..., None], axis=1).reshape(n, dim)

    def optimum(key: Key) -> tuple[Array, Array]:
        found = rewards(pool(key, _MEASURED))
        mean = jnp.sum(jax.nn.softmax(found, axis=1) * found, axis=1)
        log_z = jax.nn.logsumexp(found, axis=1) - jnp.log(found.shape[1])
        return jnp.mean(mean), jnp.mean(mean - log_z)

    endpoint = known._replace(
        name=f"tilted {known.name}",
        sample=jax.jit(sample, static_argnums=1),
        # Of the data themselves.
        log_z=None,
        modes=None,
        mode_weights=None,
        moments=None,
    )
    return Tilt(endpoint, jax.jit(optimum))
