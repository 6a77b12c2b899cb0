"""Memory that is no longer needed, handed back to the system."""

import ctypes
import gc

import jax


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
