"""How close a K-step chain of Gaussian kernels can come to an exact bridge.

Float64 NumPy on the host.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.exact.base import ExactBridge, HostArray, transition
from d2ejax.references import Reference


def k_step_limit(
    bridge: ExactBridge,
    reference: Reference,
    times: ArrayLike,
    sample_0: ArrayLike,
    rng: np.random.Generator,
    *,
    variance: Literal["learned", "fixed"] = "learned",
) -> tuple[float, float]:
    """The bridge gap KL(P || P*) of the chain whose kernels match the exact bridge's moments.

    The chain starts in p_0; its kernels are diagonal Gaussians with the mean, and for
    "learned" the variance, of the exact law of x_{k+1} given x_k. The gap is the mean over
    its own paths of log dP/dP* = Σ_k log [P(x_{k+1} | x_k) / Q(x_{k+1} | x_k)]
    - log ψ(x_K) - log(φ/p_0)(x_0), whose spread shrinks with the gap itself.

    Args:
        bridge: The exact bridge.
        reference: Its reference process.
        times: (K+1,), the grid, from 0 to the bridge's horizon.
        sample_0: (n, dim), draws from p_0.
        rng: Drives the chain.
        variance: "learned", or "fixed" for kernels that keep the reference's variance.

    Returns:
        The gap in nats and its standard error.

    Raises:
        ValueError: If `variance` is neither.
    """
    if variance not in ("learned", "fixed"):
        raise ValueError(f'variance is {variance!r}; allowed: "learned", "fixed"')
    grid = np.asarray(times, np.float64)
    x_0 = np.asarray(sample_0, np.float64)
    x, log_ratio = x_0, np.zeros(len(x_0))
    for t, t_next in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        step = transition(reference, t, t_next)
        mean, var = bridge.step_moments(x, t, t_next)
        if variance == "fixed":
            var = np.full_like(mean, step.variance)
        following = mean + np.sqrt(var) * rng.standard_normal(mean.shape)
        log_ratio += _log_normal(following, mean, var)
        log_ratio -= _log_normal(following, step.scale * x, np.full_like(var, step.variance))
        x = following
    at_start, at_end = bridge.log_potentials(x_0, x)
    gaps = log_ratio - at_start - at_end
    return float(np.mean(gaps)), float(np.std(gaps, ddof=1) / np.sqrt(len(gaps)))


def _log_normal(x: HostArray, mean: HostArray, var: HostArray) -> HostArray:
    return -0.5 * np.sum((x - mean) ** 2 / var + np.log(2 * np.pi * var), axis=1)
