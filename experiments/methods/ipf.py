"""Iterative proportional fitting, whatever the two ends offer."""

import functools
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from d2ejax.algorithms import half_steps, ipf
from d2ejax.algorithms.base import Algorithm
from d2ejax.algorithms.light import with_fixed_base
from d2ejax.kernels import Process
from d2ejax.typing import Array, Key, Params
from experiments import shards, wiring
from experiments.methods import light
from experiments.relations import resolve_losses
from experiments.wiring import Method, Room, Side


def build(config: ConfigDict, room: Room) -> Method:
    """Wires IPF.

    Args:
        config: A validated config.
        room: What to join.
    """
    backward, forward = (wiring.build_side(config, room, backward=b) for b in (True, False))
    if config.ipf.start_from == "lightsb":
        backward, forward = (light.on_light(config, room, s) for s in (backward, forward))
    algorithm, plan = _algorithm(config, room, backward, forward)
    return Method(
        algorithm=algorithm,
        total_steps=plan.total,
        phase_of=_phases(plan),
        forward=forward.process,
        backward=backward.process,
        forward_params=lambda state: state.models[ipf.FORWARD].average["drift"],
        backward_params=lambda state: state.models[ipf.BACKWARD].average["drift"],
    )


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
    init_potential, potential = wiring.build_potential(config, room.ends[0].dim)
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

    optimisers = (
        wiring.build_optimiser(
            config,
            settings.backward_steps * settings.iterations,
            ratio=config.optimiser.backward_ratio,
        ),
        wiring.build_optimiser(config, settings.forward_steps * settings.iterations),
    )
    if settings.start_from == "lightsb":
        optimisers = with_fixed_base(optimisers[0]), with_fixed_base(optimisers[1])
    algorithm = ipf.ipf(
        *halves,
        plan,
        init_params=init_params,
        optimisers=optimisers,
        ema_decay=config.optimiser.ema_decay,
        use_ema_opposite=settings.use_ema_opposite,
        warm_start=settings.warm_start,
        axis_name=shards.axis(config),
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
    off_policy_ratio, inverse_temperature = wiring.annealing(
        config, own_steps * settings.iterations
    )
    # None where training has its samples.
    explored = [
        None if end.log_density is None else wiring.build_particles(config, end)
        for end in room.ends
    ]
    batch_size = config.batch_size
    if loss in half_steps.FROM_SAMPLES and settings.likelihood_batch_size:
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
        particles=(explored[0], explored[1]),
        batch_size=batch_size // shards.number(config),
        num_paths=settings.paths_per_start,
        num_anchors=settings.num_anchors,
        min_anchors=settings.min_anchors,
        reanchor=settings.reanchor in ("both", "backward" if trained.backward else "forward"),
        first_coupling=settings.first_coupling,
        divergence=settings.divergence,
        cached_batches=settings.cached_batches,
        cache_every=settings.cache_every,
        off_policy_ratio=off_policy_ratio,
        reuse_path=exploring.reuse_path,
        inverse_temperature=inverse_temperature,
        add_ends=exploring.add_ends,
    )


def check(config: ConfigDict) -> None:
    """Raises ValueError where batch and buffer do not suit the devices."""
    num_shards, settings = shards.number(config), config.ipf
    has_energy = "energy" in (config.source.access, config.target.access)
    paths = settings.paths_per_start if has_energy else 1
    shards.share(config, "batch_size", config.batch_size, groups_of=paths)
    shards.share(config, "ipf.likelihood_batch_size", settings.likelihood_batch_size)
    if settings.start_from == "lightsb":
        shards.share(config, "light.batch_size", config.light.batch_size)
    groups, size = config.batch_size // (num_shards * paths), config.exploration.buffer_size
    if has_energy and size < groups:
        raise ValueError(
            f"exploration.buffer_size = {size}: must be ≥ {groups}, the groups of paths that "
            f"each device adds in one gradient step: of batch_size = {config.batch_size}, by "
            f"ipf.paths_per_start = {settings.paths_per_start}"
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
