"""Bounds and estimates of log Z_1, the evidence of an energy, from weighted paths.

With p̃_1 = Z_1 p_1 the target's unnormalised density, each path τ = (x_0, ..., x_K) has

    log w(τ) = log R(τ | x_K) + log p̃_1(x_K) - log p_0(x_0) - log P(τ | x_0),

and for p_0 normalised, E_P[w] = Z_1 over paths that start in p_0 and follow P. So (Blessing et
al. 2024, arXiv:2406.07423, section 3)

    E_P[log w] ≤ log E_P[w] = log Z_1 ≤ E_R[log w],

the upper bound over paths that start in p_1 and follow R. The gaps are KL(P || R) and
KL(R || P) between the path laws started in p_0 and p_1.

Every estimate needs paths with starts of their own. Several paths from one x_0 are neither
independent (the standard errors would be too small) nor, averaged for each x_0 by itself,
weights of Z_1: so only one axis, `(n,)`, is accepted.

A path whose end has no mass, or where the energy is undefined (see `d2ejax.non_finite`), has
the weight zero, log w = -∞, and counts as one of the n. Estimates of paths that all have it are
-∞ with the standard error NaN, their effective sample size NaN.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from d2ejax.metrics.base import Estimate, HostArray, mean_estimate, vector
from d2ejax.non_finite import LARGEST


def log_weights(
    *, log_start: ArrayLike, log_forward: ArrayLike, log_backward: ArrayLike, log_end: ArrayLike
) -> HostArray:
    """Path weights log w = log R(τ|x_K) + log p̃_1(x_K) - log p_0(x_0) - log P(τ|x_0).

    The ends are those of the path whatever its direction: also along backward paths log p_0 is
    evaluated at x_0, where they arrive, and log p̃_1 at x_K, where they start.

    Args:
        log_start: log p_0(x_0), normalised, shape `(n,)`.
        log_forward: log P(τ | x_0), all steps, shape `(n,)`.
        log_backward: log R(τ | x_K), all steps, shape `(n,)`.
        log_end: log p̃_1(x_K), shape `(n,)`.

    Returns:
        Shape `(n,)`, float64; -∞ where `log_end` is not finite, or beyond
        `non_finite.LARGEST`.

    Raises:
        ValueError: If the arguments are not vectors of one length.
    """
    start = vector("log_start", log_start)
    forward = vector("log_forward", log_forward, size=len(start))
    backward = vector("log_backward", log_backward, size=len(start))
    end = vector("log_end", log_end, size=len(start))
    with np.errstate(invalid="ignore"):
        weights = backward + end - start - forward
    return np.where(np.abs(end) <= LARGEST, weights, -np.inf)


def log_z_lower(log_weights: ArrayLike) -> Estimate:
    """The lower bound E_P[log w] of log Z_1 (ELBO).

    Args:
        log_weights: Of forward paths, x_0 from p_0; shape `(n,)`.

    Returns:
        The bound in nats with its standard error; short of log Z_1 by KL(P || R), and -∞ with
        any path of weight zero, as that is.

    Raises:
        ValueError: If the shape is not `(n,)` with n ≥ 2.
    """
    return mean_estimate(vector("log_weights", log_weights))


def log_z_upper(log_weights: ArrayLike) -> Estimate:
    """The upper bound E_R[log w] of log Z_1 (EUBO).

    Args:
        log_weights: Of backward paths, x_K from true samples of p_1; shape `(n,)`. Weights of
            forward paths would give the lower bound: the function cannot tell them apart.

    Returns:
        The bound in nats with its standard error; above log Z_1 by KL(R || P).

    Raises:
        ValueError: If the shape is not `(n,)` with n ≥ 2.
    """
    return mean_estimate(vector("log_weights", log_weights))


def log_z_importance(log_weights: ArrayLike) -> Estimate:
    """The importance-weighted estimate log (1/n) Σ w of log Z_1.

    The mean of w is unbiased for Z_1; its logarithm is low by about half the squared standard
    error. That error is from the delta method, s(w) / (w̄ √n), and is itself too small when few
    paths carry all the weight (see `effective_sample_size`).

    Args:
        log_weights: Of forward paths, x_0 from p_0; shape `(n,)`.

    Returns:
        The estimate in nats with its standard error.

    Raises:
        ValueError: If the shape is not `(n,)` with n ≥ 2.
    """
    logs = vector("log_weights", log_weights)
    with np.errstate(invalid="ignore"):
        value = float(logsumexp(logs) - np.log(len(logs)))
        relative = np.exp(logs - value)
    return Estimate(value, mean_estimate(relative).standard_error)


def effective_sample_size(log_weights: ArrayLike) -> float:
    """Kish's effective sample size as a fraction of n: (Σ w)² / (n Σ w²).

    Args:
        log_weights: Of forward paths, up to a constant; shape `(n,)`.

    Returns:
        A fraction in [1/n, 1]: 1 for equal weights, 1/n when one path has all the weight; NaN
        if no weight is positive.

    Raises:
        ValueError: If the shape is not `(n,)` with n ≥ 2.
    """
    logs = vector("log_weights", log_weights)
    with np.errstate(invalid="ignore"):
        log_share = 2.0 * logsumexp(logs) - logsumexp(2.0 * logs) - np.log(len(logs))
    # Round-off alone can exceed 1.
    return float(np.minimum(np.exp(log_share), 1.0))
