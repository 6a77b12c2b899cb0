"""A Gaussian to eight Gaussians by regression on bridges between coupled samples."""

from ml_collections import ConfigDict

from experiments.configs import sf2m


def get_config() -> ConfigDict:
    """As sf2m, with the kernels of both processes in place of a flow and a score."""
    config = sf2m.get_config()
    config.method = "eot"
    config.learn_variance = True
    return config
