"""Plans φ(x_0) q(x_T | x_0) ψ(x_T) with mixtures for potentials, and draws from them.

Float64 NumPy on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from d2ejax.exact.base import (
    DriftCoefficients,
    HostArray,
    PinnedStep,
    Transition,
    backward_coefficients,
    forward_coefficients,
    pinned_step,
    snap,
    transition,
)
from d2ejax.exact.mixtures import Mixture, Posterior, log_overlaps
from d2ejax.references import Reference

_MAX_ROUNDS = 10_000


class ForwardSide(NamedTuple):
    """Everything that ψ alone decides: the process given where it is.

    Attributes:
        reference: The reference process.
        t_max: The horizon T.
        whole: Its transition from 0 to T.
        psi: ψ.
    """

    reference: Reference
    t_max: float
    whole: Transition
    psi: Mixture

    def posterior(self, x: HostArray, t: float) -> Posterior:
        """The law of x_T given x_t: the reference sees x_T as a x_t, give or take noise."""
        scale, variance = transition(self.reference, t, self.t_max)
        return self.psi.observe(scale * np.asarray(x, np.float64), 1.0, variance)

    def sample_end(self, rng: np.random.Generator, x_0: HostArray) -> HostArray:
        """One draw of x_T given each x_0, `(n, dim)`."""
        scale, variance = self.whole
        return self.psi.sample_posterior(rng, scale * x_0, 1.0, variance)

    def components_0(self, x_0: HostArray) -> HostArray:
        """The logarithm of each component of ψ_0, `(n, J)`."""
        scale, variance = self.whole
        return self.psi.push(1.0, variance).log_components(scale * np.asarray(x_0, np.float64))

    def log_psi_0(self, x_0: HostArray) -> HostArray:
        """Log ψ_0, `(n,)`."""
        return logsumexp(self.components_0(x_0), axis=1)

    def drift(self, x: HostArray, t: float) -> HostArray:
        """See `ExactBridge`."""
        coefficients = forward_coefficients(self.reference, t, self.t_max)
        return _combine(coefficients, x, self.posterior(x, t).mean())

    def step_moments(
        self, x: HostArray, t: float, t_next: float
    ) -> tuple[HostArray, HostArray]:
        """See `ExactBridge`."""
        step = pinned_step(self.reference, t, t_next, self.t_max)
        mean, var = self.posterior(x, t).mean_and_variance()
        return _combine(step, x, mean), step.variance + step.gain**2 * var

    def step_law(self, x: HostArray, t: float, t_next: float) -> tuple[HostArray, HostArray]:
        """See `PlanBridge`."""
        step = pinned_step(self.reference, t, t_next, self.t_max)
        return _step_law(step, x, self.posterior(x, t))

    def log_potentials(self, x_0: HostArray, x_1: HostArray) -> tuple[HostArray, HostArray]:
        """See `ExactBridge`."""
        return -self.log_psi_0(x_0), self.psi.log_density(x_1)


class BackwardSide(NamedTuple):
    """Everything that φ alone decides: the reversed process given where it is.

    Attributes:
        reference: The reference process.
        t_max: The horizon T.
        phi: φ.
    """

    reference: Reference
    t_max: float
    phi: Mixture

    def posterior(self, x: HostArray, t: float) -> Posterior:
        """The law of x_0 given x_t."""
        return self.phi.observe(x, *transition(self.reference, 0.0, snap(t, self.t_max)))

    def drift(self, x: HostArray, t: float) -> HostArray:
        """See `MixtureBridge`."""
        coefficients = backward_coefficients(self.reference, t, self.t_max)
        return _combine(coefficients, x, self.posterior(x, t).mean())

    def step_law(
        self, x: HostArray, t: float, t_previous: float
    ) -> tuple[HostArray, HostArray]:
        """See `MixtureBridge`."""
        t = snap(t, self.t_max)
        if not 0.0 <= t_previous < t <= self.t_max:
            raise ValueError(
                f"(t, t_previous) is ({t}, {t_previous}); needed: 0 <= t_previous < t <= t_max"
                f" = {self.t_max}"
            )
        posterior = self.posterior(x, t)
        if t_previous == 0.0:
            return posterior.mean_and_covariance()
        # Pinned at both ends of [0, t], x_t being the end that is known.
        pinned = pinned_step(self.reference, 0.0, t_previous, t)
        return _step_law(PinnedStep(pinned.gain, pinned.own, pinned.variance), x, posterior)


def _combine(
    factors: PinnedStep | DriftCoefficients, x: HostArray, mean: HostArray
) -> HostArray:
    return factors.own * np.asarray(x, np.float64) + factors.gain * mean


def _step_law(step: PinnedStep, x: HostArray, other: Posterior) -> tuple[HostArray, HostArray]:
    """Mean and covariance of own x + gain y + N(0, variance), y from the other end's law."""
    mean, cov = other.mean_and_covariance()
    noise = step.variance * np.eye(mean.shape[1])
    return _combine(step, x, mean), step.gain**2 * cov + noise


class JointMixture(NamedTuple):
    """The plan as a mixture of I · J joint Gaussians, the component of ψ varying fastest.

    Attributes:
        source: x_0 of every component.
        target: x_T of every component, with the weights of `source`.
        cross: Their covariance axis by axis, `(I · J, dim)`.
        num_ends: J.
    """

    source: Mixture
    target: Mixture
    cross: HostArray
    num_ends: int

    def mix(self, own: float, gain: float, variance: float) -> Mixture:
        """The law of own x_0 + gain x_T + N(0, variance), of mass one."""
        spread = own**2 * self.source.variances + gain**2 * self.target.variances
        return Mixture(
            self.source.log_weights,
            own * self.source.means + gain * self.target.means,
            spread + 2.0 * own * gain * self.cross + variance,
        ).normalised()

    def weights(self) -> HostArray:
        """The masses of the components, of sum one."""
        return np.exp(self.source.log_weights - self.source.log_mass)

    def transport_cost(self) -> float:
        """E|x_T - x_0|²."""
        square = np.sum((self.target.means - self.source.means) ** 2, axis=1)
        spread = self.source.variances + self.target.variances - 2.0 * self.cross
        return float(self.weights() @ (square + spread.sum(axis=1)))

    def sample(
        self, rng: np.random.Generator, n: int
    ) -> tuple[HostArray, HostArray, np.ndarray]:
        """x_0 and x_T `(n, dim)` and the component of the plan `(n,)` that they came from."""
        weights = self.weights()
        labels = rng.choice(len(weights), size=n, p=weights / weights.sum())
        noise = rng.standard_normal((2, n, self.source.dim))
        slopes = self.cross / self.source.variances
        rest = self.target.variances - slopes * self.cross
        from_start = np.sqrt(self.source.variances)[labels] * noise[0]
        from_end = slopes[labels] * from_start + np.sqrt(rest)[labels] * noise[1]
        x_0 = self.source.means[labels] + from_start
        return x_0, self.target.means[labels] + from_end, labels


def multiply(phi: Mixture, psi: Mixture, whole: Transition) -> JointMixture:
    """The components of φ(x_0) N(x_T; a x_0, v I) ψ(x_T), axis by axis.

    With φ_i = N(m, A), ψ_j = N(n, C) and S = a² A + v + C the mass is N(n; a m, S), x_0 has
    mean m + (a A / S)(n - a m) and variance A (C + v) / S, and x_T has mean
    a m + ((a² A + v) / S)(n - a m) and variance C (a² A + v) / S. Their covariance is
    a A C / S.
    """
    scale, variance = whole
    ahead = phi.push(scale, variance)
    m, n = phi.means[:, None, :], psi.means[None, :, :]
    start, end = phi.variances[:, None, :], psi.variances[None, :, :]
    moved, spread = ahead.means[:, None, :], ahead.variances[:, None, :]
    total = spread + end
    miss = n - moved
    log_weights = log_overlaps(ahead, psi).ravel()

    def flat(values: HostArray) -> HostArray:
        return values.reshape(-1, phi.dim)

    mean_0, mean_1 = m + scale * start / total * miss, moved + spread / total * miss
    return JointMixture(
        source=Mixture(log_weights, flat(mean_0), flat(start * (end + variance) / total)),
        target=Mixture(log_weights, flat(mean_1), flat(end * spread / total)),
        cross=flat(scale * start * end / total),
        num_ends=len(psi.means),
    )


def reject_starts(
    forward: ForwardSide, source: Mixture, rng: np.random.Generator, x_1: HostArray
) -> HostArray:
    """Draw x_0 given x_T exactly.

    π(x_0 | x_T) ∝ p_0(x_0) q(x_T | x_0) / ψ_0(x_0). Since ψ_0 is at least its component j, the
    same with that one in place of ψ_0 bounds it; and this is a mixture in x_0, because
    q ψ_j / ψ_0j is the Gaussian law of x_T given x_0 and j. Draws from it are kept with
    probability ψ_0j / ψ_0, for the j that keeps most of them.

    Args:
        forward: The forward side of the plan.
        source: p_0, of mass one.
        rng: Drives the draws.
        x_1: `(n, dim)`, the ends.

    Returns:
        `(n, dim)`, one start per end.

    Raises:
        ValueError: If an end is not finite.
        RuntimeError: If some start is still not drawn after 10 000 rounds: the components of ψ
            are too far apart for the source.
    """
    x_1 = np.asarray(x_1, np.float64)
    broken = ~np.isfinite(x_1).all(axis=1)
    if broken.any():
        row = int(np.argmax(broken))
        raise ValueError(f"x_1[{row}] is {x_1[row]}; allowed: finite numbers")
    psi = forward.psi
    scale, variance = forward.whole
    gains = psi.variances / (psi.variances + variance)
    slopes, noise = scale * gains, gains * variance
    offsets = x_1[:, None, :] - (1.0 - gains) * psi.means
    posteriors, log_bounds = [], []
    log_shares = log_softmax(psi.log_components(x_1), axis=1)
    for j in range(len(psi.means)):
        posteriors.append(source.observe(offsets[:, j], slopes[j], noise[j]))
        evidence = source.push(slopes[j], noise[j]).log_density(offsets[:, j])
        log_bounds.append(evidence - log_shares[:, j])
    best = np.argmin(log_bounds, axis=0)
    x_0, waiting = np.empty_like(x_1), np.arange(len(x_1))
    rounds = 0
    while len(waiting):
        rounds += 1
        if rounds > _MAX_ROUNDS:
            raise RuntimeError(
                f"x_1: {len(waiting)} of {len(x_1)} starts were not drawn in {_MAX_ROUNDS}"
                " rounds of rejection; the components of psi are too far apart for the source"
            )
        drawn = np.empty((len(waiting), source.dim))
        for j, posterior in enumerate(posteriors):
            mine = best[waiting] == j
            rows = posterior._replace(
                log_weights=posterior.log_weights[waiting[mine]],
                means=posterior.means[waiting[mine]],
            )
            drawn[mine] = rows.sample(rng)[0]
        log_keep = log_softmax(forward.components_0(drawn), axis=1)
        log_keep = log_keep[np.arange(len(waiting)), best[waiting]]
        kept = np.log(rng.uniform(size=len(waiting))) < log_keep
        x_0[waiting[kept]] = drawn[kept]
        waiting = waiting[~kept]
    return x_0
