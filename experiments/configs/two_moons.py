"""Two-moons samples to the energy of a ring of eight Gaussians: the main job."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """The defaults are this experiment."""
    return base.get_config()
