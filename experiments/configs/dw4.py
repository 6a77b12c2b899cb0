"""A diffusion sampler of DW-4: four particles in the plane, a double well between each two.

Training is by the energy alone, as for every sampler. With draws of long chains,

    python -m benchmarks.reference_chains --target=double_well_particles

--config.evaluate.reference=runs/reference_chains/double_well_particles.npz judges it by them.
"""

from ml_collections import ConfigDict

from experiments.configs import sampler


def get_config() -> ConfigDict:
    """Points are coordinates without the centre of mass, the network is equivariant."""
    config = sampler.get_config()
    # (4 - 1) · 2 coordinates, from where the particles all but meet.
    config.source.options = ConfigDict({"dim": 6, "std": 1e-2})
    config.target.name = "double_well_particles"
    config.reference.sigma = 2.5
    config.grid.num_steps = 40
    # A message between each two particles in every step of every path: six gradient steps a
    # second of this size on a core, one of the default's.
    config.network.equivariant = True
    config.network.width = 32
    config.network.depth = 2
    config.network.num_frequencies = 4
    config.batch_size = 64
    config.network.energy_feature = True
    config.network.affine = True
    config.optimiser.name = "adamw"
    config.optimiser.learning_rate = 3e-3
    config.exploration.restart_std = 2.5
    config.exploration.refresh_step_size = 0.02
    return config
