"""Coupling the minibatches of two ends, which come as independent samples.

A coupling maps `(key, x_0, x_1)`, each point set `(n, dim)`, to both sets re-paired: row i of
one then belongs to row i of the other. All of them run on the device, inside a gradient step,
and leave x_0 as it is.

What a minibatch can offer is only near to the plan between the whole ends, and less correlated:
between Gaussians on the line whose plan has the correlation .414, entropic plans of 8, 16, 32,
64 and 128 points have .311, .363, .393, .404 and .407. The bias grows with the dimension and as
ε falls.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from d2ejax.references import Reference
from d2ejax.typing import Array, Key

Coupling = Callable[[Key, Array, Array], tuple[Array, Array]]
"""Maps `(key, x_0 (n, dim), x_1 (n, dim))` to `(x_0, x_1)`, re-paired."""


def independent(key: Key, x_0: Array, x_1: Array) -> tuple[Array, Array]:
    """Leaves the pairs as they are: the product of the ends.

    Args:
        key: Not used.
        x_0: Samples of the source, `(n, dim)`.
        x_1: Samples of the target, `(n, dim)`, independent of them.

    Returns:
        x_0 and x_1.

    Raises:
        ValueError: If the shapes are not one `(n, dim)`.
    """
    del key
    _check(x_0, x_1)
    return x_0, x_1


def entropic(
    reference: Reference,
    t_max: float,
    *,
    start: float = 0.0,
    epsilon_scale: float = 1.0,
    threshold: float = 1e-3,
    max_iterations: int = 2000,
) -> Coupling:
    """Makes the coupling by entropic optimal transport between minibatches.

    The plan solves min_π Σ_ij π_ij c(x_0^i, x_1^j) + ε Σ_ij π_ij log π_ij, its marginals
    uniform. It is the discrete Schrödinger bridge if c/ε = -log q(x_1 | x_0) up to terms of one
    end alone, q the reference's transition over [0, T]: for Brownian motion c = ‖y - x‖²/2 and
    ε = σ²T (equivalently ‖y - x‖² and 2σ²T; Tong et al. 2024, arXiv:2307.03672), and for any
    linear reference, q(y | x) = N(y; a x, v I), c = ‖y - a x‖²/2 and ε = v = variance(0, T). So
    ε is tied to the reference by default.

    Each x_0 then draws its partner from its row of the plan: every x_0 occurs once, and every
    x_1 once on average. The plan is solved by ott-jax in log-space: from a Gaussian of
    deviation 0.7 to a ring of radius 1, on two cores, 128 points take 0.4 ms at ε = 0.4 and
    2.4 ms at 0.05, 256 points 1.4 and 15 ms.

    Args:
        reference: The reference process.
        t_max: The time T of x_1.
        start: The time of x_0, which stands for the 0 above; below T.
        epsilon_scale: ε in units of the tied one, > 0.
        threshold: Largest sum of the absolute errors of a marginal of the plan.
        max_iterations: Most iterations of Sinkhorn; what is reached by then is used.

    Returns:
        The coupling.

    Raises:
        ValueError: If an option is not positive, or the start not in [0, T).
    """
    for name, value in (
        ("t_max", t_max),
        ("epsilon_scale", epsilon_scale),
        ("threshold", threshold),
        ("max_iterations", max_iterations),
    ):
        if not value > 0:
            raise ValueError(f"{name} = {value}: must be > 0")
    if not 0 <= start < t_max:
        raise ValueError(f"start = {start}: must be ≥ 0 and < t_max = {t_max}")

    def couple(key: Key, x_0: Array, x_1: Array) -> tuple[Array, Array]:
        _check(x_0, x_1)
        # Imported here: it takes seconds, which other couplings need not spend.
        from ott.geometry.geometry import Geometry
        from ott.problems.linear.linear_problem import LinearProblem
        from ott.solvers.linear.sinkhorn import Sinkhorn

        costs = _half_squares(reference.scale(start, t_max) * x_0, x_1)
        epsilon = epsilon_scale * reference.variance(start, t_max)
        solver = Sinkhorn(threshold=threshold, max_iterations=max_iterations)
        with _relaxed():
            # Its type for ε does not know traced numbers.
            geometry = Geometry(costs, epsilon=epsilon)  # type: ignore[arg-type]
            dual = solver(LinearProblem(geometry))
        # Row i of the log-plan, up to the potential of x_0^i, which no choice within it sees.
        logits = (dual.g[None, :] - costs) / epsilon
        return x_0, x_1[jax.random.categorical(key, logits, axis=1)]

    return couple


def exact(key: Key, x_0: Array, x_1: Array) -> tuple[Array, Array]:
    """Pairs the points one to one at the least total of ‖x_1 - x_0‖²: the optimal assignment.

    A factor a > 0 on x_0, which the cost of another linear reference has, changes nothing: only
    the terms a x_0ᵀx_1 depend on the pairing. By the Hungarian algorithm of optax, n³ in steps
    that wait for each other: 128 points take 8 to 16 ms on two cores, 256 take 38 to 60 ms, as
    much as several gradient steps (SciPy on the host: 1 to 2 and 13 to 26 ms).

    Args:
        key: Not used.
        x_0: Samples of the source, `(n, dim)`.
        x_1: Samples of the target, `(n, dim)`.

    Returns:
        x_0, and x_1 in another order.

    Raises:
        ValueError: If the shapes are not one `(n, dim)`.
    """
    del key
    _check(x_0, x_1)
    import optax.assignment

    with _relaxed():
        rows, columns = optax.assignment.hungarian_algorithm(_half_squares(x_0, x_1))
    return x_0, jnp.zeros_like(x_1).at[rows].set(x_1[columns])


def _half_squares(x: Array, y: Array) -> Array:
    """‖y_j - x_i‖²/2 for all pairs of rows, `(n, n)`, from differences: no digits cancel."""
    return 0.5 * jnp.sum(jnp.square(x[:, None, :] - y[None, :, :]), axis=-1)


def _check(x_0: Array, x_1: Array) -> None:
    if x_0.ndim != 2 or x_0.shape != x_1.shape:
        raise ValueError(
            f"x_0 has shape {x_0.shape} and x_1 {x_1.shape}: must be (num_pairs, dim) both"
        )


@contextlib.contextmanager
def _relaxed() -> Iterator[None]:
    """Lets a package mix ranks and dtypes: a strict setting is not for it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
