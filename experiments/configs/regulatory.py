"""Who regulates whom in blood cells: score and flow matching whose drift has a graph."""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """NGM-[SF]²M (Tong et al. 2024, arXiv:2307.03672) on a simulated circuit of eleven genes.

    With `snapshots.options.circuit` = "random" ten genes with two regulators each, drawn by
    `snapshots.options.seed`.
    """
    config = base.get_config()
    config.method = "sf2m"
    config.graph.of = "forward"
    config.snapshots.name = "regulatory"
    config.snapshots.options.circuit = "myeloid"
    config.snapshots.options.noise = 0.2
    config.snapshots.options.seed = 0
    for end in (config.source, config.target):
        end.name, end.access = "snapshots", "samples"
    # The noise of the cells: then the drift is theirs.
    config.reference.sigma = 0.2
    # In lifetimes of what the genes make.
    config.grid.t_max = 4.0
    config.grid.num_steps = 40
    config.grid.spacing = "uniform"
    config.learn_variance = False
    # Drifts are as large as levels are, in a lifetime; the reference moves less.
    config.network.drift_scale = 10.0
    config.network.depth = 3
    config.matching.num_steps = 1500
    config.matching.num_times = 16
    # Late legs join cells at rest in one lineage or another, whose plans take Sinkhorn hundreds
    # of iterations: with twice as many cells a gradient step takes three times as long.
    config.batch_size = 64
    config.evaluate.num_samples = 500
    config.evaluate.num_paths = 2000
    return config
