"""Schrödinger bridges in closed form in any dimension, from potentials that are mixtures.

Float64 NumPy on the host. Rather than to solve for the bridge between two given ends, take
its potentials as given and read off the ends: with q(x_T | x_0) = N(a x_0, v I),

    π(x_0, x_T) = φ(x_0) q(x_T | x_0) ψ(x_T),   p_0 = φ ψ_0,   p_1 = φ_T ψ,

where ψ_0(x_0) = ∫ q(y | x_0) ψ(y) dy and φ_T(x_T) = ∫ q(x_T | x) φ(x) dx. Such a plan is the
bridge between its own marginals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2ejax.exact.base import (
    ExactBridge,
    HostArray,
    check_horizon,
    pinned_step,
    transition,
)
from d2ejax.exact.mixture_estimates import estimate_mixture, estimate_plan, estimate_target
from d2ejax.exact.mixture_plans import BackwardSide, ForwardSide, multiply, reject_starts
from d2ejax.exact.mixtures import Mixture, Posterior, check_mixture
from d2ejax.references import Reference


@dataclass(frozen=True)
class PlanBridge(ExactBridge):
    """The bridge from a mixture p_0 whose plan has π(x_T | x_0) ∝ q(x_T | x_0) ψ(x_T).

    φ = p_0 / ψ_0 is no mixture in general, so that the target has samples but no density.
    The Monte Carlo estimates below use a fixed seed and float64.

    Attributes:
        source: p_0, of mass one.
        psi: ψ, scaled so that E_{p_0}[log ψ_0] = 0, to the error of a Monte Carlo estimate.
        path_kl_error: The standard error of `path_kl`, which is a Monte Carlo estimate.
        log_psi_0: x_0 (n, dim) -> log ψ_0 (n,).
        conditional_plan: x_0 (n, dim) -> π(x_T | x_0), one mixture per row.
        step_law: (x (n, dim), t, t_next) -> mean (n, dim) and full covariance (n, dim, dim) of
            the exact law of x_{t_next} given x_t; 0 ≤ t < t_next ≤ T.
        conditional_moments: x_0 (n, dim) -> its mean (n, dim) and covariance (n, dim, dim).
        target_moments: () -> mean (dim,) and covariance (dim, dim) of p_1; here a Monte Carlo
            estimate, as is `transport_cost`.
    """

    source: Mixture
    psi: Mixture
    path_kl_error: float
    log_psi_0: Callable[[HostArray], HostArray]
    conditional_plan: Callable[[HostArray], Posterior]
    step_law: Callable[[HostArray, float, float], tuple[HostArray, HostArray]]
    conditional_moments: Callable[[HostArray], tuple[HostArray, HostArray]]
    target_moments: Callable[[], tuple[HostArray, HostArray]]


@dataclass(frozen=True)
class MixtureBridge(PlanBridge):
    """The bridge whose potentials φ and ψ are both mixtures, of I and J components.

    Both ends and every marginal are mixtures of I · J components. `transport_cost` and
    `target_moments` are closed forms; of `path_kl` a small part is a Monte Carlo estimate.

    Attributes:
        phi: φ, scaled so that the plan has mass one.
        target: p_1, of mass one.
        marginal: t in [0, T] -> the law of x_t.
        backward_drift: (x (n, dim), t) -> (n, dim), the drift of the time-reversed process
            (in reversed time, -f + g² ∇log φ_t); t in (0, T].
        backward_step_law: (x (n, dim), t, t_previous) -> mean (n, dim) and full covariance
            (n, dim, dim) of the exact law of x_{t_previous} given x_t; 0 ≤ t_previous < t ≤ T.
        log_phi_T: x_T (n, dim) -> log φ_T (n,).
        corrector: x_T (n, dim) -> ∇log φ_T (n, dim).
    """

    phi: Mixture
    target: Mixture
    marginal: Callable[[float], Mixture]
    backward_drift: Callable[[HostArray, float], HostArray]
    backward_step_law: Callable[[HostArray, float, float], tuple[HostArray, HostArray]]
    log_phi_T: Callable[[HostArray], HostArray]
    corrector: Callable[[HostArray], HostArray]


def plan_bridge(
    source: Mixture, psi: Mixture, reference: Reference, t_max: float
) -> PlanBridge:
    """The bridge from p_0 whose plan is π(x_T | x_0) ∝ q(x_T | x_0) ψ(x_T).

    Args:
        source: p_0, up to a constant.
        psi: ψ, up to a constant.
        reference: The reference process.
        t_max: The horizon T > 0.

    Returns:
        The bridge. Its `sample_starts` is exact, by rejection, and takes the longer the more
        components ψ has. It raises a ValueError for an end that is not finite, and a
        RuntimeError where the components of ψ are too far apart for the source.

    Raises:
        ValueError: If t_max is not positive and finite, a mixture is malformed or empty, or
            their dimensions differ.

    Source: Gushchin et al. (2023), arXiv:2306.10161.
    """
    check_horizon(t_max)
    p_0, psi = _check_pair("source", source, "psi", psi)
    p_0 = p_0.normalised()
    forward = ForwardSide(reference, t_max, transition(reference, 0.0, t_max), psi)
    estimate = estimate_plan(forward, p_0)
    forward = forward._replace(psi=psi.scaled(-estimate.log_psi_0))

    estimated = functools.cache(lambda: estimate_target(forward, p_0))

    def target_moments() -> tuple[HostArray, HostArray]:
        mean, covariance = estimated()
        return mean.copy(), covariance.copy()

    def sample_plan(rng: np.random.Generator, n: int) -> tuple[HostArray, HostArray]:
        x_0 = p_0.sample(rng, n)
        return x_0, forward.sample_end(rng, x_0)

    return PlanBridge(
        path_kl=estimate.path_kl,
        path_kl_error=estimate.path_kl_error,
        transport_cost=estimate.transport_cost,
        source=p_0,
        sample_plan=sample_plan,
        sample_starts=functools.partial(reject_starts, forward, p_0),
        target_moments=target_moments,
        **_forward_fields(forward),
    )


def mixture_bridge(
    phi: Mixture, psi: Mixture, reference: Reference, t_max: float
) -> MixtureBridge:
    """The bridge with the Schrödinger potentials φ and ψ, both mixtures.

    Args:
        phi: φ, up to a constant.
        psi: ψ, up to a constant.
        reference: The reference process.
        t_max: The horizon T > 0.

    Returns:
        The bridge between the ends p_0 = φ ψ_0 and p_1 = φ_T ψ.

    Raises:
        ValueError: If t_max is not positive and finite, a mixture is malformed or empty, or
            their dimensions differ.
    """
    check_horizon(t_max)
    phi, psi = _check_pair("phi", phi, "psi", psi)
    whole = transition(reference, 0.0, t_max)
    plan = multiply(phi, psi, whole)
    forward = ForwardSide(reference, t_max, whole, psi)
    path_kl, error, log_psi_0 = estimate_mixture(plan, forward)
    phi = phi.scaled(log_psi_0 - plan.source.log_mass)
    forward = forward._replace(psi=psi.scaled(-log_psi_0))
    backward = BackwardSide(reference, t_max, phi)
    phi_end = phi.push(*whole)
    source, target = plan.source.normalised(), plan.target.normalised()

    def sample_plan(rng: np.random.Generator, n: int) -> tuple[HostArray, HostArray]:
        x_0, x_1, _ = plan.sample(rng, n)
        return x_0, x_1

    def marginal(t: float) -> Mixture:
        if t == 0.0:
            return source
        step = pinned_step(reference, 0.0, t, t_max)
        return plan.mix(step.own, step.gain, step.variance)

    return MixtureBridge(
        path_kl=path_kl,
        path_kl_error=error,
        transport_cost=plan.transport_cost(),
        sample_plan=sample_plan,
        sample_starts=lambda rng, x_1: phi.sample_posterior(rng, x_1, *whole),
        source=source,
        target=target,
        target_moments=target.mean_and_covariance,
        phi=phi,
        marginal=marginal,
        backward_drift=backward.drift,
        backward_step_law=backward.step_law,
        log_phi_T=phi_end.log_density,
        corrector=phi_end.score,
        **_forward_fields(forward),
    )


def _check_pair(
    name: str, mixture: Mixture, other_name: str, other: Mixture
) -> tuple[Mixture, Mixture]:
    first, second = check_mixture(name, mixture), check_mixture(other_name, other)
    if first.dim != second.dim:
        raise ValueError(
            f"{other_name} has dimension {second.dim}; it must be that of {name}, {first.dim}"
        )
    return first, second


def _forward_fields(forward: ForwardSide) -> dict[str, Any]:
    """The fields of a `PlanBridge` that need ψ alone."""
    return {
        "psi": forward.psi,
        "log_psi_0": forward.log_psi_0,
        "log_potentials": forward.log_potentials,
        "drift": forward.drift,
        "step_moments": forward.step_moments,
        "step_law": forward.step_law,
        "conditional_plan": lambda x_0: forward.posterior(x_0, 0.0),
        "conditional_moments": lambda x_0: forward.posterior(x_0, 0.0).mean_and_covariance(),
    }
