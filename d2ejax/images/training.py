"""What all trainers of networks of images share: one loop, and what is drawn inside it."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from d2ejax.images.datasets import Images
from d2ejax.typing import Array, Key, Params

Metrics = dict[str, Array]


class Data(NamedTuple):
    """Images on the device: bytes, a quarter of the memory of float32.

    Attributes:
        pixels: uint8 `(n, height, width, channels)`.
        labels: int32 `(n,)`.
    """

    pixels: Array
    labels: Array


class Descent(NamedTuple):
    """Gradient descent on a loss, as two pure functions.

    Attributes:
        init: Maps parameters to the state.
        step: Maps the state and what the loss takes to the next state, and metrics.
    """

    init: Callable[[Params], "Descending"]
    step: Callable[..., tuple["Descending", Metrics]]


class Descending(NamedTuple):
    """The state of gradient descent.

    Attributes:
        params: The parameters.
        average: Their exponential moving average.
        opt_state: The optimiser's state.
        taken: Steps taken.
    """

    params: Params
    average: Params
    opt_state: optax.OptState
    taken: Array


def descent(
    loss: Callable[..., tuple[Array, Metrics]],
    optimiser: optax.GradientTransformation,
    *,
    decay: float,
) -> Descent:
    """Gradient descent with an average of the parameters.

    Args:
        loss: Maps `(params, *what)` to a scalar and its metrics.
        optimiser: An optax transformation.
        decay: Of the average per step, in [0, 1); less at first, so that what the parameters
            were initialised to is soon forgotten.

    Returns:
        The descent; its metrics are the loss's own and "loss".
    """

    def init(params: Params) -> Descending:
        return Descending(params, params, optimiser.init(params), jnp.zeros((), jnp.int32))

    def step(state: Descending, *what: Any) -> tuple[Descending, Metrics]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), gradients = gradient(state.params, *what)
        # optax mixes dtypes in its schedules and moments; a strict setting is not for it.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        taken = state.taken.astype(jnp.float32)
        share = jnp.maximum(1.0 - decay, 9.0 / (10.0 + taken))
        average = jax.tree.map(
            lambda old, new: old + share * (new - old), state.average, params
        )
        return Descending(params, average, opt_state, state.taken + 1), metrics | {
            "loss": value
        }

    return Descent(init, step)


def fit(
    init: Callable[[Key], Any],
    step: Callable[..., tuple[Any, Metrics]],
    num_steps: int,
    key: Key,
    data: Any,
    *,
    steps_per_dispatch: int = 500,
    report: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Takes many steps, with the host at work only between dispatches.

    What comes out does not depend on how the steps are dispatched.

    Args:
        init: Maps a key to a state.
        step: Maps `(state, key, data)` to the next state and a dict of scalars, "loss" among
            them.
        num_steps: Number of steps.
        key: A typed key.
        data: A tree of arrays, put on the device once.
        steps_per_dispatch: Steps that are one program. A number that does not divide
            `num_steps` costs a second compilation.
        report: Called after each dispatch with the steps taken and the metrics of its steps.

    Returns:
        The last state, and the metrics of all steps, each of shape `(num_steps,)`.

    Raises:
        ValueError: If a number is below one.
        FloatingPointError: If a loss is not finite.
    """
    for name, value in (("num_steps", num_steps), ("steps_per_dispatch", steps_per_dispatch)):
        if value < 1:
            raise ValueError(f"{name} = {value} is not allowed: must be ≥ 1")

    @functools.partial(jax.jit, static_argnames="length")
    def dispatch(state: Any, first: Array, key: Key, data: Any, *, length: int) -> Any:
        def advance(state: Any, index: Array) -> tuple[Any, Metrics]:
            return step(state, jax.random.fold_in(key, index), data)

        return jax.lax.scan(advance, state, first + jnp.arange(length, dtype=jnp.int32))

    init_key, key = jax.random.split(key)
    data = jax.device_put(data)
    state = jax.jit(init)(init_key)
    taken, parts = 0, []
    while taken < num_steps:
        length = min(steps_per_dispatch, num_steps - taken)
        state, metrics = dispatch(state, jnp.int32(taken), key, data, length=length)
        parts.append({name: np.asarray(values) for name, values in metrics.items()})
        if not np.isfinite(losses := parts[-1]["loss"]).all():
            worst = taken + int(np.argmin(np.isfinite(losses)))
            raise FloatingPointError(
                f"the loss of step {worst} is not finite: try a smaller learning rate"
            )
        taken += length
        if report is not None:
            report(taken, parts[-1])
    return state, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def adam(
    learning_rate: float, num_steps: int, *, b1: float = 0.9
) -> optax.GradientTransformation:
    """Adam with a warm-up of a fiftieth of the steps, then down to zero along a cosine.

    Args:
        learning_rate: The highest.
        num_steps: Number of steps.
        b1: Decay of the first moment.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps=math.ceil(num_steps / 50), decay_steps=num_steps + 1
    )
    return optax.adam(schedule, b1=b1)


def on_device(images: Images) -> Data:
    """The images as they are trained on.

    Raises:
        ValueError: If there is none, or they are no unsigned bytes.
    """
    if images.pixels.dtype != np.uint8 or images.pixels.ndim != 4 or not len(images.pixels):
        raise ValueError(
            f"pixels of shape {images.pixels.shape} and dtype {images.pixels.dtype} are not "
            "allowed: must be uint8, at least one image of (height, width, channels)"
        )
    return Data(jnp.asarray(images.pixels), jnp.asarray(images.labels))


def draw(key: Key, data: Data, batch_size: int, *, shift: int) -> tuple[Array, Array]:
    """A batch, drawn with replacement, each image moved by a few pixels.

    Args:
        key: A typed key.
        data: All images.
        batch_size: Number of images.
        shift: The most that an image is moved, up or down and to the left or right.

    Returns:
        Images `(batch_size, height, width, channels)` in [-1, 1] and labels `(batch_size,)`.
    """
    index_key, shift_key = jax.random.split(key)
    indices = jax.random.randint(index_key, (batch_size,), 0, len(data.labels))
    pixels = data.pixels[indices]
    if shift:
        keys = jax.random.split(shift_key, batch_size)
        pixels = jax.vmap(functools.partial(random_shift, largest=shift))(keys, pixels)
    return unit(pixels), data.labels[indices]


def random_shift(key: Key, image: Array, *, largest: int) -> Array:
    """Moves an image by whole pixels, uniformly up to the largest shift on each axis.

    Args:
        key: A typed key.
        image: `(height, width, channels)`, of any dtype.
        largest: The largest shift; where pixels are uncovered the nearest ones are repeated.

    Returns:
        The image, of the same shape.
    """
    margins = ((largest, largest), (largest, largest), (0, 0))
    corner = jax.random.randint(key, (2,), 0, 2 * largest + 1)
    start = (corner[0], corner[1], jnp.int32(0))
    return jax.lax.dynamic_slice(jnp.pad(image, margins, mode="edge"), start, image.shape)


def unit(pixels: Array) -> Array:
    """Bytes as float32 numbers in [-1, 1], of the same shape; runs on the device."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0
