"""Conditions between the keys of a configuration, of methods that are not IPF."""

from experiments import fields
from experiments.relations import Relation

RELATIONS_OF_ENERGY: tuple[Relation, ...] = (
    Relation(
        "source.access",
        lambda c: c.method not in fields.FROM_ENERGY or c.source.access == "samples",
        lambda c: f"'samples' with method = {c.method!r}",
    ),
    Relation(
        "target.access",
        lambda c: c.method not in fields.FROM_ENERGY or c.target.access == "energy",
        lambda c: f"'energy' with method = {c.method!r}, which is trained on nothing else",
    ),
)
"""Conditions of methods from samples, or a Gaussian, to an energy."""

RELATIONS_OF_SAMPLERS: tuple[Relation, ...] = (
    Relation(
        "source.name",
        lambda c: c.method != "sampler" or c.source.name == "gaussian",
        lambda c: "'gaussian' with method = 'sampler': a start whose reversal is known",
    ),
    Relation(
        "source.options",
        lambda c: c.method != "sampler" or "covariance" not in c.source.options,
        lambda c: "of a Gaussian with one standard deviation, with method = 'sampler'",
    ),
    Relation(
        "sampler.tracked_steps",
        lambda c: c.method != "sampler" or c.sampler.tracked_steps <= c.grid.num_steps,
        lambda c: f"at most grid.num_steps = {c.grid.num_steps}; 0 for all",
    ),
)
"""Conditions of diffusion samplers."""

RELATIONS_OF_METHODS = (*RELATIONS_OF_ENERGY, *RELATIONS_OF_SAMPLERS)
