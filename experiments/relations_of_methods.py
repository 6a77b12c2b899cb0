"""Conditions between the keys of a configuration, of methods that are not IPF."""

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from experiments import fields
from experiments.relations import Relation
from experiments.relations_of_generative_models import (
    RELATIONS_OF_DIFFUSION,
    RELATIONS_OF_FINE_TUNING,
)

if TYPE_CHECKING:  # At run time it would bring in jax, which refusing a config can do without.
    from d2ejax.algorithms.adjoint_objective import Corrector


def resolve_corrector(config: ConfigDict) -> "Corrector":
    """The corrector of an adjoint method, "auto" resolved."""
    given = config.adjoint.corrector
    return fields.CORRECTORS_OF_METHOD[config.method][0] if given == "auto" else given


def _sampled_relation(end: str) -> Relation:
    """All methods but IPF itself, and those from an energy, need samples of both ends.

    To fine-tuning the target is what its base was trained on.
    """
    free = ("ipf", *fields.FROM_ENERGY, *(("fine_tuning",) if end == "target" else ()))
    return Relation(
        f"{end}.access",
        lambda c: c.method in free or c[end].access == "samples",
        lambda c: f"'samples' with method = {c.method!r}",
    )


RELATIONS_OF_MATCHING: tuple[Relation, ...] = (
    Relation(
        "learn_variance",
        lambda c: not c.learn_variance or c.method not in fields.FLOWS,
        lambda c: (
            f"false with method = {c.method!r}: a flow and a score give drifts alone, and are "
            "those of a fixed diffusion coefficient"
        ),
    ),
    Relation(
        "network.prediction",
        lambda c: c.network.prediction == "drift" or c.method not in fields.FLOWS,
        lambda c: f"'drift' with method = {c.method!r}: its networks are velocities",
    ),
    Relation(
        "network.steps_at_once",
        lambda c: not c.network.steps_at_once or c.method not in fields.FLOWS,
        lambda c: f"0 with method = {c.method!r}, which scores no paths",
    ),
    Relation(
        "optimiser.backward_ratio",
        lambda c: c.optimiser.backward_ratio == 1 or c.method not in fields.COUPLING_OF_METHOD,
        lambda c: f"1 with method = {c.method!r}, which trains both directions in one step",
    ),
    Relation(
        "reference.discretisation",
        lambda c: c.reference.discretisation == "exact" or c.method != "lightsb",
        lambda c: "'exact' with method = 'lightsb', whose steps are those of the bridge itself",
    ),
)
"""Conditions of methods that match coupled minibatches."""

RELATIONS_OF_SNAPSHOTS: tuple[Relation, ...] = (
    Relation(
        "method",
        lambda c: c.snapshots.name == "none" or c.method in fields.COUPLING_OF_METHOD,
        lambda c: (
            f"one of {tuple(fields.COUPLING_OF_METHOD)} with snapshots.name = "
            f"{c.snapshots.name!r}: what it joins are two ends"
        ),
    ),
    Relation(
        "variance.family",
        lambda c: (
            c.snapshots.name == "none" or not c.learn_variance or c.variance.family != "bridge"
        ),
        lambda c: (
            f"'bounded' with snapshots.name = {c.snapshots.name!r}: what pinning the far end "
            "leaves open is of two ends, and a bound on no step before"
        ),
    ),
    Relation(
        "network.prediction",
        lambda c: c.snapshots.name == "none" or c.network.prediction == "drift",
        lambda c: (
            f"'drift' with snapshots.name = {c.snapshots.name!r}: not every path runs to the "
            "target first"
        ),
    ),
)
"""Conditions of what is observed at more times than two."""

RELATIONS_OF_GRAPHS: tuple[Relation, ...] = (
    Relation(
        "graph.of",
        lambda c: c.graph.of in ("none", *fields.GRAPHS_OF_METHOD.get(c.method, ())),
        lambda c: (
            f"one of {('none', *fields.GRAPHS_OF_METHOD.get(c.method, ()))} with method = "
            f"{c.method!r}"
        ),
    ),
    Relation(
        "learn_variance",
        lambda c: c.graph.of == "none" or not c.learn_variance,
        lambda c: f"false with graph.of = {c.graph.of!r}: a graph is one of drifts",
    ),
)
"""Conditions of drifts with a graph."""

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

RELATIONS_OF_ENOT: tuple[Relation, ...] = (
    Relation(
        "enot.inner_steps",
        lambda c: c.method != "enot" or c.enot.inner_steps < c.enot.num_steps,
        lambda c: f"fewer than enot.num_steps = {c.enot.num_steps}: the potential has a turn",
    ),
)
"""Conditions of entropic neural optimal transport."""


def _cuts(config: ConfigDict) -> bool:
    """Whether the path-wise KL is differentiated through some of the steps alone."""
    some = 0 < config.sampler.tracked_steps < config.grid.num_steps
    return some and config.sampler.loss == "path_kl"


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
    Relation(
        "sampler.window",
        lambda c: c.method != "sampler" or c.sampler.window == "last" or _cuts(c),
        lambda c: (
            "'last' unless sampler.loss = 'path_kl' is differentiated through "
            "sampler.tracked_steps, from 1 to one less than grid.num_steps"
        ),
    ),
    Relation(
        "sampler.tracked_steps",
        lambda c: (
            c.method != "sampler" or not c.sampler.tracked_steps or c.sampler.loss == "path_kl"
        ),
        lambda c: f"0 with sampler.loss = {c.sampler.loss!r}, not differentiated through paths",
    ),
)
"""Conditions of diffusion samplers."""

RELATIONS_OF_NETWORKS: tuple[Relation, ...] = (
    Relation(
        "optimiser.name",
        lambda c: not c.network.equivariant or c.optimiser.name == "adamw",
        lambda c: (
            "'adamw' with network.equivariant, whose layers are stacked: muon would take "
            "biases for matrices"
        ),
    ),
)
"""Conditions of networks."""

RELATIONS_OF_ADJOINTS: tuple[Relation, ...] = (
    Relation(
        "adjoint.corrector",
        lambda c: (
            c.adjoint.corrector
            in ("auto", *fields.CORRECTORS_OF_METHOD.get(c.method, (c.adjoint.corrector,)))
        ),
        lambda c: (
            f"one of {('auto', *fields.CORRECTORS_OF_METHOD[c.method])} with method = "
            f"{c.method!r}"
        ),
    ),
)
"""Conditions of adjoint methods."""

RELATIONS_OF_METHODS: tuple[Relation, ...] = (
    _sampled_relation("source"),
    _sampled_relation("target"),
    *RELATIONS_OF_SNAPSHOTS,
    *RELATIONS_OF_MATCHING,
    *RELATIONS_OF_GRAPHS,
    *RELATIONS_OF_ENERGY,
    *RELATIONS_OF_ENOT,
    *RELATIONS_OF_SAMPLERS,
    *RELATIONS_OF_DIFFUSION,
    *RELATIONS_OF_FINE_TUNING,
    *RELATIONS_OF_NETWORKS,
    *RELATIONS_OF_ADJOINTS,
)
