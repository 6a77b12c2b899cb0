"""Losses on the log path ratio: the half-steps whose pinned end offers an energy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from d2ejax.non_finite import masked, mean_where
from d2ejax.typing import Array


def log_path_ratio(
    paths: Array,
    *,
    log_trained: Callable[[Array], Array],
    log_opposite: Callable[[Array], Array],
    log_goal: Callable[[Array], Array],
) -> Array:
    """Log-ratio of a path under the trained process and under the opposite one with its goal.

    ℓ(τ) = Σ_k [log P_θ(x_{k+1} | x_k) - log R_φ(x_k | x_{k+1})] + E_1(x_K). At the optimum of
    the half-step it depends on the start of the path alone: ℓ = -log h(x_0) (Tamogashev &
    Malkin 2026, "Data-to-Energy Stochastic Dynamics"). Only `log_trained` carries a gradient.

    Args:
        paths: One path `(num_steps + 1, dim)` or a batch of them `(..., num_steps + 1, dim)`,
            whichever the callables take.
        log_trained: Maps it to its log-density under the trained process, given its start.
        log_opposite: Maps it to its log-density under the opposite process, given its end.
        log_goal: Maps it to the log-density -E of its goal, the end that is pinned: the energy
            of a forward half-step is evaluated at `path[-1]`, of a backward one at `path[0]`.
            Need not be normalised.

    Returns:
        Shape `(...)`, in nats: a scalar for one path.
    """
    target = log_opposite(paths) + log_goal(paths)
    return log_trained(paths) - jax.lax.stop_gradient(target)


def log_variance_loss(log_ratios: Array, *, where: Array | None = None) -> Array:
    """Source-conditional log-variance (VarGrad) of the log path ratio.

    L = E_{x_0}[ 1/(N-1) Σ_n (ℓ_n - mean ℓ)² ], over N paths that share their start. The
    unknown normalising constant drops out; it is zero exactly at the half-bridge (Richter et
    al. 2020, arXiv:2010.10436; Tamogashev & Malkin 2026). Paths of different starts must not
    be pooled, hence the two axes.

    Args:
        log_ratios: ℓ, shape `(num_starts, num_paths)`, in nats.
        where: Which of them count, same shape; None for all. The others may be NaN or infinite.
            A start with fewer than two that count is left out; the loss is NaN without any.

    Returns:
        A scalar, in nats².

    Raises:
        ValueError: If there are not two axes, fewer than two paths per start, or the shapes do
            not match.
    """
    if log_ratios.ndim != 2 or log_ratios.shape[1] < 2:
        raise ValueError(
            f"log_ratios has shape {log_ratios.shape}: must be (num_starts, num_paths) "
            "with num_paths ≥ 2"
        )
    if where is None:
        return jnp.mean(jnp.var(log_ratios, axis=1, ddof=1))
    log_ratios = masked(log_ratios, where)
    num_paths = log_ratios.shape[1]
    counts = jnp.sum(where, axis=1, dtype=log_ratios.dtype)
    enough = counts > 1
    means = jnp.mean(log_ratios, axis=1) * (num_paths / jnp.maximum(counts, 1.0))
    # At the mean of the others those left out add nothing; factors of one change no digit.
    filled = jnp.where(where, log_ratios, means[:, None])
    variances = jnp.var(filled, axis=1, ddof=1)
    variances *= (num_paths - 1) / jnp.where(enough, counts - 1, 1.0)
    return mean_where(jnp.where(enough, variances, 0.0), enough)


def trajectory_balance_loss(
    log_ratios: Array, log_h: Array, *, where: Array | None = None
) -> Array:
    """Trajectory balance with a learned normaliser per start, or one for all.

    L = E[(ℓ(τ) + log h(x_0))²] (Malkin et al. 2022, arXiv:2201.13259, for the scalar case).

    Args:
        log_ratios: ℓ, shape `(num_starts, num_paths)`, in nats.
        log_h: Learned log h, shape `(num_starts,)` or a scalar.
        where: Which of them count, `(num_starts, num_paths)`; None for all. The others may be
            NaN or infinite.

    Returns:
        A scalar, in nats².

    Raises:
        ValueError: If the shapes do not match.
    """
    if log_ratios.ndim != 2 or log_h.shape not in ((), log_ratios.shape[:1]):
        raise ValueError(
            f"log_ratios has shape {log_ratios.shape} and log_h {log_h.shape}: must be "
            "(num_starts, num_paths) and (num_starts,) or ()"
        )
    log_ratios = masked(log_ratios, where)
    return mean_where(jnp.square(log_ratios + jnp.reshape(log_h, (-1, 1))), where)


def subtrajectory_balance_loss(
    log_ratios: Array, log_flows: Array, *, decay: float = 1.0, where: Array | None = None
) -> Array:
    """Balance of every piece of a path, the longer ones discounted: SubTB(λ).

    With A_k = log F_k(x_k) - Σ_{j<k} [log P(x_{j+1} | x_j) - log R(x_j | x_{j+1})],
    L = E[Σ_{i<j} λ^{j-i} (A_i - A_j)² / Σ_{i<j} λ^{j-i}]. It is zero exactly if F_k is the
    unnormalised marginal of the process at each time, so that an energy known at the end gives
    credit along the whole path; detailed balance is the limit of small λ (Madan et al. 2023,
    arXiv:2209.12782, eq. 12; for diffusions Zhang et al. 2024, arXiv:2310.02679).

    Args:
        log_ratios: Those of each step, shape `(..., num_steps)`, in nats.
        log_flows: log F_k(x_k), shape `(..., num_steps + 1)`; the last is the target's
            log-density, the first log Z + log p_0.
        decay: λ > 0 per step.
        where: Which paths count, shape `(...)`; None for all. The others may be NaN or
            infinite.

    Returns:
        A scalar, in nats².

    Raises:
        ValueError: If the shapes do not match or λ is not positive.
    """
    expected = (*log_ratios.shape[:-1], log_ratios.shape[-1] + 1)
    if log_flows.shape != expected:
        raise ValueError(
            f"log_ratios has shape {log_ratios.shape} and log_flows {log_flows.shape}: must be "
            "(..., num_steps) and (..., num_steps + 1)"
        )
    if not decay > 0:
        raise ValueError(f"decay = {decay}: must be > 0")
    log_ratios, log_flows = masked(log_ratios, where), masked(log_flows, where)
    num_points = log_flows.shape[-1]
    level = log_flows.at[..., 1:].add(-jnp.cumsum(log_ratios, axis=-1))
    places = jnp.arange(num_points, dtype=level.dtype)
    length = places[None, :] - places[:, None]
    weights = jnp.where(length > 0, jnp.power(jnp.asarray(decay, level.dtype), length), 0.0)
    squares = jnp.square(level[..., :, None] - level[..., None, :])
    return mean_where(jnp.einsum("ij,...ij->...", weights, squares), where) / jnp.sum(weights)
