"""How well a bridge between latents moves images to a class, in numbers and in pictures."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2ejax import latents, plotting, rollouts
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints import class_reward
from d2ejax.endpoints.base import Endpoint
from d2ejax.images import datasets
from d2ejax.latents import Models
from d2ejax.metrics import frechet_distance
from d2ejax.metrics.base import HostArray, mean_estimate
from d2ejax.typing import Array, Key
from experiments import ends
from experiments.wiring import Method

_AT_ONCE = 500
_JUDGED, _SHOWN, _MORPHED, _COLUMNS = 2000, 32, 8, 11

Measure = Callable[[Key, Any, HostArray], dict[str, Any]]


def measure(config: ConfigDict) -> Measure:
    """What the judge says of the images at both ends of paths.

    Beside it stands what it says of samples of the posterior itself, by rejection, which know
    nothing of any start.

    Args:
        config: A validated config whose target is a class of images.
    """
    given = config.target.options
    target = ends.build_end(config.target)

    def measured(key: Key, state: Any, paths: HostArray) -> dict[str, Any]:
        del state
        models, classes = latents.load_models(given.folder), _classes(config)
        starts, moved = (paths[:_JUDGED, k] for k in (0, -1))
        draw = jax.jit(endpoints.sampler(target), static_argnums=1)
        drawn = np.asarray(draw(key, len(moved)), np.float64)
        real, before = _real(config, classes), judged_latents(models, starts)
        found: dict[str, Any] = {
            "judge_accuracy_source": mean_estimate(_is_of(before, classes))
        }
        for suffix, points in (("", moved), ("_rejection", drawn)):
            after = judged_latents(models, points)
            values: dict[str, Any] = {
                "judge_accuracy": mean_estimate(_is_of(after, classes)),
                "frechet_distance": frechet_distance(after[1], real),
                "log_reward": mean_estimate(_log_rewards(models, config, points)),
                "feature_distance": mean_estimate(_squares(before[1] - after[1])),
            }
            found |= {name + suffix: value for name, value in values.items()}
        return found

    return measured


def measure_each(
    config: ConfigDict, source: Endpoint, each: Callable[[Array], Method]
) -> Measure:
    """The same of a bridge that is amortised over the classes: of each, and their mean.

    Args:
        config: A validated config whose target is several classes of images.
        source: What paths start from: its samples.
        each: See `amortising.for_each`.
    """
    classes = _classes(config)

    @jax.jit
    def moved(key: Key, state: Any, context: Array) -> Array:
        method = each(context)
        start_key, path_key = jax.random.split(key)
        starts = endpoints.sampler(source)(start_key, _AT_ONCE)
        simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
        params = method.forward_params(state.shared)
        keys = jax.random.split(path_key, _AT_ONCE)
        return simulate(keys, method.forward, params, starts)[:, jnp.asarray([0, -1])]

    def measured(key: Key, state: Any, paths: HostArray) -> dict[str, Any]:
        del paths
        models = latents.load_models(config.target.options.folder)
        before, accuracies, distances = [], [], []
        for context, label in enumerate(classes):
            both = np.asarray(moved(jax.random.fold_in(key, context), state, context), float)
            starts, after = (judged_latents(models, both[:, k]) for k in (0, 1))
            before.append(_is_of(starts, [label]))
            accuracies.append(_is_of(after, [label]))
            distances.append(frechet_distance(after[1], _real(config, [label])))
        return {
            "judge_accuracy": mean_estimate(np.concatenate(accuracies)),
            "judge_accuracy_source": mean_estimate(np.concatenate(before)),
            "judge_accuracy_by_class": [float(found.mean()) for found in accuracies],
            "frechet_distance": float(np.mean(distances)),
            "frechet_distance_by_class": distances,
        }

    return measured


def figures(config: ConfigDict, times: HostArray, paths: HostArray) -> dict[str, Any]:
    """Images and what they were moved to; and on their way.

    Args:
        config: A validated config whose target is a class of images.
        times: Of the grid, `(num_steps + 1,)`.
        paths: `(num_paths, num_steps + 1, dim)`.

    Returns:
        Figures by their names.
    """
    models = latents.load_models(config.target.options.folder)
    decode = jax.jit(jax.vmap(models.decode))
    train, _ = _data(config)
    classes = _classes(config)
    if config.target.options.get("each", False):
        classes = classes[:1]  # Of which the paths are.
    wanted = ", ".join(train.classes[label] for label in classes)
    of_class = datasets.to_unit(train.pixels[np.isin(train.labels, classes)])
    finite = np.isfinite(paths).all(axis=(1, 2))
    shown = paths[finite][:_SHOWN].astype(np.float32)
    starts, ends = (np.asarray(decode(shown[:, k])) for k in (0, -1))
    near = np.asarray(latents.neighbours(jnp.asarray(ends), jnp.asarray(of_class)))
    steps = np.unique(np.linspace(0, len(times) - 1, _COLUMNS).round().astype(int))
    along = shown[:_MORPHED, steps]
    morphs = np.asarray(decode(along.reshape(-1, along.shape[-1])))
    return {
        "translations": plotting.translations(
            starts, ends, of_class[near], title=f"Images moved to the class {wanted}"
        ),
        "morphs": plotting.morphs(
            times[steps],
            morphs.reshape(*along.shape[:2], *morphs.shape[1:]),
            title=f"On the way to the class {wanted}",
        ),
    }


def judged_latents(models: Models, points: HostArray) -> tuple[HostArray, HostArray]:
    """What the judge says of the images of latents.

    Args:
        models: The networks.
        points: `(n, latent_dim)`.

    Returns:
        Log-probabilities `(n, num_classes)` and features `(n, num_features)`.
    """
    return _in_pieces(lambda latent: models.judged(models.decode(latent)), points)


def _classes(config: ConfigDict) -> list[int]:
    return list(latents.class_numbers(config.target.options.classes))


def _data(config: ConfigDict) -> datasets.Split:
    given = config.target.options
    folder = given.get("data_folder", "") or None
    return datasets.load(given.get("dataset", "mnist_5000"), folder)


def _real(config: ConfigDict, classes: list[int]) -> HostArray:
    """The judge's features of all real images of some classes."""
    models = latents.load_models(config.target.options.folder)
    parts = [part.pixels[np.isin(part.labels, classes)] for part in _data(config)]
    return _in_pieces(models.judged, datasets.to_unit(np.concatenate(parts)))[1]


def _log_rewards(models: Models, config: ConfigDict, points: HostArray) -> HostArray:
    """The log-probability of the classes, as the target has it, untempered."""
    combine = config.target.options.get("combine", "sum")
    reward = class_reward(models.log_probabilities, _classes(config), combine=combine)
    (found,) = _in_pieces(lambda latent: (reward(latent),), points)
    return found


def _in_pieces(function: Callable[[Array], tuple[Array, ...]], values: HostArray) -> Any:
    """Arrays `(n, ...)` of a function of one value, computed for some at a time."""
    of_batch = jax.jit(jax.vmap(function))
    pieces = np.array_split(values, -(-len(values) // _AT_ONCE))
    found = [of_batch(jnp.asarray(piece, jnp.float32)) for piece in pieces]
    return tuple(np.concatenate(part).astype(np.float64) for part in zip(*found, strict=True))


def _is_of(judged: tuple[HostArray, HostArray], classes: list[int]) -> HostArray:
    # What is not finite is of no class; argmax would say of the first.
    finite = np.isfinite(judged[0]).all(axis=1)
    return (finite & np.isin(judged[0].argmax(axis=1), classes)).astype(np.float64)


def _squares(differences: HostArray) -> HostArray:
    return np.square(differences).sum(axis=1)
