"""A population that forks twice, by score and flow matching through five snapshots of it."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """[SF]²M (Tong et al. 2024, arXiv:2307.03672); the snapshot halfway is not trained on."""
    config = base.get_config()
    config.method = "sf2m"
    config.snapshots.name = "branching"
    config.snapshots.left_out = 2
    for end in (config.source, config.target):
        end.name, end.access = "snapshots", "samples"
    # Less noise than the process itself has, which its wells hold together.
    config.reference.sigma = 0.5
    config.grid.t_max = 1.0
    config.grid.num_steps = 40
    # A flow and a score are bounded where a drift is stiff.
    config.grid.spacing = "uniform"
    config.learn_variance = False
    # For method "eot", which may learn it: this family needs no far end that paths run to.
    config.variance.family = "bounded"
    config.matching.num_steps = 3000
    # Exact distances between as many points, for every snapshot and in several ways.
    config.evaluate.num_samples = 1000
    return config
