"""What every algorithm of the library shares: the (init, step) pair and guarded updates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax

from d2ejax.typing import Array, AxisName, Key, Params


class Algorithm(NamedTuple):
    """A stateful algorithm as two pure functions.

    Attributes:
        init: Maps a key to the state: one pytree with everything that a resume needs.
        step: Maps the state to the next one and a dict of float32 scalars, NaN where a metric
            does not apply; one gradient step.
            Both must run under the mapped axis that the algorithm was made for, if any.
        own: The fields of the state that each device has of its own, draws and what is drawn
            from; all others are the same on every device.
    """

    init: Callable[[Key], Any]
    step: Callable[[Any], tuple[Any, dict[str, Array]]]
    own: tuple[str, ...] = ("key",)


class Model(NamedTuple):
    """Trained parameters with what training them carries along.

    Attributes:
        params: The parameters.
        average: Their exponential moving average.
        opt_state: The optimiser's state.
    """

    params: Params
    average: Params
    opt_state: optax.OptState


def init_model(params: Params, optimiser: optax.GradientTransformation) -> Model:
    """A model at the start of training."""
    return Model(params, params, optimiser.init(params))


class State(NamedTuple):
    """The state of an algorithm that trains one model and keeps nothing else.

    Attributes:
        model: What is trained.
        step: Gradient steps so far, those left out included.
        skipped: Steps left out because their loss or gradient was not finite.
        consecutive_skipped: The length of the current run of such steps.
        key: A typed key; differs between devices.
    """

    model: Model
    step: Array
    skipped: Array
    consecutive_skipped: Array
    key: Key


def init_state(
    key: Key,
    init_params: Callable[[Key], Params],
    optimiser: optax.GradientTransformation,
    axis_name: AxisName | None,
) -> State:
    """The state at the start of training.

    Args:
        key: A typed key, the same on all devices, and so are the parameters.
        init_params: Maps a key to the parameters.
        optimiser: An optax transformation.
        axis_name: The mapped axis of devices, if any.
    """
    params_key, own_key = jax.random.split(key)
    zero = jnp.zeros((), jnp.int32)
    model = init_model(init_params(params_key), optimiser)
    return State(model, zero, zero, zero, device_key(own_key, axis_name))


def of_one_model(
    draw: Callable[[Key, Params], Callable[[Params], tuple[Array, dict[str, Array]]]],
    *,
    init_params: Callable[[Key], Params],
    optimiser: optax.GradientTransformation,
    ema_decay: float,
    axis_name: AxisName | None,
) -> Algorithm:
    """An algorithm that has one model and remembers nothing else.

    Args:
        draw: Maps a key and the parameters to the loss on what is drawn in one gradient step,
            a function of the parameters.
        init_params: Maps a key to the parameters.
        optimiser: Of the parameters.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `State`.
    """

    def init(key: Key) -> State:
        return init_state(key, init_params, optimiser, axis_name)

    def step(state: State) -> tuple[State, dict[str, Array]]:
        key, step_key = jax.random.split(state.key)
        loss_fn = draw(step_key, state.model.params)
        model, finite, metrics = gradient_step(
            loss_fn, state.model, optimiser, decay=ema_decay, axis_name=axis_name
        )
        return counted(state._replace(model=model, key=key), finite), metrics

    return Algorithm(init, step)


def with_model(
    models: tuple[Model, Model, Model], which: int, model: Model
) -> tuple[Model, Model, Model]:
    """Three models, one of them replaced."""
    first, second, third = (
        model if index == which else other for index, other in enumerate(models)
    )
    return first, second, third


def update_model(
    model: Model,
    gradients: Params,
    loss: Array,
    optimiser: optax.GradientTransformation,
    *,
    decay: float,
) -> tuple[Model, Array]:
    """One optimiser step, left out where loss, gradient or what comes of it is not finite.

    Args:
        model: The model.
        gradients: Gradients of the loss, a tree like the parameters.
        loss: The loss, a scalar.
        optimiser: An optax transformation.
        decay: Decay of the moving average per step, in [0, 1).

    Returns:
        The next model, and whether the step was taken.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))

    def take(model: Model) -> Model:
        # optax mixes dtypes in its schedules and moments; a strict setting is not for it.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimiser.update(gradients, model.opt_state, model.params)
        params = optax.apply_updates(model.params, updates)
        average = optax.incremental_update(params, model.average, 1.0 - decay)
        return Model(params, average, opt_state)

    # One branch, rather than a choice for each of the hundred and more leaves.
    moved = jax.lax.cond(finite, take, lambda model: model, model)
    # A step too large for float32 is none, finite as its gradient may be.
    held = jnp.isfinite(optax.tree.norm(moved.params))
    kept = jax.lax.cond(held, lambda new, _: new, lambda _, old: old, moved, model)
    return kept, finite & held


def gradient_step(
    loss_fn: Callable[[Params], tuple[Array, dict[str, Array]]],
    model: Model,
    optimiser: optax.GradientTransformation,
    *,
    decay: float,
    axis_name: AxisName | None,
) -> tuple[Model, Array, dict[str, Array]]:
    """One step down the gradient of a loss, averaged over the devices.

    Args:
        loss_fn: Maps parameters to the loss on this device's data, and its metrics.
        model: The model.
        optimiser: An optax transformation.
        decay: Decay of the moving average per step, in [0, 1).
        axis_name: The mapped axis of devices, if any.

    Returns:
        The next model, whether the step was taken, and the metrics with "loss",
        "gradient_norm" and "skipped" among them.
    """
    values = jax.value_and_grad(loss_fn, has_aux=True)(model.params)
    (loss, metrics), gradients = mean_of_finite(values, axis_name)
    model, finite = update_model(model, gradients, loss, optimiser, decay=decay)
    own = {
        "loss": loss,
        "gradient_norm": optax.tree.norm(gradients),
        "skipped": 1.0 - finite.astype(jnp.float32),
    }
    return model, finite, metrics | own


def counted(state: Any, finite: Array) -> Any:
    """The state after a gradient step that was taken, or left out.

    Args:
        state: Has the fields `step`, `skipped` and `consecutive_skipped`: gradient steps so
            far, those left out, and the length of the current run of such steps.
        finite: Whether the step was taken.
    """
    skipped = 1 - finite.astype(jnp.int32)
    return state._replace(
        step=state.step + 1,
        skipped=state.skipped + skipped,
        consecutive_skipped=(state.consecutive_skipped + skipped) * skipped,
    )


def device_mean(tree: Any, axis_name: AxisName | None) -> Any:
    """The mean over a mapped axis of devices; the tree itself where there is none."""
    if axis_name is None:
        return tree
    # One collective, not one per leaf: what each of them costs is mostly waiting.
    flat, unravel = jax.flatten_util.ravel_pytree(tree)
    return unravel(jax.lax.pmean(flat, axis_name))


def all_shares(x: Array, axis_name: AxisName) -> Array:
    """The shares of all devices under a mapped axis, along a new leading axis."""
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    shape = x.shape
    for name in reversed(names):  # The last name counts fastest.
        x = jax.lax.all_gather(x, name)
    return x.reshape(-1, *shape)


def mean_of_finite(values: Any, axis_name: AxisName | None) -> Any:
    """The mean over devices of a loss, its metrics and its gradient, `((loss, metrics), grad)`.

    A device whose loss or gradient is not finite, as where no path of its share counts, is left
    out of all but the metrics; NaN if there is no other.
    """
    if axis_name is None:
        return values
    (loss, metrics), gradients = values
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
    own = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0.0), (loss, gradients))
    share, metrics, (loss, gradients) = device_mean(
        (finite.astype(loss.dtype), metrics, own), axis_name
    )
    # One where all are finite, which changes no digit.
    loss, gradients = jax.tree.map(lambda leaf: leaf / share, (loss, gradients))
    return (loss, metrics), gradients


def device_key(key: Key, axis_name: AxisName | None) -> Key:
    """A key of this device's own."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
