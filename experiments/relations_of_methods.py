"""Conditions between the keys of a configuration, of methods that are not IPF."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from experiments import fields
from experiments.relations import Relation

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

_FLAT = {
    "brownian": lambda given, t_max: given.sigma * t_max**0.5,
    "variance_exploding": lambda given, t_max: given.sigma_max,
}
_AT_REST = {
    "ornstein_uhlenbeck": lambda given: given.sigma / (2.0 * given.rate) ** 0.5,
    "variance_preserving": lambda given: 1.0,
}
"""The standard deviation of the noise that each reference makes of data."""


_LEFT = 0.05
"""Up to this share of the data may be left in the noise that a reference with drift makes."""


def _noise(config: ConfigDict) -> float:
    given = config.reference
    if given.name in _FLAT:
        return _FLAT[given.name](given, config.grid.t_max)
    return _AT_REST[given.name](given)


def _most(config: ConfigDict) -> float:
    """To the noise of a reference without drift the data may add what they spread."""
    return (1.0 if config.reference.name in _AT_REST else 1.1) * _noise(config)


def _starts_in_noise(config: ConfigDict) -> bool:
    std = config.source.options.get("std", 1.0)
    return 0.99 * _noise(config) <= std <= 1.01 * _most(config)


def _forgets(field: str, name: str, least: Callable[[ConfigDict], float]) -> Relation:
    """A reference with drift has to forget the data by the time that they are noise."""
    key = field.removeprefix("reference.")
    return Relation(
        field,
        lambda c: (
            c.method != "diffusion" or c.reference.name != name or c.reference[key] > least(c)
        ),
        lambda c: (
            f"> {least(c):.4g} with method = 'diffusion' and grid.t_max = {c.grid.t_max}, or "
            f"grid.t_max larger: of the data a share of less than {_LEFT} may be left in the "
            "noise"
        ),
    )


RELATIONS_OF_DIFFUSION: tuple[Relation, ...] = (
    Relation(
        "reference.reversed",
        lambda c: not c.reference.reversed or c.reference.name.startswith("variance_"),
        lambda c: f"false with reference.name = {c.reference.name!r}: its noise stays the same",
    ),
    Relation(
        "reference.reversed",
        lambda c: (
            c.method != "diffusion"
            or c.reference.reversed
            or not c.reference.name.startswith("variance_")
        ),
        lambda c: "true with method = 'diffusion': large noise where paths start in noise",
    ),
    Relation(
        "reference.discretisation",
        lambda c: c.method != "diffusion" or c.reference.discretisation == "exact",
        lambda c: "'exact' with method = 'diffusion', whose noise is made by exact steps",
    ),
    Relation(
        "source.name",
        lambda c: c.method != "diffusion" or c.source.name == "gaussian",
        lambda c: "'gaussian' with method = 'diffusion': what the reference makes of data",
    ),
    Relation(
        "source.options",
        lambda c: (
            c.method != "diffusion"
            or (not {"mean", "covariance"} & set(c.source.options) and _starts_in_noise(c))
        ),
        lambda c: (
            f"of a centred Gaussian with std = {_noise(c):.4g}"
            f"{'' if c.reference.name in _AT_REST else f' to {_most(c):.4g}'}, what "
            f"reference.name = {c.reference.name!r} makes of data"
        ),
    ),
    # Their scale(0, T) is exp(-∫ rate) and exp(-½ ∫ β).
    _forgets("reference.rate", "ornstein_uhlenbeck", lambda c: -math.log(_LEFT) / c.grid.t_max),
    _forgets(
        "reference.beta_max",
        "variance_preserving",
        lambda c: -4.0 * math.log(_LEFT) / c.grid.t_max - c.reference.beta_min,
    ),
)
"""Conditions of diffusion models and their noise."""


def _needs_reversal(field: str) -> Relation:
    """What is made of both processes, of which with less noise one is not known."""
    key = field.removeprefix("evaluate.")
    return Relation(
        field,
        lambda c: c.method != "fine_tuning" or c.fine_tuning.noise == 1 or not c.evaluate[key],
        lambda c: (
            f"false with fine_tuning.noise = {c.fine_tuning.noise} < 1, whose reversal is not "
            "known"
        ),
    )


RELATIONS_OF_FINE_TUNING: tuple[Relation, ...] = (
    Relation(
        "fine_tuning.base",
        lambda c: c.method != "fine_tuning" or c.fine_tuning.base.strip(),
        lambda c: "the workdir of a finished run with method = 'fine_tuning'",
    ),
    Relation(
        "fine_tuning.num_paths",
        lambda c: not _tunes_by(c, "log_variance") or c.fine_tuning.num_paths >= 2,
        lambda c: "an integer ≥ 2 with the loss 'log_variance': a variance over those paths",
    ),
    Relation(
        "batch_size",
        lambda c: (
            not _tunes_by(c, "log_variance") or c.batch_size % c.fine_tuning.num_paths == 0
        ),
        lambda c: f"a multiple of fine_tuning.num_paths = {c.fine_tuning.num_paths}",
    ),
    Relation(
        "fine_tuning.tracked_steps",
        lambda c: c.method != "fine_tuning" or c.fine_tuning.tracked_steps <= c.grid.num_steps,
        lambda c: f"at most grid.num_steps = {c.grid.num_steps}; 0 for all",
    ),
    Relation(
        "fine_tuning.tracked_steps",
        lambda c: (
            c.method != "fine_tuning"
            or not c.fine_tuning.tracked_steps
            or _tunes_by(c, "control")
        ),
        lambda c: f"0 with the loss {c.fine_tuning.loss!r}, not differentiated through paths",
    ),
    Relation(
        "fine_tuning.loss",
        lambda c: not _tunes_by(c, "relative_trajectory_balance") or c.fine_tuning.noise == 1,
        lambda c: (
            f"another one with fine_tuning.noise = {c.fine_tuning.noise}: its one log Z is "
            "right where the base forgets its start"
        ),
    ),
    *(_needs_reversal(field) for field in ("evaluate.flow", "evaluate.smc")),
    Relation(
        "learn_variance",
        lambda c: not c.learn_variance or not _tunes_by(c, "adjoint_matching"),
        lambda c: "false with the loss 'adjoint_matching', a regression of the means alone",
    ),
    Relation(
        "optimiser.weight_decay",
        lambda c: c.method != "fine_tuning" or not c.optimiser.weight_decay,
        lambda c: "0 with method = 'fine_tuning': the base would decay as well",
    ),
)
"""Conditions of fine-tuning; those between it and its base are in `experiments.bases`."""


def _tunes_by(config: ConfigDict, loss: str) -> bool:
    return config.method == "fine_tuning" and config.fine_tuning.loss == loss


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
