"""Memory: how much a run holds, and what is no longer needed handed back to the system."""

import ctypes
import gc
import sys
from pathlib import Path

import jax

try:
    import resource
except ImportError:  # Not a Unix.
    resource = None  # type: ignore[assignment]

_STATUS = Path("/proc/self/status")
_GB = 1e9


def trim() -> None:
    """Returns what is free within the process to the system, where the C library can.

    To load a compiled program, and still more to compile it, takes several times the memory
    that it then holds; glibc keeps the rest, for the thread that asked for it.
    """
    try:
        give_back = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # Not glibc.
        return
    give_back(0)


def release() -> None:
    """Lets go of every compiled program, and of all that nothing refers to.

    Functions stay as they are: what is called again is compiled again, or read from the cache
    on disk. To let go of a trainer is not enough, for JAX holds its program itself.
    """
    jax.clear_caches()
    gc.collect()
    trim()


def usage() -> dict[str, float | None]:
    """How much memory is in use, and the most that has been, in GB (10⁹ bytes).

    That of the fullest local device, where its backend counts, as those of accelerators do;
    else the resident memory of this process. None where neither is known.
    """
    counted = [stats for d in jax.local_devices() if (stats := d.memory_stats())]
    if counted:
        now = max(stats["bytes_in_use"] for stats in counted)
        peak = max(stats.get("peak_bytes_in_use", now) for stats in counted)
    else:
        now, peak = _resident()
    return {
        name: None if value is None else round(value / _GB, 4)
        for name, value in (("memory_gb", now), ("peak_memory_gb", peak))
    }


def _resident() -> tuple[int | None, int | None]:
    """Bytes of this process in memory, now and at most."""
    peak = None
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:  # Not Linux.
        return None, peak
    fields = dict(line.split(":", 1) for line in lines)
    sizes = [
        1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM") if name in fields
    ]
    if len(sizes) < 2:  # Some sandboxes say less.
        return None, peak
    # Linux counts in batches, so that the most may lag behind what there is.
    return sizes[0], max(sizes)
