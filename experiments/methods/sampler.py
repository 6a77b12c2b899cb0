"""Diffusion samplers: from a Gaussian whose reversal is known to a target's energy."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2ejax import kernels, networks, references
from d2ejax.algorithms import samplers
from d2ejax.typing import Key, Params
from experiments import ends, shards, wiring
from experiments.wiring import Method, Room


def check(config: ConfigDict) -> None:
    """Raises ValueError if the batch does not divide over the devices."""
    share = shards.share(config, "batch_size", config.batch_size, groups_of=2)
    if config.exploration.buffer_size < share:
        raise ValueError(
            f"exploration.buffer_size = {config.exploration.buffer_size}: must be ≥ {share}, "
            "the paths that each device adds in one gradient step: its share of batch_size = "
            f"{config.batch_size}"
        )


def build(config: ConfigDict, room: Room) -> Method:
    """Wires a diffusion sampler.

    Args:
        config: A validated config.
        room: What to join.
    """
    side, settings = wiring.build_side(config, room, backward=False), config.sampler
    init_flow, flow = networks.flow_network(
        room.ends[1].dim,
        config.grid.t_max,
        width=config.network.width,
        depth=config.network.depth,
        num_frequencies=config.network.num_frequencies,
        layer_norm=config.network.layer_norm,
    )
    given = _sampler(config, room, side.process)._replace(flow=flow)

    def init_params(key: Key) -> Params:
        drift_key, flow_key = jax.random.split(key)
        params = {"drift": side.init(drift_key)}
        if settings.loss == "subtrajectory_balance":
            params["flow"] = init_flow(flow_key)
        return params

    return Method(
        algorithm=samplers.diffusion_sampler(
            given,
            init_params=init_params,
            optimiser=wiring.build_optimiser(config, settings.num_steps),
            ema_decay=config.optimiser.ema_decay,
            axis_name=shards.axis(config),
        ),
        total_steps=settings.num_steps,
        phase_of=wiring.even_phases(settings.num_steps, "sampling"),
        forward=given.process,
        backward=given.reversal,
        forward_params=lambda state: state.model.average["drift"],
        backward_params=lambda state: {},
    )


def _sampler(config: ConfigDict, room: Room, process: kernels.Process) -> samplers.Sampler:
    exploring, settings = config.exploration, config.sampler
    # The prior is a part of the method: training knows all of it.
    prior = ends.build_end(config.source)
    centre, covariance = prior.moments or (np.zeros(prior.dim), np.eye(prior.dim))
    mean, variance = jnp.asarray(centre, jnp.float32), float(covariance[0, 0])
    off_policy_ratio, inverse_temperature = wiring.annealing(config, settings.num_steps)
    return samplers.Sampler(
        loss=settings.loss,
        process=process,
        reversal=kernels.gaussian_reversal(room.law, room.grid, mean=mean, variance=variance),
        reference=room.reference,
        prior=prior,
        target=room.ends[1],
        marginals=references.gaussian_marginals(
            room.law, room.grid, mean=mean, variance=variance
        ),
        times=room.grid.times,
        particles=wiring.build_particles(config, room.ends[1]),
        batch_size=shards.share(config, "batch_size", config.batch_size),
        off_policy_ratio=off_policy_ratio,
        inverse_temperature=inverse_temperature,
        add_ends=exploring.add_ends,
        decay=settings.decay,
        tracked_steps=settings.tracked_steps or None,
        window=settings.window,
    )
