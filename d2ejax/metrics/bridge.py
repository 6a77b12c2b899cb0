"""How far a trained process is from its reference, and from the exact Schrödinger bridge."""

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.metrics.base import Estimate, HostArray, mean_estimate, vector


def path_kl(step_kls: ArrayLike) -> Estimate:
    """KL(P || Q) = Σ_k E_P KL(P(x_{k+1} | x_k) || Q(x_{k+1} | x_k)), both started in p_0.

    Args:
        step_kls: KL divergences of the steps along paths of P, in nats, shape
            `(n, num_steps)`, as `rollouts.step_kl_divergences` gives them for each path.

    Returns:
        The divergence in nats with its standard error over paths. Steps of one path are not
        independent, so the error is that of the mean of their sums.

    Raises:
        ValueError: If the shape is any other.
    """
    return mean_estimate(_sum_steps(step_kls))


def bridge_gap(
    log_ratios: ArrayLike, log_phi_over_p_0: ArrayLike, log_psi: ArrayLike
) -> Estimate:
    """The distance to the Schrödinger bridge P*: KL(P || P*) in nats.

    As log dP*/dQ = log(φ/p_0)(x_0) + log ψ(x_K) with the exact potentials,

        KL(P || P*) = E_P[log dP/dQ - log(φ/p_0)(x_0) - log ψ(x_K)].

    Never negative beyond Monte-Carlo error, and zero only at the bridge, where the integrand
    vanishes path by path: that is why the log-ratio along the path is used, whose noise
    shrinks with the gap, and not the closed-form KL of each step. This needs x_0 from p_0, and
    as Q the very reference that the potentials belong to: its exact transitions on the grid,
    which Euler's steps are for Brownian motion alone.

    Args:
        log_ratios: log P(τ | x_0) - log Q(τ | x_0) along paths of P, shape `(n,)`.
        log_phi_over_p_0: log(φ/p_0) at the starts of these paths, shape `(n,)`.
        log_psi: log ψ at their ends, shape `(n,)`.

    Returns:
        The gap with its standard error, both over whole paths.

    Raises:
        ValueError: If the shapes do not fit.
    """
    ratios = vector("log_ratios", log_ratios)
    start = vector("log_phi_over_p_0", log_phi_over_p_0, size=len(ratios))
    end = vector("log_psi", log_psi, size=len(ratios))
    return mean_estimate(ratios - start - end)


def _sum_steps(step_kls: ArrayLike) -> HostArray:
    kls = np.asarray(step_kls, dtype=np.float64)
    if kls.ndim != 2 or kls.shape[0] < 2 or kls.shape[1] < 1:
        raise ValueError(f"step_kls has shape {kls.shape}: must be (n, num_steps) with n >= 2")
    return kls.sum(axis=1)
