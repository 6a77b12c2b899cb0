"""Half-steps whose pinned end offers an energy: off-policy paths and their log path ratios."""

import jax
import jax.numpy as jnp

from d2ejax import losses, non_finite, rollouts
from d2ejax.algorithms import half_steps, partners
from d2ejax.algorithms.half_steps import Buffers, HalfStep, Inputs, Objective
from d2ejax.algorithms.partners import Anchors, Partner
from d2ejax.endpoints import base as endpoints
from d2ejax.exploration import behaviour, particles, replay_buffer
from d2ejax.exploration.replay_buffer import ReplayBuffer
from d2ejax.non_finite import Bounded
from d2ejax.typing import Array, Key, Params


def objective(half: HalfStep, key: Key, inputs: Inputs) -> tuple[Objective, Buffers]:
    """Draws the data of one gradient step of a loss that needs the energy of the pinned end.

    Args:
        half: The half-step.
        key: A typed key.
        inputs: What it reads.

    Returns:
        The loss on that data as a function of the trained parameters, with its metrics; and
        the buffers as drawing the data left them.
    """
    refresh_key, start_key, goal_key, draw_key, mix_key = jax.random.split(key, 5)
    buffers, acceptance = _refresh(half, refresh_key, inputs)
    num_starts = half.batch_size // half.num_paths
    _, goals = replay_buffer.sample(goal_key, _filled(buffers, half.goal_end), num_starts)
    starts, partner = _start(half, start_key, inputs, buffers, goals)
    paths = behaviour.mixed_paths(
        mix_key,
        starts,
        partner.draw(draw_key, goals),
        lambda key, x: rollouts.simulate(key, half.trained, inputs.params["drift"], x),
        off_policy_ratio=half.off_policy_ratio(inputs.step),
        num_paths=half.num_paths,
        reuse_path=half.reuse_path,
        backward=half.trained.backward,
    )
    paths, finite = non_finite.finite_paths(paths)
    starts, ends = paths[:, 0, half.start_end], paths[:, -1, half.goal_end]
    # Once for all that asks for it: an energy may be dear.
    energies = jax.vmap(jax.vmap(endpoints.log_density(half.goal)))(paths[:, :, half.goal_end])
    energies = jnp.where(finite, energies, jnp.nan)
    log_goals = non_finite.tempered(half.inverse_temperature(inputs.step), energies)
    explorer = half.particles[half.goal_end]
    if half.add_ends and explorer is not None:
        goal_buffer = _filled(buffers, half.goal_end)
        goal_buffer = particles.add(explorer, goal_buffer, ends, energies[:, -1])
        buffers = _replace(buffers, half.goal_end, goal_buffer)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        log_ratios = losses.log_path_ratio(
            paths,
            log_trained=lambda p: rollouts.log_density(half.trained, params["drift"], p),
            log_opposite=partner.log_density,
            log_goal=lambda _: log_goals,
        )
        bounded = non_finite.bounded(log_ratios)
        value = _balance_loss(half, params, starts, bounded, partner.in_closed_form)
        anchors = jnp.mean(jax.vmap(partner.effective_anchors)(ends))
        closed_form = partner.in_closed_form.astype(jnp.float32)
        found = {"anchors": anchors, "closed_form": closed_form} | bounded.shares
        return value, found | acceptance

    return loss, buffers


def _balance_loss(
    half: HalfStep, params: Params, starts: Array, bounded: Bounded, in_closed_form: Array
) -> Array:
    log_ratios, where = bounded.log_ratios, bounded.where
    if half.loss == "log_variance":
        return losses.log_variance_loss(log_ratios, where=where)
    potentials = jax.vmap(half.potential, (None, 0))(params["potential"], starts)
    if half.loss == "trajectory_balance":
        return losses.trajectory_balance_loss(log_ratios, potentials, where=where)
    # Beside a learned process the log-ratios are not those that define the potential; nor are
    # those of paths that end without mass, which have been set to what pushes them away.
    fit = losses.potential_loss(potentials, log_ratios, where=bounded.inside)
    fit = jnp.where(in_closed_form, fit, 0.0)
    return losses.log_variance_loss(log_ratios, where=where) + fit


def _start(
    half: HalfStep, key: Key, inputs: Inputs, buffers: Buffers, goals: Array
) -> tuple[Array, Partner]:
    """On-policy starts, `(num_starts, dim)`, and what stands opposite to the process."""
    start_key, anchor_key = jax.random.split(key)
    num_starts = goals.shape[0]
    learned = partners.learned(half.opposite, inputs.opposite["drift"])
    anchors = None
    partner = learned
    if half.loss in half_steps.WITH_ANCHORS:
        anchors = _anchors(half, anchor_key, buffers)
        partner = _closed_form(half, inputs, anchors)
    if half.loss == "hybrid":
        partner = partners.hybrid(partner, learned, goals, min_anchors=half.min_anchors)
    if half.start.sample is not None:
        # Not the anchors: a path should not meet its own start in the estimate of φ_T.
        return half.start.sample(start_key, num_starts), partner
    if anchors is not None:
        return partners.draw_anchors(start_key, anchors, num_starts), partner
    buffer = _filled(buffers, half.start_end)
    return replay_buffer.sample(start_key, buffer, num_starts)[1], partner


def _closed_form(half: HalfStep, inputs: Inputs, anchors: Anchors) -> Partner:
    # The average is the slow copy of the potential that keeps the fixed point stable.
    potentials = jax.vmap(half.potential, (None, 0))(
        inputs.average["potential"], anchors.positions
    )
    return partners.semi_discrete(
        anchors,
        potentials,
        half.law,
        half.reference,
        half.grid,
        backward=half.trained.backward,
    )


def _anchors(half: HalfStep, key: Key, buffers: Buffers) -> Anchors:
    if half.start.sample is not None:
        return Anchors(half.start.sample(key, half.num_anchors), None)
    particle_key, noise_key = jax.random.split(key)
    # The proposal costs anchors times particles: a quarter as many hold its shape well.
    num_particles = max(2, half.num_anchors // 4)
    _, positions = replay_buffer.sample(
        particle_key, _filled(buffers, half.start_end), num_particles
    )
    return partners.smoothed_anchors(
        noise_key, positions, endpoints.log_density(half.start), half.num_anchors
    )


def _filled(buffers: Buffers, end: int) -> ReplayBuffer:
    buffer = buffers[end]
    if buffer is None:
        raise ValueError(f"no particles for the {'source' if end == 0 else 'target'}")
    return buffer


def _refresh(half: HalfStep, key: Key, inputs: Inputs) -> tuple[Buffers, dict[str, Array]]:
    """Refreshes the particles of both ends, and says how many moves were accepted."""
    buffers = inputs.buffers
    acceptance = {name: jnp.full((), jnp.nan) for name in half_steps.ACCEPTANCE.values()}
    for end, endpoint in ((half.start_end, half.start), (half.goal_end, half.goal)):
        explorer, buffer = half.particles[end], buffers[end]
        if explorer is not None and buffer is not None and endpoint.log_density is not None:
            buffer, acceptance[half_steps.ACCEPTANCE[end]] = particles.refresh(
                jax.random.fold_in(key, end % 2),
                explorer,
                buffer,
                endpoint.log_density,
                inputs.step,
            )
            buffers = _replace(buffers, end, buffer)
    return buffers, acceptance


def _replace(buffers: Buffers, end: int, buffer: ReplayBuffer) -> Buffers:
    return (buffer, buffers[1]) if end == 0 else (buffers[0], buffer)
