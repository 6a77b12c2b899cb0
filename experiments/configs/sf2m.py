"""A Gaussian to eight Gaussians by score and flow matching, in the scaling of [SF]²M."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """Samples of both ends, σ = T = 1 (Tong et al. 2024, arXiv:2307.03672, the planar pairs).

    Eight Gaussians of covariance √0.1 · I at radius 5; the moons of the same table are
    `two_moons` with noise 0.2, scale 3 and shift -1.
    """
    config = base.get_config()
    config.method = "sf2m"
    config.source.name, config.source.access = "gaussian", "samples"
    config.target.name, config.target.access = "eight_gaussians", "samples"
    config.reference.sigma = 1.0
    config.grid.t_max = 1.0
    # A flow and a score are those of a fixed diffusion coefficient.
    config.learn_variance = False
    config.evaluate.flow = True
    return config
