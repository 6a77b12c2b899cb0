"""Gaussian samples to samples of a ring of eight Gaussians: no energy anywhere."""

from ml_collections import ConfigDict

from experiments.configs import gaussian_to_ring


def get_config() -> ConfigDict:
    """As gaussian_to_ring, with samples at both ends and bridge matching."""
    config = gaussian_to_ring.get_config()
    config.target.access = "samples"
    # As many gradient steps in all as the data-to-energy configs.
    config.ipf.iterations = 8
    config.ipf.forward_steps = 450
    config.ipf.backward_steps = 300
    return config
