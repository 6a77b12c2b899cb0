"""From a validated config to an experiment: beside `ends` the only reader of configs.

Nothing here simulates or trains; it wires functions of the library together.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from ml_collections import ConfigDict
from optax import contrib

from d2ejax import kernels, networks, parallel, time_grids
from d2ejax.algorithms import gathered, half_steps, ipf
from d2ejax.algorithms.base import Algorithm
from d2ejax.endpoints.base import Endpoint, restrict
from d2ejax.exact.base import ExactBridge
from d2ejax.exploration import langevin
from d2ejax.exploration.particles import Particles
from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key, Params
from experiments import ends
from experiments.validation import resolve_losses

_MANY_PATHS = 256
"""On one device of a CPU."""


class Experiment(NamedTuple):
    """A bridge to train, and all that judging it needs.

    Attributes:
        algorithm: The (init, step) pair, for the mapped axis of `d2ejax.parallel`.
        total_steps: Gradient steps of the whole run.
        phase_of: Maps a gradient step to the name of its half-step and the step after that.
        source: Everything known about p_0; training sees a restricted view.
        target: Everything known about p_1.
        law: The reference in continuous time.
        grid: The time grid.
        reference: The reference on the grid, by its exact transitions.
        forward: The forward process.
        backward: The backward process.
        forward_params: Maps the state to the parameters that the forward process is judged by.
        backward_params: The same for the backward process.
        bridge: The exact bridge, where the two ends were made as a pair.
    """

    algorithm: Algorithm
    total_steps: int
    phase_of: Callable[[int], tuple[str, int]]
    source: Endpoint
    target: Endpoint
    law: Reference
    grid: TimeGrid
    reference: Process
    forward: Process
    backward: Process
    forward_params: Callable[[ipf.State], Params]
    backward_params: Callable[[ipf.State], Params]
    bridge: ExactBridge | None


class Room(NamedTuple):
    """What the two half-steps share."""

    ends: tuple[Endpoint, Endpoint]
    law: Reference
    grid: TimeGrid
    reference: Process


class Side(NamedTuple):
    """One direction of time: its process and how its network starts."""

    process: Process
    init: Callable[[Key], Params]


def build(config: ConfigDict) -> Experiment:
    """Wires an experiment.

    Args:
        config: A validated config.

    Returns:
        The experiment.

    Raises:
        ValueError: If the batch does not divide over the devices or the buffer is too small.
    """
    _check_batches(config)
    source, target, bridge = ends.build_ends(config)
    law, grid = ends.build_reference(config), build_grid(config)
    # The bridge is one of the reference itself, not of its Euler steps.
    reference = kernels.reference_process(law, grid, discretisation="exact")
    seen = (
        restrict(source, config.source.access),
        restrict(target, config.target.access),
    )
    room = Room(seen, law, grid, reference)
    backward, forward = (_side(config, room, backward=b) for b in (True, False))
    algorithm, plan = _algorithm(config, room, backward, forward)
    return Experiment(
        algorithm=algorithm,
        total_steps=plan.total,
        phase_of=_phases(plan),
        source=source,
        target=target,
        law=law,
        grid=grid,
        reference=reference,
        forward=forward.process,
        backward=backward.process,
        forward_params=lambda state: state.models[ipf.FORWARD].average["drift"],
        backward_params=lambda state: state.models[ipf.BACKWARD].average["drift"],
        bridge=bridge,
    )


def build_grid(config: ConfigDict) -> TimeGrid:
    """The time grid."""
    given = config.grid
    makers: dict[str, Callable[[int, float], TimeGrid]] = {
        "uniform": time_grids.uniform,
        "end_refined": functools.partial(time_grids.end_refined, power=given.power),
        "cosine": time_grids.cosine,
    }
    return makers[given.spacing](given.num_steps, given.t_max)


def _side(config: ConfigDict, room: Room, *, backward: bool) -> Side:
    """A process towards one end; its network sees that end's energy, where there is one."""
    goal, given, t_max = room.ends[0 if backward else 1], config.network, config.grid.t_max
    network = networks.drift_network(
        goal.dim,
        t_max,
        width=given.width,
        depth=given.depth,
        num_frequencies=given.num_frequencies,
        layer_norm=given.layer_norm,
        drift_scale=given.drift_scale * float(room.law.variance(0.0, t_max)) ** 0.5 / t_max,
        log_density=goal.log_density if given.energy_feature else None,
        score_clip=given.score_clip,
        dtype=given.dtype,
    )
    process = kernels.process(
        network.apply,
        room.law,
        room.grid,
        backward=backward,
        variance=config.variance.family if config.learn_variance else "fixed",
        bound=config.variance.bound,
        discretisation=config.reference.discretisation,
        steps_at_once=_steps_at_once(config),
    )
    return Side(process, network.init)


def _steps_at_once(config: ConfigDict) -> int | None:
    """How many steps of a path are scored at once; None for all of them."""
    if config.network.steps_at_once:
        return config.network.steps_at_once
    paths = max(config.batch_size, config.ipf.likelihood_batch_size) // parallel.num_devices()
    # The activations of one step stay in the cache, those of all of them would not: that is
    # worth computing them twice.
    return 1 if parallel.on_cpu() and paths >= _MANY_PATHS else None


def _algorithm(
    config: ConfigDict, room: Room, backward: Side, forward: Side
) -> tuple[Algorithm, ipf.Schedule]:
    losses = resolve_losses(config)
    settings = config.ipf
    plan = ipf.schedule(
        *losses,
        iterations=settings.iterations,
        backward_steps=settings.backward_steps,
        forward_steps=settings.forward_steps,
    )
    init_potential, potential = networks.potential_network(
        room.ends[0].dim,
        width=config.network.width,
        depth=config.network.depth,
        layer_norm=config.network.layer_norm,
    )
    half_step = functools.partial(_half_step, config, room, potential)
    sides, halves = (
        (backward, forward),
        (
            half_step(losses[0], backward.process, forward.process),
            half_step(losses[1], forward.process, backward.process),
        ),
    )

    def init_params(key: Key) -> tuple[Params, Params]:
        def model(key: Key, side: Side, loss: str) -> Params:
            drift_key, potential_key = jax.random.split(key)
            params = {"drift": side.init(drift_key)}
            if loss in half_steps.WITH_POTENTIAL:
                params["potential"] = init_potential(potential_key)
            return params

        first, second = map(model, jax.random.split(key), sides, losses)
        return first, second

    algorithm = ipf.ipf(
        *halves,
        plan,
        init_params=init_params,
        optimisers=(
            _optimiser(
                config,
                settings.backward_steps * settings.iterations,
                ratio=config.optimiser.backward_ratio,
            ),
            _optimiser(config, settings.forward_steps * settings.iterations),
        ),
        ema_decay=config.optimiser.ema_decay,
        use_ema_opposite=settings.use_ema_opposite,
        warm_start=settings.warm_start,
        axis_name=parallel.AXIS,
    )
    return algorithm, plan


def _half_step(
    config: ConfigDict,
    room: Room,
    potential: Callable[[Params, Array], Array],
    loss: half_steps.Loss,
    trained: Process,
    opposite: Process,
) -> half_steps.HalfStep:
    source, target = room.ends
    exploring, settings = config.exploration, config.ipf
    own_steps = settings.backward_steps if trained.backward else settings.forward_steps
    anneal_steps = max(1, round(exploring.anneal_fraction * own_steps * settings.iterations))
    batch_size = config.batch_size
    if loss == "likelihood" and settings.likelihood_batch_size:
        batch_size = settings.likelihood_batch_size
    return half_steps.HalfStep(
        loss=loss,
        trained=trained,
        opposite=opposite,
        reference=room.reference,
        law=room.law,
        grid=room.grid,
        start=target if trained.backward else source,
        goal=source if trained.backward else target,
        potential=potential,
        particles=(_particles(config, source), _particles(config, target)),
        batch_size=batch_size // parallel.num_devices(),
        num_paths=settings.paths_per_start,
        num_anchors=settings.num_anchors,
        min_anchors=settings.min_anchors,
        reanchor=settings.reanchor in ("both", "backward" if trained.backward else "forward"),
        off_policy_ratio=optax.linear_schedule(
            exploring.off_policy_ratio, exploring.off_policy_ratio_end, anneal_steps
        ),
        reuse_path=exploring.reuse_path,
        inverse_temperature=optax.linear_schedule(
            exploring.inverse_temperature_start, 1.0, anneal_steps
        ),
        add_ends=exploring.add_ends,
    )


def _particles(config: ConfigDict, end: Endpoint) -> Particles | None:
    """How an end is explored; None where training has its samples."""
    if end.log_density is None:
        return None
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


def _optimiser(
    config: ConfigDict, num_steps: int, *, ratio: float = 1.0
) -> optax.GradientTransformation:
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


def _check_batches(config: ConfigDict) -> None:
    """Raises ValueError where the batch cannot be shared out over the devices."""
    devices, settings = parallel.num_devices(), config.ipf
    has_energy = "energy" in (config.source.access, config.target.access)
    paths = settings.paths_per_start if has_energy else 1
    for name, size, whole in (
        ("batch_size", config.batch_size, devices * paths),
        ("ipf.likelihood_batch_size", settings.likelihood_batch_size, devices),
    ):
        if size % whole:
            raise ValueError(
                f"{name} = {size}: must be a multiple of {whole}: groups of {whole // devices} "
                f"on each of {devices} devices (on a CPU, parallel.cpu_devices)"
            )
    groups, size = config.batch_size // (devices * paths), config.exploration.buffer_size
    if has_energy and size < groups:
        raise ValueError(
            f"exploration.buffer_size = {size}: must be ≥ {groups}, the groups of paths that "
            "each device adds in one gradient step"
        )


def _phases(plan: ipf.Schedule) -> Callable[[int], tuple[str, int]]:
    boundaries = plan.boundaries()

    def phase_of(step: int) -> tuple[str, int]:
        for direction, iteration, end in boundaries:
            if step < end:
                name = "backward" if direction == ipf.BACKWARD else "forward"
                return f"{name} {iteration + 1}", end
        return "done", plan.total

    return phase_of
