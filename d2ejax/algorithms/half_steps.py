"""One half-step of iterative proportional fitting, in either direction of time.

A half-step trains one process towards its *goal*, the end that it pins, while the opposite
process stands still. Which loss it uses follows from what that end offers:

- samples: "likelihood" of paths that the opposite process draws from them,
- energy: "log_variance" or "trajectory_balance" of the log path ratio, on off-policy paths,
- energy: "semi_discrete", where the reference and a potential in closed form, averaged over
  anchors of the other end, take the place of the opposite process; "hybrid" is the same while
  enough anchors count, and "log_variance" where too few do.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from d2ejax import losses, references, rollouts
from d2ejax.algorithms import partners
from d2ejax.algorithms.partners import Anchors, Partner
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.exploration import behaviour, particles, replay_buffer
from d2ejax.exploration.particles import Particles
from d2ejax.exploration.replay_buffer import ReplayBuffer
from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key, Params

Loss = Literal["likelihood", "log_variance", "trajectory_balance", "semi_discrete", "hybrid"]
LOSSES: tuple[Loss, ...] = (
    "likelihood",
    "log_variance",
    "trajectory_balance",
    "semi_discrete",
    "hybrid",
)


WITH_POTENTIAL: tuple[Loss, ...] = ("trajectory_balance", "semi_discrete", "hybrid")
"""Losses that train the start's potential beside the drift."""
WITH_ANCHORS: tuple[Loss, ...] = ("semi_discrete", "hybrid")
"""Losses that average over anchors of the start."""


_ACCEPTANCE = {0: "acceptance_source", -1: "acceptance_target"}
METRICS = ("anchors", "closed_form", *_ACCEPTANCE.values())
"""What a half-step measures, NaN where it does not apply: the mean effective number of anchors
at the paths' ends, the share of devices and steps where the half-bridge in closed form stood
opposite, and the acceptance rate of each end's refresh."""


def losses_by_access(source: str, target: str) -> tuple[Loss, Loss]:
    """The losses that the two ends call for, of the backward and of the forward half-step.

    Samples of the pinned end call for a likelihood. An energy calls for the semi-discrete
    half-step, which one of the two may be: the forward one, where both ends are energies.

    Args:
        source: What training sees of the source, "samples" or "energy".
        target: The same of the target.

    Returns:
        The loss of the backward half-step and that of the forward one.
    """
    if target == "energy":
        return ("likelihood" if source == "samples" else "log_variance"), "semi_discrete"
    return ("likelihood" if source == "samples" else "semi_discrete"), "likelihood"


class HalfStep(NamedTuple):
    """Everything fixed about one half-step. Schedules map its own gradient steps to a scalar.

    Attributes:
        loss: Which loss it trains by.
        trained: The process that it trains.
        opposite: The process that stands still.
        reference: The reference on the grid.
        law: The reference in continuous time.
        grid: The time grid.
        start: What the end that the trained process starts from offers to training.
        goal: What the pinned end offers to training.
        potential: Network of the start's potential, `(params, x) -> scalar`.
        particles: How the two ends are explored; None for an end that is sampled.
        batch_size: Paths scored in one gradient step, on each device.
        num_paths: Paths that share their start, N.
        num_anchors: Samples of the start behind a semi-discrete potential, M.
        min_anchors: Effective anchors, on average over the goals of a gradient step, under
            which a hybrid half-step turns to the learned opposite process.
        reanchor: Whether a likelihood half-step keeps only the ends of the opposite process's
            paths and joins them by the reference's pinned bridge.
        off_policy_ratio: Schedule of the share of groups that start off-policy, in [0, 1].
        reuse_path: Whether the path that found an off-policy start joins its group.
        inverse_temperature: Schedule of the factor of the goal's energy.
        add_ends: Whether the ends of trained paths join the goal's particles.
    """

    loss: Loss
    trained: Process
    opposite: Process
    reference: Process
    law: Reference
    grid: TimeGrid
    start: Endpoint
    goal: Endpoint
    potential: Callable[[Params, Array], Array]
    particles: tuple[Particles | None, Particles | None]
    batch_size: int = 256
    num_paths: int = 8
    num_anchors: int = 1024
    min_anchors: float = 4.0
    reanchor: bool = True
    off_policy_ratio: optax.Schedule = optax.constant_schedule(0.5)
    reuse_path: bool = True
    inverse_temperature: optax.Schedule = optax.constant_schedule(1.0)
    add_ends: bool = True

    @property
    def goal_end(self) -> int:
        """Where a path has its goal: 0 for a backward half-step, -1 for a forward one."""
        return 0 if self.trained.backward else -1

    @property
    def start_end(self) -> int:
        """Where a path has its start: -1 for a backward half-step, 0 for a forward one."""
        return -1 if self.trained.backward else 0


Buffers = tuple[ReplayBuffer | None, ReplayBuffer | None]
"""Particles of the source and of the target; None for an end that is sampled."""


class Inputs(NamedTuple):
    """What a half-step reads in one gradient step.

    Attributes:
        params: The trained parameters, to draw paths by; their gradient comes from the loss.
        average: Their moving average.
        opposite: Parameters of the opposite process.
        buffers: The particles.
        step: The number of gradient steps that this half-step has had so far.
    """

    params: Params
    average: Params
    opposite: Params
    buffers: Buffers
    step: Array


Objective = Callable[[Params], tuple[Array, dict[str, Array]]]


def objective(half: HalfStep, key: Key, inputs: Inputs) -> tuple[Objective, Buffers]:
    """Draws the data of one gradient step.

    Args:
        half: The half-step.
        key: A typed key.
        inputs: What it reads.

    Returns:
        The loss on that data as a function of the trained parameters, with its metrics; and
        the buffers as drawing the data left them.
    """
    if half.loss == "likelihood":
        return _likelihood_objective(half, key, inputs), inputs.buffers
    return _balance_objective(half, key, inputs)


def _likelihood_objective(half: HalfStep, key: Key, inputs: Inputs) -> Objective:
    goal_key, path_key, bridge_key = jax.random.split(key, 3)
    goals = endpoints.sampler(half.goal)(goal_key, half.batch_size)
    paths = partners.learned(half.opposite, inputs.opposite["drift"]).draw(path_key, goals)
    if half.reanchor:
        keys = jax.random.split(bridge_key, half.batch_size)
        bridge = jax.vmap(references.pinned_path, (0, None, 0, 0, None))
        paths = bridge(keys, half.law, paths[:, 0], paths[:, -1], half.grid)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        log_densities = rollouts.step_log_densities(half.trained, params["drift"], paths)
        metrics = {name: jnp.full((), jnp.nan) for name in METRICS}
        return losses.trajectory_likelihood_loss(log_densities), metrics

    return loss


def _balance_objective(half: HalfStep, key: Key, inputs: Inputs) -> tuple[Objective, Buffers]:
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
    starts, ends = paths[:, 0, half.start_end], paths[:, -1, half.goal_end]
    inverse_temperature = half.inverse_temperature(inputs.step)
    log_goal = endpoints.log_density(half.goal)
    explorer = half.particles[half.goal_end]
    if half.add_ends and explorer is not None:
        goal_buffer = _filled(buffers, half.goal_end)
        goal_buffer = particles.add(explorer, goal_buffer, ends, log_goal)
        buffers = _replace(buffers, half.goal_end, goal_buffer)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        log_ratios = losses.log_path_ratio(
            paths,
            log_trained=lambda p: rollouts.log_density(half.trained, params["drift"], p),
            log_opposite=partner.log_density,
            log_goal=jax.vmap(
                jax.vmap(lambda p: inverse_temperature * log_goal(p[half.goal_end]))
            ),
        )
        value = _balance_loss(half, params, starts, log_ratios, partner.in_closed_form)
        anchors = jnp.mean(jax.vmap(partner.effective_anchors)(ends))
        closed_form = partner.in_closed_form.astype(jnp.float32)
        return value, {"anchors": anchors, "closed_form": closed_form} | acceptance

    return loss, buffers


def _balance_loss(
    half: HalfStep, params: Params, starts: Array, log_ratios: Array, in_closed_form: Array
) -> Array:
    if half.loss == "log_variance":
        return losses.log_variance_loss(log_ratios)
    potentials = jax.vmap(half.potential, (None, 0))(params["potential"], starts)
    if half.loss == "trajectory_balance":
        return losses.trajectory_balance_loss(log_ratios, potentials)
    # Beside a learned process the log-ratios are not those that define the potential.
    fit = jnp.where(in_closed_form, losses.potential_loss(potentials, log_ratios), 0.0)
    return losses.log_variance_loss(log_ratios) + fit


def _start(
    half: HalfStep, key: Key, inputs: Inputs, buffers: Buffers, goals: Array
) -> tuple[Array, Partner]:
    """On-policy starts, `(num_starts, dim)`, and what stands opposite to the process."""
    start_key, anchor_key = jax.random.split(key)
    num_starts = goals.shape[0]
    learned = partners.learned(half.opposite, inputs.opposite["drift"])
    anchors = None
    partner = learned
    if half.loss in WITH_ANCHORS:
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
    acceptance = {name: jnp.full((), jnp.nan) for name in _ACCEPTANCE.values()}
    for end, endpoint in ((half.start_end, half.start), (half.goal_end, half.goal)):
        explorer, buffer = half.particles[end], buffers[end]
        if explorer is not None and buffer is not None and endpoint.log_density is not None:
            buffer, acceptance[_ACCEPTANCE[end]] = particles.refresh(
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
