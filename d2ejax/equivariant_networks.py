"""Networks for identical particles: what they say turns, and swaps particles, with its input.

The drift is that of an E(n)-equivariant graph network (Satorras, Hoogeboom & Welling 2021,
arXiv:2102.09844): features of the particles and their positions are updated by messages between
all pairs, which see no more of the positions than distances. The state is a configuration
without its centre of mass, in the coordinates of `endpoints.to_positions`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from d2ejax.endpoints.particle_systems import from_positions, to_positions
from d2ejax.networks import NetworkPair, clipped_score, time_features
from d2ejax.typing import Array, EmbeddedNetwork, Key, LogDensity, Params

_NUM_OUTPUTS = 2
"""Of a particle's last features: its log-variance, and its gain of the score."""


class _Embedding(NamedTuple):
    """What depends on time alone: features of all particles, what each layer adds, a slope."""

    start: Array  # (width,)
    shifts: Array  # (depth, width)
    slope: Array  # ()


def equivariant_network(
    num_particles: int,
    space_dim: int,
    t_max: float,
    *,
    width: int = 64,
    depth: int = 3,
    num_frequencies: int = 8,
    drift_scale: float = 1.0,
    log_density: LogDensity | None = None,
    score_clip: float = 100.0,
    affine: bool = False,
) -> NetworkPair:
    """A drift that is equivariant under rotations, reflections and permutations; zero at first.

    The log-variance is one number for all coordinates, which none of these change. With an
    energy that they do not change either, a learned gain of each particle times its part of the
    clipped score is added to the drift, as in `networks.drift_network`.

    Args:
        num_particles: Number of particles, at least 2.
        space_dim: Dimension of the space that they live in.
        t_max: The final time T.
        width: Size of features and messages.
        depth: Number of rounds of messages.
        num_frequencies: Number of cosine features of each square root of time.
        drift_scale: Factor of the drift's output: the size of drift that an output of one is.
        log_density: If given, the energy feature's log-density, of the same coordinates.
        score_clip: Largest norm of the score that the gain sees.
        affine: Whether to add a(t) x to the drift, a learned and zero at first.

    Returns:
        The network's init and apply, of states `((num_particles - 1) · space_dim,)`. Parameters
        are a dict of arrays, the layers along their first axis.
    """
    shapes = _shapes(width, depth, 2 * num_frequencies)
    score = None if log_density is None else clipped_score(log_density, score_clip)
    apart = 1.0 - jnp.eye(num_particles, dtype=jnp.float32)

    def init(key: Key) -> Params:
        keys = jax.random.split(key, len(shapes))
        return {
            name: fan_in**-0.5 * jax.random.normal(own, shape) if fan_in else jnp.zeros(shape)
            for own, (name, (shape, fan_in)) in zip(keys, shapes.items(), strict=True)
        }

    def embed(params: Params, t: Array) -> _Embedding:
        features = time_features(t / t_max, num_frequencies)
        shifts = jnp.tensordot(features, params["time"], axes=1) + params["time_bias"]
        slope = jnp.vdot(features, params["slope"]) + params["slope_bias"]
        return _Embedding(shifts[0], shifts[1:], slope)

    def apply(params: Params, x: Array, embedding: _Embedding) -> tuple[Array, Array]:
        start = to_positions(x, num_particles, space_dim)
        positions = start
        hidden = jnp.tile(embedding.start[None, :], (num_particles, 1))
        first = _squares(start)
        for layer in range(depth):
            own = {name: params[name][layer] for name in _LAYERED}
            shift = embedding.shifts[layer]
            positions, hidden = _round(own, positions, hidden, first, shift, apart)
        outputs = jnp.matmul(hidden, params["outputs"]) + params["outputs_bias"][None, :]
        drift = from_positions(positions - start)
        if score is not None:
            forces = to_positions(score(x), num_particles, space_dim)
            drift = drift + from_positions(outputs[:, 1:] * forces)
        if affine:
            drift = drift + embedding.slope * x
        return drift_scale * drift, jnp.full_like(x, jnp.mean(outputs[:, 0]))

    return NetworkPair(init, EmbeddedNetwork(embed, apply))


_LAYERED = (
    "receiver",
    "sender",
    "distances",
    "message",
    "message_bias",
    "moves",
    "kept",
    "gathered",
    "update",
    "update_bias",
)
"""The parameters of a layer."""


def _shapes(
    width: int, depth: int, num_features: int
) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """The shape of each parameter, and how many inputs it weighs; None for zeros at first."""
    square = ((depth, width, width), width)
    bias = ((depth, width), None)
    return {
        "time": ((num_features, depth + 1, width), num_features),
        "time_bias": ((depth + 1, width), None),
        "slope": ((num_features,), None),
        "slope_bias": ((), None),
        "receiver": square,
        "sender": square,
        "distances": ((depth, 2, width), 2),
        "message": square,
        "message_bias": bias,
        "moves": bias,
        "kept": square,
        "gathered": square,
        "update": square,
        "update_bias": bias,
        "outputs": ((width, _NUM_OUTPUTS), None),
        "outputs_bias": ((_NUM_OUTPUTS,), None),
    }


def _round(
    params: Params, positions: Array, hidden: Array, first: Array, shift: Array, apart: Array
) -> tuple[Array, Array]:
    """One round of messages between all pairs.

    Args:
        params: Of the layer.
        positions: `(n, space_dim)`.
        hidden: Features `(n, width)`.
        first: Squares of the distances of the state itself, `(n, n)`.
        shift: What the time adds, `(width,)`.
        apart: One for two particles, zero for a particle with itself, `(n, n)`.

    Returns:
        Positions and features after it.
    """
    squares = _squares(positions)
    # Their logarithms: a particle far away must not drown all others.
    edges = jnp.log1p(jnp.stack([squares, first], axis=-1))
    receiver = jnp.matmul(hidden, params["receiver"]) + shift[None, :]
    sender = jnp.matmul(hidden, params["sender"])
    entering = jnp.matmul(edges, params["distances"]) + sender[None, :, :]
    entering = entering + receiver[:, None, :]
    message = jnp.matmul(jax.nn.silu(entering), params["message"])
    message = jax.nn.silu(message + params["message_bias"][None, None, :])

    share = 1.0 / (len(positions) - 1)
    weights = apart * jnp.matmul(message, params["moves"])
    # Of size one at most: the root of something positive, to be smooth where particles meet.
    towards = _differences(positions) / (1.0 + jnp.sqrt(squares + 1e-6))[:, :, None]
    moved = positions + share * jnp.sum(weights[:, :, None] * towards, axis=1)
    gathered = share * jnp.sum(apart[:, :, None] * message, axis=1)
    update = jnp.matmul(hidden, params["kept"]) + jnp.matmul(gathered, params["gathered"])
    update = jnp.matmul(jax.nn.silu(update), params["update"])
    return moved, hidden + update + params["update_bias"][None, :]


def _differences(positions: Array) -> Array:
    """x_i - x_j, `(n, n, space_dim)`."""
    return positions[:, None, :] - positions[None, :, :]


def _squares(positions: Array) -> Array:
    """|x_i - x_j|², `(n, n)`."""
    return jnp.sum(jnp.square(_differences(positions)), axis=-1)
