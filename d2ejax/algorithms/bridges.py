"""Bridges of the reference between coupled ends, and processes fitted to them."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from d2ejax import losses, references, rollouts
from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key, Params


def pinned_paths(key: Key, law: Reference, x_0: Array, x_1: Array, grid: TimeGrid) -> Array:
    """Bridges of the reference between pairs of ends, see `references.pinned_path`.

    Args:
        key: A typed key.
        law: The reference in continuous time.
        x_0: Starts, `(n, dim)`.
        x_1: Ends, `(n, dim)`.
        grid: The time grid.

    Returns:
        Shape `(n, num_steps + 1, dim)`.
    """
    draw = jax.vmap(references.pinned_path, (0, None, 0, 0, None))
    return draw(jax.random.split(key, x_0.shape[0]), law, x_0, x_1, grid)


def bridge_loss(
    process: Process, params: Params, paths: Array, law: Reference, grid: TimeGrid
) -> Array:
    """`losses.bridge_matching_loss` of a process on pinned paths.

    Args:
        process: The process.
        params: Its parameters.
        paths: Bridges of the reference, `(num_paths, num_steps + 1, dim)`.
        law: The reference in continuous time.
        grid: The time grid.

    Returns:
        A scalar, in nats per path.
    """
    return joined_bridge_loss(process, params, ((paths, grid),), law)


def joined_bridge_loss(
    process: Process, params: Params, legs: Sequence[tuple[Array, TimeGrid]], law: Reference
) -> Array:
    """`bridge_loss` of bridges that are pinned at more times than the two ends.

    Given what is pinned, the legs from one such time to the next are independent.

    Args:
        process: The process, over all legs.
        params: Its parameters.
        legs: For each, bridges of the reference `(num_paths, leg_steps + 1, dim)` and their
            piece of the time grid, in the order of time.
        law: The reference in continuous time.

    Returns:
        A scalar, in nats per path.
    """
    backward = process.backward
    given = [paths[:, 1:] if backward else paths[:, :-1] for paths, _ in legs]
    means, variances = zip(
        *(references.pinned_step(law, *leg, backward=backward) for leg in legs), strict=True
    )
    kernels = rollouts.step_kernels(process, params, jnp.concatenate(given, axis=1))
    target = jnp.concatenate(means, axis=1), jnp.concatenate(variances)
    return losses.bridge_matching_loss(*kernels, *target)


def ends_objective(
    key: Key, process: Process, law: Reference, grid: TimeGrid, x_0: Array, x_1: Array
) -> Callable[[Params], tuple[Array, dict[str, Array]]]:
    """The objective of fitting a process to bridges between ends of another one.

    Args:
        key: A typed key.
        process: What is fitted.
        law: The reference in continuous time.
        grid: The time grid.
        x_0: Starts, `(n, dim)`.
        x_1: Ends, `(n, dim)`.

    Returns:
        Maps parameters to `bridge_loss`, and no metrics.
    """
    paths = pinned_paths(key, law, x_0, x_1, grid)
    return lambda params: (bridge_loss(process, params, paths, law, grid), {})
