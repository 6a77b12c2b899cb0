"""Gaussian samples to samples of a ring by entropic neural optimal transport.

A process against a discriminator of its ends (Gushchin et al. 2023, arXiv:2211.01156).
"""

from ml_collections import ConfigDict

from experiments.configs import gaussian_to_ring_d2d


def get_config() -> ConfigDict:
    """The ends, the reference and the grid of gaussian_to_ring_d2d."""
    config = gaussian_to_ring_d2d.get_config()
    config.method = "enot"
    # Against a discriminator that moves, a gentler pace.
    config.optimiser.learning_rate = 2e-3
    return config
