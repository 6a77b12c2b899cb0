"""Into how many parts a configuration cuts its batches, and over which axis they are spread."""

from ml_collections import ConfigDict

from d2ejax import parallel
from d2ejax.typing import AxisName


def number(config: ConfigDict) -> int:
    """Into how many parts a batch is cut.

    Raises:
        ValueError: If they cannot be shared out to the devices.
    """
    shards, devices = config.parallel.shards, parallel.num_devices()
    if shards % devices:
        raise ValueError(
            f"parallel.shards = {shards}: must be 0 or a multiple of {devices}, the number of "
            "devices (on a CPU, parallel.cpu_devices)"
        )
    return shards or devices


def axis(config: ConfigDict) -> AxisName:
    """The mapped axis, or axes, that an algorithm is made for."""
    return parallel.axis(config.parallel.shards, parallel.num_devices())


def share(config: ConfigDict, name: str, size: int, *, groups_of: int = 1) -> int:
    """A batch's share on each device, or in each of more shards.

    Args:
        config: A validated config.
        name: The key that it has in a config.
        size: Of the whole batch.
        groups_of: How many of it stay together.

    Raises:
        ValueError: If it cannot be shared out.
    """
    shards = number(config)
    whole = shards * groups_of
    if size % whole:
        of = "shards (parallel.shards)"
        if not config.parallel.shards:
            of = "devices (on a CPU, parallel.cpu_devices)"
        raise ValueError(
            f"{name} = {size}: must be a multiple of {whole}: groups of {groups_of} on each of "
            f"{shards} {of}"
        )
    return size // shards
