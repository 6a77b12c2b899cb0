"""Configurations small enough to trace or compile in a test."""

import importlib

from ml_collections import ConfigDict

from experiments import validation


def load(name: str) -> ConfigDict:
    """The configuration of a file in experiments/configs."""
    return importlib.import_module(f"experiments.configs.{name}").get_config()


def change(config: ConfigDict, changes: dict) -> ConfigDict:
    """Sets dotted keys."""
    for name, value in changes.items():
        section, _, leaf = name.rpartition(".")
        holder = config
        for part in section.split(".") if section else ():
            holder = holder[part]
        holder[leaf] = value
    return config


SHRINK = {
    "grid.num_steps": 2,
    "network.width": 4,
    "network.depth": 1,
    "network.num_frequencies": 1,
    # Two starts of two paths on each of the eight devices of the tests.
    "batch_size": 32,
    "ipf.paths_per_start": 2,
    "ipf.num_anchors": 4,
    "ipf.iterations": 1,
    "ipf.forward_steps": 3,
    "ipf.backward_steps": 2,
    "matching.num_steps": 3,
    "matching.num_times": 2,
    "enot.num_steps": 3,
    "enot.backward_steps": 2,
    "enot.inner_steps": 1,
    "diffusion.num_steps": 3,
    "fine_tuning.num_steps": 3,
    "fine_tuning.num_paths": 2,
    "light.num_components": 4,
    "light.steps": 3,
    "light.backward_steps": 2,
    "light.batch_size": 32,
    "adjoint.iterations": 2,
    "adjoint.forward_steps": 3,
    "adjoint.corrector_steps": 2,
    "adjoint.backward_steps": 2,
    "adjoint.rollout_every": 2,
    "adjoint.rollout_size": 16,
    "adjoint.replay_size": 8,
    "adjoint.num_anchors": 4,
    "exploration.buffer_size": 8,
    "exploration.refresh_steps": 1,
    "exploration.refresh_every": 2,
    "evaluate.num_samples": 40,
    "evaluate.num_paths": 60,
}


def shrunk(name: str, changes: dict | None = None) -> ConfigDict:
    """A checked configuration of experiments/configs, as small as it gets."""
    return validation.validate(change(load(name), SHRINK | (changes or {})))


def gaussians(changes: dict | None = None, *, dim: int = 1, access=("samples", "energy")):
    """A checked, small configuration between two Gaussians."""
    ends = {
        "source.name": "gaussian",
        "source.access": access[0],
        "source.options.dim": dim,
        "target.name": "gaussian",
        "target.access": access[1],
        "target.options.dim": dim,
        "target.options.std": 0.6,
    }
    return shrunk("smoke", ends | (changes or {}))
