"""Networks with a dependency graph: which coordinate of the state enters which of the drift.

Coordinate j of the drift is a small network of its own, and its first layer sees the state by
one vector of weights for each coordinate i. Where that vector is zero, so is ∂(drift_j)/∂x_i:
the norms of the vectors are the strengths of the edges i → j, and a group lasso on them makes
the graph sparse (neural graphical models: Bellot, Branson & van der Schaar 2022,
arXiv:2105.02522; with snapshots of cells: Tong et al. 2024, arXiv:2307.03672).

The strengths are comparable where the coordinates of the state are of one scale.
"""

import jax
import jax.numpy as jnp

from d2ejax.networks import NetworkPair, time_features
from d2ejax.typing import Array, EmbeddedNetwork, Key, Params

_INIT = 0.1
"""Size of the first layer's weights at the start, in units of what keeps variances: edges grow
where they are of use. From one on, what of them is of none takes thousands of steps to fade."""


def graph_network(
    dim: int,
    t_max: float,
    *,
    width: int = 32,
    depth: int = 2,
    num_frequencies: int = 0,
    drift_scale: float = 1.0,
) -> NetworkPair:
    """A drift of which each coordinate is a network of its own, zero at its initialisation.

    Without frequencies it does not see the time: one drift, and one graph, for all times. With
    them, functions of time are added after the first layer, where they are no edge. The
    log-variances are zero: a graph is one of drifts. There is no layer norm, which would see
    the direction of the first layer's weights and nothing of their size.

    Args:
        dim: Dimension of the state.
        t_max: The final time T.
        width: Size of the hidden layers of each coordinate's network.
        depth: Number of hidden layers.
        num_frequencies: Number of cosine features of each square root of time; 0 for none.
        drift_scale: Factor of the output: the size of drift that an output of one is.

    Returns:
        The network's init and apply. Parameters are a dict, of which "edges" are the first
        layer's weights, `(dim, dim, width)`, from coordinate i to that of the drift, j.
    """
    shapes = {
        "edges": (dim, dim, width),
        "bias": (dim, width),
        "time": (2 * num_frequencies, dim, width),
        "hidden": (depth - 1, dim, width, width),
        "hidden_bias": (depth - 1, dim, width),
        "head": (dim, width),
        "head_bias": (dim,),
    }
    variances = {
        "edges": _INIT**2 / dim,
        "time": 1.0 / max(2 * num_frequencies, 1),
        "hidden": 1.0 / width,
    }

    def init(key: Key) -> Params:
        params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        keys = jax.random.split(key, len(variances))
        for own_key, (name, variance) in zip(keys, variances.items(), strict=True):
            params[name] = variance**0.5 * jax.random.normal(own_key, shapes[name])
        return params

    def embed(params: Params, t: Array) -> Array:
        features = time_features(t / t_max, num_frequencies)
        return params["bias"] + jnp.tensordot(features, params["time"], axes=1)

    def apply(params: Params, x: Array, embedding: Array) -> tuple[Array, Array]:
        hidden = jax.nn.silu(jnp.tensordot(x, params["edges"], axes=1) + embedding)
        for kernel, bias in zip(params["hidden"], params["hidden_bias"], strict=True):
            hidden = jax.nn.silu(jnp.einsum("jv,jvw->jw", hidden, kernel) + bias)
        drift = jnp.einsum("jw,jw->j", hidden, params["head"]) + params["head_bias"]
        return drift_scale * drift, jnp.zeros_like(x)

    return NetworkPair(init, EmbeddedNetwork(embed, apply))


def edge_strengths(params: Params) -> Array:
    """‖W_ij‖₂, the norm of the first layer's weights from coordinate i to drift j.

    Args:
        params: Of a `graph_network`.

    Returns:
        Shape `(dim, dim)`, non-negative: row i, column j for the edge i → j. Zero exactly where
        the drift's coordinate j does not depend on x_i.
    """
    return jnp.linalg.norm(params["edges"], axis=-1)


def group_lasso(params: Params) -> Array:
    """Σ_ij ‖W_ij‖₂, the penalty of a graph; its gradient is zero for edges that are.

    Args:
        params: Of a `graph_network`.

    Returns:
        A scalar.
    """
    squares = jnp.sum(jnp.square(params["edges"]), axis=-1)
    present = squares > 0
    # The inner choice keeps the derivative of √ at zero, which is infinite, out of the outer.
    return jnp.sum(jnp.where(present, jnp.sqrt(jnp.where(present, squares, 1.0)), 0.0))
