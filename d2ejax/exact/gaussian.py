"""The Schrödinger bridge between two Gaussians, in closed form.

Float64 NumPy on the host. With q(x_T | x_0) = N(a x_0, v I) every formula for a Brownian
reference holds for a x_0 in place of x_0 and v in place of ε = σ²T.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.exact.base import (
    DriftCoefficients,
    ExactBridge,
    HostArray,
    Transition,
    backward_coefficients,
    check_horizon,
    forward_coefficients,
    pinned_step,
    snap,
    transition,
)
from d2ejax.exact.gaussian_laws import (
    AffineMap,
    GaussianPlan,
    Joint,
    Moments,
    as_joint,
    as_plan,
    check_gaussian,
    regress,
    swap,
)
from d2ejax.references import Reference


class AffineKernels(NamedTuple):
    """Gaussian kernels y | x ~ N(matrix_k x + offset_k, cov_k), one per step of a grid.

    Attributes:
        matrix: (K, dim, dim).
        offset: (K, dim).
        cov: (K, dim, dim).
    """

    matrix: HostArray
    offset: HostArray
    cov: HostArray


@dataclass(frozen=True)
class GaussianBridge(ExactBridge):
    """An `ExactBridge` between Gaussians, with everything else that is known in closed form.

    Attributes:
        plan: The joint law of (x_0, x_T).
        marginal: t -> mean (dim,) and covariance (dim, dim) of x_t.
        affine_drift: t in [0, T) -> the forward drift as an affine map.
        affine_backward_drift: t in (0, T] -> the drift of the time-reversed process (in
            reversed time, -f + g² ∇log φ_t) as an affine map.
        backward_drift: (x (n, dim), t) -> (n, dim), the same, evaluated.
        forward_kernels: times (K+1,) -> the exact kernels x_{k+1} | x_k.
        backward_kernels: times (K+1,) -> the exact kernels x_k | x_{k+1}.
    """

    plan: GaussianPlan
    marginal: Callable[[float], tuple[HostArray, HostArray]]
    affine_drift: Callable[[float], AffineMap]
    affine_backward_drift: Callable[[float], AffineMap]
    backward_drift: Callable[[HostArray, float], HostArray]
    forward_kernels: Callable[[ArrayLike], AffineKernels]
    backward_kernels: Callable[[ArrayLike], AffineKernels]


def gaussian_bridge(
    mean_0: ArrayLike,
    cov_0: ArrayLike,
    mean_1: ArrayLike,
    cov_1: ArrayLike,
    reference: Reference,
    t_max: float,
) -> GaussianBridge:
    """The Schrödinger bridge from N(mean_0, cov_0) to N(mean_1, cov_1).

    With q(x_T | x_0) = N(a x_0, v I), S = a² Σ_0 and D = (4 S^½ Σ_1 S^½ + v² I)^½ the
    cross-covariance is Cov(x_0, x_T) = (S^½ D S^-½ - v I) / (2a).

    Args:
        mean_0: (dim,), the mean at time 0.
        cov_0: (dim, dim), the covariance at time 0, positive definite.
        mean_1: (dim,), the mean at time T.
        cov_1: (dim, dim), the covariance at time T, positive definite.
        reference: The reference process.
        t_max: The horizon T > 0.

    Returns:
        The bridge, its kernels and its drifts.

    Raises:
        ValueError: If a shape does not fit, a covariance is not positive definite or t_max is
            not positive and finite.

    Source: Bunne, Hsieh, Cuturi and Krause (2023), arXiv:2202.05722, theorem 3; Janati et
    al. (2020), arXiv:2006.02572, theorem 1.
    """
    check_horizon(t_max)
    start, end = check_gaussian(mean_0, cov_0, "0"), check_gaussian(mean_1, cov_1, "1")
    if start[0].shape != end[0].shape:
        raise ValueError(
            f"mean_1 has shape {end[0].shape}; it must be that of mean_0, {start[0].shape}"
        )
    whole = transition(reference, 0.0, t_max)
    plan = _bridge_plan(start, end, whole)
    path_kl, log_potentials = _potentials(plan, whole)
    joint = _joint_law(plan, reference, t_max)

    def marginal(t: float) -> tuple[HostArray, HostArray]:
        mean, _, cov, _, _ = joint(t, t)
        return mean, cov

    def affine_drift(t: float) -> AffineMap:
        coefficients = forward_coefficients(reference, t, t_max)
        return _combine(coefficients, regress(joint(t, t_max))[0])

    def affine_backward_drift(t: float) -> AffineMap:
        coefficients = backward_coefficients(reference, t, t_max)
        return _combine(coefficients, regress(swap(joint(0.0, t)))[0])

    def step_moments(x: HostArray, t: float, t_next: float) -> tuple[HostArray, HostArray]:
        step, cov = regress(joint(t, t_next))
        return step(x), np.broadcast_to(np.diag(cov), x.shape)

    return GaussianBridge(
        path_kl=path_kl,
        transport_cost=_transport_cost(plan),
        log_potentials=log_potentials,
        drift=lambda x, t: affine_drift(t)(x),
        step_moments=step_moments,
        sample_plan=functools.partial(_sample_plan, plan),
        sample_starts=functools.partial(_sample_starts, plan),
        plan=plan,
        marginal=marginal,
        affine_drift=affine_drift,
        affine_backward_drift=affine_backward_drift,
        backward_drift=lambda x, t: affine_backward_drift(t)(x),
        forward_kernels=lambda times: _stack([regress(joint(s, t)) for s, t in _steps(times)]),
        backward_kernels=lambda times: _stack(
            [regress(swap(joint(s, t))) for s, t in _steps(times)]
        ),
    )


def _sample_plan(
    plan: GaussianPlan, rng: np.random.Generator, n: int
) -> tuple[HostArray, HostArray]:
    joined = rng.multivariate_normal(plan.mean, plan.cov, size=n, method="cholesky")
    dim = len(plan.mean) // 2
    return joined[:, :dim], joined[:, dim:]


def _sample_starts(plan: GaussianPlan, rng: np.random.Generator, x_1: HostArray) -> HostArray:
    kernel, cov = regress(swap(as_joint(plan)))
    x_1 = np.asarray(x_1, np.float64)
    return kernel(x_1) + rng.standard_normal(x_1.shape) @ np.linalg.cholesky(cov).T


def _combine(coefficients: DriftCoefficients, posterior: AffineMap) -> AffineMap:
    eye = np.eye(len(posterior.offset), dtype=np.float64)
    return AffineMap(
        coefficients.own * eye + coefficients.gain * posterior.matrix,
        coefficients.gain * posterior.offset,
    )


def _stack(kernels: list[tuple[AffineMap, HostArray]]) -> AffineKernels:
    return AffineKernels(
        np.stack([kernel.matrix for kernel, _ in kernels]),
        np.stack([kernel.offset for kernel, _ in kernels]),
        np.stack([cov for _, cov in kernels]),
    )


def _steps(times: ArrayLike) -> list[tuple[float, float]]:
    values = [float(t) for t in np.asarray(times, np.float64)]
    return list(itertools.pairwise(values))


def _symmetric_power(matrix: HostArray, power: float) -> HostArray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


def _bridge_plan(start: Moments, end: Moments, whole: Transition) -> GaussianPlan:
    scaled = whole.scale**2 * start[1]
    root = _symmetric_power(scaled, 0.5)
    eye = np.eye(len(scaled))
    d = _symmetric_power(4 * root @ end[1] @ root + whole.variance**2 * eye, 0.5)
    cross = root @ d @ _symmetric_power(scaled, -0.5) - whole.variance * eye
    return as_plan((start[0], end[0], start[1], cross / (2 * whole.scale), end[1]))


def _transport_cost(plan: GaussianPlan) -> float:
    mean_0, mean_1, cov_0, cross, cov_1 = as_joint(plan)
    spread = np.trace(cov_0) + np.trace(cov_1) - 2 * np.trace(cross)
    return float(np.sum((mean_1 - mean_0) ** 2) + spread)


def _potentials(
    plan: GaussianPlan, whole: Transition
) -> tuple[float, Callable[[HostArray, HostArray], tuple[HostArray, HostArray]]]:
    """The path KL and the log-potentials, both quadratic in their arguments.

    log π(x_1 | x_0) - log q(x_1 | x_0) splits because the precision of π(x_1 | x_0) times its
    regression matrix is (a / v) I, the reference's own.
    """
    scale, variance = whole
    joint = as_joint(plan)
    mean_0, mean_1, cov_0, _, cov_1 = joint
    kernel, cov = regress(joint)
    precision = np.linalg.inv(cov)
    eye = np.eye(len(mean_0))
    # log ψ = -½ x_1ᵀ P x_1 + hᵀ x_1 + const; log(φ/p_0) likewise with its own P and h.
    end_form = (precision - eye / variance, precision @ kernel.offset)
    start_form = (
        kernel.matrix.T @ precision @ kernel.matrix - scale**2 / variance * eye,
        -kernel.matrix.T @ precision @ kernel.offset,
    )

    def quadratic(form: Moments, x: HostArray) -> HostArray:
        return x @ form[1] - 0.5 * np.einsum("ni,ij,nj->n", x, form[0], x)

    def expectation(form: Moments, mean: HostArray, spread: HostArray) -> float:
        return float(quadratic(form, mean[None])[0] - 0.5 * np.trace(form[0] @ spread))

    constant = 0.5 * float(
        len(mean_0) * np.log(variance)
        - np.linalg.slogdet(cov)[1]
        - kernel.offset @ precision @ kernel.offset
    )
    start_mean = expectation(start_form, mean_0, cov_0)
    path_kl = constant + start_mean + expectation(end_form, mean_1, cov_1)

    def log_potentials(x_0: HostArray, x_1: HostArray) -> tuple[HostArray, HostArray]:
        at_start = quadratic(start_form, np.asarray(x_0, np.float64)) - start_mean
        at_end = quadratic(end_form, np.asarray(x_1, np.float64)) + constant + start_mean
        return at_start, at_end

    return path_kl, log_potentials


def _joint_law(
    plan: GaussianPlan, reference: Reference, t_max: float
) -> Callable[[float, float], Joint]:
    """The law of (x_s, x_t), s <= t: the reference's pinned bridge mixed over the plan.

    Given both ends x_t = own_t x_0 + gain_t x_T + noise, with Cov(noise_s, noise_t) =
    v(0, s) a(s, t) v(t, T) / v(0, T).
    """
    dim = len(plan.mean) // 2
    eye = np.eye(dim)

    def mixing(t: float) -> HostArray:
        if t == 0.0:
            return np.hstack([eye, 0 * eye])
        pinned = pinned_step(reference, 0.0, t, t_max)
        return np.hstack([pinned.own * eye, pinned.gain * eye])

    def noise(s: float, t: float) -> HostArray:
        if s == 0.0 or t == t_max:
            return 0 * eye
        between = transition(reference, s, t).scale if s < t else 1.0
        before, after = transition(reference, 0.0, s), transition(reference, t, t_max)
        total = transition(reference, 0.0, t_max).variance
        return before.variance * between * after.variance / total * eye

    def joint(s: float, t: float) -> Joint:
        s, t = snap(s, t_max), snap(t, t_max)
        if not 0.0 <= s <= t <= t_max:
            raise ValueError(f"times are ({s}, {t}); needed: 0 <= s <= t <= t_max = {t_max}")
        from_s, from_t = mixing(s), mixing(t)
        return (
            from_s @ plan.mean,
            from_t @ plan.mean,
            from_s @ plan.cov @ from_s.T + noise(s, s),
            from_s @ plan.cov @ from_t.T + noise(s, t),
            from_t @ plan.cov @ from_t.T + noise(t, t),
        )

    return joint
