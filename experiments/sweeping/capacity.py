"""How many seeds find room at once: what a compiled program takes against what is free."""

import os
from pathlib import Path
from typing import Any

import jax

from d2ejax.parallel import Trainer
from experiments.sweeping import seeds

# What is neither in the program's books nor free for long: the judge, and what is being saved.
_USABLE = 0.8
_CGROUP = Path("/sys/fs/cgroup")


def seeds_at_once(trainer: Trainer, num_seeds: int, *, sharers: int = 1) -> int:
    """The most seeds of so many that can be trained together, at least one.

    Args:
        trainer: Of `seeds.together`; its program for all seeds is compiled.
        num_seeds: How many there are to train.
        sharers: Processes that share what is free.
    """
    free = free_bytes()
    if num_seeds == 1 or free is None:
        return num_seeds
    state = jax.eval_shape(trainer.init, seeds.keys(range(num_seeds)))
    needed = trainer.memory(state)
    return fitting(num_seeds, needed, _USABLE * free / sharers)


def fitting(num_seeds: int, needed: float, usable: float) -> int:
    """How many of so many seeds fit, if together they need so many bytes; at least one.

    What a program takes grows no faster than the number of seeds, so that fewer of them take
    their share at most, but for what a program takes for any number.
    """
    if needed <= usable:
        return num_seeds
    return max(1, int(num_seeds * usable / needed))


def free_bytes() -> float | None:
    """What a device has free, None where that is not known.

    The CPU's devices share the machine's memory: each then has its part of what is free.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        free = free_on_host()
        return None if free is None else free / len(devices)
    found = []
    for device in devices:
        stats: Any = device.memory_stats()
        if not stats or "bytes_limit" not in stats:
            return None
        found.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return min(found)


def free_on_host(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> float | None:
    """The machine's free memory, or that of a container that has less; None if unknown."""
    found = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    except (OSError, ValueError, KeyError):
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            found.append(float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    try:
        limit, used = (
            int((cgroup / name).read_text()) for name in ("memory.max", "memory.current")
        )
        found.append(float(max(limit - used, 0)))
    except (OSError, ValueError):  # No container, or one without a limit ("max").
        pass
    return min(found, default=None)
