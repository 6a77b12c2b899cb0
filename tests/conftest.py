"""Strict settings for every test: eight host devices, no silent promotion."""

import os

# Must precede the first import of jax: the device count is read once, at start-up.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    """A fixed typed key."""
    return jax.random.key(0)
