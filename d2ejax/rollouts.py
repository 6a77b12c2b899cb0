"""Simulating paths and scoring them.

Paths are data: in every loss of this library the samples carry no gradient. So a path is first
simulated, step after step, without keeping activations, and then scored: the log-densities of
all K steps are evaluated as one batch over time, or in parts where memory or caches ask for it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from d2ejax import gaussians
from d2ejax.gaussians import Gaussian
from d2ejax.kernels import EmbeddedStep, Process
from d2ejax.typing import Array, EmbeddedNetwork, Key, Params


def simulate(
    key: Key,
    process: Process,
    params: Params,
    x: Array,
    *,
    tracked_steps: int | None = None,
    window_start: Array | None = None,
) -> Array:
    """Runs a process from one end to the other.

    With `tracked_steps` it is truncated backpropagation: only the last so many states carry a
    gradient, those before them are forward evaluations alone. What the early steps do to the
    end is then not seen, so that the gradient of a cost of the end is biased, and cheap.

    With `window_start` too, those steps are a window anywhere. In them alone the parameters
    have a gradient, by K / tracked_steps of what they have in the whole path, which goes
    through the states of all later steps; states before the window have none. At a start that
    is uniform on 0, ..., K - 1 (a window over the end goes on at the first step) each step is
    in it with probability tracked_steps / K: the gradient is that of the whole path on average,
    and noisier. Steps before the window cost nothing backwards, those after it about half.

    Args:
        key: A typed key; all noise of the path is drawn from it at once.
        process: The process; a backward one starts at t = T.
        params: Parameters of its network.
        x: Where it starts, shape `(dim,)`.
        tracked_steps: How many of the steps carry a gradient; None for all.
        window_start: The first of them, counted from 0 in the order in which the steps are
            taken, a scalar; None for the last ones. One for all paths of a batch, or all of
            them do the work of all steps.

    Returns:
        The path in the order of time, shape `(num_steps + 1, dim)`; differentiable in params.

    Raises:
        ValueError: If there are not so many steps to track.
    """
    num_steps = process.num_steps
    noise = jax.random.normal(key, (num_steps, *x.shape), x.dtype)
    inputs = process.embedded_steps(params), noise
    move = functools.partial(_move, process, params)
    if tracked_steps is None or tracked_steps == num_steps:
        parts = [_run(process, move, x, inputs)]
    elif not 1 <= tracked_steps < num_steps:
        raise ValueError(
            f"tracked_steps = {tracked_steps}: must be from 1 to {num_steps}, the number of "
            "steps"
        )
    elif window_start is not None:
        counts = jnp.arange(num_steps)
        roles = _roles(
            counts[::-1] if process.backward else counts, window_start, tracked_steps
        )
        move = functools.partial(_windowed_move, process, params, num_steps / tracked_steps)
        parts = [_run(process, move, x, (*inputs, roles))]
    else:
        cut = tracked_steps if process.backward else num_steps - tracked_steps
        pieces = [jax.tree.map(lambda leaf: leaf[:cut], inputs)]
        pieces.append(jax.tree.map(lambda leaf: leaf[cut:], inputs))
        first, last = pieces[::-1] if process.backward else pieces
        before = jax.lax.stop_gradient(_run(process, move, x, first))
        middle = before[0 if process.backward else -1]
        parts = [before, _run(process, move, middle, last)]
    return jnp.concatenate([*parts[::-1], x[None]] if process.backward else [x[None], *parts])


def _run(process: Process, move: Callable[..., Array], x: Array, inputs: tuple) -> Array:
    """The states that some moves in a row lead to, in the order of time."""

    def advance(state: Array, inputs: tuple) -> tuple[Array, Array]:
        state = move(state, *inputs)
        return state, state

    return jax.lax.scan(advance, x, inputs, reverse=process.backward)[1]


def _move(
    process: Process, params: Params, state: Array, step: EmbeddedStep, noise: Array
) -> Array:
    return gaussians.sample(process.embedded_kernel(params, state, step), noise)


_BEFORE, _WITHIN, _AFTER = range(3)


def _roles(taken: Array, start: Array, length: int) -> Array:
    """Where steps are of a window; over the end it goes on at the first step taken."""
    num_steps = taken.shape[0]
    within = (taken - start) % num_steps < length
    first = jnp.where(start + length > num_steps, 0, start)
    return jnp.where(within, _WITHIN, jnp.where(taken < first, _BEFORE, _AFTER))


def _windowed_move(
    process: Process,
    params: Params,
    factor: float,
    state: Array,
    step: EmbeddedStep,
    noise: Array,
    role: Array,
) -> Array:
    """One step whose gradient depends on where it is; branches spare what is not needed."""
    stop = jax.lax.stop_gradient

    def before(params: Params, state: Array, step: EmbeddedStep) -> Array:
        return stop(_move(process, params, state, step, noise))

    def within(params: Params, state: Array, step: EmbeddedStep) -> Array:
        # The values as they are, to the last digit.
        params, step = jax.tree.map(
            lambda leaf: stop(leaf) + factor * (leaf - stop(leaf)), (params, step)
        )
        return _move(process, params, state, step, noise)

    def after(params: Params, state: Array, step: EmbeddedStep) -> Array:
        return _move(process, stop(params), state, stop(step), noise)

    # What a branch remembers for its gradient, the others have to fill with zeros: as much work
    # as the step itself, which is done once more instead.
    again = functools.partial(jax.checkpoint, prevent_cse=False)
    return jax.lax.switch(role, (before, again(within), again(after)), params, state, step)


def step_log_densities(process: Process, params: Params, paths: Array) -> Array:
    """Log-densities of the steps of one or many paths under a process, as one batch of rows.

    Args:
        process: Forward: log P(x_{k+1} | x_k). Backward: log R(x_k | x_{k+1}).
        params: Parameters of its network.
        paths: Shape `(..., num_steps + 1, dim)`, in the order of time. Hand over a batch as it
            is, rather than under `vmap`: see `_over_steps`.

    Returns:
        Shape `(..., num_steps)`, with all constants.
    """
    early, late = paths[..., :-1, :], paths[..., 1:, :]
    given, drawn = (late, early) if process.backward else (early, late)

    def score(step: EmbeddedStep, x: Array, y: Array) -> Array:
        return gaussians.log_density(process.embedded_kernel(params, x, step), y)

    steps = process.embedded_steps(params)
    return _over_steps(score, steps, (given, drawn), process.steps_at_once)


def log_density(process: Process, params: Params, paths: Array) -> Array:
    """Log-density of paths given the end that the process starts from.

    Args:
        process: The process.
        params: Parameters of its network.
        paths: Shape `(..., num_steps + 1, dim)`, in the order of time.

    Returns:
        Σ_k log P(x_{k+1} | x_k), or Σ_k log R(x_k | x_{k+1}) for a backward process, of shape
        `(...)`.
    """
    return jnp.sum(step_log_densities(process, params, paths), axis=-1)


def at_times(
    network: EmbeddedNetwork, params: Params, points: Array, times: Array
) -> tuple[Array, Array]:
    """A network at times that all paths share, each of them embedded once.

    Args:
        network: Maps `(params, x, t)` to two arrays `(dim,)`, in two parts.
        params: Its parameters.
        points: Where, shape `(..., num_times, dim)`.
        times: When, shape `(num_times,)`.

    Returns:
        Both arrays, each of the shape of `points`.
    """
    embedded = jax.vmap(network.embed, (None, 0))(params, times)
    apply = functools.partial(network.apply, params)
    return _over_steps(lambda step, x: apply(x, step), embedded, (points,), None)


def step_kernels(process: Process, params: Params, given: Array) -> Gaussian:
    """The kernels of all steps, each at a state of its own.

    Args:
        process: The process.
        params: Parameters of its network.
        given: What each kernel is given, `(..., num_steps, dim)`: of a path, all states but the
            last, x_k, for a forward process; all but the first, x_{k+1}, for a backward one.

    Returns:
        A Gaussian whose fields have the shape of `given`.
    """
    steps = process.embedded_steps(params)

    def kernel(step: EmbeddedStep, x: Array) -> Gaussian:
        return process.embedded_kernel(params, x, step)

    return _over_steps(kernel, steps, (given,), process.steps_at_once)


def step_drifts(process: Process, params: Params, given: Array) -> Array:
    """The residual drifts of all steps: what a process adds to the drift of its reference.

    u(x) = (mean(x) - scale · x) / Δ_k, with the mean of the kernel of step k and the scale of
    the reference's: zero for the reference, and for its reversal with zero score.

    Args:
        process: The process.
        params: Parameters of its network.
        given: What each kernel is given, `(..., num_steps, dim)`; see `step_kernels`.

    Returns:
        The shape of `given`, in units of x per unit of time.
    """
    drift = functools.partial(_residual_drift, process, params)
    steps = process.embedded_steps(params)
    return _over_steps(drift, steps, (given,), process.steps_at_once)


def step_divergences(
    process: Process, params: Params, given: Array, probes: Array | None = None
) -> tuple[Array, Array]:
    """The residual drifts of all steps with their divergences, from one pass.

    ∇·u = Σ_i e_iᵀ(∂u/∂x)e_i exactly, by a derivative along each axis; or εᵀ(∂u/∂x)ε, by one
    along a probe with E[εεᵀ] = I, which is ∇·u on average (Hutchinson 1990).

    Args:
        process: The process.
        params: Parameters of its network.
        given: What each kernel is given, `(..., num_steps, dim)`; see `step_kernels`.
        probes: ε for each of them, of the same shape; None for the exact divergence.

    Returns:
        The residual drifts, in the shape of `given`, and the divergences, `(..., num_steps)`,
        per unit of time.
    """

    def both(step: EmbeddedStep, x: Array, *probe: Array) -> tuple[Array, Array]:
        def push(tangent: Array) -> tuple[Array, Array]:
            drift = functools.partial(_residual_drift, process, params, step)
            value, change = jax.jvp(drift, (x,), (tangent,))
            return value, jnp.dot(tangent, change)

        if probe:
            return push(*probe)
        value, parts = jax.vmap(push, out_axes=(None, 0))(jnp.eye(x.shape[0], dtype=x.dtype))
        return value, jnp.sum(parts)

    states = (given,) if probes is None else (given, probes)
    return _over_steps(both, process.embedded_steps(params), states, process.steps_at_once)


def _residual_drift(
    process: Process, params: Params, embedded: EmbeddedStep, x: Array
) -> Array:
    step = embedded.step
    mean = process.embedded_kernel(params, x, embedded).mean
    return (mean - step.scale * x) / step.length


def step_kl_divergences(
    process: Process, params: Params, other: Process, other_params: Params, paths: Array
) -> Array:
    """KL divergences between the steps of two processes of one direction, along paths.

    The sum over the steps, averaged over paths of the first process, is the KL divergence
    between the two path laws (given the same start).

    Args:
        process: The process that is averaged over.
        params: Its parameters.
        other: The process that it is compared with, same direction and grid.
        other_params: Its parameters.
        paths: Shape `(..., num_steps + 1, dim)`, paths of the first process.

    Returns:
        Shape `(..., num_steps)`, in nats.
    """
    given = paths[..., 1:, :] if process.backward else paths[..., :-1, :]

    def divergence(steps: tuple[EmbeddedStep, EmbeddedStep], x: Array) -> Array:
        p = process.embedded_kernel(params, x, steps[0])
        q = other.embedded_kernel(other_params, x, steps[1])
        return gaussians.kl_divergence(p, q)

    steps = process.embedded_steps(params), other.embedded_steps(other_params)
    return _over_steps(divergence, steps, (given,), process.steps_at_once)


def _over_steps(
    function: Callable[..., Any],
    steps: Any,
    states: tuple[Array, ...],
    steps_at_once: int | None,
) -> Any:
    """A function of a step and of states, for all K steps of all paths.

    All steps of all paths are rows of one matrix. Nested batch axes, of paths and of time, are
    the same work, but XLA's loops over them take half as long again on a CPU.

    Args:
        function: Maps one step and one state of each kind, `(dim,)`, to a tree of arrays.
        steps: A tree of arrays with a leading axis K.
        states: Each `(..., K, dim)`.
        steps_at_once: How many of the K steps are rows of one matrix; the activations of such
            a part are computed once more for its gradient, rather than kept.

    Returns:
        The tree, with leading axes `(..., K)`.

    Raises:
        ValueError: If the paths have another number of steps.
    """
    *batch, num_steps, _ = states[0].shape
    expected = jax.tree.leaves(steps)[0].shape[0]
    if num_steps != expected:
        raise ValueError(
            f"paths have {num_steps + 1} points: must have {expected + 1}, one more than the "
            "process has steps"
        )
    if steps_at_once is None or steps_at_once == num_steps:
        return _as_rows(function, steps, states)
    parts = num_steps // steps_at_once

    def split(leaf: Array, axis: int) -> Array:
        shape = (*leaf.shape[:axis], parts, steps_at_once, *leaf.shape[axis + 1 :])
        return jnp.moveaxis(leaf.reshape(shape), axis, 0)

    scan_over = (
        jax.tree.map(lambda leaf: split(leaf, 0), steps),
        tuple(split(state, len(batch)) for state in states),
    )
    # The loop itself keeps XLA from undoing the rematerialisation.
    part = jax.checkpoint(functools.partial(_as_rows, function), prevent_cse=False)
    values = jax.lax.map(lambda given: part(*given), scan_over)
    lead = len(batch)

    def join(leaf: Array) -> Array:
        return jnp.moveaxis(leaf, 0, lead).reshape(*batch, num_steps, *leaf.shape[lead + 2 :])

    return jax.tree.map(join, values)


def _as_rows(function: Callable[..., Any], steps: Any, states: tuple[Array, ...]) -> Any:
    """A function of a step and of states, by one matrix of rows; see `_over_steps`."""
    *batch, num_steps, dim = states[0].shape
    copies = math.prod(batch)

    def spread(leaf: Array) -> Array:
        # As a single row, so that its gradient sums the rows of a matrix, the fast kind of sum.
        row = jnp.broadcast_to(leaf.reshape(1, -1), (copies, leaf.size))
        return row.reshape(-1, *leaf.shape[1:])

    rows = (state.reshape(-1, dim) for state in states)
    values = jax.vmap(function)(jax.tree.map(spread, steps), *rows)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, num_steps, *leaf.shape[1:]), values)
