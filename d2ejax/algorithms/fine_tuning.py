"""Fine-tuning: a base process steered by a reward at the end of its paths.

With Q the base, started in p_0, and r the reward (a log-density ratio, in nats), the process
that is sought is P*(τ | x_0) ∝ Q(τ | x_0) exp(r(x_K)), from each x_0 by itself: that keeps p_0
and is what tilts a *bridge*. Its end has the law ∫ p_0(x_0) Q(x_K | x_0) e^{r(x_K)} / h(x_0),
h(x_0) = E_Q[e^r | x_0], and that is q(x_K) e^{r(x_K)}, what is meant by tilting a *generative
model*, exactly where h is constant: where the base forgets its start, as the memoryless noise
schedule makes it (Domingo-Enrich et al. 2025, arXiv:2409.08861). The losses here have
this optimum, but for the first, which asks for one constant:

- "relative_trajectory_balance": (log P - log Q - r + log Z)² (Venkatraman et al. 2024,
  arXiv:2405.20971); without memory its optimum is the same, and the loss zero;
- "log_variance": the variance of log P - log Q - r over paths that share their start;
- "control": E[KL(P ‖ Q) - r], differentiated through the simulation;
- "policy_gradient": the same without that (DPOK, Fan et al. 2023, arXiv:2305.16381, whose own
  gradient is without `penalty_to_go` and has another optimum);
- "adjoint_matching": regression on the lean adjoint of the base, of the means alone, and up to
  the length of a step unless the reward is linear.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from d2ejax import losses, non_finite, rollouts
from d2ejax.algorithms.base import Algorithm, of_one_model
from d2ejax.kernels import EmbeddedStep, Process
from d2ejax.typing import Array, AxisName, Key, LogDensity, Params

Loss = Literal[
    "relative_trajectory_balance",
    "log_variance",
    "control",
    "policy_gradient",
    "adjoint_matching",
]
LOSSES: tuple[Loss, ...] = get_args(Loss)

_Loss = Callable[[Params], tuple[Array, dict[str, Array]]]


class FineTuning(NamedTuple):
    """Everything fixed about a fine-tuning.

    Attributes:
        loss: Which loss it trains by.
        process: What is trained, forward in time: around the base (`kernels.on_top`), or by
            itself.
        base: The base process, forward on the same grid.
        base_params: Its parameters.
        start: Draws `(n, dim)` from p_0, the law that paths start from.
        reward: r, maps `(dim,)` to nats: a reward over its temperature.
        batch_size: Paths in one gradient step, on each device.
        num_paths: Paths that share their start, of "log_variance".
        tracked_steps: Steps that "control" is differentiated through, the last ones; None: all.
        penalty_to_go: Whether "policy_gradient" counts the penalties of later steps.
    """

    loss: Loss
    process: Process
    base: Process
    base_params: Params
    start: Callable[[Key, int], Array]
    reward: LogDensity
    batch_size: int = 128
    num_paths: int = 8
    tracked_steps: int | None = None
    penalty_to_go: bool = True


def fine_tuning(
    given: FineTuning,
    *,
    init_params: Callable[[Key], Params],
    optimiser: optax.GradientTransformation,
    ema_decay: float,
    axis_name: AxisName | None = None,
) -> Algorithm:
    """Fine-tunes a base process on a reward.

    Args:
        given: What is trained, by what.
        init_params: Maps a key to the parameters of the process.
        optimiser: Of all parameters.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `base.State`, its parameters a dict with the process's
        "drift" and the "log_z" of relative trajectory balance.

    Raises:
        ValueError: If the loss is unknown, a process runs backward, or the batch does not
            consist of groups of paths.
    """
    _check(given)

    def params(key: Key) -> Params:
        return {"drift": init_params(key), "log_z": jnp.zeros(())}

    return of_one_model(
        partial(objective, given),
        init_params=params,
        optimiser=optimiser,
        ema_decay=ema_decay,
        axis_name=axis_name,
    )


def objective(given: FineTuning, key: Key, params: Params) -> _Loss:
    """Draws the data of one gradient step.

    Args:
        given: The fine-tuning.
        key: A typed key.
        params: The parameters, to draw paths by.

    Returns:
        The loss on that data as a function of the parameters, with the metrics "reward", the
        mean of those that are finite, and `non_finite.SHARES`.
    """
    return _OBJECTIVES[given.loss](given, key, params)


def _draw(given: FineTuning, key: Key, params: Params, num_paths: int) -> tuple[Array, Array]:
    """Groups of paths that share their start, and the rewards at their ends.

    Returns:
        The paths, `(num_starts, num_paths, num_steps + 1, dim)`, zeros in place of one that is
        not finite, and the rewards, `(num_starts, num_paths)`, NaN for such a path.
    """
    start_key, path_key = jax.random.split(key)
    num_starts = given.batch_size // num_paths
    starts = given.start(start_key, num_starts)
    keys = jax.random.split(path_key, (num_starts, num_paths))

    def one(key: Key, x: Array) -> Array:
        return rollouts.simulate(
            key, given.process, params["drift"], x, tracked_steps=given.tracked_steps
        )

    paths, finite = non_finite.finite_paths(jax.vmap(jax.vmap(one, (0, None)))(keys, starts))
    ends = paths[..., -1, :].reshape(-1, paths.shape[-1])
    rewards = jax.vmap(non_finite.with_finite_gradient(given.reward))(ends)
    return paths, jnp.where(finite, rewards.reshape(finite.shape), jnp.nan)


def _measured(rewards: Array) -> dict[str, Array]:
    found = non_finite.mean_where(rewards, non_finite.has_mass(rewards))
    return {"reward": found} | non_finite.shares(rewards)


def _balance(given: FineTuning, key: Key, params: Params) -> _Loss:
    pooled = given.loss == "relative_trajectory_balance"
    paths, rewards = _draw(given, key, params, 1 if pooled else given.num_paths)
    if pooled:  # Of one constant for all, they are one group.
        paths, rewards = paths.swapaxes(0, 1), rewards.T

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        log_ratios = losses.log_path_ratio(
            paths,
            log_trained=lambda p: rollouts.log_density(given.process, params["drift"], p),
            log_opposite=lambda p: rollouts.log_density(given.base, given.base_params, p),
            log_goal=lambda _: rewards,
        )
        log_ratios, where, _, shares = non_finite.bounded(log_ratios)
        metrics = _measured(rewards) | shares
        if pooled:
            value = losses.trajectory_balance_loss(log_ratios, params["log_z"], where=where)
            return value, metrics
        return losses.log_variance_loss(log_ratios, where=where), metrics

    return loss


def _penalties(given: FineTuning, params: Params, paths: Array) -> Array:
    return rollouts.step_kl_divergences(
        given.process, params["drift"], given.base, given.base_params, paths
    )


def _control(given: FineTuning, key: Key, params: Params) -> _Loss:
    del params  # Those that the gradient is of.

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        paths, rewards = (drawn[:, 0] for drawn in _draw(given, key, params, 1))
        value = losses.control_loss(
            _penalties(given, params, paths), -rewards, where=non_finite.has_mass(rewards)
        )
        return value, _measured(rewards)

    return loss


def _policy_gradient(given: FineTuning, key: Key, params: Params) -> _Loss:
    paths, rewards = (drawn[:, 0] for drawn in _draw(given, key, params, 1))
    costs = non_finite.bounded(-rewards)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        value = losses.policy_gradient_loss(
            rollouts.step_log_densities(given.process, params["drift"], paths),
            _penalties(given, params, paths),
            -costs.log_ratios,
            to_go=given.penalty_to_go,
            where=costs.where,
        )
        return value, _measured(rewards)

    return loss


def _adjoint_matching(given: FineTuning, key: Key, params: Params) -> _Loss:
    """Each step's mean regressed on that of the base, moved by the adjoint of the next state.

    Tilted by a function ψ of the next state, a Gaussian step of variance v has its mean moved
    by v ∇log ψ, where that gradient varies little: adjoint matching in continuous time, and
    exact for a linear reward of a linear base.
    """
    paths, rewards = (drawn[:, 0] for drawn in _draw(given, key, params, 1))
    reward = non_finite.with_finite_gradient(given.reward)
    gradients = jax.vmap(jax.grad(reward))(paths[:, -1])
    base = rollouts.step_kernels(given.base, given.base_params, paths[:, :-1])
    adjoints = jax.vmap(lambda path, end: _adjoints(given, path, end))(paths, gradients)

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        trained = rollouts.step_kernels(given.process, params["drift"], paths[:, :-1])
        targets = base.mean + jnp.exp(base.log_variance) * adjoints
        misses = jnp.square(trained.mean - targets) * jnp.exp(-base.log_variance)
        costs = jnp.sum(misses, axis=(1, 2))
        value = 0.5 * non_finite.mean_where(costs, non_finite.has_mass(rewards))
        return value, _measured(rewards)

    return loss


def _adjoints(given: FineTuning, path: Array, end_gradient: Array) -> Array:
    """∇r carried back to the states that steps lead to, by the means of the base's steps."""

    def step_mean(x: Array, step: EmbeddedStep) -> Array:
        return given.base.embedded_kernel(given.base_params, x, step).mean

    steps = given.base.embedded_steps(given.base_params)
    return losses.carried_back(step_mean, path, end_gradient, steps)[1:]


_OBJECTIVES: dict[str, Callable[[FineTuning, Key, Params], _Loss]] = {
    "relative_trajectory_balance": _balance,
    "log_variance": _balance,
    "control": _control,
    "policy_gradient": _policy_gradient,
    "adjoint_matching": _adjoint_matching,
}


def _check(given: FineTuning) -> None:
    if given.loss not in LOSSES:
        raise ValueError(f"loss = {given.loss!r}: must be one of {LOSSES}")
    for name, process in (("process", given.process), ("base", given.base)):
        if process.backward:
            raise ValueError(f"{name}: runs backward: must be a forward process")
    if given.loss == "log_variance" and (
        given.num_paths < 2 or given.batch_size % given.num_paths
    ):
        raise ValueError(
            f"num_paths = {given.num_paths}: must be ≥ 2 and a divisor of batch_size = "
            f"{given.batch_size} with the loss 'log_variance'"
        )
