"""Diffusion models: from Gaussian noise to samples of the target."""

from ml_collections import ConfigDict

from d2ejax.algorithms import diffusion_model
from experiments import shards, wiring
from experiments.wiring import Method, Room


def check(config: ConfigDict) -> None:
    """Raises ValueError if the batch does not divide over the devices."""
    shards.share(config, "batch_size", config.batch_size)


def build(config: ConfigDict, room: Room) -> Method:
    """Wires a diffusion model.

    Args:
        config: A validated config.
        room: What to join.
    """
    side, num_steps = (
        wiring.build_side(config, room, backward=False),
        config.diffusion.num_steps,
    )
    given = diffusion_model.DiffusionModel(
        process=side.process,
        law=room.law,
        grid=room.grid,
        data=room.ends[1],
        batch_size=shards.share(config, "batch_size", config.batch_size),
    )
    return Method(
        algorithm=diffusion_model.diffusion_model(
            given,
            init_params=side.init,
            optimiser=wiring.build_optimiser(config, num_steps),
            ema_decay=config.optimiser.ema_decay,
            axis_name=shards.axis(config),
        ),
        total_steps=num_steps,
        phase_of=wiring.even_phases(num_steps, "denoising"),
        forward=side.process,
        backward=diffusion_model.noising(room.law, room.grid),
        forward_params=lambda state: state.model.average,
        backward_params=lambda state: {},
        has_bridge=False,
    )
