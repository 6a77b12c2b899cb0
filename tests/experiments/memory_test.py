"""What is let go before a run is evaluated."""

import subprocess
import sys

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
