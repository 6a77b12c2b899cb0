"""Entropic neural optimal transport between sampled ends."""

import jax
from ml_collections import ConfigDict

from d2ejax.algorithms import enot
from d2ejax.typing import Key, Params
from experiments import shards, wiring
from experiments.wiring import Method, Room


def check(config: ConfigDict) -> None:
    """Raises ValueError if the batch does not divide over the devices."""
    shards.share(config, "batch_size", config.batch_size)


def build(config: ConfigDict, room: Room) -> Method:
    """Wires the saddle point.

    Args:
        config: A validated config.
        room: What to join.
    """
    forward, backward = (wiring.build_side(config, room, backward=b) for b in (False, True))
    settings = config.enot
    init_potential, potential = wiring.build_potential(config, room.ends[1].dim)
    given = enot.Enot(
        forward=forward.process,
        backward=backward.process,
        reference=room.reference,
        law=room.law,
        grid=room.grid,
        source=room.ends[0],
        target=room.ends[1],
        potential=potential,
        num_steps=settings.num_steps,
        backward_steps=settings.backward_steps,
        inner_steps=settings.inner_steps,
        batch_size=shards.share(config, "batch_size", config.batch_size),
    )

    def init_params(key: Key) -> tuple[Params, Params, Params]:
        keys = jax.random.split(key, 3)
        return forward.init(keys[0]), init_potential(keys[1]), backward.init(keys[2])

    forward_phase = wiring.even_phases(given.num_steps, "forward")

    def phase_of(step: int) -> tuple[str, int]:
        if step < given.num_steps:
            return forward_phase(step)
        return ("backward 1" if step < given.total else "done"), given.total

    shown = settings.num_steps // (settings.inner_steps + 1)
    steps = settings.num_steps - shown, shown, settings.backward_steps
    return Method(
        algorithm=enot.enot(
            given,
            init_params=init_params,
            optimisers=tuple(wiring.build_optimiser(config, n) for n in steps),
            ema_decay=config.optimiser.ema_decay,
            axis_name=shards.axis(config),
        ),
        total_steps=given.total,
        phase_of=phase_of,
        forward=given.forward,
        backward=given.backward,
        forward_params=lambda state: state.models[enot.FORWARD].average,
        backward_params=lambda state: state.models[enot.BACKWARD].average,
    )
