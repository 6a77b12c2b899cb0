"""Classifiers: training, the temperature at which they are calibrated, and how good they are.

Guo, Pleiss, Sun & Weinberger (2017, arXiv:1706.04599): a classifier trained to the end is too
sure of itself; one temperature T, by which its logits are divided, fitted on images that it has
not seen, mends most of that and changes no decision.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from d2ejax.endpoints import options
from d2ejax.images import networks, training
from d2ejax.images.datasets import Images
from d2ejax.typing import Array, Key, Params

_LARGEST_LOG_TEMPERATURE = 3.0


def cross_entropy(logits: Array, label: Array) -> Array:
    """-log softmax(logits)[label] of one image, in nats, a scalar.

    Args:
        logits: `(num_classes,)`.
        label: The number of the class, an integer scalar.
    """
    return jax.nn.logsumexp(logits) - logits[label]


def expected_calibration_error(
    log_probabilities: Array, labels: Array, *, num_bins: int = 15
) -> Array:
    """The mean distance between a classifier's confidence and its accuracy.

    Of images in bins by the probability of the most probable class, equally wide: Σ over bins
    of their share times |accuracy - mean confidence| (Guo et al. 2017, arXiv:1706.04599).

    Args:
        log_probabilities: `(n, num_classes)`.
        labels: `(n,)`.
        num_bins: Number of bins.

    Returns:
        In [0, 1], a scalar.
    """
    confidence = jnp.exp(jnp.max(log_probabilities, axis=-1))
    right = (jnp.argmax(log_probabilities, axis=-1) == labels).astype(confidence.dtype)
    bins = jnp.clip((confidence * num_bins).astype(jnp.int32), 0, num_bins - 1)
    gaps = jax.ops.segment_sum(right - confidence, bins, num_segments=num_bins)
    return jnp.sum(jnp.abs(gaps)) / len(labels)


def calibrate(logits: Array, labels: Array, *, num_steps: int = 50) -> Array:
    """The log-temperature of the least cross-entropy, by L-BFGS.

    Args:
        logits: `(n, num_classes)`.
        labels: `(n,)`.
        num_steps: Steps of L-BFGS.

    Returns:
        log T, a scalar in [-3, 3]: where all images are classified rightly there is no minimum,
        and T would fall to zero.
    """

    def mean_loss(log_temperature: Array) -> Array:
        cooled = logits * jnp.exp(-log_temperature)
        return jnp.mean(jax.vmap(cross_entropy)(cooled, labels))

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(mean_loss)

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        point, state = carry
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            value, gradient = value_and_grad(point, state=state)
            updates, state = solver.update(
                gradient, state, point, value=value, grad=gradient, value_fn=mean_loss
            )
        limit = _LARGEST_LOG_TEMPERATURE
        return (jnp.clip(optax.apply_updates(point, updates), -limit, limit), state), None

    start = jnp.zeros((), logits.dtype)
    (point, _), _ = jax.lax.scan(step, (start, solver.init(start)), None, length=num_steps)
    return point


def train_classifier(
    key: Key,
    images: Images,
    *,
    num_steps: int = 2000,
    batch_size: int = 128,
    width: int = 16,
    learning_rate: float = 2e-3,
    shift: int = 2,
    held_out: float = 0.1,
    decay: float = 0.998,
    report: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Trains a classifier and calibrates its temperature on images held out.

    Args:
        key: A typed key.
        images: To train on and to calibrate with.
        num_steps: Gradient steps.
        batch_size: Images a step.
        width: Of the network, see `networks.classifier`.
        learning_rate: The highest.
        shift: The most pixels that images are moved by, see `training.draw`.
        held_out: The share of images, drawn at random, that the temperature is fitted on.
        decay: Of the parameters' average, which is what is returned.
        report: See `training.fit`.

    Returns:
        The parameters, described by `networks.classifier` with as many classes as the images
        have, and metrics: "loss" of all steps, and of the images held out "accuracy", "nll"
        and "calibration_error", and the latter two at temperature one as "raw_nll" and
        "raw_calibration_error".

    Raises:
        ValueError: If an option is out of its range.
        FloatingPointError: If the loss is not finite.
    """
    shape = images.pixels.shape[1:]
    description = networks.classifier(shape, num_classes=len(images.classes), width=width)
    module = networks.build(description)["classifier"]
    split_key, fit_key = jax.random.split(key)
    kept, rest = _split(split_key, images, held_out)

    def loss(params: Params, batch: Array, labels: Array) -> tuple[Array, training.Metrics]:
        logits = module.apply(params, batch)
        return jnp.mean(jax.vmap(cross_entropy)(logits, labels)), {}

    def init(key: Key) -> training.Descending:
        return steps.init(module.init(key, jnp.zeros(shape)))

    def step(state: training.Descending, key: Key, data: training.Data) -> tuple[Any, Any]:
        return steps.step(state, *training.draw(key, data, batch_size, shift=shift))

    steps = training.descent(loss, training.adam(learning_rate, num_steps), decay=decay)
    data = training.on_device(kept)
    state, metrics = training.fit(init, step, num_steps, fit_key, data, report=report)
    params = {"classifier": state.average, "log_temperature": jnp.float32(0.0)}
    raw = evaluate_classifier(description, params, rest)
    logits = outputs(networks.log_probabilities, description, params, rest)
    # At temperature one log-probabilities are logits.
    params["log_temperature"] = jax.jit(calibrate)(logits, jnp.asarray(rest.labels))
    before = {f"raw_{name}": raw[name] for name in ("nll", "calibration_error")}
    return params, {**metrics, **before, **evaluate_classifier(description, params, rest)}


def evaluate_classifier(
    description: networks.Description, params: Params, images: Images
) -> dict[str, float]:
    """How good a classifier is on images.

    Args:
        description: Of the classifier.
        params: Its parameters.
        images: To evaluate on.

    Returns:
        "accuracy", "nll" (mean cross-entropy in nats) and "calibration_error", see
        `expected_calibration_error`.
    """
    predicted = outputs(networks.log_probabilities, description, params, images)
    labels = jnp.asarray(images.labels)
    right = jnp.argmax(predicted, axis=-1) == labels
    return {
        "accuracy": float(jnp.mean(right)),
        "nll": float(jnp.mean(jax.vmap(cross_entropy)(predicted, labels))),
        "calibration_error": float(expected_calibration_error(predicted, labels)),
    }


def outputs(
    function: Callable[[networks.Description, Params, Array], Array],
    description: networks.Description,
    params: Params,
    images: Images,
) -> Array:
    """What a function of one image gives for each of many.

    Args:
        function: `networks.log_probabilities` or `networks.features`.
        description: Of the classifier.
        params: Its parameters.
        images: The images.

    Returns:
        Its values along a leading axis.
    """
    return _outputs(function, dict(description), params, training.on_device(images).pixels)


def _outputs(function: Any, description: Any, params: Params, pixels: Array) -> Array:
    @jax.jit
    def mapped(params: Params, pixels: Array) -> Array:
        one = functools.partial(function, description, params)
        return jax.lax.map(lambda x: one(training.unit(x)), pixels, batch_size=250)

    return mapped(params, pixels)


def _split(key: Key, images: Images, held_out: float) -> tuple[Images, Images]:
    """Those to train on and those held out, at least one each."""
    count = len(images.labels)
    number = round(options.positive("held_out", held_out) * count)
    if not 0 < number < count:
        raise ValueError(
            f"held_out = {held_out} is not allowed: must leave at least one of {count} images "
            "on either side"
        )
    order = np.asarray(jax.random.permutation(key, count))
    parts = (order[number:], order[:number])
    kept, rest = (
        images._replace(pixels=images.pixels[part], labels=images.labels[part])
        for part in parts
    )
    return kept, rest
