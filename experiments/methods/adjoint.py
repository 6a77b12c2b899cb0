"""Adjoint methods: from samples to an energy, by regressions on a replay of ends."""

from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from d2ejax import networks
from d2ejax.algorithms import adjoint
from d2ejax.algorithms.adjoint_objective import AdjointSampler
from d2ejax.typing import Array, Key, Params
from experiments import shards, wiring
from experiments.relations_of_methods import resolve_corrector
from experiments.wiring import Method, Room, Side


def check(config: ConfigDict) -> None:
    """Raises ValueError where batch and buffers do not suit the devices."""
    shards.share(config, "batch_size", config.batch_size)
    share = shards.share(config, "adjoint.rollout_size", config.adjoint.rollout_size)
    sizes = {"adjoint.replay_size": config.adjoint.replay_size}
    if _explores(config):
        sizes["exploration.buffer_size"] = config.exploration.buffer_size
    for name, size in sizes.items():
        if size < share:
            raise ValueError(
                f"{name} = {size}: must be ≥ {share}, the paths that each device adds at once: "
                f"its share of adjoint.rollout_size = {config.adjoint.rollout_size}"
            )


def build(config: ConfigDict, room: Room) -> Method:
    """Wires an adjoint method.

    Args:
        config: A validated config.
        room: What to join.
    """
    sides = [wiring.build_side(config, room, backward=backward) for backward in (False, True)]
    settings, corrector = config.adjoint, resolve_corrector(config)
    stages = adjoint.AdjointStages(
        settings.iterations,
        settings.forward_steps,
        settings.corrector_steps if corrector == "learned" else 0,
        settings.backward_steps,
    )
    init_potential, potential = wiring.build_potential(config, room.ends[0].dim)
    init_score, score = _score_network(config, room)
    given = _given(config, room, sides, stages)._replace(potential=potential, score=score)

    def init_params(key: Key) -> tuple[Params, Params, Params]:
        keys = jax.random.split(key, 4)
        forward = {"drift": sides[0].init(keys[0])}
        if corrector == "semi_discrete":
            forward["potential"] = init_potential(keys[1])
        second = init_score(keys[2]) if corrector == "learned" else {}
        return forward, second, sides[1].init(keys[3])

    optimisers = (
        wiring.build_optimiser(config, stages.iterations * stages.forward_steps),
        wiring.build_optimiser(config, stages.iterations * stages.corrector_steps),
        wiring.build_optimiser(
            config, stages.backward_steps, ratio=config.optimiser.backward_ratio
        ),
    )
    return Method(
        algorithm=adjoint.adjoint_sampler(
            given,
            stages,
            init_params=init_params,
            optimisers=optimisers,
            ema_decay=config.optimiser.ema_decay,
            axis_name=shards.axis(config),
        ),
        total_steps=stages.total,
        phase_of=_phases(stages),
        forward=given.forward,
        backward=given.backward,
        forward_params=lambda state: state.models[adjoint.FORWARD].average["drift"],
        backward_params=lambda state: state.models[adjoint.BACKWARD].average,
    )


def _given(
    config: ConfigDict, room: Room, sides: list[Side], stages: adjoint.AdjointStages
) -> AdjointSampler:
    settings = config.adjoint
    _, inverse_temperature = wiring.annealing(config, stages.iterations * stages.period)
    explorer = wiring.build_particles(config, room.ends[1]) if _explores(config) else None
    return AdjointSampler(
        corrector=resolve_corrector(config),
        forward=sides[0].process,
        backward=sides[1].process,
        reference=room.reference,
        law=room.law,
        grid=room.grid,
        source=room.ends[0],
        target=room.ends[1],
        learn_variance=config.learn_variance,
        particles=explorer,
        batch_size=shards.share(config, "batch_size", config.batch_size),
        num_anchors=settings.num_anchors,
        rollout_size=shards.share(config, "adjoint.rollout_size", settings.rollout_size),
        rollout_every=settings.rollout_every,
        replay_size=settings.replay_size,
        max_gradient=settings.max_gradient,
        curvature=settings.curvature,
        damping=settings.damping,
        off_policy_ratio=optax.constant_schedule(settings.off_policy_ratio),
        inverse_temperature=inverse_temperature,
        add_ends=config.exploration.add_ends,
    )


def _explores(config: ConfigDict) -> bool:
    """Whether a share of the pairs comes from particles of the target."""
    is_anchored = resolve_corrector(config) == "semi_discrete"
    return is_anchored and config.adjoint.off_policy_ratio > 0


def _score_network(
    config: ConfigDict, room: Room
) -> tuple[Callable[[Key], Params], Callable[[Params, Array], Array]]:
    """The network of a corrector, a vector at the end of time alone."""
    given, t_max = config.network, config.grid.t_max
    init, network = networks.drift_network(
        room.ends[1].dim,
        t_max,
        width=given.width,
        depth=given.depth,
        num_frequencies=1,
        layer_norm=given.layer_norm,
        # The size of the scores of the reference's transition.
        drift_scale=float(room.law.variance(0.0, t_max)) ** -0.5,
        affine=given.affine,
        dtype=given.dtype,
    )
    return init, lambda params, x: network(params, x, room.grid.t_max)[0]


def _phases(stages: adjoint.AdjointStages) -> Callable[[int], tuple[str, int]]:
    def phase_of(step: int) -> tuple[str, int]:
        last = stages.iterations * stages.period
        if step >= last:
            return ("backward 1" if step < stages.total else "done"), stages.total
        iteration, offset = divmod(step, stages.period)
        if offset < stages.forward_steps:
            end = iteration * stages.period + stages.forward_steps
            return f"forward {iteration + 1}", end
        return f"corrector {iteration + 1}", (iteration + 1) * stages.period

    return phase_of
