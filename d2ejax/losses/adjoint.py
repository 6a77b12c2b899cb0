"""Adjoint matching: the drift of a bridge as a regression on gradients at the end of its paths.

Write the bridge as P*_t = φ_t ψ_t. Its drift adds g² ∇log ψ_t to that of the reference, and
ψ_t(x) = E_Q[ψ_T(x_T) | x_t = x], so that under the bridge itself

    ∇log ψ_t(x) = E[a_t | x_t = x],   a_T = ∇log ψ_T(x_T) = -(∇E_1 + ∇log φ_T)(x_T),

where a_t is a_T carried back along the path by the *lean adjoint* of the base process: for a
linear reference a factor of the time alone. Nothing is differentiated through a simulation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from d2ejax.typing import Array


def adjoint_matching_loss(
    shifts: Array, adjoints: Array, pulls: Array, variances: Array
) -> Array:
    """Regression of a process on adjoints: E Σ_k ‖shift_k + pull_k a_k‖² / (2 v_k).

    The loss of adjoint matching (Domingo-Enrich et al. 2025, arXiv:2409.08861) and, with x_k
    drawn from the reference pinned at both ends, of Adjoint Sampling and of the adjoint stage
    of the Adjoint Schrödinger Bridge Sampler (Havens et al. 2025, arXiv:2504.11713; Liu et al.
    2025, arXiv:2506.22565). There it is g_t² Δ_k of the adjoint that moves a step. With
    pull_k = v_k / a_k, the variance of the reference's step N(a_k x, v_k I) by its scale, it
    is exact on the grid as well: tilted by ψ that step has the mean a_k x + (v_k / a_k) ∇log ψ.

    Args:
        shifts: What the process adds to the means of the reference's steps,
            `(num_paths, num_steps, dim)`.
        adjoints: a_k, the gradient of the cost -log ψ at the state that the step begins with,
            same shape; carries no gradient.
        pulls: v_k / a_k, `(num_steps,)`.
        variances: v_k, per coordinate, `(num_steps,)`.

    Returns:
        A scalar, in nats per path.

    Raises:
        ValueError: If the shapes do not match.
    """
    if not (
        shifts.ndim == 3
        and shifts.shape == adjoints.shape
        and pulls.shape == variances.shape == shifts.shape[1:2]
    ):
        raise ValueError(
            f"shifts have shape {shifts.shape}, adjoints {adjoints.shape}, pulls {pulls.shape} "
            f"and variances {variances.shape}: must be (num_paths, num_steps, dim) twice and "
            "(num_steps,) twice"
        )
    misses = shifts + pulls[None, :, None] * jax.lax.stop_gradient(adjoints)
    per_step = jnp.sum(jnp.square(misses), axis=-1) / (2.0 * variances)[None]
    return jnp.mean(jnp.sum(per_step, axis=1))


def lean_adjoint(
    drift: Callable[[Array, Array], Array], path: Array, end_gradient: Array, times: Array
) -> Array:
    """The lean adjoint along a path: a_t' = -(∂b/∂x)ᵀ a_t backward from a_T = ∇g(x_T).

    In the steps of Euler's method, a_k = a_{k+1} + Δ_k (∂b/∂x (x_k, t_k))ᵀ a_{k+1}, which is
    the gradient of g(x_K) in x_k, exactly, where the steps are those of the base process and
    its noise does not depend on the state. It is lean because what the control does to later
    states is left out: in expectation that term is zero at the optimum (Domingo-Enrich et al.
    2025, arXiv:2409.08861). For f(x, t) = f(1, t) x it is scale(t, T) ∇g.

    Args:
        drift: b(x, t) of the base process, maps `(dim,)` and a time to `(dim,)`.
        path: Shape `(num_steps + 1, dim)`.
        end_gradient: ∇g(x_T) of the cost at the end, shape `(dim,)`.
        times: Shape `(num_steps + 1,)`.

    Returns:
        a_k at the first state of every step, `(num_steps, dim)`; carries no gradient.

    Raises:
        ValueError: If the shapes do not match.
    """
    if not (
        path.ndim == 2
        and end_gradient.shape == path.shape[1:]
        and times.shape == path.shape[:1]
    ):
        raise ValueError(
            f"path has shape {path.shape}, end_gradient {end_gradient.shape} and times "
            f"{times.shape}: must be (num_steps + 1, dim), (dim,) and (num_steps + 1,)"
        )

    def step_mean(x: Array, step: tuple[Array, Array]) -> Array:
        t, length = step
        return x + length * drift(x, t)

    steps = times[:-1], times[1:] - times[:-1]
    return carried_back(step_mean, path, end_gradient, steps)[:-1]


def carried_back(
    step_mean: Callable[[Array, Any], Array], path: Array, end_gradient: Array, steps: Any
) -> Array:
    """A gradient at the end of a path, carried back by the means of a process's steps.

    a_k = (∂m_k/∂x (x_k))ᵀ a_{k+1} from a_K on; see `lean_adjoint`.

    Args:
        step_mean: m, maps a state `(dim,)` and one of the steps to the mean of the next state.
        path: Shape `(num_steps + 1, dim)`.
        end_gradient: a_K, shape `(dim,)`.
        steps: A tree of arrays with a leading axis num_steps.

    Returns:
        a_k at every state, `(num_steps + 1, dim)`; carries no gradient.
    """

    def back(adjoint: Array, inputs: tuple[Array, Any]) -> tuple[Array, Array]:
        x, step = inputs
        _, pull_back = jax.vjp(lambda x: step_mean(x, step), x)
        adjoint = pull_back(adjoint)[0]
        return adjoint, adjoint

    _, adjoints = jax.lax.scan(back, end_gradient, (path[:-1], steps), reverse=True)
    return jax.lax.stop_gradient(jnp.concatenate([adjoints, end_gradient[None]]))


def corrector_loss(found: Array, conditional_scores: Array, variance: Array) -> Array:
    """Regression of a score on those of transitions: E ½ v ‖h(x_T) - ∇_{x_T} log q(x_T|x_0)‖².

    The corrector stage (Liu et al. 2025, arXiv:2506.22565). Its minimiser over pairs of ends
    of a process is E[∇log q(x_T | x_0) | x_T]: at the bridge, whose joint law of the ends
    is φ_0(x_0) q(x_T | x_0) ψ_T(x_T), that is ∇log φ_T.

    Args:
        found: h at the ends, `(num_pairs, dim)`.
        conditional_scores: ∇log q(x_T | x_0), same shape.
        variance: v of the transition over [0, T], per coordinate, a scalar.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If the shapes do not match.
    """
    return _scaled_squares(found, conditional_scores, variance)


def potential_gradient_loss(gradients: Array, adjoints: Array, variance: Array) -> Array:
    """Regression of a potential's gradient at the start: E ½ v ‖∇c(x_0) + a_0‖².

    Adjoint matching at time 0, where ∇log ψ_0(x_0) = -E[a_0 | x_0]: it fits c = log ψ_0 up to a
    constant, or to one constant for each part of the source that the others are far from.

    Args:
        gradients: ∇c at the starts, `(num_pairs, dim)`.
        adjoints: a_0 of the paths from there, same shape; carries no gradient.
        variance: v of the transition over [0, T], per coordinate, a scalar.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If the shapes do not match.
    """
    return _scaled_squares(gradients, -jax.lax.stop_gradient(adjoints), variance)


def _scaled_squares(values: Array, targets: Array, variance: Array) -> Array:
    if not (values.ndim == 2 and targets.shape == values.shape and variance.shape == ()):
        raise ValueError(
            f"gradients have shape {values.shape}, their targets {targets.shape} and variance "
            f"{variance.shape}: must be (num_pairs, dim) twice and ()"
        )
    return 0.5 * variance * jnp.mean(jnp.sum(jnp.square(values - targets), axis=-1))
