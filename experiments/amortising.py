"""One bridge for each of several classes of images, by one network that sees the class."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from d2ejax import latents
from d2ejax.algorithms.contexts import amortised
from d2ejax.endpoints.base import restrict
from d2ejax.typing import Array
from experiments import shards
from experiments.wiring import Method, Room

Build = Callable[[ConfigDict, Room], Method]


def is_asked(config: ConfigDict) -> bool:
    """Whether a configuration asks for it."""
    return bool(config.target.options.get("each", False))


def build(config: ConfigDict, room: Room, method: Build) -> Method:
    """A method amortised over the classes of its target; it is judged by the first.

    Args:
        config: A validated config whose target is a class of images.
        room: What to join; its target is replaced.
        method: Wires the method for one class.
    """
    each = for_each(config, room, method)
    first = each(np.int32(0))  # type: ignore[arg-type]
    return first._replace(
        algorithm=amortised(
            lambda context: each(context).algorithm,
            len(latents.class_numbers(config.target.options.classes)),
            axis_name=shards.axis(config),
        ),
        forward_params=lambda state: first.forward_params(state.shared),
        backward_params=lambda state: first.backward_params(state.shared),
    )


def for_each(config: ConfigDict, room: Room, method: Build) -> Callable[[Array], Method]:
    """Maps the position of a class, a traced integer, to the method wired for it."""
    options: dict[str, Any] = config.target.options.to_dict()
    for name in ("each", "data_folder", "combine"):
        options.pop(name, None)
    endpoint_of = latents.image_classes(**options)
    count = len(latents.class_numbers(options["classes"]))

    def of_class(context: Array) -> Method:
        target = restrict(endpoint_of(context), config.target.access)
        features = jax.nn.one_hot(context, count)
        return method(config, room._replace(ends=(room.ends[0], target), context=features))

    return of_class
