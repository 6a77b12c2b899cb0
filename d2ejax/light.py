"""Bridges in closed form from a potential that is a Gaussian mixture with trainable parts.

Write the plan as π(x_T | x_0) ∝ q(x_T | x_0) ψ(x_T), q = N(a x_0, V I) the reference over
[0, T], and carry the *adjusted* potential of the target,

    v(y) = ψ(y) exp(-|y|² / 2V) = Σ_i exp(log_weights_i) N(y; means_i, diag(s_i)),

rather than ψ itself: then π(x_T | x_0) ∝ exp(a x_0ᵀx_T / V) v(x_T) is a mixture whatever the
variances s, also where ψ grows (s > V). For a Brownian reference this is LightSB (Korotin et
al. 2024, arXiv:2310.01174), with V = ε and s = ε S.

Everything follows for every t in [0, T] from three numbers, a_t and V_t of
q(x_T | x_t) = N(a_t x_t, V_t I) and τ = V_t / V. With z = a_t x, D_i = (1 - τ) s_i + V_t, per
coordinate, and means r_i,

    log ψ_t(x) = log Σ_i exp(log_weights_i) Π ψ_i,
    log ψ_i    = [(s_i / V) z² - (z - r_i)² + τ r_i²] / 2D_i - log(2π D_i) / 2,
    x_T | x_t  ~ Σ_i p_i N((s_i z + V_t r_i) / D_i, s_i V_t / D_i),
    ∇log ψ_t   = a_t Σ_i p_i e_i,   e_i = (r_i - (1 - s_i / V) z) / D_i,

with Π over the coordinates and p_i the shares of the components of ψ_t; none of which divides
by what vanishes at either end. Parameters are a dict of `log_weights` (n,), `means` (n, dim)
and `log_variances` (n, dim), the logarithms of s.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax import kernels
from d2ejax.gaussians import Gaussian
from d2ejax.kernels import EmbeddedStep, Process, Step
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key, Params, Time

_LOG_2PI = math.log(2.0 * math.pi)


class Conditional(NamedTuple):
    """A mixture of Gaussians with diagonal covariances, of mass one.

    Attributes:
        log_weights: `(n,)`.
        means: `(n, dim)`.
        variances: `(n, dim)`.
    """

    log_weights: Array
    means: Array
    variances: Array

    def mean_and_variance(self) -> tuple[Array, Array]:
        """Mean and variance of each coordinate, both `(dim,)`."""
        weights = jnp.exp(self.log_weights)
        mean, between = _mean_and_spread(weights, self.means)
        return mean, weights @ self.variances + between

    def sample(self, key: Key) -> Array:
        """One draw, `(dim,)`."""
        label_key, noise_key = jax.random.split(key)
        label = jax.random.categorical(label_key, self.log_weights)
        noise = jax.random.normal(noise_key, self.means.shape[1:], self.means.dtype)
        return self.means[label] + jnp.sqrt(self.variances[label]) * noise


class _View(NamedTuple):
    """What the potential is from time t; see the module.

    Attributes:
        scale: a_t.
        variance: V_t.
        log_masses: log_weights_i and all of log ψ_i that does not depend on x, `(n,)`.
    """

    scale: Array
    variance: Array
    log_masses: Array


class LightPotential(NamedTuple):
    """The potential of the target and all that it decides, functions of one point `(dim,)`.

    Over `references.reverse` of a reference it is that of the source, where paths then end.

    Attributes:
        reference: The reference process.
        t_max: The horizon T.
    """

    reference: Reference
    t_max: float

    @property
    def variance(self) -> Array:
        """V, the reference's variance over [0, T]; ε where it is Brownian."""
        return self.reference.variance(0.0, self.t_max)

    def init(self, centres: Array, *, share: float = 0.1) -> Params:
        """Parameters with equal weights.

        Args:
            centres: The means, `(n, dim)`: samples of the target.
            share: The variance of every component, in units of V: S in the paper.
        """
        log_variance = jnp.log(share * self.variance)
        return {
            "log_weights": jnp.full(centres.shape[:1], -math.log(len(centres))),
            "means": jnp.asarray(centres),
            "log_variances": jnp.broadcast_to(log_variance, centres.shape),
        }

    def from_mixture(self, log_weights: Array, means: Array, variances: Array) -> Params:
        """The parameters for which ψ is a given mixture, of any mass.

        Args:
            log_weights: Of ψ, `(n,)`.
            means: `(n, dim)`.
            variances: `(n, dim)`.
        """
        total = variances + self.variance
        shrink = self.variance / total
        log_masses = jnp.sum(jnp.log(shrink) - jnp.square(means) / total, axis=-1)
        return {
            "log_weights": log_weights + 0.5 * log_masses,
            "means": shrink * means,
            "log_variances": jnp.log(shrink * variances),
        }

    def log_value(self, params: Params, x: Array, t: Time) -> Array:
        """Log ψ_t(x) = log ∫ q(y | x_t = x) ψ(y) dy, a scalar; at t = T it is log ψ."""
        return jax.nn.logsumexp(self._log_components(params, x, self._view(params, t)))

    def log_adjusted(self, params: Params, x: Array) -> Array:
        """Log v(x), a scalar."""
        return self.log_value(params, x, self.t_max) - jnp.sum(x**2) / (2.0 * self.variance)

    def log_normaliser(self, params: Params, x: Array) -> Array:
        """Log c(x) = log ∫ exp(a xᵀy / V) v(y) dy, a scalar, for x at t = 0."""
        square = jnp.square(self.reference.scale(0.0, self.t_max)) * jnp.sum(x**2)
        per_axis = 0.5 * (_LOG_2PI + jnp.log(self.variance))
        constants = square / (2.0 * self.variance) + x.shape[0] * per_axis
        return self.log_value(params, x, 0.0) + constants

    def score(self, params: Params, x: Array, t: Time) -> Array:
        """∇log ψ_t(x), `(dim,)`."""
        view = self._view(params, t)
        weights, pulls, _ = self._parts(params, x, view)
        return view.scale * (weights @ pulls)

    def drift(self, params: Params, x: Array, t: Time) -> Array:
        """g(t)² ∇log ψ_t(x), `(dim,)`: what the bridge adds to the reference's drift."""
        diffusion = self.reference.diffusion(jnp.asarray(t, x.dtype))
        return jnp.square(diffusion) * self.score(params, x, t)

    def posterior(self, params: Params, x: Array, t: Time) -> Conditional:
        """The law of x_T given x_t = x."""
        view = self._view(params, t)
        moved, variances = view.scale * x, jnp.exp(params["log_variances"])
        spread = self._spread(params, view.variance)
        return Conditional(
            jax.nn.log_softmax(self._log_components(params, x, view)),
            (variances * moved[None] + view.variance * params["means"]) / spread,
            variances * view.variance / spread,
        )

    def sample_end(self, key: Key, params: Params, x: Array) -> Array:
        """One draw of x_T given x_0 = x, `(dim,)`."""
        return self.posterior(params, x, 0.0).sample(key)

    def process(
        self,
        grid: TimeGrid,
        *,
        backward: bool = False,
        match_variance: bool = True,
        steps_at_once: int | None = None,
    ) -> Process:
        """The chain of Gaussian kernels with the exact moments of each step, forward in time.

        With v and a the reference's own variance and scale over the step, ρ the share of v that
        remains when x_T is pinned (see `kernels`), and p, e as in the module,

            E[x_{k+1} | x_k]   = a x_k + (v / a) ∇log ψ_t(x_k),
            Var[x_{k+1} | x_k] = v [ρ + (1 - ρ) Var(x_T | x_k) / V_t],
            Var(x_T | x_k) / V_t = Σ_i p_i s_i / D_i + V_t Var_p(e).

        This is the form of the "bridge" variance family, without its bound.

        Args:
            grid: The time grid, from 0 to T.
            backward: Whether the potential's reference is the reverse of another, and the
                chain one that runs backward in the time of that.
            match_variance: Whether the variance is matched too; else it is the reference's.
            steps_at_once: See `kernels.process`.

        Returns:
            The process; its parameters are those of the potential.
        """
        reference = kernels.process(
            kernels.zero_network,
            self.reference,
            TimeGrid(grid.t_max - grid.times[::-1]) if backward else grid,
            discretisation="exact",
            steps_at_once=steps_at_once,
        )
        if backward:
            steps = jax.tree.map(lambda leaf: leaf[::-1], reference.steps)
            steps = steps._replace(time=grid.times[1:])
            reference = reference._replace(steps=steps, backward=True)

        def embed(params: Params, step: Step) -> EmbeddedStep:
            time = grid.t_max - step.time if backward else step.time
            return EmbeddedStep(self._view(params, time), step)

        def kernel(params: Params, x: Array, embedded: EmbeddedStep) -> Gaussian:
            view, step = embedded
            weights, pulls, shares = self._parts(params, x, view)
            pull, between = _mean_and_spread(weights, pulls)
            gain = view.scale * jnp.exp(step.log_variance) / step.scale
            open_share = jnp.zeros_like(x)
            if match_variance:
                left = weights @ shares + view.variance * between
                open_share = jnp.log(step.pinned_share + (1.0 - step.pinned_share) * left)
            return Gaussian(step.scale * x + gain * pull, step.log_variance + open_share)

        return reference._replace(embed=embed, embedded_kernel=kernel)

    def _view(self, params: Params, t: Time) -> _View:
        scale = self.reference.scale(t, self.t_max)
        variance = self.reference.variance(t, self.t_max)
        spread = self._spread(params, variance)
        own = variance / self.variance * jnp.square(params["means"]) / spread
        log_factors = own - jnp.log(spread) - _LOG_2PI
        return _View(
            scale, variance, params["log_weights"] + 0.5 * jnp.sum(log_factors, axis=-1)
        )

    def _spread(self, params: Params, variance: Array) -> Array:
        """D, `(n, dim)`, from V_t."""
        passed = 1.0 - variance / self.variance
        return passed * jnp.exp(params["log_variances"]) + variance

    def _log_components(self, params: Params, x: Array, view: _View) -> Array:
        """The logarithms of the components of ψ_t, weights included, `(n,)`."""
        moved = view.scale * x[None]
        growth = jnp.exp(params["log_variances"]) / self.variance * jnp.square(moved)
        squares = growth - jnp.square(moved - params["means"])
        spread = self._spread(params, view.variance)
        return view.log_masses + 0.5 * jnp.sum(squares / spread, axis=-1)

    def _parts(self, params: Params, x: Array, view: _View) -> tuple[Array, Array, Array]:
        """The weights p `(n,)`, the pulls e and s / D, both `(n, dim)`."""
        weights = jax.nn.softmax(self._log_components(params, x, view))
        spread = self._spread(params, view.variance)
        variances = jnp.exp(params["log_variances"])
        held = (1.0 - variances / self.variance) * (view.scale * x[None])
        return weights, (params["means"] - held) / spread, variances / spread


def _mean_and_spread(weights: Array, values: Array) -> tuple[Array, Array]:
    """Mean and variance of the rows of `(n, dim)` under weights of sum one, both `(dim,)`."""
    mean = weights @ values
    return mean, weights @ jnp.square(values - mean[None])
