"""Conditions between the keys of a configuration, of diffusion models and of fine-tuning."""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.relations import Relation

_FLAT = {
    "brownian": lambda given, t_max: given.sigma * t_max**0.5,
    "variance_exploding": lambda given, t_max: given.sigma_max,
}
_AT_REST = {
    "ornstein_uhlenbeck": lambda given: given.sigma / (2.0 * given.rate) ** 0.5,
    "variance_preserving": lambda given: 1.0,
}
"""The standard deviation of the noise that each reference makes of data."""

_OF_NOISE = {
    "brownian": ("reference.sigma", "grid.t_max"),
    "ornstein_uhlenbeck": ("reference.sigma", "reference.rate"),
    "variance_exploding": ("reference.sigma_max",),
    "variance_preserving": (),
}
"""The keys behind it."""

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


def _keys_of_noise(config: ConfigDict) -> str:
    names = [name.split(".") for name in _OF_NOISE[config.reference.name]]
    shown = [f"{section}.{key} = {config[section][key]}" for section, key in names]
    return f" with {' and '.join(shown)}" if shown else ""


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
            f"reference.name = {c.reference.name!r}{_keys_of_noise(c)} makes of data"
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
