"""The main job in seconds, to see that everything runs; its numbers mean nothing."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """Few steps, few paths, a small network; every stage of a run."""
    config = base.get_config()
    config.grid.num_steps = 5
    config.network.width = 16
    config.network.depth = 2
    config.batch_size = 64
    config.ipf.iterations = 2
    config.ipf.forward_steps = 20
    config.ipf.backward_steps = 10
    config.ipf.num_anchors = 128
    config.exploration.buffer_size = 256
    config.exploration.refresh_every = 10
    config.exploration.refresh_steps = 2
    config.loop.steps_per_dispatch = 10
    config.loop.checkpoint_every = 20
    config.evaluate.num_samples = 256
    config.evaluate.num_paths = 512
    return config
