"""A variance-exploding diffusion model of two moons, a base to fine-tune."""

from ml_collections import ConfigDict

from experiments.configs import vp_base


def get_config() -> ConfigDict:
    """Noise from σ = 3, to which the data add their own spread, down to 0.01."""
    config = vp_base.get_config()
    config.source.options = ConfigDict({"dim": 2, "std": 3.1})
    config.reference.name = "variance_exploding"
    # The noise falls by the same factor at each step.
    config.grid.spacing = "uniform"
    # At most times what the network is to say is that the end is not where x is.
    config.network.affine = True
    return config
