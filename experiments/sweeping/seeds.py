"""Many seeds of an algorithm as one algorithm, and its state seed by seed.

An algorithm is a pair of pure functions, so that `vmap` over their keys and states trains many
seeds at once. The counters of gradient steps are the same for all of them and stay without the
axis of seeds: what is switched by them remains a switch, and only the branch that is taken is
computed.
"""

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.algorithms.base import Algorithm
from d2ejax.parallel import Trainer
from d2ejax.typing import Array, Key

COUNTERS = ("step", "own_steps")
"""Fields of a state that are the same for all seeds: they count what was tried, not taken."""


def together(algorithm: Algorithm) -> Algorithm:
    """Trains many seeds as one algorithm.

    Args:
        algorithm: Of one seed.

    Returns:
        An algorithm whose `init` takes an array of keys, `(num_seeds,)`. The leaves of its
        state have a leading axis of seeds, but for `COUNTERS`, and so have its metrics. A
        step that is not finite is left out for its own seed alone.
    """

    def init(keys: Key) -> Any:
        state = jax.vmap(algorithm.init)(keys)
        first = {name: getattr(state, name)[0] for name in COUNTERS if name in state._fields}
        return state._replace(**first)

    def step(state: Any) -> tuple[Any, dict[str, Array]]:
        axes = type(state)(**{name: None if name in COUNTERS else 0 for name in state._fields})
        return jax.vmap(algorithm.step, in_axes=(axes,), out_axes=(axes, 0))(state)

    return algorithm._replace(init=init, step=step)


def keys(seeds: Sequence[int]) -> Key:
    """The keys that runs with these seeds begin with, `(num_seeds,)`."""
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def split(gathered: Any, own: Sequence[str], num_seeds: int) -> list[Any]:
    """The states of single runs, on the host, from what is kept of many.

    Args:
        gathered: From `Trainer.gather` of a trainer of `together`.
        own: The fields that each shard has of its own: there the axis of shards comes first.
        num_seeds: How many there are.

    Returns:
        For each seed what `Trainer.gather` gives in a run of that seed alone.
    """
    host = jax.tree.map(_to_host, gathered)

    def of(seed: int) -> Any:
        fields = {}
        for name, value in host._asdict().items():
            # Past the axis of shards, where there is one.
            index = (slice(None), seed) if name in own else seed
            fields[name] = value if name in COUNTERS else jax.tree.map(itemgetter(index), value)
        return type(host)(**fields)

    return [of(seed) for seed in range(num_seeds)]


def join(states: Sequence[Any], own: Sequence[str]) -> Any:
    """The inverse of `split`."""

    def stacked(axis: int, *leaves: Any) -> Any:
        return (jnp if _is_key(leaves[0]) else np).stack(leaves, axis)

    fields = {}
    for name in states[0]._fields:
        values = [getattr(state, name) for state in states]
        joined = partial(stacked, int(name in own))
        fields[name] = values[0] if name in COUNTERS else jax.tree.map(joined, *values)
    return type(states[0])(**fields)


def template(trainer: Trainer) -> Any:
    """What `Trainer.gather` gives in a run of one seed, all zeros and on the host.

    Args:
        trainer: Of one seed; nothing is compiled.
    """
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key: trainer.gather(trainer.init(key)), key)

    def zeros(leaf: jax.ShapeDtypeStruct) -> Any:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(key, leaf.shape)
        return np.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(zeros, shapes)


def of_first_shard(state: Any, own: Sequence[str]) -> Any:
    """The state of one device from what is kept of a run: that to be judged."""
    first = {
        name: jax.tree.map(lambda leaf: leaf[0], getattr(state, name))
        for name in own
        if name in state._fields
    }
    return state._replace(**first)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> Any:
    # A copy: what it is taken from may be donated.
    return leaf if _is_key(leaf) else np.array(leaf)
