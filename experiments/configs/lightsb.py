"""Two-moons samples to samples of a ring of eight Gaussians by a light Schrödinger bridge.

The strong and cheap baseline: a potential in closed form, without a network (Korotin et al.
2024, arXiv:2310.01174). It needs samples of both ends.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """The ends, the reference and the grid of two_moons, with samples of the ring."""
    config = base.get_config()
    config.method = "lightsb"
    config.target.access = "samples"
    return config
