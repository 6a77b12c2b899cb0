"""Gaussian samples to the energy of a ring of eight Gaussians."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """The source of Tamogashev & Malkin (2026): standard deviation 0.7."""
    config = base.get_config()
    config.source.name = "gaussian"
    config.source.options = ConfigDict({"dim": 2, "std": 0.7})
    return config
