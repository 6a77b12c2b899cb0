"""What a loaded bridge does: it simulates, scores and weighs paths, a batch at a time."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from d2ejax import gaussians, non_finite
from d2ejax.gaussians import Gaussian
from d2ejax.typing import Array, Key

IMPLEMENTATION = "threefry2x32"
"""Of the keys that programs take, as raw words."""

Kernel = Callable[[Array, int | Array], Gaussian]
"""Maps points `(n, dim)` and a step to the Gaussians of the next states, or of those before."""

Density = Callable[[Array], Array]
"""Maps points `(n, dim)` to log-densities, `(n,)`."""

Samples = Callable[[Key, int], Array]
"""Maps a key and a number to samples, `(n, dim)`."""


class Paths(NamedTuple):
    """Paths of a bridge, scored.

    Attributes:
        paths: `(n, num_steps + 1, dim)`, in the order of time.
        log_forward: Log-density under the forward process given x_0, `(n,)`; None for a flow.
        log_backward: Log-density under the backward process given x_K, `(n,)`; None for a
            flow, or where no reversal is known.
        log_weights: log R(τ|x_K) + log p̃_1(x_K) - log p_0(x_0) - log P(τ|x_0), the logarithms
            of importance weights, `(n,)`; None unless all four are known.
    """

    paths: Array
    log_forward: Array | None
    log_backward: Array | None
    log_weights: Array | None


class TrainedBridge(NamedTuple):
    """A trained bridge, as functions of batches; None stands for what is not known of it.

    All of them may be called under `jax.jit`. Kernels, densities and what is made of them have
    gradients, by reverse mode and of first order. A batch is an argument, not a `jax.vmap`,
    which JAX refuses on exported programs.

    Attributes:
        dim: Number of coordinates of one point.
        times: The grid, t_0 = 0 to t_K = T, `(num_steps + 1,)`.
        source: Name of the end at t = 0.
        target: Name of the end at t = T.
        sample: Maps `(key, n)` to n paths of the forward process, started in samples of the
            source; n is static, and large ones are simulated in pieces.
        sample_backward: The same from samples of the target, by the backward process.
        forward: Maps a key and starts `(n, dim)` to paths of the forward process.
        backward: Maps a key and ends `(n, dim)` to paths of the backward process.
        score: Maps given paths `(n, num_steps + 1, dim)` to themselves, scored.
        forward_kernel: Maps points `(n, dim)` and a step k in 0, ..., K - 1 to the Gaussian of
            x_{k+1} given x_k, with fields `mean` and `log_variance`, each `(n, dim)`.
        backward_kernel: The same of x_k given x_{k+1}.
        drift: Maps points `(n, dim)` and a step k to (E[x_{k+1} | x_k = x] - x)/Δ_k, the drift
            of the forward process in the step from t_k, `(n, dim)`.
        backward_drift: Maps them to (E[x_k | x_{k+1} = x] - x)/Δ_k, per unit of reversed time.
        source_log_density: Maps points `(n, dim)` to log p_0, `(n,)`.
        target_log_density: Maps points `(n, dim)` to log p̃_1, `(n,)`; need not be normalised.
        source_samples: Maps `(key, n)` to samples of the source, `(n, dim)`.
        target_samples: The same of the target.
    """

    dim: int
    times: Array
    source: str
    target: str
    sample: Callable[[Key, int], Paths] | None
    sample_backward: Callable[[Key, int], Paths] | None
    forward: Callable[[Key, Array], Paths]
    backward: Callable[[Key, Array], Paths] | None
    score: Callable[[Array], Paths]
    forward_kernel: Callable[[Array, int | Array], Gaussian]
    backward_kernel: Callable[[Array, int | Array], Gaussian] | None
    drift: Callable[[Array, int | Array], Array]
    backward_drift: Callable[[Array, int | Array], Array] | None
    source_log_density: Callable[[Array], Array] | None
    target_log_density: Callable[[Array], Array] | None
    source_samples: Callable[[Key, int], Array] | None
    target_samples: Callable[[Key, int], Array] | None


class Parts(NamedTuple):
    """What a bridge is made of.

    Attributes:
        dim: Number of coordinates of one point.
        times: The grid.
        names: Of the source and of the target.
        forward: The forward kernel.
        backward: The backward kernel, if a reversal is known.
        densities: Log-densities of source and target, of what is known of them.
        samples: Samples of source and target, at most `most` of them.
        most: How many paths are simulated at once.
        has_density: Whether paths have densities worth the name.
    """

    dim: int
    times: Array
    names: tuple[str, str]
    forward: Kernel
    backward: Kernel | None
    densities: tuple[Density | None, Density | None]
    samples: tuple[Samples | None, Samples | None]
    most: int
    has_density: bool


def assemble(parts: Parts) -> TrainedBridge:
    """The functions of a bridge from its parts; nothing is compiled yet."""
    source, target = parts.samples
    run_forward = functools.partial(_run, parts, parts.forward, False)
    run_backward = None
    if parts.backward is not None:
        run_backward = functools.partial(_run, parts, parts.backward, True)
    return TrainedBridge(
        dim=parts.dim,
        times=parts.times,
        source=parts.names[0],
        target=parts.names[1],
        sample=_maybe(_from_samples, parts, run_forward, source, static=1),
        sample_backward=_maybe(_from_samples, parts, run_backward, target, static=1),
        forward=jax.jit(functools.partial(_from_given, parts, run_forward)),
        backward=_maybe(_from_given, parts, run_backward),
        score=jax.jit(functools.partial(_score, parts)),
        forward_kernel=parts.forward,
        backward_kernel=parts.backward,
        drift=functools.partial(_drift, parts, parts.forward),
        backward_drift=_maybe(_drift, parts, parts.backward),
        source_log_density=parts.densities[0],
        target_log_density=parts.densities[1],
        source_samples=_maybe(_in_pieces, parts, source, static=1),
        target_samples=_maybe(_in_pieces, parts, target, static=1),
    )


def _maybe(
    function: Callable, parts: Parts, *given: Callable | None, static: int | None = None
) -> Any:
    """The compiled function of what is given; None if any of that is not known."""
    if None in given:
        return None
    return jax.jit(functools.partial(function, parts, *given), static_argnums=static)


def _run(parts: Parts, kernel: Kernel, backward: bool, keys: Key, x: Array) -> Paths:
    """Simulates as `d2ejax.simulate` does, with the same noise for each path's key."""
    num_steps = len(parts.times) - 1

    def draw(key: Key) -> Array:
        return jax.random.normal(key, (num_steps, parts.dim), jnp.float32)

    def advance(state: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        step, noise = given
        state = gaussians.sample(kernel(state, step), noise)
        return state, state

    noise = jnp.moveaxis(jax.vmap(draw)(keys), 1, 0)
    steps = jnp.arange(num_steps, dtype=jnp.int32)
    _, states = jax.lax.scan(advance, x, (steps, noise), reverse=backward)
    pieces = [states, x[None]] if backward else [x[None], states]
    return _score(parts, jnp.moveaxis(jnp.concatenate(pieces), 0, 1))


def _score(parts: Parts, paths: Array) -> Paths:
    paths, shape = jnp.asarray(paths, jnp.float32), (len(parts.times), parts.dim)
    if paths.ndim != 3 or paths.shape[1:] != shape:
        raise ValueError(f"paths: shape {paths.shape}: must be (n, {shape[0]}, {shape[1]})")
    if not parts.has_density:
        return Paths(paths, None, None, None)
    states = jnp.moveaxis(paths, 1, 0)
    forward = _log_density(parts.forward, states[:-1], states[1:])
    if parts.backward is None:
        return Paths(paths, forward, None, None)
    backward = _log_density(parts.backward, states[1:], states[:-1])
    source, target = parts.densities
    if source is None or target is None:
        return Paths(paths, forward, backward, None)
    end = target(paths[:, -1])
    weights = backward + end - source(paths[:, 0]) - forward
    weights = jnp.where(non_finite.has_mass(end), weights, -jnp.inf)
    return Paths(paths, forward, backward, weights)


def _log_density(kernel: Kernel, given: Array, drawn: Array) -> Array:
    """Of the steps, one after the other: what is kept is then that of one of them."""

    def of_step(row: tuple[Array, Array, Array]) -> Array:
        step, x, y = row
        return jax.vmap(gaussians.log_density)(kernel(x, step), y)

    steps = jnp.arange(len(given), dtype=jnp.int32)
    return jnp.sum(jax.lax.map(of_step, (steps, given, drawn)), axis=0)


def _from_given(parts: Parts, run: Callable[..., Paths], key: Key, x: Array) -> Paths:
    x = as_points(x, parts.dim)
    return run(jax.random.split(_checked(key), len(x)), x)


def _from_samples(
    parts: Parts, run: Callable[..., Paths], draw: Samples, key: Key, n: int
) -> Paths:
    def piece(key: Key, size: int) -> Paths:
        start_key, path_key = jax.random.split(key)
        # Keys of a whole piece: a path does not depend on how many are asked for.
        return run(jax.random.split(path_key, parts.most)[:size], draw(start_key, size))

    return _in_pieces(parts, piece, key, n)


def _in_pieces(parts: Parts, function: Callable, key: Key, n: int) -> Any:
    """Rows that a function of a key and a number makes, at most so many at once."""
    if operator.index(n) < 1:
        raise ValueError(f"n = {n}: must be ≥ 1")
    keys = jax.random.split(_checked(key), -(-n // parts.most))
    if len(keys) == 1:
        return function(keys[0], n)
    pieces = jax.lax.map(lambda key: function(key, parts.most), keys)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], pieces)


def _drift(parts: Parts, kernel: Kernel, x: Array, step: int | Array) -> Array:
    lengths = parts.times[1:] - parts.times[:-1]
    return (kernel(x, step).mean - x) / lengths[step]


def as_points(x: Any, dim: int) -> Array:
    """A batch of points.

    Raises:
        ValueError: If its shape is not `(n, dim)`.
    """
    x = jnp.asarray(x, jnp.float32)
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"points: shape {x.shape}: must be (n, {dim})")
    return x


def _checked(key: Key) -> Key:
    if not jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise ValueError(f"key of type {type(key).__name__}: must be made by jax.random.key")
    if str(jax.random.key_impl(key)) != IMPLEMENTATION:
        raise ValueError(f"key of {jax.random.key_impl(key)}: must be of {IMPLEMENTATION}")
    return key
