"""SDE likelihood training in alternation: Gaussian samples to samples of a ring.

Chen, Liu & Theodorou (2022, arXiv:2110.11291): the likelihood in its divergence form, by
Hutchinson's estimate with random signs, under a fixed variance, AdamW at 5e-4, a moving average
of 0.99. Each stage simulates its paths a few times and trains many gradient steps on them; the
grid has 20 uniform steps, as for the other methods on this pair, where theirs has 100.
"""

from ml_collections import ConfigDict

from experiments.configs import dsb


def get_config() -> ConfigDict:
    """As dsb, with the other loss of the same half-steps."""
    config = dsb.get_config()
    config.method = "sde"
    config.batch_size = 256
    config.ipf.iterations = 10
    config.ipf.divergence = "hutchinson"
    config.ipf.cached_batches = 10
    config.ipf.cache_every = 100
    config.ipf.use_ema_opposite = True
    config.optimiser.learning_rate = 5e-4
    config.optimiser.ema_decay = 0.99
    return config
