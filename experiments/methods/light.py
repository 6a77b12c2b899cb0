"""The light Schrödinger bridge: a potential in closed form between two sampled ends.

By itself a method, and for IPF a start.
"""

import jax
import optax
from ml_collections import ConfigDict

from d2ejax import kernels, references
from d2ejax.algorithms import light
from d2ejax.algorithms.base import Algorithm
from d2ejax.light import LightPotential
from d2ejax.typing import Key, Params
from experiments import shards, wiring
from experiments.wiring import Method, Room, Side


def check(config: ConfigDict) -> None:
    """Raises ValueError if a batch does not divide over the devices."""
    shards.share(config, "light.batch_size", config.light.batch_size)
    shards.share(config, "batch_size", config.batch_size)


def build(config: ConfigDict, room: Room) -> Method:
    """Wires the light bridge.

    Args:
        config: A validated config.
        room: What to join.
    """
    potential = LightPotential(room.law, float(config.grid.t_max))
    backward = wiring.build_side(config, room, backward=True)
    forward = potential.process(
        room.grid,
        match_variance=config.learn_variance,
        steps_at_once=backward.process.steps_at_once,
    )
    phases = light.LightPhases(
        potential_steps=config.light.steps,
        backward_steps=config.light.backward_steps,
        ends_batch=shards.share(config, "light.batch_size", config.light.batch_size),
        paths_batch=shards.share(config, "batch_size", config.batch_size),
    )

    def phase_of(step: int) -> tuple[str, int]:
        if step < phases.potential_steps:
            return "forward 1", phases.potential_steps
        return ("backward 1" if step < phases.total else "done"), phases.total

    return Method(
        algorithm=_algorithm(config, room, potential, backward, phases),
        total_steps=phases.total,
        phase_of=phase_of,
        forward=forward,
        backward=backward.process,
        forward_params=lambda state: state.potential.average,
        backward_params=lambda state: state.backward.average,
    )


def _algorithm(
    config: ConfigDict,
    room: Room,
    potential: LightPotential,
    backward: Side,
    phases: light.LightPhases,
) -> Algorithm:
    settings = config.light
    return light.light_bridge(
        potential,
        backward.process,
        room.ends,
        room.grid,
        phases,
        init_backward=backward.init,
        optimisers=(
            _build_optimiser(config),
            wiring.build_optimiser(
                config, settings.backward_steps, ratio=config.optimiser.backward_ratio
            ),
        ),
        num_components=settings.num_components,
        init_share=settings.init_share,
        ema_decay=config.optimiser.ema_decay,
        axis_name=shards.axis(config),
    )


def on_light(config: ConfigDict, room: Room, side: Side) -> Side:
    """A process on top of a light bridge from its own start, which its initialisation fits.

    The first half-step of either direction goes on from that bridge, and the paths that it sees
    are those of the other direction's: forward with its starts exactly those of the source, and
    backward with those of the target.

    Args:
        config: A validated config.
        room: What to join.
        side: The process of a network.
    """
    given, t_max, backward = config.light, float(config.grid.t_max), side.process.backward
    law = references.reverse(room.law, t_max) if backward else room.law
    source, target = room.ends
    potential = LightPotential(law, t_max)
    base = potential.process(room.grid, backward=backward, match_variance=config.learn_variance)

    def init(key: Key) -> Params:
        base_key, network_key = jax.random.split(key)
        fitted = light.fit_potential(
            base_key,
            potential,
            (target, source) if backward else (source, target),
            optimiser=_build_optimiser(config),
            num_steps=given.steps,
            batch_size=shards.share(config, "light.batch_size", given.batch_size),
            num_components=given.num_components,
            init_share=given.init_share,
            ema_decay=config.optimiser.ema_decay,
            axis_name=shards.axis(config),
        )
        return {kernels.BASE: fitted, "network": side.init(network_key)}

    return Side(kernels.on_top(base, side.process), init)


def _build_optimiser(config: ConfigDict) -> optax.GradientTransformation:
    """The optimiser of a potential."""
    # Not that of networks: an update of a centre is to be small in units of x, and what is good
    # for the rows of a weight matrix means nothing for centres.
    rate = optax.cosine_decay_schedule(config.light.learning_rate, config.light.steps)
    return optax.adam(rate, b2=config.optimiser.b2)
