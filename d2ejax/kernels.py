"""Discretised processes: a network's drift and variance on top of a reference, step by step.

Forward   P(x_{k+1} | x_k) = N(a_k x_k     + γ_k u(x_k, t_k),         v_k · w_k(x_k) I)
Backward  R(x_k | x_{k+1}) = N(b_k x_{k+1} + γ_k u(x_{k+1}, t_{k+1}), v_k · w_k(x_{k+1}) I)

where u and the log-variance s behind w are what the network returns, so that zeros are exactly
the reference (forward) and its reversal with zero score (backward). What u is depends on the
prediction. It is the drift, for which γ_k = Δ_k or, where steps are the reference's own
transitions, v_k/(a_k g(t)²), by which a drift g²∇log h moves the mean while the score holds
still. Or it is where the path will end, γ_k = T β_k, with β_k what an end moved by one moves
the next state by, when that is pinned there (Δ_k/(T - t_k) for Brownian motion): u is then the
displacement of the end per unit of time. One formula covers the variance families:

    w_k = ρ_k + (1 - ρ_k) exp(s),   s = bound · tanh(raw / bound),

with ρ = 1 (fixed), ρ = 0 (bounded), or ρ_k the share of the step's variance that remains when
the far end of the path is pinned (bridge-structured): exact for bridges of a linear reference,
whose kernel covariance is v_k ρ_k I plus a multiple of Cov(x_T | x_k).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from d2ejax import references
from d2ejax.gaussians import Gaussian
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, EmbeddedNetwork, Network, Params

Variance = Literal["fixed", "bounded", "bridge"]
Discretisation = Literal["euler", "exact"]

Prediction = Literal["drift", "endpoint"]

VARIANCES: tuple[Variance, ...] = ("fixed", "bounded", "bridge")
DISCRETISATIONS: tuple[Discretisation, ...] = ("euler", "exact")
PREDICTIONS: tuple[Prediction, ...] = ("drift", "endpoint")

BASE = "base"
"""Name of the parameters that a process made by `on_top` starts from, and which stay as they
are; those of its network are "network"."""


class Step(NamedTuple):
    """What one step needs besides the network; a stack of them has a leading axis K.

    Attributes:
        time: When the network is evaluated: t_k forward, t_{k+1} backward.
        length: Δ_k.
        gain: γ_k, the factor of the network's prediction.
        scale: The factor of the state in the reference's mean.
        log_variance: log v_k of the reference's step.
        pinned_share: ρ_k in [0, 1], the part of the variance that the network cannot change.
    """

    time: Array
    length: Array
    gain: Array
    scale: Array
    log_variance: Array
    pinned_share: Array


class EmbeddedStep(NamedTuple):
    """A step with all that depends on its time and the parameters alone.

    Attributes:
        embedding: The network's embedding of the time.
        step: The step.
    """

    embedding: Any
    step: Step


class Process(NamedTuple):
    """A Markov chain on a time grid, run forward or backward.

    Attributes:
        embed: Maps `(params, step)` to the embedded step: what depends on neither the state
            nor the batch.
        embedded_kernel: Maps `(params, x, embedded_step)` to the Gaussian of the next state
            (forward) or of the one before (backward).
        steps: The K steps, stacked, in the order of time for both directions.
        backward: Whether the chain starts at t = T.
        steps_at_once: How many steps of a path are scored at once, None for all of them.
    """

    embed: Callable[[Params, Step], EmbeddedStep]
    embedded_kernel: Callable[[Params, Array, EmbeddedStep], Gaussian]
    steps: Step
    backward: bool
    steps_at_once: int | None = None

    def kernel(self, params: Params, x: Array, step: Step) -> Gaussian:
        """The kernel of a step as it is in `steps`."""
        return self.embedded_kernel(params, x, self.embed(params, step))

    def embedded_steps(self, params: Params) -> EmbeddedStep:
        """All steps embedded, stacked; outside of a loop or batch they are computed once."""
        return jax.vmap(self.embed, (None, 0))(params, self.steps)

    @property
    def num_steps(self) -> int:
        """The number K of steps."""
        return self.steps.time.shape[0]


def process(
    network: Network | EmbeddedNetwork,
    reference: Reference,
    grid: TimeGrid,
    *,
    backward: bool = False,
    variance: Variance = "bridge",
    bound: float = 6.0,
    discretisation: Discretisation = "euler",
    prediction: Prediction = "drift",
    steps_at_once: int | None = None,
) -> Process:
    """Builds the chain of a network's drift and log-variance around a reference.

    Args:
        network: Maps `(params, x, t)` to `(drift, log_variance)`, residuals on the reference;
            as an `EmbeddedNetwork` it sees each time of the grid once for all paths.
        reference: The reference process.
        grid: The time grid.
        backward: False for P(x_{k+1} | x_k), True for R(x_k | x_{k+1}).
        variance: "fixed" ignores the network's log-variance; "bounded" learns it freely within
            exp(±bound); "bridge" learns the part that pinning the far end leaves open.
        bound: Largest magnitude of the learned log-variance, in nats.
        discretisation: "euler" (Euler-Maruyama) or "exact" (the reference's own transition).
        prediction: What the network's drift is taken for: the "drift", or the displacement
            per unit of time of the "endpoint" that the path runs to.
        steps_at_once: How many steps of a path are scored at once. Fewer than all of them, the
            default, need that much less memory and one more evaluation of the network for each
            gradient.

    Returns:
        The process.

    Raises:
        ValueError: If an option is unknown, the bound is not positive or steps_at_once is not
            a divisor of the number of steps.
    """
    _check(variance, discretisation, prediction, bound)
    if steps_at_once is not None and (steps_at_once < 1 or grid.num_steps % steps_at_once):
        raise ValueError(
            f"steps_at_once = {steps_at_once}: must be a divisor of {grid.num_steps}, the "
            "number of steps"
        )
    parts = _in_parts(network)

    def embed(params: Params, step: Step) -> EmbeddedStep:
        return EmbeddedStep(parts.embed(params, step.time), step)

    def kernel(params: Params, x: Array, embedded: EmbeddedStep) -> Gaussian:
        drift, raw = parts.apply(params, x, embedded.embedding)
        step = embedded.step
        mean = step.scale * x + step.gain * drift
        if variance == "fixed":
            return Gaussian(mean, jnp.broadcast_to(step.log_variance, x.shape))
        offset = bound * jnp.tanh(raw / bound)
        if variance == "bridge":
            share = step.pinned_share
            offset = jnp.log(share + (1.0 - share) * jnp.exp(offset))
        return Gaussian(mean, step.log_variance + offset)

    steps = _steps(reference, grid, backward, discretisation, prediction)
    return Process(embed, kernel, steps, backward, steps_at_once)


def on_top(base: Process, changes: Process) -> Process:
    """A process that starts from another one: what a network does to the reference, done to it.

    With the mean m and the variance v of the base's kernel, those of the network's, m' and v',
    and those of the reference, a x and v_k, the kernel is N(m + m' - a x, v v' / v_k). Zeros of
    the network are exactly the base.

    Args:
        base: Where it starts, on the grid and in the direction of the other; for a fixed
            variance, with that of the reference. Its parameters carry no gradient.
        changes: A network's process around the reference.

    Returns:
        The process; its parameters are a dict with those of both, "base" and "network".
    """

    def embed(params: Params, step: Step) -> EmbeddedStep:
        start = base.embed(jax.lax.stop_gradient(params[BASE]), step)
        return EmbeddedStep((start, changes.embed(params["network"], step)), step)

    def kernel(params: Params, x: Array, embedded: EmbeddedStep) -> Gaussian:
        (start, change), step = embedded
        fixed = jax.lax.stop_gradient(params[BASE])
        mean, log_variance = base.embedded_kernel(fixed, x, start)
        changed = changes.embedded_kernel(params["network"], x, change)
        return Gaussian(
            mean + (changed.mean - step.scale * x),
            log_variance + (changed.log_variance - step.log_variance),
        )

    return changes._replace(embed=embed, embedded_kernel=kernel)


def _check(variance: str, discretisation: str, prediction: str, bound: float) -> None:
    for name, value, allowed in (
        ("variance", variance, VARIANCES),
        ("discretisation", discretisation, DISCRETISATIONS),
        ("prediction", prediction, PREDICTIONS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}: must be one of {allowed}")
    if not bound > 0:
        raise ValueError(f"bound = {bound}: must be > 0")


def _in_parts(network: Network | EmbeddedNetwork) -> EmbeddedNetwork:
    """The network in two parts, the first of which may do nothing."""
    if isinstance(network, EmbeddedNetwork):
        return network
    return EmbeddedNetwork(lambda params, t: t, network)


def reference_process(
    reference: Reference, grid: TimeGrid, *, discretisation: Discretisation = "euler"
) -> Process:
    """The discretised reference itself, forward in time; its parameters are ignored."""
    return process(
        zero_network, reference, grid, variance="fixed", discretisation=discretisation
    )


def gaussian_reversal(
    reference: Reference, grid: TimeGrid, *, mean: Array, variance: float
) -> Process:
    """The exact reversal on the grid of the reference started in a Gaussian.

    R(x_k | x_{k+1}) ∝ N(x_k; a_k m, V_k I) N(x_{k+1}; scale x_k, v I), the first of which is
    the marginal of x_k: a_k = scale(0, t_k), V_k = a_k² variance + variance(0, t_k). What a
    diffusion sampler is trained against: nothing of it is learned.

    Args:
        reference: The reference process.
        grid: The time grid.
        mean: Of the Gaussian at time 0, m, shape `(dim,)`.
        variance: Of the same, per coordinate; small for a fixed start, but > 0.

    Returns:
        A backward process; its parameters are ignored.

    Raises:
        ValueError: If the variance is not positive.
    """
    if not variance > 0:
        raise ValueError(f"variance = {variance}: must be > 0")
    early, late = grid.times[:-1], grid.times[1:]
    factor, scale = reference.scale(grid.times[0], early), reference.scale(early, late)
    of_marginal = factor**2 * variance + reference.variance(grid.times[0], early)
    of_step = reference.variance(early, late)
    total = scale**2 * of_marginal + of_step
    pull = of_marginal * scale / total
    steps = Step(
        time=late,
        length=grid.steps,
        gain=factor * of_step / total,
        scale=pull,
        log_variance=jnp.log(of_marginal * of_step / total),
        pinned_share=jnp.ones_like(scale),
    )

    def kernel(params: Params, x: Array, embedded: EmbeddedStep) -> Gaussian:
        del params
        step = embedded.step
        law_mean = step.scale * x + step.gain * mean
        return Gaussian(law_mean, jnp.broadcast_to(step.log_variance, x.shape))

    return Process(lambda params, step: EmbeddedStep((), step), kernel, steps, backward=True)


def zero_network(params: Params, x: Array, t: Array) -> tuple[Array, Array]:
    """The network of the reference: no residual drift, no change of variance."""
    del params, t
    return jnp.zeros_like(x), jnp.zeros_like(x)


def _steps(
    reference: Reference,
    grid: TimeGrid,
    backward: bool,
    discretisation: Discretisation,
    prediction: Prediction,
) -> Step:
    start, t, t_next, end = grid.times[:1], grid.times[:-1], grid.times[1:], grid.times[-1:]
    scale, variance = reference.scale(t, t_next), reference.variance(t, t_next)
    if backward:
        share = scale**2 * reference.variance(start, t) / reference.variance(start, t_next)
    else:
        share = reference.variance(t_next, end) / reference.variance(t, end)
    if discretisation == "euler":
        time = t_next if backward else t
        # Linear references: f(x, t) = f(1, t) x.
        slope = jax.vmap(reference.drift)(jnp.ones_like(time), time) * grid.steps
        scale = 1.0 - slope if backward else 1.0 + slope
        variance = reference.diffusion(t) ** 2 * grid.steps
    elif backward:
        # The reversal under a flat marginal: Bayes' rule with a constant prior.
        scale, variance = 1.0 / scale, variance / scale**2
    gain = grid.steps
    if discretisation == "exact":
        diffusion = reference.diffusion(t_next if backward else t)
        gain = reference.variance(t, t_next) / (reference.scale(t, t_next) * diffusion**2)
    if prediction == "endpoint":
        gain = _pull(reference, grid, backward) * grid.t_max
    return Step(
        time=t_next if backward else t,
        length=grid.steps,
        gain=gain,
        scale=scale,
        log_variance=jnp.log(variance),
        pinned_share=share,
    )


def _pull(reference: Reference, grid: TimeGrid, backward: bool) -> Array:
    """β_k: how far an end that is moved by one moves the next state that is pinned to it."""
    first, last, t, t_next = grid.times[0], grid.times[-1], grid.times[:-1], grid.times[1:]
    if backward:
        return references.pinned_weights(reference, t, start=first, end=t_next)[0]
    return references.pinned_weights(reference, t_next, start=t, end=last)[1]
