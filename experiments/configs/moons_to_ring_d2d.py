"""Two-moons samples to samples of a ring of eight Gaussians: no energy anywhere."""

from ml_collections import ConfigDict

from experiments.configs import gaussian_to_ring_d2d


def get_config() -> ConfigDict:
    """As gaussian_to_ring_d2d, from two moons."""
    config = gaussian_to_ring_d2d.get_config()
    config.source.name = "two_moons"
    config.source.options = ConfigDict()
    return config
