"""Time-conditioned networks for drifts and potentials.

Any function `(params, x, t) -> (drift, log_variance)` will do in their place. These are built
so that everything that depends on time alone is computed once per step of the grid and not once
per example: time features are projected and added, never concatenated to x.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from d2ejax.typing import Array, DType, EmbeddedNetwork, Key, LogDensity, Params


class NetworkPair(NamedTuple):
    """A network as two pure functions.

    Attributes:
        init: Maps a key to parameters.
        apply: Maps `(params, x, t)` to `(drift, log_variance)`, in two parts.
    """

    init: Callable[[Key], Params]
    apply: EmbeddedNetwork


class TimeMLP(nn.Module):
    """A multilayer perceptron of x and t with layer norm, SiLU and a zero-initialised head.

    Attributes:
        num_outputs: Size of the output.
        width: Size of the hidden layers.
        depth: Number of hidden layers.
        num_frequencies: Number of cosine features of each of √(t/T) and √(1 - t/T).
        layer_norm: Whether to normalise before each activation.
        dtype: Of the products and activations between the first layer and the head. The
            parameters, the time, the first layer and the outputs are float32.
        num_skipped: Number of further functions of time, zero at first, which `embed` adds.
    """

    num_outputs: int
    width: int
    depth: int
    num_frequencies: int
    layer_norm: bool
    dtype: DType = jnp.float32
    num_skipped: int = 0

    def setup(self) -> None:
        """Names the layers."""
        # Layer norm subtracts the mean of its input. Taken from the weights instead it is the
        # same, once per gradient step and not once per example.
        centred_over = self.width if self.layer_norm else None
        # One product for the time terms of all layers.
        self.time = _Dense(self.depth * self.width, centred_over, use_bias=True)
        # Positions and time terms may cancel: they keep their digits until they have met.
        self.hidden = [
            _Dense(self.width, centred_over, dtype=self.dtype if layer else jnp.float32)
            for layer in range(self.depth)
        ]
        if self.layer_norm:
            self.norm = [_Scale() for _ in range(self.depth)]
        self.head = _Head(self.num_outputs)
        if self.num_skipped:
            self.skip = _Head(self.num_skipped)

    def __call__(self, x: Array, fraction: Array, context: Array | None = None) -> Array:
        """Maps `(num_inputs,)` and t/T to `(num_outputs,)`."""
        return self.at_embedding(x, self.embed(fraction, context))

    def embed(self, fraction: Array, context: Array | None = None) -> list[Array]:
        """What t/T and a context add to each layer, `(width,)`, and what passes by them all."""
        features = time_features(fraction, self.num_frequencies)
        if context is not None:
            # Of each time what the context says, and the other way round.
            both = (features[:, None] * context[None, :]).reshape(-1)
            features = jnp.concatenate([features, context, both])
        shifts = jnp.split(self.time(features), self.depth)
        return [*shifts, self.skip(features)] if self.num_skipped else shifts

    def at_embedding(self, x: Array, embedding: list[Array]) -> Array:
        """The outputs at x and at the time that was embedded."""
        norms: Sequence[Callable[[Array], Array]] = [lambda hidden: hidden] * self.depth
        if self.layer_norm:
            norms = self.norm
        hidden = x
        for dense, norm, shift in zip(self.hidden, norms, embedding[: self.depth], strict=True):
            hidden = nn.silu(norm((dense(hidden) + shift).astype(self.dtype)))
        return self.head(hidden)


class _Dense(nn.Module):
    """A dense layer; the outputs have mean zero in each group of `centred_over` of them."""

    num_outputs: int
    centred_over: int | None
    use_bias: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.num_outputs)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        outputs = _product(x, self._centred(kernel), self.dtype)
        if not self.use_bias:
            return outputs
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        return outputs + self._centred(bias)

    def _centred(self, leaf: Array) -> Array:
        if self.centred_over is None:
            return leaf
        groups = leaf.reshape(*leaf.shape[:-1], -1, self.centred_over)
        return (groups - jnp.mean(groups, axis=-1, keepdims=True)).reshape(leaf.shape)


class _Head(nn.Module):
    """A dense layer of zeros, few outputs of many inputs."""

    num_outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.num_outputs)
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        # The gradient of a tall and narrow matrix takes XLA three times as long on a CPU as
        # that of its transpose, which it would undo without the barrier.
        return _product(x, jax.lax.optimization_barrier(kernel.T).T, x.dtype) + bias


class _Scale(nn.Module):
    """What layer norm does to a vector of mean zero."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape)
        bias = self.param("bias", nn.initializers.zeros, x.shape)
        mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)))
        scaled = x * jax.lax.rsqrt(mean_square + 1e-6).astype(x.dtype)
        return scaled * scale.astype(x.dtype) + bias.astype(x.dtype)


def _product(x: Array, kernel: Array, dtype: DType) -> Array:
    """The product of factors of one dtype, in float32."""
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)


def time_features(fraction: Array, num_frequencies: int) -> Array:
    """Cosines of the square roots of the time passed and the time left.

    The square roots resolve steps that shrink towards either end: on the end-refined grid of
    power 2, √(1 - t/T) falls in equal steps.

    Args:
        fraction: t/T in [0, 1], a scalar.
        num_frequencies: Number of frequencies.

    Returns:
        Shape `(2 · num_frequencies,)`.
    """
    roots = jnp.sqrt(jnp.clip(jnp.stack([fraction, 1.0 - fraction]), 0.0, 1.0))
    frequencies = jnp.pi * jnp.arange(1, num_frequencies + 1, dtype=roots.dtype)
    return jnp.cos(roots[:, None] * frequencies[None, :]).reshape(-1)


def drift_network(
    dim: int,
    t_max: float,
    *,
    width: int = 64,
    depth: int = 3,
    num_frequencies: int = 8,
    layer_norm: bool = True,
    drift_scale: float = 1.0,
    log_density: LogDensity | None = None,
    score_clip: float = 100.0,
    affine: bool = False,
    dtype: DType = jnp.float32,
    context: Array | None = None,
) -> NetworkPair:
    """A network for the drift and log-variance of a process, zero at its initialisation.

    With an energy at hand the network also sees its clipped score s(x) = ∇log p(x), and adds
    gain(x, t) ⊙ s(x) to the drift with a learned, zero-initialised gain (Langevin
    parametrisation: Zhang & Chen 2022, arXiv:2111.15141).

    Args:
        dim: Dimension of the state.
        t_max: The final time T.
        width: Size of the hidden layers.
        depth: Number of hidden layers.
        num_frequencies: Number of cosine features of each square root of time.
        layer_norm: Whether to normalise before each activation.
        drift_scale: Factor of the drift's output: the size of drift that an output of one is.
        log_density: If given, the energy feature's log-density.
        score_clip: Largest norm of the score that the network sees.
        affine: Whether to add a(t) ⊙ x + b(t) to the drift, a and b learned and zero at first:
            what the bridge between two isotropic Gaussians has, and in many dimensions
            normalised layers can hardly say.
        dtype: Of the hidden layers' products and activations, see `TimeMLP`.
        context: Features of what all paths of a batch have in common beside the time, as which
            class they are to end in, `(num_features,)`; see `algorithms.amortised`.

    Returns:
        The network's init and apply.
    """
    module = TimeMLP(
        num_outputs=dim * (2 if log_density is None else 3),
        width=width,
        depth=depth,
        num_frequencies=num_frequencies,
        layer_norm=layer_norm,
        dtype=dtype,
        num_skipped=2 * dim if affine else 0,
    )
    score = None if log_density is None else clipped_score(log_density, score_clip)

    def inputs(x: Array) -> tuple[Array, Array | None]:
        if score is None:
            return x, None
        s = score(x)
        # The hidden layers see its direction and a bounded size; the gain sees it as it is.
        squashed = s / jnp.sqrt(1.0 + jnp.sum(jnp.square(s)))
        return jnp.concatenate([x, squashed]), s

    def init(key: Key) -> Params:
        features, _ = inputs(jnp.zeros(dim))
        return module.init(key, features, jnp.zeros(()), context)

    def embed(params: Params, t: Array) -> Any:
        return module.apply(params, t / t_max, context, method="embed")

    def apply(params: Params, x: Array, embedding: Any) -> tuple[Array, Array]:
        features, s = inputs(x)
        outputs = jnp.asarray(module.apply(params, features, embedding, method="at_embedding"))
        drift, *rest = jnp.split(outputs, module.num_outputs // dim)
        if s is not None:
            drift = drift + rest[1] * s
        if affine:
            slope, offset = jnp.split(embedding[-1], 2)
            drift = drift + slope * x + offset
        return drift_scale * drift, rest[0]

    return NetworkPair(init, EmbeddedNetwork(embed, apply))


def potential_network(
    dim: int, *, width: int = 64, depth: int = 3, layer_norm: bool = True
) -> tuple[Callable[[Key], Params], Callable[[Params, Array], Array]]:
    """A network for a scalar potential of one end, zero at its initialisation.

    Args:
        dim: Dimension of the state.
        width: Size of the hidden layers.
        depth: Number of hidden layers.
        layer_norm: Whether to normalise before each activation.

    Returns:
        `init(key) -> params` and `apply(params, x) -> scalar`.
    """
    module = TimeMLP(1, width, depth, num_frequencies=1, layer_norm=layer_norm)

    def apply(params: Params, x: Array) -> Array:
        return module.apply(params, x, jnp.zeros(()))[0]

    return lambda key: module.init(key, jnp.zeros(dim), jnp.zeros(())), apply


def flow_network(
    dim: int,
    t_max: float,
    *,
    width: int = 64,
    depth: int = 3,
    num_frequencies: int = 8,
    layer_norm: bool = True,
) -> tuple[Callable[[Key], Params], Callable[[Params, Array, Array], Array]]:
    """A network for a scalar at each time, such as a log-flow, zero at its initialisation.

    Args:
        dim: Dimension of the state.
        t_max: The final time T.
        width: Size of the hidden layers.
        depth: Number of hidden layers.
        num_frequencies: Number of cosine features of each square root of time.
        layer_norm: Whether to normalise before each activation.

    Returns:
        `init(key) -> params` and `apply(params, x, t) -> scalar`.
    """
    module = TimeMLP(1, width, depth, num_frequencies, layer_norm)

    def apply(params: Params, x: Array, t: Array) -> Array:
        return module.apply(params, x, t / t_max)[0]

    return lambda key: module.init(key, jnp.zeros(dim), jnp.zeros(())), apply


def clipped_score(log_density: LogDensity, max_norm: float) -> Callable[[Array], Array]:
    """The gradient of a log-density, scaled down to a largest norm; zero where not finite."""

    def score(x: Array) -> Array:
        gradient = jnp.nan_to_num(jax.grad(log_density)(x), nan=0.0, posinf=0.0, neginf=0.0)
        # Scaled by its largest entry before it is squared: a huge one must not overflow.
        largest = jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-6)
        norm = largest * jnp.sqrt(jnp.sum(jnp.square(gradient / largest)))
        return gradient * jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-6))

    return score
