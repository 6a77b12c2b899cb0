"""A diffusion sampler from the stationary law of its reference to a ring of eight Gaussians.

An Ornstein-Uhlenbeck process at rest, over a time in which it forgets its start, and the
path-wise KL differentiated through the simulation: the form of the denoising diffusion sampler
(DDS, Vargas et al. 2023, arXiv:2302.13834), and of DIS (Berner et al. 2024, arXiv:2211.01364)
with --config.reference.name=variance_preserving.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """From N(0, I), which the reference leaves as it is; e⁻³ of a start is left at the end."""
    config = base.get_config()
    config.method = "sampler"
    config.sampler.loss = "path_kl"
    config.source.name = "gaussian"
    config.source.options = ConfigDict({"dim": 2, "std": 1.0})
    # The standard deviation at rest is σ / √(2 rate).
    config.reference.name = "ornstein_uhlenbeck"
    config.reference.sigma = 2.0**0.5
    config.reference.rate = 1.0
    config.grid.t_max = 3.0
    return config
