"""Diffusion Schrödinger bridge as published: Gaussian samples to samples of a ring.

De Bortoli et al. (2021, arXiv:2106.01357) with the settings of their public configuration for
the plane: mean matching under a fixed variance, 20 uniform steps over the same T = 0.2 of
dX = √2 dW, batches of 512 from paths that are simulated once for a half-step, 10,000 of them,
no gradient clipping, no moving average. They take 20 iterations of 10,000 + 10,000 gradient
steps at 1e-4; these are a twentieth of the steps at ten times the rate. They regress the drift
there, which on a uniform grid differs from the mean by a constant factor alone
(`--config.ipf.forward_loss=drift_matching`, and backward).
"""

from ml_collections import ConfigDict

from experiments.configs import gaussian_to_ring


def get_config() -> ConfigDict:
    """The published setting, as far as the library's own defaults differ from it."""
    config = gaussian_to_ring.get_config()
    config.method = "dsb"
    config.target.access = "samples"
    config.grid.spacing = "uniform"
    config.learn_variance = False
    config.network.depth = 3
    config.batch_size = 512
    config.ipf.iterations = 20
    config.ipf.forward_steps = 500
    config.ipf.backward_steps = 500
    config.ipf.reanchor = "none"
    # One set of paths for each half-step.
    config.ipf.cached_batches = 20
    config.ipf.cache_every = 500
    config.ipf.use_ema_opposite = False
    config.optimiser.name = "adamw"
    config.optimiser.learning_rate = 1e-3
    config.optimiser.schedule = "constant"
    config.optimiser.ema_decay = 0.0
    config.optimiser.clip_norm = 1e6
    return config
