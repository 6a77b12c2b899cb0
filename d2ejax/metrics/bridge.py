"""How far a trained process is from its reference, and from the exact Schrödinger bridge."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

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


class TerminalKL(NamedTuple):
    """Bounds of KL(P_T || p_1), the part of a bridge gap that lies in the terminal marginal.

    Attributes:
        lower: A lower bound of KL(P_T || p_1) in expectation.
        upper: An upper bound in expectation.
    """

    lower: Estimate
    upper: Estimate

    @property
    def middle(self) -> Estimate:
        """Halfway between the bounds, where their leading biases cancel.

        Its error includes the standard deviation of a uniform law between them.
        """
        width = self.upper.value - self.lower.value
        sampling = max(self.lower.standard_error, self.upper.standard_error)
        error = float(np.hypot(sampling, width / 12**0.5))
        return Estimate(self.lower.value + 0.5 * width, error)


def terminal_kl(
    own: ArrayLike, others: ArrayLike, *, gap: Estimate | None = None
) -> TerminalKL:
    """Brackets KL(P_T || p_1), the part of the bridge gap that lies in the terminal marginal.

    Given the end x_T, let w(τ) = dP/dP*(τ). The chain rule splits the gap in two parts,

        KL(P || P*) = KL(P_T || p_1) + E_{x_T~P_T} KL(P(· | x_T) || P*(· | x_T)),

    the second of which, the path part, is the gap less the first. As p_T/p_1(x_T) is the mean
    of w over P*(· | x_T), paths τ_1..τ_M of the exact bridge that end in x_T give, by Jensen,

        E log (1/M) Σ_m w(τ_m) ≤ log p_T/p_1(x_T).

    Adding the path τ_0 that led to x_T turns the bound: let r = p_T/p_1(x_T). The M + 1 paths,
    the own one at a place drawn uniformly, have the law s dP*(· | x_T)^{M+1} with
    s = (1/(M+1)) Σ_m w(τ_m) / r, and E log s under that law is a KL divergence, hence ≥ 0:

        E log (1/(M+1)) Σ_{m=0}^M w(τ_m) ≥ log p_T/p_1(x_T).

    Averaged over ends of P both bracket KL(P_T || p_1); they meet as M grows (Sobolev and
    Vetrov 2019, arXiv:1905.03290; Grosse et al. 2015, arXiv:1511.02543).

    Args:
        own: log dP/dP* along n independent paths of P, shape `(n,)`: the summands of
            `bridge_gap`.
        others: The same along M paths of the exact bridge for each of these, shape `(n, M)`,
            which end where it ends: x_0 from the plan's law given x_T, the interior from the
            reference pinned at both.
        gap: `bridge_gap` of many more paths, these n among them or not. The bounds then gain
            from what the mean of `own` lacks of it, times the slope of their regression on
            `own` (a control variate): most where the gap is mostly terminal.

    Returns:
        The two bounds in nats, each with its standard error over the n ends.

    Raises:
        ValueError: If the shapes do not fit.
    """
    first = vector("own", own)
    rest = np.asarray(others, dtype=np.float64)
    if rest.ndim != 2 or len(rest) != len(first) or rest.shape[1] < 1:
        raise ValueError(f"others has shape {rest.shape}: must be ({len(first)}, M), M >= 1")
    with np.errstate(invalid="ignore"):
        below = logsumexp(rest, axis=1) - np.log(rest.shape[1])
        together = np.column_stack([first, rest])
        above = logsumexp(together, axis=1) - np.log(together.shape[1])
    if gap is None:
        return TerminalKL(mean_estimate(below), mean_estimate(above))
    return TerminalKL(_regressed(below, first, gap), _regressed(above, first, gap))


def _regressed(values: HostArray, control: HostArray, mean: Estimate) -> Estimate:
    """The mean of values, corrected for what their control lacks of its known mean."""
    centred = control - np.mean(control)
    square = float(np.sum(centred**2))
    slope = float(np.sum(centred * values)) / square if square else 0.0
    rest = mean_estimate(values - slope * control)
    error = np.hypot(rest.standard_error, slope * mean.standard_error)
    return Estimate(rest.value + slope * mean.value, float(error))


def drift_error(learned: ArrayLike, exact: ArrayLike, weights: ArrayLike) -> Estimate:
    """The relative squared error of a drift along the true marginals.

    Σ_k w_k E|F_θ(x_k) - F*(x_k)|² / Σ_k w_k E|F*(x_k)|², x_k from the exact bridge. Of 0.05 one
    says "5 per cent".

    Args:
        learned: The drift that is judged, shape `(num_steps, n, dim)`; entry (k, i) at point
            k of path i, the paths being independent.
        exact: The exact drift at the same points, same shape.
        weights: Lengths of the steps, shape `(num_steps,)`.

    Returns:
        The ratio, with its standard error over paths by the delta method; both NaN where the
        exact drift is zero at every point, or a drift is not finite.

    Raises:
        ValueError: If the shapes do not fit.
    """
    found, true = np.asarray(learned, np.float64), np.asarray(exact, np.float64)
    if true.ndim != 3 or true.shape[1] < 2 or found.shape != true.shape:
        raise ValueError(
            f"learned and exact have shapes {found.shape} and {true.shape}: must be one "
            "(num_steps, n, dim) with n >= 2"
        )
    lengths = vector("weights", weights, size=len(true))
    errors, sizes = (lengths @ np.sum(v**2, axis=2) for v in (found - true, true))
    scale = float(np.mean(sizes))
    if scale == 0.0:
        return Estimate(float("nan"), float("nan"))
    ratio = float(np.mean(errors)) / scale
    return Estimate(ratio, mean_estimate(errors - ratio * sizes).standard_error / scale)


def _sum_steps(step_kls: ArrayLike) -> HostArray:
    kls = np.asarray(step_kls, dtype=np.float64)
    if kls.ndim != 2 or kls.shape[0] < 2 or kls.shape[1] < 1:
        raise ValueError(f"step_kls has shape {kls.shape}: must be (n, num_steps) with n >= 2")
    return kls.sum(axis=1)
