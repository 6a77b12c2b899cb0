"""The Gaussian bridge of Shi et al. (2023, arXiv:2303.16852), whose every marginal is known.

N(-0.1 · 1, I) to N(0.1 · 1, I) on Brownian motion of σ = 1 over a unit of time, 20 steps,
from samples of both ends; `--config.source.options.dim=50 --config.target.options.dim=50` for
another dimension. `marginal_kl` in summary.json is the mean over the times of the grid of
KL(P_t ‖ P*_t), of Gaussian fits.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """IPF by bridge matching, with a learned variance, on the published uniform grid."""
    config = base.get_config()
    for end, mean in ((config.source, -0.1), (config.target, 0.1)):
        end.name, end.access = "gaussian", "samples"
        end.options = ConfigDict({"dim": 5, "mean": mean, "std": 1.0})
    config.reference.sigma = 1.0
    config.grid.t_max = 1.0
    config.grid.spacing = "uniform"
    # The drift is affine, which is all that is to be learned.
    config.network.affine = True
    config.ipf.iterations = 8
    config.ipf.forward_steps = 450
    config.ipf.backward_steps = 300
    # The fits' own noise would hide what is to be measured.
    config.evaluate.num_paths = 40_000
    return config
