"""A Gaussian to eight Gaussians by conditional flow matching: a flow, and no noise at all."""

from ml_collections import ConfigDict

from experiments.configs import sf2m


def get_config() -> ConfigDict:
    """As sf2m, along straight lines between optimally assigned samples (OT-CFM)."""
    config = sf2m.get_config()
    config.method = "cfm"
    return config
