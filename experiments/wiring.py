"""What all methods of the runner are wired from: ends, grid, processes and optimisers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict
from optax import contrib

from d2ejax import kernels, networks, parallel, time_grids
from d2ejax.algorithms import gathered
from d2ejax.algorithms.base import Algorithm
from d2ejax.endpoints.base import Endpoint
from d2ejax.flows import Velocity
from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, EmbeddedNetwork, Key, Params

_MANY_PATHS = 256
"""On one device of a CPU."""


class Room(NamedTuple):
    """What a method is to join, and in which time.

    Attributes:
        ends: What training may see of the source and of the target.
        law: The reference in continuous time.
        grid: The time grid.
        reference: The reference on the grid, by its exact transitions.
    """

    ends: tuple[Endpoint, Endpoint]
    law: Reference
    grid: TimeGrid
    reference: Process


class Side(NamedTuple):
    """One direction of time: its process and how its network starts."""

    process: Process
    init: Callable[[Key], Params]


class Method(NamedTuple):
    """A method of training, wired.

    Attributes:
        algorithm: The (init, step) pair, for the mapped axis of `d2ejax.parallel`.
        total_steps: Gradient steps of the whole run.
        phase_of: Maps a gradient step to the name of its phase and the step after that.
        forward: The forward process.
        backward: The backward process.
        forward_params: Maps the state to the parameters that the forward process is judged by.
        backward_params: The same for the backward process.
        flow: Maps the state to the velocity of its probability flow; None for what the two
            processes give together.
        has_noise: Whether it is a bridge at all: False for a flow alone, whose processes only
            follow it.
    """

    algorithm: Algorithm
    total_steps: int
    phase_of: Callable[[int], tuple[str, int]]
    forward: Process
    backward: Process
    forward_params: Callable[[Any], Params]
    backward_params: Callable[[Any], Params]
    flow: Callable[[Any], Velocity] | None = None
    has_noise: bool = True


def build_grid(config: ConfigDict) -> TimeGrid:
    """The time grid."""
    given = config.grid
    makers: dict[str, Callable[[int, float], TimeGrid]] = {
        "uniform": time_grids.uniform,
        "end_refined": functools.partial(time_grids.end_refined, power=given.power),
        "cosine": time_grids.cosine,
    }
    return makers[given.spacing](given.num_steps, given.t_max)


def build_side(config: ConfigDict, room: Room, *, backward: bool) -> Side:
    """A process towards one end; its network sees that end's energy, where there is one."""
    network = build_network(config, room, room.ends[0 if backward else 1])
    return Side(build_process(config, room, network.apply, backward=backward), network.init)


def build_network(config: ConfigDict, room: Room, goal: Endpoint) -> networks.NetworkPair:
    """The network of a drift; it sees the energy of its goal, where there is one."""
    given, t_max = config.network, config.grid.t_max
    return networks.drift_network(
        goal.dim,
        t_max,
        width=given.width,
        depth=given.depth,
        num_frequencies=given.num_frequencies,
        layer_norm=given.layer_norm,
        drift_scale=given.drift_scale * float(room.law.variance(0.0, t_max)) ** 0.5 / t_max,
        log_density=goal.log_density if given.energy_feature else None,
        score_clip=given.score_clip,
        affine=given.affine,
        dtype=given.dtype,
    )


def build_process(
    config: ConfigDict, room: Room, network: EmbeddedNetwork, *, backward: bool
) -> Process:
    """The chain of a network around the reference."""
    return kernels.process(
        network,
        room.law,
        room.grid,
        backward=backward,
        variance=config.variance.family if config.learn_variance else "fixed",
        bound=config.variance.bound,
        discretisation=config.reference.discretisation,
        prediction=config.network.prediction,
        steps_at_once=_steps_at_once(config),
    )


def _steps_at_once(config: ConfigDict) -> int | None:
    """How many steps of a path are scored at once; None for all of them."""
    if config.network.steps_at_once:
        return config.network.steps_at_once
    paths = max(config.batch_size, config.ipf.likelihood_batch_size) // parallel.num_devices()
    # The activations of one step stay in the cache, those of all of them would not: that is
    # worth computing them twice.
    return 1 if parallel.on_cpu() and paths >= _MANY_PATHS else None


def build_optimiser(
    config: ConfigDict, num_steps: int, *, ratio: float = 1.0
) -> optax.GradientTransformation:
    """The optimiser of a model that gets so many gradient steps.

    Args:
        config: A validated config.
        num_steps: How many.
        ratio: Factor of the learning rate.
    """
    given = config.optimiser
    peak, decay_steps = ratio * given.learning_rate, max(1, num_steps - given.warmup_steps)
    decay = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
    }[given.schedule]
    rate = decay
    if given.warmup_steps:
        warmup = optax.linear_schedule(0.0, peak, given.warmup_steps)
        rate = optax.join_schedules([warmup, decay], [given.warmup_steps])
    makers = {
        "adamw": lambda: optax.adamw(rate, b2=given.b2, weight_decay=given.weight_decay),
        # Its own rule is for matrices; everything else is left to AdamW, at the same rate.
        "muon": lambda: contrib.muon(
            rate,
            adam_b2=given.b2,
            weight_decay=given.weight_decay,
            adam_weight_decay=given.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        ),
    }
    return gathered.gathered(
        optax.chain(optax.clip_by_global_norm(given.clip_norm), makers[given.name]())
    )


def _matrices(params: dict[str, Array]) -> dict[str, contrib.MuonDimensionNumbers | None]:
    """Which axes are inputs and outputs, of matrices that are gathered by shape."""
    stacked = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return {name: None if name == gathered.REST else stacked for name in params}


def share(name: str, size: int, *, groups_of: int = 1) -> int:
    """A batch's share on each device.

    Args:
        name: The key that it has in a config.
        size: Of the whole batch.
        groups_of: How many of it stay together.

    Raises:
        ValueError: If it cannot be shared out.
    """
    devices = parallel.num_devices()
    whole = devices * groups_of
    if size % whole:
        raise ValueError(
            f"{name} = {size}: must be a multiple of {whole}: groups of {groups_of} on each of "
            f"{devices} devices (on a CPU, parallel.cpu_devices)"
        )
    return size // devices
