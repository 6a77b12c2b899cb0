"""What a gradient step cannot avoid: the matrix products of a rollout and a scored batch."""

import itertools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from d2ejax.typing import Array


class Sizes(NamedTuple):
    """Shapes of the products.

    Attributes:
        batch_size: Paths simulated and scored.
        num_steps: Steps K of a path.
        num_inputs: Of the network, time left out.
        width: Of its hidden layers.
        depth: Number of hidden layers.
        num_outputs: Of the network.
        num_features: Features of time.
    """

    batch_size: int
    num_steps: int
    num_inputs: int
    width: int
    depth: int
    num_outputs: int
    num_features: int


def sizes(config: ConfigDict, dim: int) -> Sizes:
    """The shapes of a configuration; an energy feature would add to them."""
    given = config.network
    return Sizes(
        batch_size=config.batch_size,
        num_steps=config.grid.num_steps,
        num_inputs=dim,
        width=given.width,
        depth=given.depth,
        num_outputs=2 * dim,
        num_features=2 * given.num_frequencies,
    )


def milliseconds(shapes: Sizes, *, dispatch: int, repeats: int) -> float:
    """Time of the bare products, many gradient steps' worth in one dispatch; the fastest.

    Forward through the layers once per step of a rollout; forward and backward once for the
    scored batch of all steps, whose time features are shared by all paths.
    """
    layers = [shapes.num_inputs, *[shapes.width] * shapes.depth, shapes.num_outputs]
    weights = [jnp.full(shape, 1.0 / shape[0]) for shape in itertools.pairwise(layers)]
    x = jnp.ones((shapes.batch_size, shapes.num_inputs))
    features = jnp.ones((shapes.num_steps, shapes.num_features))
    time_weights = jnp.full((shapes.num_features, shapes.depth * shapes.width), 0.1)

    def rollout(x: Array) -> Array:
        def advance(x: Array, _: None) -> tuple[Array, None]:
            out = _forward(weights, x)[-1]
            return jnp.resize(out[:, :1], x.shape), None

        return jax.lax.scan(advance, x, None, length=shapes.num_steps)[0]

    def products(_: Array, x: Array) -> Array:
        x = rollout(x)
        shift = (features @ time_weights).sum()
        hidden = _forward(weights, jnp.tile(x + shift, (shapes.num_steps, 1)))
        slope, total = hidden[-1], jnp.zeros(())
        for layer in reversed(range(len(weights))):
            total += (hidden[layer].T @ slope).sum()
            # Nothing asks for the slope in x.
            slope = slope @ weights[layer].T if layer else slope
        total += (
            features.T @ jnp.resize(slope, (shapes.num_steps, time_weights.shape[1]))
        ).sum()
        # Whatever is not read would not be computed.
        return x + 1e-30 * total

    run = jax.jit(lambda x: jax.lax.fori_loop(0, dispatch, products, x))
    jax.block_until_ready(run(x))
    fastest = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        fastest = min(fastest, time.perf_counter() - start)
    return 1e3 * fastest / dispatch


def _forward(weights: list[Array], x: Array) -> list[Array]:
    hidden = [x]
    for weight in weights:
        hidden.append(hidden[-1] @ weight)
    return hidden
