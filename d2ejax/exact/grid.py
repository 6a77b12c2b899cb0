"""The Schrödinger bridge between any two densities in one or two dimensions.

Float64 NumPy on the host. Sinkhorn's algorithm on a grid at each end; the reference's
Gaussian kernel acts as one matrix product per axis, so that 256² points cost milliseconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import map_coordinates, spline_filter

from d2ejax.exact.base import (
    ExactBridge,
    HostArray,
    Transition,
    check_horizon,
    forward_coefficients,
    pinned_step,
    transition,
)
from d2ejax.exact.separable import (
    Grid,
    HostIndices,
    HostLogDensity,
    kernel_moments,
    log_kernel_sum,
    make_grid,
    make_weights,
    narrow_moments,
    sample_cells,
    sample_conditional_cells,
)
from d2ejax.references import Reference

# Below this mass, relative to the largest cell, a cell cannot matter to any result.
_NEGLIGIBLE = 1e-16


class _Solution(NamedTuple):
    """Log-potentials at the grid points, densities with respect to volume.

    Attributes:
        log_phi: log φ on the grid of end 0.
        log_psi: log ψ on the grid of end 1.
        log_psi_start: log ψ_0 on the grid of end 0.
        cross_moment: E[x_0 · x_T].
    """

    log_phi: HostArray
    log_psi: HostArray
    log_psi_start: HostArray
    cross_moment: float


def grid_bridge(
    log_p0: HostLogDensity,
    log_p1: HostLogDensity,
    reference: Reference,
    t_max: float,
    *,
    dim: int,
    extents: tuple[ArrayLike, ArrayLike],
    num_points: int = 256,
    tolerance: float = 1e-8,
    max_iterations: int = 2000,
) -> ExactBridge:
    """Solve the Schrödinger bridge between two densities by Sinkhorn's algorithm on grids.

    π(x_0, x_T) = φ(x_0) q(x_T | x_0) ψ(x_T), with φ ψ_0 = p_0, ψ φ_T = p_1, where
    ψ_0(x_0) = ∫ q(y | x_0) ψ(y) dy and φ_T(x_T) = ∫ q(x_T | x) φ(x) dx. Away from the grid
    the potentials are extended by these equations: log(φ/p_0) = -log ψ_0 and
    log ψ = log p_1 - log φ_T, the sums over the grid being evaluated at the query itself.

    Args:
        log_p0: Log-density of end 0, up to a constant: float64 points (n, dim) -> (n,).
        log_p1: Log-density of end 1, likewise. It is also called off the grid.
        reference: The reference process.
        t_max: The horizon T > 0.
        dim: 1 or 2.
        extents: For each end (lo, hi) of a square box, or one pair per dimension. A box must
            hold the mass of its end; what lies outside is taken to be zero.
        num_points: Cells per axis, at both ends. The finest feature of either density should
            span at least 1.5 cells in standard deviation.
        tolerance: Sinkhorn stops when the L1 error of the marginal at end 0 is below it.
        max_iterations: The most Sinkhorn iterations.

    Returns:
        The exact bridge.

    Raises:
        ValueError: If the kernel is narrower than the grids' cells, or underflows between
            the ends; or if an argument is out of range.
        RuntimeError: If Sinkhorn has not converged after `max_iterations`.

    Source: Cuturi (2013), arXiv:1306.0895; Pooladian and Niles-Weed (2021),
    arXiv:2109.12004, for the extension off the grid.
    """
    check_horizon(t_max)
    start = make_grid(log_p0, dim, extents[0], num_points, "log_p0")
    end = make_grid(log_p1, dim, extents[1], num_points, "log_p1")
    whole = transition(reference, 0.0, t_max)
    coarsest = max(float(end.spacing.max()), whole.scale * float(start.spacing.max()))
    if whole.variance < coarsest**2:
        raise ValueError(
            f"num_points is {num_points}: cells of width {coarsest:.3g} cannot resolve the "
            f"kernel's standard deviation {np.sqrt(whole.variance):.3g}; use more points, "
            "smaller extents, or a larger sigma or t_max"
        )
    solution = _solve(start, end, whole, tolerance, max_iterations)
    return _GridBridge(reference, t_max, whole, start, end, solution).as_exact_bridge()


def _solve(
    start: Grid, end: Grid, whole: Transition, tolerance: float, max_iterations: int
) -> _Solution:
    """Sinkhorn in the linear domain, the free constant fixed as `ExactBridge` says."""
    dim = len(start.axes)
    kernels = [
        np.exp(-((y - whole.scale * x[:, None]) ** 2) / (2 * whole.variance))
        / np.sqrt(2 * np.pi * whole.variance)
        for x, y in zip(start.axes, end.axes, strict=True)
    ]

    def pull_back(f: HostArray, factors: list[HostArray]) -> HostArray:
        return factors[0] @ f if dim == 1 else factors[0] @ f @ factors[1].T

    transposed = [kernel.T for kernel in kernels]
    mass_0, mass_1 = np.exp(start.log_mass), np.exp(end.log_mass)
    # φ and ψ are kept times the volume of a cell, so that sums are plain.
    phi = mass_0.copy()
    for _ in range(max_iterations):
        psi = _divide(mass_1, pull_back(phi, transposed), whole)
        psi_start = pull_back(psi, kernels)
        error = float(np.sum(np.abs(phi * psi_start - mass_0)))
        phi = _divide(mass_0, psi_start, whole)
        if error < tolerance:
            break
    else:
        raise RuntimeError(
            f"Sinkhorn did not converge: after max_iterations = {max_iterations} the L1 error "
            f"of the marginal is {error:.2e}, above tolerance = {tolerance:.2e}"
        )
    with np.errstate(divide="ignore"):
        log_psi_start = np.log(psi_start)
        shift = float(np.sum(mass_0 * np.where(mass_0 > 0, log_psi_start, 0.0)))
        log_phi = np.log(phi) - start.log_cell + shift
        log_psi = np.log(psi) - end.log_cell - shift
    cross = 0.0
    for axis in range(dim):
        shape = [-1 if i == axis else 1 for i in range(dim)]
        x, y = start.axes[axis].reshape(shape), end.axes[axis].reshape(shape)
        cross += float(np.sum(phi * x * pull_back(psi * y, kernels)))
    return _Solution(log_phi, log_psi, log_psi_start - shift, cross)


def _divide(mass: HostArray, sums: HostArray, whole: Transition) -> HostArray:
    if np.any((sums == 0) & (mass > _NEGLIGIBLE * mass.max())):
        raise ValueError(
            f"the kernel of variance {whole.variance:.3g} underflows between the two ends; "
            "use a larger sigma or t_max, or ends that are nearer each other"
        )
    return mass / np.maximum(sums, np.finfo(np.float64).tiny)


class _GridBridge:
    """The solution with the tables that its queries share."""

    def __init__(
        self,
        reference: Reference,
        t_max: float,
        whole: Transition,
        start: Grid,
        end: Grid,
        solution: _Solution,
    ):
        self.reference, self.t_max, self.whole = reference, t_max, whole
        self.start, self.end, self.solution = start, end, solution
        scaled = tuple(whole.scale * axis for axis in start.axes)
        self.phi = make_weights(scaled, solution.log_phi + start.log_cell)
        self.psi = make_weights(end.axes, solution.log_psi + end.log_cell)
        log_phi_end = log_kernel_sum(end.points, self.phi, whole.variance)
        self.spline = spline_filter(log_phi_end.reshape(end.log_mass.shape), mode="nearest")

    def as_exact_bridge(self) -> ExactBridge:
        mass_0, mass_1 = np.exp(self.start.log_mass), np.exp(self.end.log_mass)
        squares = [
            float(np.sum(mass.ravel() * np.sum(grid.points**2, axis=1)))
            for mass, grid in ((mass_0, self.start), (mass_1, self.end))
        ]
        seen = mass_1 > 0
        return ExactBridge(
            path_kl=float(np.sum(mass_1[seen] * self.solution.log_psi[seen])),
            transport_cost=sum(squares) - 2 * self.solution.cross_moment,
            log_potentials=self.log_potentials,
            drift=self.drift,
            step_moments=self.step_moments,
            sample_plan=self.sample_plan,
            sample_starts=self.sample_starts,
        )

    def log_potentials(self, x_0: HostArray, x_1: HostArray) -> tuple[HostArray, HostArray]:
        x_0, x_1 = np.asarray(x_0, np.float64), np.asarray(x_1, np.float64)
        at_start = -log_kernel_sum(self.whole.scale * x_0, self.psi, self.whole.variance)
        log_phi_end = log_kernel_sum(x_1, self.phi, self.whole.variance)
        return at_start, self.end.log_density(x_1) - log_phi_end

    def drift(self, x: HostArray, t: float) -> HostArray:
        x = np.asarray(x, np.float64)
        coefficients = forward_coefficients(self.reference, t, self.t_max)
        return coefficients.own * x + coefficients.gain * self._posterior(x, t)[0]

    def step_moments(
        self, x: HostArray, t: float, t_next: float
    ) -> tuple[HostArray, HostArray]:
        x = np.asarray(x, np.float64)
        step = pinned_step(self.reference, t, t_next, self.t_max)
        mean, var = self._posterior(x, t)
        return step.own * x + step.gain * mean, step.variance + step.gain**2 * var

    def sample_plan(self, rng: np.random.Generator, n: int) -> tuple[HostArray, HostArray]:
        cumulative = np.cumsum(np.exp(self.start.log_mass).ravel())

        def propose_start() -> tuple[HostIndices, HostArray]:
            draws = rng.uniform(size=n) * cumulative[-1]
            flat = np.minimum(np.searchsorted(cumulative, draws), len(cumulative) - 1)
            indices = np.stack(np.unravel_index(flat, self.start.log_mass.shape), axis=-1)
            return indices, self.start.log_mass.ravel()[flat] - self.start.log_cell

        x_0 = sample_cells(rng, self.start, self.start.log_density, propose_start)
        centres = self.whole.scale * x_0

        def propose_end() -> tuple[HostIndices, HostArray]:
            indices, log_centre = sample_conditional_cells(
                rng, centres, self.psi, self.whole.variance
            )
            return indices, log_centre - self.end.log_cell

        def log_conditional(x_1: HostArray) -> HostArray:
            square = np.sum((x_1 - centres) ** 2, axis=1)
            return self._log_psi(x_1) - square / (2 * self.whole.variance)

        return x_0, sample_cells(rng, self.end, log_conditional, propose_end)

    def sample_starts(self, rng: np.random.Generator, x_1: HostArray) -> HostArray:
        x_1 = np.asarray(x_1, np.float64)

        def propose() -> tuple[HostIndices, HostArray]:
            # The nodes of φ are scaled, so that it reads as a sum over ends like any other.
            indices, log_centre = sample_conditional_cells(
                rng, x_1, self.phi, self.whole.variance
            )
            return indices, log_centre - self.start.log_cell

        def log_conditional(x_0: HostArray) -> HostArray:
            centres = self.whole.scale * x_0
            log_psi_start = log_kernel_sum(centres, self.psi, self.whole.variance)
            square = np.sum((x_1 - centres) ** 2, axis=1)
            log_phi = self.start.log_density(x_0) - log_psi_start
            return log_phi - square / (2 * self.whole.variance)

        return sample_cells(rng, self.start, log_conditional, propose)

    def _posterior(self, x: HostArray, t: float) -> tuple[HostArray, HostArray]:
        """Mean and variance per axis of x_T given x_t."""
        scale, variance = transition(self.reference, t, self.t_max)
        # At 0.8 cells the grid sum's error is 2 exp(-2π² 0.8²) = 6e-6; below, it soars.
        if variance < (0.8 * self.end.spacing.max()) ** 2:
            return narrow_moments(scale * x, self._log_psi, variance)
        return kernel_moments(scale * x, self.psi, variance)

    def _log_psi(self, x: HostArray) -> HostArray:
        """The values of log ψ, its smooth part interpolated: for quadratures of many points."""
        corner = np.array([axis[0] for axis in self.end.axes])
        coordinates = ((x - corner) / self.end.spacing).T
        smooth = map_coordinates(self.spline, coordinates, mode="nearest", prefilter=False)
        return self.end.log_density(x) - smooth
