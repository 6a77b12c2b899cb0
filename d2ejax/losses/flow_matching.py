"""Flow and score matching: the two halves of a bridge's drifts, regressed without simulation.

Given both ends, the reference's bridge at time t is N(μ_t, σ_t² I). One deterministic flow that
carries these Gaussians is u_t, and mixed over the coupling of the ends it becomes the
probability flow v of the whole bridge, as the conditional scores become ∇log p_t:

    v(x, t) = E[u_t | x_t = x],   ∇log p_t(x) = E[(μ_t - x_t) / σ_t² | x_t = x].

The bridge's drift is then v + g²/2 ∇log p_t forward in time, and v - g²/2 ∇log p_t is the drift
of its reversal, written forward in time (Tong et al. 2024, arXiv:2307.03672).
"""

import jax.numpy as jnp

from d2ejax.typing import Array


def conditional_flow(
    x: Array, mean: Array, variance: Array, mean_rate: Array, variance_rate: Array
) -> Array:
    """The flow u_t that carries the Gaussians N(μ_t, σ_t² I) of a pinned bridge.

    u_t(x) = dμ_t/dt + (dσ_t²/dt) / (2σ_t²) (x - μ_t). For Brownian motion, with s = t/T:
    (x_1 - x_0)/T + (1 - 2s)/(2s(1 - s)T) (x - μ_t).

    Args:
        x: Where, shape `(dim,)`.
        mean: μ_t, same shape.
        variance: σ_t² > 0 per coordinate, a scalar.
        mean_rate: dμ_t/dt, shape `(dim,)`.
        variance_rate: dσ_t²/dt, a scalar.

    Returns:
        Shape `(dim,)`, in units of x per unit of time.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check_moments(x, mean, variance)
    _check_moments(x, mean_rate, variance_rate)
    return mean_rate + variance_rate / (2.0 * variance) * (x - mean)


def conditional_score(x: Array, mean: Array, variance: Array) -> Array:
    """The score of a pinned bridge: ∇log N(x; μ_t, σ_t² I) = (μ_t - x) / σ_t².

    Args:
        x: Where, shape `(dim,)`.
        mean: μ_t, same shape.
        variance: σ_t² > 0 per coordinate, a scalar.

    Returns:
        Shape `(dim,)`, in units of one over x.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check_moments(x, mean, variance)
    return (mean - x) / variance


def flow_matching_loss(velocities: Array, targets: Array, weights: Array) -> Array:
    """Regression of a velocity on conditional flows: E mean_t w_t ‖v(x_t, t) - u_t‖².

    Its minimiser is the probability flow of the mixture (Lipman et al. 2023, arXiv:2210.02747;
    Tong et al. 2024). Weights w_t = T/g(t)² make it what an error of the velocity adds
    to the KL divergences of the forward process and of the backward one, in nats.

    Args:
        velocities: v, shape `(num_paths, num_times, dim)`.
        targets: u, same shape.
        weights: w, shape `(num_times,)`.

    Returns:
        A scalar.

    Raises:
        ValueError: If the shapes do not match.
    """
    return _weighted_squares(("velocities", velocities), targets, ("weights", weights))


def score_matching_loss(scores: Array, targets: Array, variances: Array) -> Array:
    """Regression of a score on those of pinned bridges: E mean_t λ(t) ‖s(x_t, t) - target‖².

    The weight is λ(t) = σ_t², the variance of the pinned bridge: with x_t = μ_t + σ_t ε the
    target is -ε/σ_t, and what is squared ‖σ_t s + ε‖², bounded at both ends, where the target
    is not (Tong et al. 2024). For Brownian motion halfway it is g²T/4: what an
    error of the score adds to the KL divergences of both processes, in nats.

    Args:
        scores: s, shape `(num_paths, num_times, dim)`.
        targets: The conditional scores, same shape.
        variances: σ_t², shape `(num_times,)`.

    Returns:
        A scalar.

    Raises:
        ValueError: If the shapes do not match.
    """
    return _weighted_squares(("scores", scores), targets, ("variances", variances))


def _weighted_squares(
    found: tuple[str, Array], targets: Array, weights: tuple[str, Array]
) -> Array:
    """The squared errors, summed over coordinates, weighted and averaged; names for errors."""
    values, factors = found[1], weights[1]
    if not (
        values.ndim == 3
        and values.shape == targets.shape
        and factors.shape == values.shape[1:2]
    ):
        raise ValueError(
            f"{found[0]} have shape {values.shape}, targets {targets.shape} and {weights[0]} "
            f"{factors.shape}: must be (num_paths, num_times, dim) twice and (num_times,)"
        )
    squares = jnp.sum(jnp.square(values - targets), axis=-1)
    return jnp.mean(factors[None, :] * squares)


def _check_moments(x: Array, mean: Array, variance: Array) -> None:
    if not (x.ndim == 1 and x.shape == mean.shape and variance.shape == ()):
        raise ValueError(
            f"x has shape {x.shape}, a mean or its rate {mean.shape} and a variance or its "
            f"rate {variance.shape}: must be (dim,) twice and ()"
        )
