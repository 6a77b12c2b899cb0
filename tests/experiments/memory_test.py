"""How much memory a run holds, and what is let go before it is evaluated."""

import subprocess
import sys
from typing import NamedTuple

import numpy as np

from experiments import memory

# In a process of its own: what other tests have compiled would be compiled again.
PROGRAM = """
import jax
import jax.numpy as jnp
from experiments import memory

double = jax.jit(lambda x: 2.0 * x)
one = jnp.ones(())
assert double(one) == 2.0
assert double._cache_size() == 1
memory.release()
assert double._cache_size() == 0
assert double(one) == 2.0
print("released")
"""


def test_release_lets_go_of_programs_that_can_come_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "released\n", done.stderr


class Device(NamedTuple):
    stats: dict | None

    def memory_stats(self):
        return self.stats


def test_memory_in_use_is_that_of_the_fullest_device(monkeypatch):
    full = {"bytes_in_use": 3_000_000_000, "peak_bytes_in_use": 5_250_000_000}
    other = {"bytes_in_use": 1_000_000_000, "peak_bytes_in_use": 1_000_000_000}
    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device(other), Device(full)])
    assert memory.usage() == {"memory_gb": 3.0, "peak_memory_gb": 5.25}


def test_memory_in_use_is_that_of_the_process_where_devices_do_not_count():
    before = memory.usage()
    held = np.ones(20_000_000, np.float64)
    after = memory.usage()
    assert 0.13 < after["memory_gb"] - before["memory_gb"] < 0.19
    assert after["peak_memory_gb"] >= after["memory_gb"]
    del held
    assert memory.usage()["memory_gb"] < after["memory_gb"] - 0.13
    # Linux counts the pages of each thread in batches: a little may be missing.
    assert memory.usage()["peak_memory_gb"] > after["memory_gb"] - 0.01
