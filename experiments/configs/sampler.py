"""A diffusion sampler: from a fixed start to the energy of a ring of eight Gaussians.

The path integral sampler's start (Zhang & Chen 2022, arXiv:2111.15141), by the log-variance of
off-policy paths (Richter & Berner 2024, arXiv:2307.01198; Sendera et al. 2024,
arXiv:2402.05098).
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """Brownian motion of σ = 1 over a unit of time, from a Gaussian of next to no variance."""
    config = base.get_config()
    config.method = "sampler"
    config.source.name = "gaussian"
    config.source.options = ConfigDict({"dim": 2, "std": 1e-3})
    config.reference.sigma = 1.0
    config.grid.t_max = 1.0
    # What holds the modes is particles that the process has no part in: with its ends among
    # them MW-5 is left with one mode of 32, and a grid of 25 Gaussians with half of them.
    config.exploration.add_ends = False
    config.exploration.off_policy_ratio = 1.0
    # In the end its own paths, where its mass still lies between modes: 25 Gaussians 1.8 nats
    # short of log Z without, .11 with.
    config.exploration.off_policy_ratio_end = 0.2
    config.exploration.anneal_fraction = 0.8
    return config
