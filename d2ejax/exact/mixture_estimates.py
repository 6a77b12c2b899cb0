"""The few means over a mixture's plan that have no closed form, by Monte Carlo.

Float64 NumPy on the host, with a fixed seed: the same plan always has the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from d2ejax.exact.base import HostArray
from d2ejax.exact.mixture_plans import ForwardSide, JointMixture
from d2ejax.exact.mixtures import Mixture

# Entries of the largest array of one chunk of draws, and of all chunks together.
_CHUNK, _BUDGET, _MOST_DRAWS = 2**20, 2**25, 2**18
_SEED = 0


class PlanEstimate(NamedTuple):
    """Means over the plan.

    Attributes:
        path_kl: KL(P* || Q).
        path_kl_error: Its standard error.
        log_psi_0: E[log ψ_0(x_0)].
        transport_cost: E|x_T - x_0|².
    """

    path_kl: float
    path_kl_error: float
    log_psi_0: float
    transport_cost: float


def _chunks(width: int) -> Iterator[int]:
    """Numbers of draws, for arrays of `width` entries per draw."""
    size = max(_CHUNK // width, 16)
    for _ in range(max(min(_BUDGET // width, _MOST_DRAWS) // size, 2)):
        yield size


def _expected_squares(offsets: HostArray, variances: HostArray, of: HostArray) -> HostArray:
    """E[log N(x; m, of)] over the last axis for x - m of these means and variances."""
    return -0.5 * np.sum((offsets**2 + variances) / of + np.log(2.0 * np.pi * of), axis=-1)


def estimate_mixture(plan: JointMixture, forward: ForwardSide) -> tuple[float, float, float]:
    """KL(P* || Q) = E[log ψ(x_T) - log ψ_0(x_0)], its standard error, and E[log ψ_0(x_0)].

    Let j be the component of ψ that x_T came from. log ψ(x_T) is the logarithm of component j,
    whose mean is a closed form, less log r_j(x_T), the logarithm of its share of ψ there; and
    ψ_0 likewise. Only the shares are left to Monte Carlo: they are one where components are
    apart.
    """
    scale, variance = forward.whole
    psi = forward.psi
    copies = len(plan.cross) // plan.num_ends
    centres, spread = np.tile(psi.means, (copies, 1)), np.tile(psi.variances, (copies, 1))
    at_start = _expected_squares(
        scale * plan.source.means - centres,
        scale**2 * plan.source.variances,
        spread + variance,
    ) + np.tile(psi.log_weights, copies)
    at_end = _expected_squares(plan.target.means - centres, plan.target.variances, spread)
    at_end += np.tile(psi.log_weights, copies)
    rng = np.random.default_rng(_SEED)
    shares = []
    for n in _chunks(4 * psi.dim + 2 * plan.num_ends):
        x_0, x_1, labels = plan.sample(rng, n)
        ends = (np.arange(n), labels % plan.num_ends)
        shares.append(
            [
                log_softmax(forward.components_0(x_0), axis=1)[ends],
                log_softmax(psi.log_components(x_1), axis=1)[ends],
            ]
        )
    share_0, share_1 = np.concatenate(shares, axis=1)
    rest = share_0 - share_1
    weights = plan.weights()
    path_kl = float(weights @ (at_end - at_start) + rest.mean())
    error = float(rest.std(ddof=1) / np.sqrt(len(rest)))
    return path_kl, error, float(weights @ at_start - share_0.mean())


def estimate_plan(forward: ForwardSide, source: Mixture) -> PlanEstimate:
    """As `estimate_mixture`, with the closed forms given x_0 only; and E|x_T - x_0|²."""
    psi = forward.psi
    rng = np.random.default_rng(_SEED)
    rows = []
    for n in _chunks(3 * psi.dim * len(psi.means)):
        x_0 = source.sample(rng, n)
        ends = forward.posterior(x_0, 0.0)
        weights = np.exp(ends.log_weights)
        at_end = psi.log_weights + _expected_squares(
            ends.means - psi.means, ends.variances, psi.variances
        )
        x_1, labels = ends.sample(rng)
        share = log_softmax(psi.log_components(x_1), axis=1)[np.arange(n), labels]
        log_psi_0 = forward.log_psi_0(x_0)
        square = np.sum((ends.means - x_0[:, None, :]) ** 2, axis=2)
        square += np.sum(ends.variances, axis=1)
        path_kl = np.sum(weights * at_end, axis=1) - share - log_psi_0
        rows.append([path_kl, log_psi_0, np.sum(weights * square, axis=1)])
    path_kl, log_psi_0, cost = np.concatenate(rows, axis=1)
    return PlanEstimate(
        path_kl=float(path_kl.mean()),
        path_kl_error=float(path_kl.std(ddof=1) / np.sqrt(len(path_kl))),
        log_psi_0=float(log_psi_0.mean()),
        transport_cost=float(cost.mean()),
    )


def estimate_target(forward: ForwardSide, source: Mixture) -> tuple[HostArray, HostArray]:
    """Mean and covariance of x_T, the integral over x_T given x_0 being exact."""
    dim = source.dim
    rng = np.random.default_rng(_SEED)
    mean, square, total = np.zeros(dim), np.zeros((dim, dim)), 0
    for n in _chunks(3 * dim * len(forward.psi.means)):
        ends = forward.posterior(source.sample(rng, n), 0.0)
        weights = np.exp(ends.log_weights)
        roots = (np.sqrt(weights)[:, :, None] * ends.means).reshape(-1, dim)
        mean += ends.mean().sum(axis=0)
        square += roots.T @ roots + np.diag(weights.sum(axis=0) @ ends.variances)
        total += n
    mean, square = mean / total, square / total
    return mean, square - np.outer(mean, mean)
