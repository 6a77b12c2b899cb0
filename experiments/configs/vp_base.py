"""A variance-preserving diffusion model of two moons, a base to fine-tune."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """The noise rates of Song et al. (2021, arXiv:2011.13456), over a unit of time."""
    config = base.get_config()
    config.method = "diffusion"
    config.source.name = "gaussian"
    config.source.options = ConfigDict({"dim": 2})
    config.target.name = "two_moons"
    config.target.access = "samples"
    config.reference.name = "variance_preserving"
    config.reference.reversed = True
    config.grid.t_max = 1.0
    config.grid.num_steps = 30
    # What is predicted is the denoised end, of one size from the first step to the last.
    config.network.prediction = "endpoint"
    return config
