"""The energy of a cross of five Gaussians to that of a ring of eight: no samples anywhere."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """Energies at both ends."""
    config = base.get_config()
    config.source.name = "cross"
    config.source.access = "energy"
    return config
