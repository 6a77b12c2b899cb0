"""The adjoint Schrödinger bridge sampler: two-moons samples to the energy of a ring.

Liu et al. (2025, arXiv:2506.22565): stages of the process and of a learned corrector in turn,
on a replay of its own paths' ends. `--config.adjoint.corrector=semi_discrete` has the corrector
in closed form.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """The ends, the reference and the grid of two_moons."""
    config = base.get_config()
    config.method = "asbs"
    return config
