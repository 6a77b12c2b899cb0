"""The two ends of a configuration: each by itself, or made with what is known between them."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2ejax import pairs, references
from d2ejax import snapshots as processes
from d2ejax.endpoints import registry
from d2ejax.endpoints.base import Endpoint
from d2ejax.endpoints.options import build_by_name
from d2ejax.exact.base import ExactBridge
from d2ejax.references import Reference
from d2ejax.snapshots import Snapshots
from d2ejax.typing import Array, Key

IMAGE_CLASS = "image_class"
"""The endpoint that networks of images stand behind, see `d2ejax.latents`."""


class Ends(NamedTuple):
    """What a bridge is to join.

    Attributes:
        source: Everything known about p_0.
        target: Everything known about p_1.
        bridge: Their exact bridge, where they were made for it.
        snapshots: The process of which they are the first marginal and the last.
    """

    source: Endpoint
    target: Endpoint
    bridge: ExactBridge | None = None
    snapshots: Snapshots | None = None


def build_ends(config: ConfigDict) -> Ends:
    """Both ends with everything known about them."""
    if config.snapshots.name != "none":
        found = build_snapshots(config)
        return Ends(found.marginals[0], found.marginals[-1], snapshots=found)
    if config.pair.name == "none":
        source, target = build_end(config.source), build_end(config.target)
        if config.evaluate.reference:
            target = with_reference(target, config.target, config.evaluate.reference)
        return Ends(source, target)
    return build_pair(config)


def build_end(section: ConfigDict) -> Endpoint:
    """The endpoint of the section `source` or `target`."""
    options = section.options.to_dict()
    if section.name != IMAGE_CLASS:
        return registry.make_endpoint(section.name, **options)
    # Imported here: its networks are slow to import, and most runs have none.
    from d2ejax import latents

    return build_by_name(
        "endpoint", {IMAGE_CLASS: latents.image_class}, IMAGE_CLASS, (), options
    )


def with_reference(target: Endpoint, section: ConfigDict, file: str) -> Endpoint:
    """A target that is sampled, for metrics alone, from draws of long chains.

    Args:
        target: What is known of it: no samples.
        section: The section of the configuration that it was built from.
        file: Written by `benchmarks.reference_chains` for the same target and options.

    Raises:
        ValueError: If the target has samples, or the file cannot be read or is of another one.
    """
    given = f"evaluate.reference = {file!r}"
    if target.sample is not None:
        raise ValueError(f"{given}: must be empty with a target that has samples of its own")
    try:
        with np.load(file) as arrays:
            draws, log_z = np.asarray(arrays["samples"], np.float32), float(arrays["log_z"])
            made = json.loads(str(arrays["settings"]))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{given}: {error}") from error
    options = section.options.to_dict()
    if (made["target"], made["options"]) != (section.name, options):
        raise ValueError(
            f"{given}: is of {made['target']!r} with the options {made['options']}: must be of "
            f"{section.name!r} with {options}"
        )
    draws = draws.reshape(-1, target.dim)

    def sample(key: Key, n: int) -> Array:
        return jnp.asarray(draws)[jax.random.randint(key, (n,), 0, len(draws))]

    return target._replace(sample=sample, log_z=log_z if target.log_z is None else target.log_z)


def build_snapshots(config: ConfigDict) -> Snapshots:
    """The process of the section `snapshots`, over the time of the configuration's grid."""
    given = config.snapshots
    return processes.make_snapshots(given.name, config.grid.t_max, **given.options.to_dict())


def build_pair(config: ConfigDict) -> Ends:
    """The ends and the bridge of the section `pair`, for the reference of the configuration."""
    relevant = {
        "pair": config.pair.to_dict(),
        "reference": config.reference.to_dict(),
        "grid": {"t_max": config.grid.t_max},
    }
    return _pair(json.dumps(relevant, sort_keys=True))


@functools.lru_cache(maxsize=1)
def _pair(relevant: str) -> Ends:
    """Kept, because it takes seconds and validation needs it as well as the experiment."""
    config = ConfigDict(json.loads(relevant))
    reference, t_max = build_reference(config), config.grid.t_max
    options = config.pair.options.to_dict()
    return Ends(*pairs.make_pair(config.pair.name, reference, t_max, **options))


def build_reference(config: ConfigDict) -> Reference:
    """The reference process in continuous time."""
    given, t_max = config.reference, config.grid.t_max
    makers = {
        "brownian": lambda: references.brownian(given.sigma),
        "ornstein_uhlenbeck": lambda: references.ornstein_uhlenbeck(given.sigma, given.rate),
        "variance_exploding": lambda: references.variance_exploding(
            given.sigma_min, given.sigma_max, t_max
        ),
        "variance_preserving": lambda: references.variance_preserving(
            given.beta_min, given.beta_max, t_max
        ),
    }
    made = makers[given.name]()
    return references.time_reversed(made, t_max) if given.reversed else made
