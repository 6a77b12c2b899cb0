"""How close a K-step chain of Gaussian kernels can come to an exact bridge.

Float64 NumPy on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.exact.base import ExactBridge, HostArray, Transition, transition
from d2ejax.references import Reference


class MatchedChain:
    """The chain whose kernels match the exact bridge's moments, on one time grid.

    It starts in p_0; its kernels are diagonal Gaussians with the mean, and for "learned" the
    variance, of the exact law of x_{k+1} given x_k.
    """

    def __init__(
        self,
        bridge: ExactBridge,
        reference: Reference,
        times: ArrayLike,
        *,
        variance: Literal["learned", "fixed"] = "learned",
    ):
        """Sets up the chain.

        Args:
            bridge: The exact bridge.
            reference: Its reference process.
            times: (K+1,), the grid, from 0 to the bridge's horizon.
            variance: "learned", or "fixed" for kernels that keep the reference's variance.

        Raises:
            ValueError: If `variance` is neither.
        """
        if variance not in ("learned", "fixed"):
            raise ValueError(f'variance is {variance!r}; allowed: "learned", "fixed"')
        self.bridge, self.reference, self.variance = bridge, reference, variance
        self.times = np.asarray(times, np.float64)

    def simulate(
        self, rng: np.random.Generator, sample_0: ArrayLike
    ) -> tuple[HostArray, HostArray]:
        """Runs the chain.

        Args:
            rng: Drives it.
            sample_0: (n, dim), draws from p_0.

        Returns:
            Paths (n, K+1, dim), and their `log_ratios` (n,).
        """
        x = np.asarray(sample_0, np.float64)
        path, log_ratio = [x], np.zeros(len(x))
        for t, t_next, step in self._steps():
            mean, var = self._kernel(x, t, t_next, step)
            following = mean + np.sqrt(var) * rng.standard_normal(mean.shape)
            log_ratio += _log_ratio(following, mean, var, step, x)
            x = following
            path.append(x)
        return np.stack(path, axis=1), log_ratio

    def log_ratios(self, paths: ArrayLike) -> HostArray:
        """Log-density of given paths under the chain over that under the reference.

        Args:
            paths: (n, K+1, dim), whatever process they come from.

        Returns:
            (n,), Σ_k log [P(x_{k+1} | x_k) / Q(x_{k+1} | x_k)].
        """
        points = np.moveaxis(np.asarray(paths, np.float64), 1, 0)
        total = np.zeros(points.shape[1])
        for x, following, (t, t_next, step) in zip(
            points[:-1], points[1:], self._steps(), strict=True
        ):
            mean, var = self._kernel(x, t, t_next, step)
            total += _log_ratio(following, mean, var, step, x)
        return total

    def _steps(self) -> Iterator[tuple[float, float, Transition]]:
        for t, t_next in zip(self.times[:-1].tolist(), self.times[1:].tolist(), strict=True):
            yield t, t_next, transition(self.reference, t, t_next)

    def _kernel(
        self, x: HostArray, t: float, t_next: float, step: Transition
    ) -> tuple[HostArray, HostArray]:
        mean, var = self.bridge.step_moments(x, t, t_next)
        return mean, np.full_like(mean, step.variance) if self.variance == "fixed" else var


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

    The gap is the mean over paths of a `MatchedChain` of log dP/dP* =
    Σ_k log [P(x_{k+1} | x_k) / Q(x_{k+1} | x_k)] - log ψ(x_K) - log(φ/p_0)(x_0), whose spread
    shrinks with the gap itself.

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
    chain = MatchedChain(bridge, reference, times, variance=variance)
    paths, log_ratios = chain.simulate(rng, sample_0)
    at_start, at_end = bridge.log_potentials(paths[:, 0], paths[:, -1])
    gaps = log_ratios - at_start - at_end
    return float(np.mean(gaps)), float(np.std(gaps, ddof=1) / np.sqrt(len(gaps)))


def _log_ratio(
    following: HostArray, mean: HostArray, var: HostArray, step: Transition, x: HostArray
) -> HostArray:
    """Log-density of a step under N(mean, var) over that under the reference."""
    from_reference = _log_normal(following, step.scale * x, np.full_like(var, step.variance))
    return _log_normal(following, mean, var) - from_reference


def _log_normal(x: HostArray, mean: HostArray, var: HostArray) -> HostArray:
    return -0.5 * np.sum((x - mean) ** 2 / var + np.log(2 * np.pi * var), axis=1)
