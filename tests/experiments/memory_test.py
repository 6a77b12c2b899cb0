"""What is let go before a run is evaluated."""

import jax
import jax.numpy as jnp

from experiments import memory


def test_release_lets_go_of_programs_that_can_come_back():
    double = jax.jit(lambda x: 2.0 * x)
    assert double(jnp.ones(())) == 2.0
    assert double._cache_size() == 1
    memory.release()
    assert double._cache_size() == 0
    assert double(jnp.ones(())) == 2.0
