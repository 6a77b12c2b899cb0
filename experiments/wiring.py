"""What all methods of the runner are wired from: ends, grid, processes and optimisers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict
from optax import contrib

from d2ejax import (
    equivariant_networks,
    graph_networks,
    kernels,
    networks,
    parallel,
    time_grids,
)
from d2ejax.algorithms import gathered
from d2ejax.algorithms.base import Algorithm
from d2ejax.endpoints.base import Endpoint
from d2ejax.exploration import langevin
from d2ejax.exploration.particles import Particles
from d2ejax.flows import Velocity
from d2ejax.kernels import Process
from d2ejax.metrics.base import HostArray
from d2ejax.references import Reference
from d2ejax.snapshots import Snapshots
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, EmbeddedNetwork, Key, Params
from experiments.tilts import Tilt

_MANY_PATHS = 256
"""On one device of a CPU."""

_PHASES = 5
"""Of a run without half-steps."""


class Base(NamedTuple):
    """A process that has been trained, to be fine-tuned.

    Attributes:
        forward: The forward process.
        forward_params: Its parameters.
        backward: The backward process.
        backward_params: Its parameters.
        tilt: What its tilt by the reward is judged by.
        forgets_start: Whether its ends know nothing of where its paths began, as those of a
            diffusion model: then what is tilted keeps the backward process.
    """

    forward: Process
    forward_params: Params
    backward: Process
    backward_params: Params
    tilt: Tilt
    forgets_start: bool


class Room(NamedTuple):
    """What a method is to join, and in which time.

    Attributes:
        ends: What training may see of the source and of the target.
        law: The reference in continuous time.
        grid: The time grid.
        reference: The reference on the grid, by its exact transitions.
        between: What training may see of the process at further times.
        knots: The points of the grid at these times.
        base: What fine-tuning starts from.
        context: What the networks see of which problem it is, where one bridge is trained for
            several: features of it, `(num_features,)`.
    """

    ends: tuple[Endpoint, Endpoint]
    law: Reference
    grid: TimeGrid
    reference: Process
    between: tuple[Endpoint, ...] = ()
    knots: tuple[int, ...] = ()
    base: Base | None = None
    context: Array | None = None


class Observed(NamedTuple):
    """Snapshots of a process, and which of them are trained on.

    Attributes:
        snapshots: The process.
        knots: The point of the grid at each of its times, those of its ends included.
        left_out: Which of them is kept from training; None for none.
    """

    snapshots: Snapshots
    knots: tuple[int, ...]
    left_out: int | None

    @property
    def kept(self) -> tuple[int, ...]:
        """Those that are trained on."""
        return tuple(i for i in range(len(self.knots)) if i != self.left_out)

    def before(self, index: int) -> int:
        """The last of these that is earlier than a snapshot."""
        return max(i for i in self.kept if i < index)

    def after(self, index: int) -> int:
        """The first of these that is later than a snapshot."""
        return min(i for i in self.kept if i > index)


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
        graph: Maps the state to the parameters of the drift that has a graph, if one has.
        has_bridge: Whether the Schrödinger bridge of its ends is what it seeks; False for
            diffusion models and what is made of them.
        has_reversal: Whether the backward process is one of the forward one; where it is not,
            nothing is said that needs both.
        measure: Maps a key, the state and paths of the forward process to what else there is to
            be measured of these, estimates or numbers, if anything.
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
    graph: Callable[[Any], Params] | None = None
    has_bridge: bool = True
    has_reversal: bool = True
    measure: Callable[[Key, Any, HostArray], dict[str, Any]] | None = None


def build_grid(config: ConfigDict, snapshots: Snapshots | None = None) -> TimeGrid:
    """The time grid; with snapshots as many steps from any of them to the next."""
    given = config.grid
    makers: dict[str, Callable[[int, float], TimeGrid]] = {
        "uniform": time_grids.uniform,
        "end_refined": functools.partial(time_grids.end_refined, power=given.power),
        "cosine": time_grids.cosine,
    }
    make = makers[given.spacing]
    if snapshots is None:
        return make(given.num_steps, given.t_max)
    steps = given.num_steps // (len(snapshots.times) - 1)
    return time_grids.through(snapshots.times, functools.partial(make, steps))


def observe(config: ConfigDict, snapshots: Snapshots | None) -> Observed | None:
    """What of the snapshots is trained on, and where on the grid they are."""
    if snapshots is None:
        return None
    intervals, left_out = len(snapshots.times) - 1, config.snapshots.left_out
    steps = config.grid.num_steps // intervals
    knots = tuple(i * steps for i in range(intervals + 1))
    return Observed(snapshots, knots, None if left_out < 0 else left_out)


def build_side(config: ConfigDict, room: Room, *, backward: bool) -> Side:
    """A process towards one end; its network sees that end's energy, where there is one."""
    network = build_network(config, room, room.ends[0 if backward else 1])
    return Side(build_process(config, room, network.apply, backward=backward), network.init)


def build_network(config: ConfigDict, room: Room, goal: Endpoint) -> networks.NetworkPair:
    """The network of a drift; it sees the energy of its goal, where there is one."""
    given, particles = config.network, room.ends[1].particles
    if given.equivariant and particles is not None:
        return equivariant_networks.equivariant_network(
            *particles,
            config.grid.t_max,
            width=given.width,
            depth=given.depth,
            num_frequencies=given.num_frequencies,
            drift_scale=_drift_scale(config, room),
            log_density=goal.log_density if given.energy_feature else None,
            score_clip=given.score_clip,
            affine=given.affine,
        )
    return networks.drift_network(
        goal.dim,
        config.grid.t_max,
        width=given.width,
        depth=given.depth,
        num_frequencies=given.num_frequencies,
        layer_norm=given.layer_norm,
        drift_scale=_drift_scale(config, room),
        log_density=goal.log_density if given.energy_feature else None,
        score_clip=given.score_clip,
        affine=given.affine,
        dtype=given.dtype,
        context=room.context,
    )


def build_graph_network(config: ConfigDict, room: Room) -> networks.NetworkPair:
    """The network of a drift whose first layer is a graph."""
    given = config.graph
    return graph_networks.graph_network(
        room.ends[0].dim,
        config.grid.t_max,
        width=given.width,
        depth=given.depth,
        num_frequencies=given.num_frequencies,
        drift_scale=_drift_scale(config, room),
    )


def build_potential(
    config: ConfigDict, dim: int
) -> tuple[Callable[[Key], Params], Callable[[Params, Array], Array]]:
    """The network of a scalar potential of one end: its init and apply."""
    given = config.network
    return networks.potential_network(
        dim, width=given.width, depth=given.depth, layer_norm=given.layer_norm
    )


def _drift_scale(config: ConfigDict, room: Room) -> float:
    t_max = config.grid.t_max
    # A number also where it is wired for a context that is being traced.
    with jax.ensure_compile_time_eval():
        variance = float(room.law.variance(0.0, t_max))
    return config.network.drift_scale * variance**0.5 / t_max


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


def annealing(config: ConfigDict, num_steps: int) -> tuple[optax.Schedule, optax.Schedule]:
    """Share of off-policy paths and factor of the energy, over a model's gradient steps."""
    given = config.exploration
    steps = max(1, round(given.anneal_fraction * num_steps))
    return (
        optax.linear_schedule(given.off_policy_ratio, given.off_policy_ratio_end, steps),
        optax.linear_schedule(given.inverse_temperature_start, 1.0, steps),
    )


def build_particles(config: ConfigDict, end: Endpoint) -> Particles:
    """How an end that is known by its energy is explored."""
    given = config.exploration
    refresh = functools.partial(
        langevin.refresh,
        method=given.refresh_method,
        step_size=given.refresh_step_size,
        num_steps=given.refresh_steps,
    )
    return Particles(
        size=given.buffer_size,
        refresh=None if given.refresh_method == "none" else refresh,
        refresh_every=given.refresh_every,
        restart_fraction=given.restart_fraction,
        restart=lambda key, n: given.restart_std * jax.random.normal(key, (n, end.dim)),
        priority_power=given.priority_power,
    )


def _matrices(params: dict[str, Array]) -> dict[str, contrib.MuonDimensionNumbers | None]:
    """Which axes are inputs and outputs, of matrices that are gathered by shape."""
    stacked = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return {name: None if name == gathered.REST else stacked for name in params}


def even_phases(total: int, name: str) -> Callable[[int], tuple[str, int]]:
    """Phases of a method without half-steps, at the end of each of which it is measured.

    Args:
        total: Gradient steps of the whole run.
        name: What the phases are called.
    """
    length = -(-total // _PHASES)

    def phase_of(step: int) -> tuple[str, int]:
        if step >= total:
            return "done", total
        phase = step // length
        return f"{name} {phase + 1}", min((phase + 1) * length, total)

    return phase_of
