"""Diffusion samplers: one process, from a Gaussian or a fixed start to a target's energy.

Opposite to the trained process P_θ stands the reversal R of the reference started in the same
Gaussian p_0, which is known and stays as it is. The log path ratio of a path with its start,

    ℓ(τ) = log p_0(x_0) + log P_θ(τ | x_0) - log R(τ | x_K) - log p̃_1(x_K),

is then one constant, -log Z, at the optimum, so that paths of all starts are pooled. That
optimum exists where the reference forgets its start, as it does from a fixed one (a Gaussian
of next to no variance; PIS, Zhang & Chen 2022, arXiv:2111.15141), or over enough time from its
stationary law (DDS, Vargas et al. 2023, arXiv:2302.13834; DIS, Berner et al. 2024,
arXiv:2211.01364). Elsewhere starts have to be kept apart, as the half-steps of IPF do.

Losses: "log_variance" and "trajectory_balance" of ℓ and "subtrajectory_balance" of its pieces,
on-policy or off-policy (Richter & Berner 2024, arXiv:2307.01198; Sendera et al. 2024,
arXiv:2402.05098: exploration and local search are the replay buffer and its Markov chains), and
"path_kl", whose gradient goes through the simulation.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from d2ejax import losses, non_finite, rollouts
from d2ejax.algorithms.base import (
    Algorithm,
    Model,
    counted,
    device_key,
    gradient_step,
    init_model,
)
from d2ejax.algorithms.half_steps import Objective
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.exploration import behaviour, particles, replay_buffer
from d2ejax.exploration.particles import Particles
from d2ejax.exploration.replay_buffer import ReplayBuffer
from d2ejax.kernels import Process
from d2ejax.typing import Array, AxisName, Key, Params

Loss = Literal["log_variance", "trajectory_balance", "subtrajectory_balance", "path_kl"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
Window = Literal["last", "random"]
WINDOWS: tuple[Window, ...] = get_args(Window)


class Sampler(NamedTuple):
    """Everything fixed about a sampler. Schedules map a gradient step to a scalar.

    Attributes:
        loss: Which loss it trains by.
        process: The process that it trains, forward in time.
        reversal: That of the reference started in the prior, `kernels.gaussian_reversal`.
        reference: The reference on the grid.
        prior: The Gaussian that paths start from: samples and its normalised log-density.
        target: What is to be sampled: its log-density.
        marginals: Log-densities of the reference started in the prior along a path,
            `references.gaussian_marginals`.
        times: The times of the grid, `(num_steps + 1,)`.
        particles: How the target is explored.
        flow: Network of the log-flow for "subtrajectory_balance", `(params, x, t) -> scalar`.
        batch_size: Paths in one gradient step, on each device; an even number.
        off_policy_ratio: Schedule of the share of starts, two paths each, of which one comes
            from the buffer, in [0, 1]; not of "path_kl", which is on-policy.
        inverse_temperature: Schedule of the factor of the target's energy.
        add_ends: Whether the ends of paths join the particles.
        decay: λ of sub-trajectory balance, per step.
        tracked_steps: Steps that "path_kl" is differentiated through; None: all.
        window: Which steps these are: "last", which is biased, or "random", a window drawn for
            each batch, which is not, and noisier; see `rollouts.simulate`.
    """

    loss: Loss
    process: Process
    reversal: Process
    reference: Process
    prior: Endpoint
    target: Endpoint
    marginals: Callable[[Array], Array]
    times: Array
    particles: Particles
    flow: Callable[[Params, Array, Array], Array] | None = None
    batch_size: int = 128
    off_policy_ratio: optax.Schedule = optax.constant_schedule(0.5)
    inverse_temperature: optax.Schedule = optax.constant_schedule(1.0)
    add_ends: bool = True
    decay: float = 0.9
    tracked_steps: int | None = None
    window: Window = "last"


class State(NamedTuple):
    """The state of a sampler.

    Attributes:
        model: The model; its parameters are a dict with "drift", with "log_z" for the losses of
            balance and with "flow" for sub-trajectory balance.
        buffer: Particles of the target, on this device.
        step: Gradient steps so far, those left out included.
        skipped: Steps left out because their loss or gradient was not finite.
        consecutive_skipped: The length of the current run of such steps.
        key: A typed key; differs between devices.
    """

    model: Model
    buffer: ReplayBuffer
    step: Array
    skipped: Array
    consecutive_skipped: Array
    key: Key


def diffusion_sampler(
    given: Sampler,
    *,
    init_params: Callable[[Key], Params],
    optimiser: optax.GradientTransformation,
    ema_decay: float,
    axis_name: AxisName | None = None,
) -> Algorithm:
    """A diffusion sampler.

    log Z starts at what paths of the untrained process say of it, from where it has not far to
    go, whatever the scale of the energy.

    Args:
        given: What is trained, by what.
        init_params: Maps a key to a dict with "drift" and, where the loss has one, "flow".
        optimiser: Of all parameters.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `State`.

    Raises:
        ValueError: If the loss is unknown or has no flow, the prior is not known in full or the
            target has no energy.
    """
    _check(given)
    log_target = endpoints.log_density(given.target)

    def init(key: Key) -> State:
        # The key is the same on all devices, and so are the parameters.
        params_key, bound_key, own_key = jax.random.split(key, 3)
        own_key, buffer_key = jax.random.split(device_key(own_key, axis_name))
        params = init_params(params_key)
        if given.loss in ("trajectory_balance", "subtrajectory_balance"):
            params = params | {"log_z": _first_log_z(given, bound_key)}
        zero = jnp.zeros((), jnp.int32)
        buffer = particles.init(buffer_key, given.particles, log_target)
        return State(init_model(params, optimiser), buffer, zero, zero, zero, own_key)

    def step(state: State) -> tuple[State, dict[str, Array]]:
        key, refresh_key, path_key = jax.random.split(state.key, 3)
        buffer, acceptance = state.buffer, jnp.full((), jnp.nan)
        if given.loss != "path_kl":
            buffer, acceptance = particles.refresh(
                refresh_key, given.particles, buffer, log_target, state.step
            )
        loss_fn, buffer = objective(given, path_key, state.model.params, buffer, state.step)
        model, finite, metrics = gradient_step(
            loss_fn, state.model, optimiser, decay=ema_decay, axis_name=axis_name
        )
        # Whether or not the step was taken: what has no mass has not joined them.
        state = state._replace(model=model, buffer=buffer, key=key)
        return counted(state, finite), metrics | {"acceptance_target": acceptance}

    return Algorithm(init, step, own=("buffer", "key"))


def objective(
    given: Sampler, key: Key, params: Params, buffer: ReplayBuffer, step: Array
) -> tuple[Objective, ReplayBuffer]:
    """Draws the data of one gradient step.

    Args:
        given: The sampler.
        key: A typed key.
        params: The parameters, to draw paths by.
        buffer: The particles of the target.
        step: Gradient steps so far.

    Returns:
        The loss on that data as a function of the parameters, with the metrics "log_z_mean",
        the mean of -ℓ where it is finite, and `non_finite.SHARES`; and the buffer as drawing
        the data left it.
    """
    draw = _controlled if given.loss == "path_kl" else _balanced
    return draw(given, key, params, buffer, step)


def _balanced(
    given: Sampler, key: Key, params: Params, buffer: ReplayBuffer, step: Array
) -> tuple[Objective, ReplayBuffer]:
    """A loss of log path ratios, on paths of which some start from particles of the target."""
    start_key, goal_key, back_key, mix_key = jax.random.split(key, 4)
    # Two paths from each start, of which the second is always one of the process: what joins
    # the buffer has not come from there.
    num_starts = given.batch_size // 2
    _, goals = replay_buffer.sample(goal_key, buffer, num_starts)
    simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
    found = simulate(jax.random.split(back_key, num_starts), given.reversal, None, goals)
    groups = behaviour.mixed_paths(
        mix_key,
        endpoints.sampler(given.prior)(start_key, num_starts),
        found,
        lambda key, x: rollouts.simulate(key, given.process, params["drift"], x),
        off_policy_ratio=given.off_policy_ratio(step),
        num_paths=2,
        reuse_path=True,
        backward=False,
    )
    paths, finite = non_finite.finite_paths(groups.reshape(-1, *groups.shape[2:]))
    log_prior = jax.vmap(endpoints.log_density(given.prior))(paths[:, 0])
    # Once for all that asks for it: an energy may be dear.
    energies = jax.vmap(endpoints.log_density(given.target))(paths[:, -1])
    energies = jnp.where(finite, energies, jnp.nan)
    log_target = non_finite.tempered(given.inverse_temperature(step), energies)
    log_reversal = rollouts.step_log_densities(given.reversal, None, paths)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        log_trained = rollouts.step_log_densities(given.process, params["drift"], paths)
        log_ratios = log_trained - log_reversal
        up_to_target = log_prior + jnp.sum(log_ratios, axis=-1)
        whole, where, inside, shares = non_finite.bounded(up_to_target - log_target)
        metrics = {"log_z_mean": -non_finite.mean_where(whole, inside)} | shares
        if given.loss == "log_variance":
            return losses.log_variance_loss(whole[None], where=where[None]), metrics
        if given.loss == "trajectory_balance":
            value = losses.trajectory_balance_loss(
                whole[None], params["log_z"], where=where[None]
            )
            return value, metrics
        goals = jax.lax.stop_gradient(jnp.where(inside, log_target, up_to_target - whole))
        flows = _log_flows(given, params, paths, log_prior, goals, step)
        value = losses.subtrajectory_balance_loss(
            log_ratios, flows, decay=given.decay, where=where
        )
        return value, metrics

    if given.add_ends:
        own = energies.reshape(groups.shape[:2])[:, 1]
        buffer = particles.add(given.particles, buffer, groups[:, 1, -1], own)
    return loss, buffer


def _controlled(
    given: Sampler, key: Key, params: Params, buffer: ReplayBuffer, step: Array
) -> tuple[Objective, ReplayBuffer]:
    """The KL divergence of the path laws, differentiated through its own paths."""
    start_key, path_key, window_key = jax.random.split(key, 3)
    starts = endpoints.sampler(given.prior)(start_key, given.batch_size)
    keys = jax.random.split(path_key, given.batch_size)
    window_start = None
    if given.window == "random":
        window_start = jax.random.randint(window_key, (), 0, given.process.num_steps)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        def one(key: Key, x: Array) -> Array:
            return rollouts.simulate(
                key,
                given.process,
                params["drift"],
                x,
                tracked_steps=given.tracked_steps,
                window_start=window_start,
            )

        paths = jax.vmap(one)(keys, starts)
        step_costs = rollouts.step_kl_divergences(
            given.process, params["drift"], given.reference, None, paths
        )
        log_target = _log_target(given, paths[:, -1], step)
        costs = jax.vmap(given.marginals)(paths)[..., -1] - log_target
        where = non_finite.has_mass(log_target)
        value = losses.control_loss(step_costs, costs, where=where)
        return value, {"log_z_mean": -value} | non_finite.shares(log_target)

    return loss, buffer


def _log_flows(
    given: Sampler,
    params: Params,
    paths: Array,
    log_prior: Array,
    log_target: Array,
    step: Array,
) -> Array:
    """Log F_k(x_k): the ends as they are known, and a network on a path between them."""
    network = given.flow
    if network is None:
        raise ValueError("flow: needed by the loss 'subtrajectory_balance'")
    inner, times = paths[:, 1:-1], given.times[1:-1]
    shares = (times / given.times[-1])[None]
    # The times are no business of the batch's: what depends on them alone is computed once.
    along = jax.vmap(jax.vmap(network, (None, 0, 0)), (None, 0, None))
    learned = along(params["flow"], inner, times)
    energies = jax.vmap(jax.vmap(endpoints.log_density(given.target)))(inner)
    # What the network adds to is no more than a first guess: without mass there is none.
    energies = jnp.where(non_finite.has_mass(energies), energies, 0.0)
    towards = shares * given.inverse_temperature(step) * energies
    base = (1.0 - shares) * (
        params["log_z"] + jax.vmap(given.marginals)(paths)[:, 1:-1]
    ) + towards
    ends = (params["log_z"] + log_prior)[:, None], log_target[:, None]
    return jnp.concatenate([ends[0], base + learned, ends[1]], axis=1)


def _log_target(given: Sampler, ends: Array, step: Array) -> Array:
    log_density = non_finite.with_finite_gradient(endpoints.log_density(given.target))
    return given.inverse_temperature(step) * jax.vmap(log_density)(ends)


def _first_log_z(given: Sampler, key: Key) -> Array:
    """What the untrained process, which is the reference, says of log Z: the median of -ℓ."""
    start_key, path_key = jax.random.split(key)
    starts = endpoints.sampler(given.prior)(start_key, given.batch_size)
    keys = jax.random.split(path_key, given.batch_size)
    simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
    paths = simulate(keys, given.reference, None, starts)
    step = jnp.zeros((), jnp.int32)
    bounds = _log_target(given, paths[:, -1], step) - jax.vmap(given.marginals)(paths)[:, -1]
    # Not the mean: an energy may be huge at some of them.
    found = jnp.nanmedian(jnp.where(non_finite.has_mass(bounds), bounds, jnp.nan))
    return jnp.nan_to_num(found, nan=0.0)


def _check(given: Sampler) -> None:
    if given.loss not in LOSSES:
        raise ValueError(f"loss = {given.loss!r}: must be one of {LOSSES}")
    if given.window not in WINDOWS:
        raise ValueError(f"window = {given.window!r}: must be one of {WINDOWS}")
    if given.loss == "subtrajectory_balance" and given.flow is None:
        raise ValueError("flow = None: must be a network with the loss 'subtrajectory_balance'")
    if given.batch_size < 2 or given.batch_size % 2:
        raise ValueError(f"batch_size = {given.batch_size}: must be an even number on a device")
    for what in (endpoints.sampler, endpoints.log_density):
        what(given.prior)
    endpoints.log_density(given.target)
