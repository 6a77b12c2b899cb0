"""Bridges of the reference between coupled ends, and processes fitted to them."""

import jax

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
    given = paths[:, 1:] if process.backward else paths[:, :-1]
    kernels = rollouts.step_kernels(process, params, given)
    target = references.pinned_step(law, paths, grid, backward=process.backward)
    return losses.bridge_matching_loss(*kernels, *target)
