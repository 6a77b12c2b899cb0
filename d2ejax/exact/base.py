"""What an exact Schrödinger bridge offers, and float64 access to a reference on the host.

Everything in this package is NumPy/SciPy in float64 on the host: these are the values that
trained bridges are held against, so they must not share the precision of what they judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from d2ejax.references import Reference

HostArray = NDArray[np.float64]


@dataclass(frozen=True)
class ExactBridge:
    """The Schrödinger bridge P* between p_0 and p_1 over a reference Q started in p_0.

    All functions take and return float64 NumPy arrays, batched over the first axis.

    Attributes:
        path_kl: The optimal KL(P* || Q), in nats.
        transport_cost: E|x_T - x_0|² under the plan.
        log_potentials: (x_0 (n, dim), x_T (n, dim)) -> log(φ/p_0)(x_0) (n,) and log ψ(x_T)
            (n,). Along a path log dP*/dQ is their sum. The free constant is fixed by
            E_{p_0}[log(φ/p_0)] = 0, hence E_{p_1}[log ψ] = path_kl.
        drift: (x (n, dim), t) -> (n, dim), the forward drift f + g² ∇log ψ_t, the reference's
            own drift f included; t in [0, T).
        step_moments: (x (n, dim), t, t_next) -> mean and diagonal variance, each (n, dim), of
            the exact law of x_{t_next} given x_t; 0 ≤ t < t_next ≤ T.
        sample_plan: (rng, n) -> x_0 and x_T, each (n, dim), jointly from the plan.
        sample_starts: (rng, x_T (n, dim)) -> x_0 (n, dim), each from the exact law of x_0
            given that x_T: the plan's conditional, seen from the end.
    """

    path_kl: float
    transport_cost: float
    log_potentials: Callable[[HostArray, HostArray], tuple[HostArray, HostArray]]
    drift: Callable[[HostArray, float], HostArray]
    step_moments: Callable[[HostArray, float, float], tuple[HostArray, HostArray]]
    sample_plan: Callable[[np.random.Generator, int], tuple[HostArray, HostArray]]
    sample_starts: Callable[[np.random.Generator, HostArray], HostArray]


class Transition(NamedTuple):
    """The reference's law x_t | x_s ~ N(scale x_s, variance I), as Python floats."""

    scale: float
    variance: float


def transition(reference: Reference, start: float, end: float) -> Transition:
    """Read the reference's transition from `start` to `end` in float64."""
    with jax.enable_x64(True):
        s, t = jnp.asarray(float(start)), jnp.asarray(float(end))
        return Transition(float(reference.scale(s, t)), float(reference.variance(s, t)))


def local_coefficients(reference: Reference, t: float) -> tuple[float, float]:
    """Return (r, g²) at time t of the linear reference dX = r(t) X dt + g(t) dW, in float64."""
    with jax.enable_x64(True):
        # An integer would make its dtype that of what is computed from it.
        time = jnp.asarray(float(t))
        rate = reference.drift(jnp.ones((1,)), time)
        diffusion = reference.diffusion(time)
        return float(rate[0]), float(diffusion) ** 2


def check_horizon(t_max: float) -> None:
    """Refuse a horizon that is not a positive, finite number.

    Raises:
        ValueError: If it is not.
    """
    if not 0.0 < t_max < np.inf:
        raise ValueError(f"t_max is {t_max}; it must be positive and finite")


def snap(t: float, t_max: float) -> float:
    """Return t_max for a time that differs from it by float32 round-off only, else t."""
    return t_max if abs(t - t_max) <= 1e-6 * t_max else t


class DriftCoefficients(NamedTuple):
    """A drift read off a posterior mean: own · x_t + gain · E[x_end | x_t]."""

    own: float
    gain: float


def forward_coefficients(reference: Reference, t: float, t_max: float) -> DriftCoefficients:
    """Coefficients of the forward drift f + g² ∇log ψ_t in x_t and E[x_T | x_t].

    With q(x_T | x_t) = N(a x_t, v I): ∇log ψ_t(x) = (a / v) (E[x_T | x_t = x] - a x).

    Args:
        reference: The reference process.
        t: Time in [0, t_max).
        t_max: The horizon T.

    Returns:
        The factors of x_t and of E[x_T | x_t].

    Raises:
        ValueError: If t is not in [0, t_max).
    """
    if not 0.0 <= snap(t, t_max) < t_max:
        raise ValueError(f"t is {t}; the forward drift exists for 0 <= t < t_max = {t_max}")
    rate, squared = local_coefficients(reference, t)
    scale, variance = transition(reference, t, t_max)
    gain = squared * scale / variance
    return DriftCoefficients(rate - gain * scale, gain)


def backward_coefficients(reference: Reference, t: float, t_max: float) -> DriftCoefficients:
    """Coefficients of the backward drift -f + g² ∇log φ_t in x_t and E[x_0 | x_t].

    The drift is that of the time-reversed process, in reversed time. With
    q(x_t | x_0) = N(a x_0, v I): ∇log φ_t(x) = (a E[x_0 | x_t = x] - x) / v.

    Args:
        reference: The reference process.
        t: Time in (0, t_max].
        t_max: The horizon T.

    Returns:
        The factors of x_t and of E[x_0 | x_t].

    Raises:
        ValueError: If t is not in (0, t_max].
    """
    if not 0.0 < snap(t, t_max) <= t_max:
        raise ValueError(f"t is {t}; the backward drift exists for 0 < t <= t_max = {t_max}")
    rate, squared = local_coefficients(reference, t)
    scale, variance = transition(reference, 0.0, t)
    return DriftCoefficients(-rate - squared / variance, squared * scale / variance)


class PinnedStep(NamedTuple):
    """x_u given (x_t, x_T) under the reference: N(own x_t + gain x_T, variance I)."""

    own: float
    gain: float
    variance: float


def pinned_step(reference: Reference, t: float, t_next: float, t_max: float) -> PinnedStep:
    """The reference's law of x_{t_next} given both x_t and x_T.

    With q(x_u | x_t) = N(a x_t, v), q(x_T | x_u) = N(a' x_u, v') and
    q(x_T | x_t) = N(a a' x_t, V), V = a'² v + v': gain = a' v / V, own = a v' / V and
    variance = v v' / V.

    Args:
        reference: The reference process.
        t: Start of the step.
        t_next: End of the step.
        t_max: The horizon T.

    Returns:
        The factors of x_t and x_T and the variance.

    Raises:
        ValueError: Unless 0 <= t < t_next <= t_max.
    """
    t_next = snap(t_next, t_max)
    if not 0.0 <= t < t_next <= t_max:
        raise ValueError(
            f"(t, t_next) is ({t}, {t_next}); needed: 0 <= t < t_next <= t_max = {t_max}"
        )
    first = transition(reference, t, t_next)
    # The remainder vanishes at the last step; float round-off must not make it negative.
    rest = Transition(1.0, 0.0) if t_next == t_max else transition(reference, t_next, t_max)
    whole = rest.scale**2 * first.variance + rest.variance
    return PinnedStep(
        own=first.scale * rest.variance / whole,
        gain=rest.scale * first.variance / whole,
        variance=first.variance * rest.variance / whole,
    )
