"""A diffusion model of two moons, fine-tuned to the parts of them near a point.

First train the base, `--config=experiments/configs/vp_base.py`; for the other one give
`--config=experiments/configs/fine_tuning.py:ve_base`.
"""

from ml_collections import ConfigDict

from experiments.configs import ve_base, vp_base

_BASES = {"vp_base": vp_base.get_config, "ve_base": ve_base.get_config}


def get_config(name: str = "vp_base") -> ConfigDict:
    """The reward prefers the tip of the lower moon, and what of the upper one lies near it."""
    if name not in _BASES:
        raise ValueError(f"base = {name!r}: must be one of {tuple(_BASES)}")
    config = _BASES[name]()
    config.method = "fine_tuning"
    config.fine_tuning.base = f"runs/{name}"
    config.fine_tuning.reward.options = ConfigDict({"mean": (1.5, -0.25), "std": 0.7})
    # Adjoint matching trains means alone, and here the others are to be compared with it.
    config.learn_variance = False
    config.optimiser.learning_rate = 3e-3
    return config
