"""Gaussian samples to a Gaussian's energy: everything is known in closed form."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """Diagonal covariances, so that the K-step bridge lies in the family of the kernels."""
    config = base.get_config()
    config.source.name = "gaussian"
    config.source.options = ConfigDict(
        {"mean": (-0.5, 0.2), "covariance": ((0.5, 0.0), (0.0, 0.2))}
    )
    config.target.name = "gaussian"
    config.target.options = ConfigDict(
        {"mean": (0.6, -0.3), "covariance": ((0.1, 0.0), (0.0, 0.4))}
    )
    return config
