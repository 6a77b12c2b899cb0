"""Adjoint methods: from samples to an energy by regressions, without a path in the loss.

The forward process is fitted to -g² scale(t, T) (∇E_1 + h)(x_T) at points of the reference's
bridge between ends of its own paths, which a replay keeps (see `losses.adjoint_matching_loss`).
What stands for ∇log φ_T, the *corrector* h, makes the method:

- "learned": a network, fitted in stages of its own to ∇_{x_T} log q(x_T | x_0) on the same
  pairs: the Adjoint Schrödinger Bridge Sampler (Liu et al. 2025, arXiv:2506.22565). It is zero
  at first, and so is its network.
- "semi_discrete": the gradient of log φ_T in closed form, over fresh samples of the source and
  with a network c = log ψ_0 that the same gradient step fits, by adjoint matching at time 0
  (see `d2ejax.losses.semi_discrete`). No stage of the corrector, and a share of the pairs may
  come from particles of the target, which the half-bridge in closed form couples to the source.
- "reference": the same with c = 0, the score of the reference's own law at T. With it the
  target is met exactly from a fixed start, or where the reference forgets its start: Adjoint
  Sampling (Havens et al. 2025, arXiv:2504.11713).
- "independent": ends are paired anew with independent starts, and h is ∇_{x_T} log q(x_T | x_0)
  of each pair. The bridges between such pairs, made Markov, join the ends as well, though not
  as the Schrödinger bridge does: the Bridge Matching Sampler (Blessing et al. 2026,
  arXiv:2603.00530). Its authors' code regresses on γ_t (∇log p_0(x_0) + ∇log p_1(x_T)) -
  ∇log q(x_T | x_0), γ_t the share of the variance at t, for Brownian motion; here it is
  ∇log p_1(x_T) - ∇log q(x_T | x_0), which by Stein's identity has the same conditional mean
  given x_t and needs no score of the source. Damping and re-pairing are theirs.
- "none": h = 0, plain control with the terminal cost E_1.

A backward process is fitted at the end, to bridges between the ends of the finished one.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from d2ejax import non_finite, rollouts
from d2ejax.algorithms import adjoint_replay, partners
from d2ejax.algorithms.adjoint_objective import (
    CORRECTORS,
    AdjointSampler,
    corrector_objective,
    objective,
    source_anchors,
)
from d2ejax.algorithms.base import (
    Algorithm,
    Model,
    counted,
    device_key,
    device_mean,
    gradient_step,
    init_model,
    with_model,
)
from d2ejax.algorithms.bridges import ends_objective
from d2ejax.algorithms.half_steps import Objective
from d2ejax.endpoints import base as endpoints
from d2ejax.exploration import particles, replay_buffer
from d2ejax.exploration.replay_buffer import ReplayBuffer
from d2ejax.typing import Array, AxisName, Key, Params

FORWARD, CORRECTOR, BACKWARD = 0, 1, 2
"""Index of each stage, and of its model in the state."""


class AdjointStages(NamedTuple):
    """What the gradient steps of a run are spent on.

    Attributes:
        iterations: How often the stages of the forward process and of the corrector alternate.
        forward_steps: Gradient steps of a stage of the forward process.
        corrector_steps: Those of a stage of the corrector; 0 where it is not learned.
        backward_steps: Those of the backward process, which come last.
    """

    iterations: int
    forward_steps: int
    corrector_steps: int
    backward_steps: int

    @property
    def period(self) -> int:
        """Gradient steps in one iteration."""
        return self.forward_steps + self.corrector_steps

    @property
    def total(self) -> int:
        """Gradient steps in the whole run."""
        return self.iterations * self.period + self.backward_steps

    def at(self, step: Array) -> tuple[Array, Array]:
        """The stage that a gradient step belongs to, and how many of that stage precede it."""
        offset = step % self.period
        own = jnp.where(offset < self.forward_steps, FORWARD, CORRECTOR)
        last = step >= self.iterations * self.period
        return jnp.where(last, BACKWARD, own), offset - self.forward_steps * own


class State(NamedTuple):
    """The state of an adjoint method.

    Attributes:
        models: Of the forward process, of the corrector and of the backward process; the
            parameters of the first are a dict with "drift" and, for "semi_discrete",
            "potential", those of the second empty where it is not learned.
        replay: Ends of paths, see `d2ejax.algorithms.adjoint_replay`.
        buffer: Particles of the target; None without.
        previous: The drift's parameters as the last rollout found them; None without damping.
        step: Gradient steps so far, those left out included.
        skipped: Steps left out because their loss or gradient was not finite.
        consecutive_skipped: The length of the current run of such steps.
        key: A typed key; differs between devices.
    """

    models: tuple[Model, Model, Model]
    replay: ReplayBuffer
    buffer: ReplayBuffer | None
    previous: Params
    step: Array
    skipped: Array
    consecutive_skipped: Array
    key: Key


def adjoint_sampler(
    given: AdjointSampler,
    stages: AdjointStages,
    *,
    init_params: Callable[[Key], tuple[Params, Params, Params]],
    optimisers: tuple[optax.GradientTransformation, ...],
    ema_decay: float,
    axis_name: AxisName | None = None,
) -> Algorithm:
    """An adjoint method.

    Args:
        given: What is trained, and how.
        stages: What the gradient steps are spent on.
        init_params: Maps a key to the parameters of the three models; see `State.models`.
        optimisers: Of each of them.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `State`.

    Raises:
        ValueError: If the corrector is unknown or lacks its network or its stage, or an end
            does not offer what is needed.
    """
    _check(given, stages)
    update = partial(gradient_step, decay=ema_decay, axis_name=axis_name)
    # Where the corrector is not learned it has no stage to compile.
    learned = given.corrector == "learned"
    stages_run = (FORWARD, CORRECTOR, BACKWARD) if learned else (FORWARD, BACKWARD)

    def init(key: Key) -> State:
        # The key is the same on all devices, and so are the parameters.
        params_key, own_key = jax.random.split(key)
        pairs = zip(init_params(params_key), optimisers, strict=True)
        forward, corrector, backward = (init_model(*pair) for pair in pairs)
        return _init(given, device_key(own_key, axis_name), (forward, corrector, backward))

    def train(stage: int, state: State, key: Key) -> tuple[State, dict[str, Array]]:
        state, loss_fn, found = _DRAW[stage](given, state, key)
        model, finite, metrics = update(loss_fn, state.models[stage], optimisers[stage])
        state = state._replace(models=with_model(state.models, stage, model))
        nothing = {name: jnp.full((), jnp.nan) for name in ("anchors", "acceptance_target")}
        return counted(state, finite), nothing | metrics | found

    def step(state: State) -> tuple[State, dict[str, Array]]:
        key, rollout_key, step_key = jax.random.split(state.key, 3)
        stage, offset = stages.at(state.step)
        due = (stage != BACKWARD) & (offset % given.rollout_every == 0)
        state, shares = jax.lax.cond(
            due,
            partial(roll_out, given, rollout_key),
            lambda state: (state, dict.fromkeys(non_finite.SHARES, jnp.full((), jnp.nan))),
            state,
        )
        index = stage if learned else stage // BACKWARD
        branches = [partial(train, which) for which in stages_run]
        state, metrics = jax.lax.switch(index, branches, state._replace(key=key), step_key)
        return state, metrics | device_mean(shares, axis_name)

    return Algorithm(init, step, own=("replay", "buffer", "key"))


def _init(given: AdjointSampler, key: Key, models: tuple[Model, Model, Model]) -> State:
    own_key, buffer_key = jax.random.split(key)
    buffer, zero = None, jnp.zeros((), jnp.int32)
    if given.particles is not None:
        log_target = endpoints.log_density(given.target)
        buffer = particles.init(buffer_key, given.particles, log_target)
    return State(
        models,
        adjoint_replay.init(given.replay_size, given.target.dim),
        buffer,
        models[FORWARD].params["drift"] if given.damping else None,
        step=zero,
        skipped=zero,
        consecutive_skipped=zero,
        key=own_key,
    )


_Drawn = tuple[State, Objective, dict[str, Array]]


def _draw_forward(given: AdjointSampler, state: State, key: Key) -> _Drawn:
    """The data of a gradient step of the forward process; refreshes the particles."""
    refresh_key, pair_key, own_key = jax.random.split(key, 3)
    acceptance = jnp.full((), jnp.nan)
    if given.particles is not None and state.buffer is not None:
        log_target = endpoints.log_density(given.target)
        buffer, acceptance = particles.refresh(
            refresh_key, given.particles, state.buffer, log_target, state.step
        )
        state = state._replace(buffer=buffer)
    loss_fn = objective(
        given,
        own_key,
        adjoint_replay.sample(pair_key, state.replay, given.batch_size),
        average=state.models[FORWARD].average,
        corrector=state.models[CORRECTOR].average,
        previous=state.previous,
        step=state.step,
    )
    return state, loss_fn, {"acceptance_target": acceptance}


def _draw_corrector(given: AdjointSampler, state: State, key: Key) -> _Drawn:
    pairs = adjoint_replay.sample(key, state.replay, given.batch_size)
    return state, corrector_objective(given, pairs), {}


def _draw_backward(given: AdjointSampler, state: State, key: Key) -> _Drawn:
    path_key, bridge_key = jax.random.split(key)
    ends = _simulate(given, path_key, state.models[FORWARD].average, given.batch_size)
    loss_fn = ends_objective(bridge_key, given.backward, given.law, given.grid, *ends)
    return state, loss_fn, {}


_DRAW = {FORWARD: _draw_forward, CORRECTOR: _draw_corrector, BACKWARD: _draw_backward}
"""What a stage draws for a gradient step: the state after that, the loss, and its metrics."""


def roll_out(given: AdjointSampler, key: Key, state: State) -> tuple[State, dict[str, Array]]:
    """Simulates paths, and writes their ends to the replay.

    Args:
        given: The method.
        key: A typed key.
        state: The state.

    Returns:
        The state with another replay, with the particles that the ends joined and, for
        damping, with the previous iterate; and the metrics `non_finite.SHARES` of the pairs.
    """
    path_key, pair_key, anchor_key, goal_key, draw_key, choice_key = jax.random.split(key, 6)
    model, size = state.models[FORWARD], given.rollout_size
    log_target = endpoints.log_density(given.target)
    starts, ends = _simulate(given, path_key, model.params, size)
    if given.corrector == "independent":
        starts = endpoints.sampler(given.source)(pair_key, size)
    buffer = state.buffer
    if given.particles is not None and buffer is not None:
        if given.add_ends:
            log_densities = jax.vmap(log_target)(ends)
            buffer = particles.add(given.particles, buffer, ends, log_densities)
        _, goals = replay_buffer.sample(goal_key, buffer, size)
        anchors, potentials = source_anchors(given, anchor_key, model.average)
        partner = partners.semi_discrete(
            anchors, potentials, given.law, given.reference, given.grid, backward=False
        )
        drawn = partner.draw(draw_key, goals)[:, 0]
        ratio = given.off_policy_ratio(state.step)
        chosen = jax.random.bernoulli(choice_key, ratio, (size, 1))
        starts, ends = jnp.where(chosen, drawn, starts), jnp.where(chosen, goals, ends)
    replay, shares = adjoint_replay.add(
        state.replay, starts, ends, log_target, max_gradient=given.max_gradient
    )
    previous = model.params["drift"] if given.damping else None
    return state._replace(replay=replay, buffer=buffer, previous=previous), shares


def _simulate(given: AdjointSampler, key: Key, params: Params, n: int) -> tuple[Array, Array]:
    """The two ends of paths of the forward process."""
    start_key, path_key = jax.random.split(key)
    starts = endpoints.sampler(given.source)(start_key, n)
    simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
    paths = simulate(jax.random.split(path_key, n), given.forward, params["drift"], starts)
    return starts, paths[:, -1]


def _check(given: AdjointSampler, stages: AdjointStages) -> None:
    if given.corrector not in CORRECTORS:
        raise ValueError(f"corrector = {given.corrector!r}: must be one of {CORRECTORS}")
    for name, of in (("potential", "semi_discrete"), ("score", "learned")):
        if given.corrector == of and getattr(given, name) is None:
            raise ValueError(f"{name} = None: must be a network with corrector = {of!r}")
    if (given.corrector == "learned") != (stages.corrector_steps > 0):
        raise ValueError(
            f"corrector_steps = {stages.corrector_steps}: must be > 0 with corrector = "
            "'learned', and 0 with all others"
        )
    if given.particles is not None and given.corrector != "semi_discrete":
        raise ValueError(
            "particles: must be None but for corrector = 'semi_discrete', which alone couples "
            "them to the source"
        )
    endpoints.sampler(given.source)
    endpoints.log_density(given.target)
