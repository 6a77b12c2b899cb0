"""Strict settings for every test: eight host devices, no silent promotion, little optimised."""

import os

QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)
"""Flags of XLA: programs are compiled several times faster, and run more slowly.

Devices that wait for each other on a machine that does much else are given time: after forty
seconds XLA would end the process.

Compilation is where the time of small tests goes. Results differ in their last digits. Flags in
the environment come later and win: with XLA_FLAGS="--xla_backend_optimization_level=3
--xla_cpu_use_fusion_emitters=true" the tests see what everything else is compiled to.
"""

# Must precede the first import of jax: flags are read once, at start-up.
os.environ["XLA_FLAGS"] = " ".join(
    (
        QUICK_TO_COMPILE,
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    )
)

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Most examples compile something: no limit to their time. A few of them in CI, always the same;
# --hypothesis-profile=long takes its place once this has been read.
_EVERY = {
    "deadline": None,
    "database": None,
    "suppress_health_check": (HealthCheck.too_slow, HealthCheck.data_too_large),
}
settings.register_profile("quick", derandomize=True, **_EVERY)
settings.register_profile("long", print_blob=True, **_EVERY)
settings.load_profile("quick")


@pytest.fixture
def key():
    """A fixed typed key."""
    return jax.random.key(0)
