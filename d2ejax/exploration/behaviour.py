"""Behaviour policies: where the paths that an off-policy loss is evaluated on come from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from d2ejax.typing import Array, Key


def mixed_paths(
    key: Key,
    starts: Array,
    off_policy_paths: Array,
    simulate: Callable[[Key, Array], Array],
    *,
    off_policy_ratio: Array,
    num_paths: int,
    reuse_path: bool,
    backward: bool,
) -> Array:
    """Groups of paths that share their start, some on-policy and some off-policy.

    Each group is on-policy (its start from `starts`) or, with probability `off_policy_ratio`,
    off-policy: it starts where a path that was drawn from the goal end arrived, and with
    `reuse_path` that path itself is one of the group (Tamogashev & Malkin 2026).

    Args:
        key: A typed key.
        starts: On-policy starts, shape `(num_starts, dim)`.
        off_policy_paths: Paths drawn from the goal end, shape
            `(num_starts, num_steps + 1, dim)`, in the order of time.
        simulate: Maps a key and a start to a path of the trained process.
        off_policy_ratio: Probability of an off-policy group, a scalar.
        num_paths: Paths in each group.
        reuse_path: Whether the off-policy path joins its group.
        backward: Whether the trained process starts at t = T.

    Returns:
        Paths of shape `(num_starts, num_paths, num_steps + 1, dim)`.
    """
    choice_key, path_key = jax.random.split(key)
    num_starts = starts.shape[0]
    off_policy = jax.random.bernoulli(choice_key, off_policy_ratio, (num_starts,))
    arrived = off_policy_paths[:, -1 if backward else 0]
    starts = jnp.where(off_policy[:, None], arrived, starts)
    keys = jax.random.split(path_key, (num_starts, num_paths))
    paths = jax.vmap(jax.vmap(simulate, in_axes=(0, None)))(keys, starts)
    if reuse_path:
        first = jnp.where(off_policy[:, None, None], off_policy_paths, paths[:, 0])
        paths = paths.at[:, 0].set(first)
    return paths
