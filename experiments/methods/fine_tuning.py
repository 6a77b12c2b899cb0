"""Fine-tuning: the forward process of a finished run, steered by a reward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2ejax import kernels, rollouts
from d2ejax.algorithms import diffusion_model, fine_tuning
from d2ejax.algorithms.fine_tuning import FineTuning
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.metrics.base import HostArray, mean_estimate
from d2ejax.typing import Array, Key, LogDensity, Params
from experiments import ends, shards, wiring
from experiments.wiring import Base, Method, Room

_AT_ONCE = 2000
"""Paths measured at once."""


def check(config: ConfigDict) -> None:
    """Raises ValueError if the batch does not divide over the devices, or leaves too little."""
    given = config.fine_tuning
    groups_of = given.num_paths if given.loss == "log_variance" else 1
    paths = shards.share(config, "batch_size", config.batch_size, groups_of=groups_of)
    if given.loss == "policy_gradient" and paths < 2:
        raise ValueError(
            f"batch_size = {config.batch_size}: must be ≥ {2 * shards.number(config)}: with "
            "fine_tuning.loss = 'policy_gradient' each device or shard compares its paths"
        )


def reward(config: ConfigDict) -> LogDensity:
    """r: the log-density of an endpoint over a temperature, in nats."""
    given = config.fine_tuning
    log_density = endpoints.log_density(ends.build_end(given.reward))
    return lambda x: log_density(x) / given.temperature


def build(config: ConfigDict, room: Room) -> Method:
    """Wires a fine-tuning.

    Args:
        config: A validated config.
        room: What to join, and the base.
    """
    base, settings = room.base, config.fine_tuning
    if base is None:
        raise ValueError("base: needed by the method 'fine_tuning'")
    if settings.noise < 1:
        lean = diffusion_model.with_noise(base.forward, settings.noise)
        base = base._replace(forward=lean)
    # To the network the reward is the energy of the end.
    goal = Endpoint("reward", room.ends[0].dim, log_density=reward(config))
    network = wiring.build_network(config, room, goal)
    changes = wiring.build_process(config, room, network.apply, backward=False)
    given = FineTuning(
        loss=settings.loss,
        process=kernels.on_top(base.forward, changes),
        base=base.forward,
        base_params=base.forward_params,
        start=endpoints.sampler(room.ends[0]),
        reward=endpoints.log_density(goal),
        batch_size=shards.share(config, "batch_size", config.batch_size),
        num_paths=settings.num_paths,
        tracked_steps=settings.tracked_steps or None,
    )

    def init_params(key: Key) -> Params:
        fixed = jax.tree.map(jnp.asarray, base.forward_params)
        return {kernels.BASE: fixed, "network": network.init(key)}

    def forward_params(state: Any) -> Params:
        return state.model.average["drift"]

    return Method(
        algorithm=fine_tuning.fine_tuning(
            given,
            init_params=init_params,
            optimiser=wiring.build_optimiser(config, settings.num_steps),
            ema_decay=config.optimiser.ema_decay,
            axis_name=shards.axis(config),
        ),
        total_steps=settings.num_steps,
        phase_of=wiring.even_phases(settings.num_steps, "fine-tuning"),
        forward=given.process,
        backward=base.backward,
        forward_params=forward_params,
        backward_params=lambda state: base.backward_params,
        has_bridge=False,
        has_reversal=base.forgets_start and settings.noise == 1,
        measure=_measure(given, base, forward_params),
    )


def _measure(
    given: FineTuning, base: Base, forward_params: Callable[[Any], Params]
) -> Callable[[Key, Any, HostArray], dict[str, Any]]:
    """Mean reward and KL divergence from the base, beside what the exact tilt has."""

    @jax.jit
    def of_paths(params: Params, paths: Array) -> tuple[Array, Array]:
        kls = rollouts.step_kl_divergences(
            given.process, params, given.base, given.base_params, paths
        )
        return jax.vmap(given.reward)(paths[:, -1]), jnp.sum(kls, axis=-1)

    @jax.jit
    def of_base(key: Key) -> Array:
        start_key, path_key = jax.random.split(key)
        starts = given.start(start_key, _AT_ONCE)
        simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
        keys = jax.random.split(path_key, _AT_ONCE)
        ends = simulate(keys, given.base, given.base_params, starts)[:, -1]
        return jax.vmap(given.reward)(ends)

    def measure(key: Key, state: Any, paths: HostArray) -> dict[str, Any]:
        base_key, exact_key = jax.random.split(key)
        pieces = np.array_split(paths.astype(np.float32), -(-len(paths) // _AT_ONCE))
        found = [of_paths(forward_params(state), jnp.asarray(piece)) for piece in pieces]
        rewards, kls = map(np.concatenate, zip(*found, strict=True))
        untuned = [of_base(k) for k in jax.random.split(base_key, len(pieces))]
        exact_reward, exact_kl = base.tilt.optimum(exact_key)
        values = {
            "reward": rewards,
            "reward_base": np.concatenate(untuned),
            "kl_to_base": kls,
        }
        return {
            **{name: mean_estimate(v.astype(np.float64)) for name, v in values.items()},
            "reward_exact": exact_reward,
            "kl_to_base_exact": exact_kl,
        }

    return measure
