"""The light Schrödinger bridge: a potential in closed form between two sampled ends."""

import optax
from ml_collections import ConfigDict

from d2ejax import parallel
from d2ejax.algorithms import light
from d2ejax.algorithms.base import Algorithm
from d2ejax.light import LightPotential
from experiments import wiring
from experiments.wiring import Method, Room, Side


def check(config: ConfigDict) -> None:
    """Raises ValueError if a batch does not divide over the devices."""
    wiring.share("light.batch_size", config.light.batch_size)
    wiring.share("batch_size", config.batch_size)


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
        ends_batch=wiring.share("light.batch_size", config.light.batch_size),
        paths_batch=wiring.share("batch_size", config.batch_size),
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
    # Not the optimiser of networks: an update of a centre is to be small in units of x, and
    # what is good for the rows of a weight matrix means nothing for centres.
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    return light.light_bridge(
        potential,
        backward.process,
        room.ends,
        room.grid,
        phases,
        init_backward=backward.init,
        optimisers=(
            optax.adam(rate, b2=config.optimiser.b2),
            wiring.build_optimiser(
                config, settings.backward_steps, ratio=config.optimiser.backward_ratio
            ),
        ),
        num_components=settings.num_components,
        init_share=settings.init_share,
        ema_decay=config.optimiser.ema_decay,
        axis_name=parallel.AXIS,
    )
