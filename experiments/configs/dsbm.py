"""Diffusion Schrödinger bridge matching as published: Gaussian samples to samples of a ring.

Shi et al. (2023, arXiv:2303.16852), the variant DSBM-IMF: the first half-step couples
independent samples of both ends, every later one the ends of the opposite process's paths, and
each is the regression of the drift on bridges of the reference, under a fixed variance. 20
uniform steps and batches of 128, as published for Gaussians, where they take up to 40
iterations of 10,000 gradient steps at 1e-4; these are fewer at a higher rate.
`--config.ipf.first_coupling=reference` gives DSBM-IPF.
"""

from ml_collections import ConfigDict

from experiments.configs import dsb


def get_config() -> ConfigDict:
    """As dsb, with bridges of the reference in place of the opposite process's paths."""
    config = dsb.get_config()
    config.method = "dsbm"
    config.batch_size = 128
    config.ipf.reanchor = "both"
    config.ipf.first_coupling = "independent"
    # 12,800 pairs of ends for each half-step, with a new bridge whenever one is drawn.
    config.ipf.cached_batches = 100
    config.ipf.use_ema_opposite = True
    config.optimiser.ema_decay = 0.99
    return config
