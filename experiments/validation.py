"""What a configuration may hold, checked before anything is compiled.

Three tables say it all, and are checked in this order:

- `FIELDS`: one rule per key, of its value alone;
- the endpoints, which are built to learn their dimension and what they offer;
- `RELATIONS`: conditions between keys.

To add a key: its default goes to `configs/base.py`, its rule to `FIELDS`.
"""

import difflib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from experiments.configs import base
from experiments.errors import InputError, one_line

if TYPE_CHECKING:  # At run time it would bring in jax, which refusing a config can do without.
    from d2ejax.algorithms.half_steps import Loss

LOSSES = ("auto", "likelihood", "log_variance", "trajectory_balance", "semi_discrete")
_ENERGY_LOSSES = ("log_variance", "trajectory_balance", "semi_discrete")
_VARIANCE_LOSSES = ("log_variance", "semi_discrete")


class Rule(NamedTuple):
    """What one key may hold.

    Attributes:
        allowed: The end of the sentence "must be ...".
        holds: Whether a value is allowed.
        convert: From an allowed value to the type that the key always has.
    """

    allowed: str
    holds: Callable[[Any], bool]
    convert: Callable[[Any], Any]


def integer(minimum: int, maximum: int | None = None) -> Rule:
    """An integer between the bounds given."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and value >= minimum
            and (maximum is None or value <= maximum)
        )

    limit = "" if maximum is None else f" and ≤ {maximum}"
    return Rule(f"an integer ≥ {minimum}{limit}", holds, int)


def number(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Rule:
    """A finite number between the bounds given."""
    bounds = [
        (sign, bound)
        for sign, bound in ((">", above), ("≥", at_least), ("<", below), ("≤", at_most))
        if bound is not None
    ]

    def holds(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )

    limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds)
    return Rule(f"a number {limits}".rstrip(), holds, float)


def choice(*names: str) -> Rule:
    """One of the names given."""
    quoted = ", ".join(repr(name) for name in names)
    return Rule(f"one of {quoted}" if len(names) > 1 else quoted, lambda v: v in names, str)


def boolean() -> Rule:
    """True or False."""
    return Rule("true or false", lambda value: isinstance(value, bool), bool)


def text() -> Rule:
    """Some text."""
    return Rule("a name in quotes", lambda v: isinstance(v, str) and bool(v), str)


def mapping() -> Rule:
    """Keyword options, checked by the function that they are handed to."""
    return Rule("a ConfigDict", lambda value: isinstance(value, ConfigDict), ConfigDict)


FIELDS: dict[str, Rule] = {
    "seed": integer(0, 2**32 - 1),
    "method": choice("ipf"),
    "source.name": text(),
    "source.access": choice("samples", "energy"),
    "source.options": mapping(),
    "target.name": text(),
    "target.access": choice("samples", "energy"),
    "target.options": mapping(),
    "reference.name": choice(
        "brownian", "ornstein_uhlenbeck", "variance_exploding", "variance_preserving"
    ),
    "reference.sigma": number(above=0),
    "reference.rate": number(above=0),
    "reference.sigma_min": number(above=0),
    "reference.sigma_max": number(above=0),
    "reference.beta_min": number(above=0),
    "reference.beta_max": number(above=0),
    "reference.discretisation": choice("euler", "exact"),
    "grid.num_steps": integer(1),
    "grid.t_max": number(above=0),
    "grid.spacing": choice("uniform", "end_refined", "cosine"),
    "grid.power": number(at_least=1),
    "learn_variance": boolean(),
    "variance.family": choice("bounded", "bridge"),
    "variance.bound": number(above=0),
    "network.width": integer(1),
    "network.depth": integer(1),
    "network.num_frequencies": integer(1),
    "network.layer_norm": boolean(),
    "network.drift_scale": number(above=0),
    "network.energy_feature": boolean(),
    "network.score_clip": number(above=0),
    "batch_size": integer(1),
    "ipf.iterations": integer(1),
    "ipf.forward_steps": integer(1),
    "ipf.backward_steps": integer(1),
    "ipf.forward_loss": choice(*LOSSES),
    "ipf.backward_loss": choice(*LOSSES),
    "ipf.reanchor": boolean(),
    "ipf.paths_per_start": integer(1),
    "ipf.num_anchors": integer(1),
    "ipf.likelihood_batch_size": integer(0),
    "ipf.use_ema_opposite": boolean(),
    "optimiser.learning_rate": number(above=0),
    "optimiser.schedule": choice("constant", "cosine"),
    "optimiser.warmup_steps": integer(0),
    "optimiser.b2": number(at_least=0, below=1),
    "optimiser.weight_decay": number(at_least=0),
    "optimiser.clip_norm": number(above=0),
    "optimiser.ema_decay": number(at_least=0, below=1),
    "exploration.off_policy_ratio": number(at_least=0, at_most=1),
    "exploration.off_policy_ratio_end": number(at_least=0, at_most=1),
    "exploration.reuse_path": boolean(),
    "exploration.buffer_size": integer(1),
    "exploration.add_ends": boolean(),
    "exploration.refresh_method": choice("none", "ula", "averaged_ula", "mala", "hmc"),
    "exploration.refresh_every": integer(1),
    "exploration.refresh_steps": integer(1),
    "exploration.refresh_step_size": number(above=0),
    "exploration.restart_fraction": number(at_least=0, at_most=1),
    "exploration.restart_std": number(above=0),
    "exploration.inverse_temperature_start": number(above=0, at_most=1),
    "exploration.anneal_fraction": number(at_least=0, at_most=1),
    "parallel.backend": choice("pmap", "shard_map"),
    "loop.steps_per_dispatch": integer(1),
    "loop.checkpoint_every": integer(1),
    "loop.keep": integer(1),
    "loop.max_consecutive_skipped": integer(1),
    "evaluate.num_samples": integer(2),
    "evaluate.num_paths": integer(2),
}


class Relation(NamedTuple):
    """A condition between keys.

    Attributes:
        field: The key that the message names.
        holds: Whether a configuration whose keys each hold an allowed value meets it.
        allowed: The end of the sentence "must be ..." for that configuration.
    """

    field: str
    holds: Callable[[ConfigDict], bool]
    allowed: Callable[[ConfigDict], str]


def resolve_losses(config: ConfigDict) -> tuple["Loss", "Loss"]:
    """The losses of the backward and of the forward half-step, "auto" resolved."""
    from d2ejax.algorithms.half_steps import losses_by_access

    backward, forward = losses_by_access(config.source.access, config.target.access)
    given_backward, given_forward = config.ipf.backward_loss, config.ipf.forward_loss
    if given_backward == forward == "semi_discrete":
        forward = "log_variance"  # One of the two may be semi-discrete, and it is given.
    return (
        backward if given_backward == "auto" else given_backward,
        forward if given_forward == "auto" else given_forward,
    )


def _has_loss(config: ConfigDict, *losses: str) -> bool:
    return any(loss in losses for loss in resolve_losses(config))


def _loss_relation(field: str, pinned: str) -> Relation:
    """What the loss of a half-step asks of the end that it pins."""
    allowed = {
        "samples": "'auto' or 'likelihood'",
        "energy": "'auto', 'log_variance', 'trajectory_balance' or 'semi_discrete'",
    }

    def holds(config: ConfigDict) -> bool:
        loss, access = config.ipf[field], config[pinned].access
        return loss == "auto" or (loss in _ENERGY_LOSSES) == (access == "energy")

    return Relation(
        f"ipf.{field}",
        holds,
        lambda c: f"{allowed[c[pinned].access]} with {pinned}.access = {c[pinned].access!r}",
    )


def _fewest_steps(config: ConfigDict) -> int:
    return config.ipf.iterations * min(config.ipf.forward_steps, config.ipf.backward_steps)


RELATIONS: tuple[Relation, ...] = (
    _loss_relation("forward_loss", pinned="target"),
    _loss_relation("backward_loss", pinned="source"),
    Relation(
        "ipf.backward_loss",
        lambda c: resolve_losses(c) != ("semi_discrete", "semi_discrete"),
        lambda c: (
            "another loss: ipf.forward_loss is 'semi_discrete', and one of the two may be"
        ),
    ),
    Relation(
        "ipf.paths_per_start",
        lambda c: c.ipf.paths_per_start >= 2 or not _has_loss(c, *_VARIANCE_LOSSES),
        lambda c: (
            "an integer ≥ 2 with the losses log_variance and semi_discrete, a variance over "
            "those paths"
        ),
    ),
    Relation(
        "exploration.reuse_path",
        lambda c: (
            not c.exploration.reuse_path
            or c.ipf.paths_per_start >= 2
            or not _has_loss(c, *_ENERGY_LOSSES)
        ),
        lambda c: "false with ipf.paths_per_start = 1: the reused path would be the only one",
    ),
    Relation(
        "batch_size",
        lambda c: (
            not _has_loss(c, *_ENERGY_LOSSES) or c.batch_size % c.ipf.paths_per_start == 0
        ),
        lambda c: f"a multiple of ipf.paths_per_start = {c.ipf.paths_per_start}",
    ),
    Relation(
        "reference.sigma_max",
        lambda c: (
            c.reference.name != "variance_exploding"
            or c.reference.sigma_max > c.reference.sigma_min
        ),
        lambda c: f"a number > reference.sigma_min = {c.reference.sigma_min:g}",
    ),
    Relation(
        "reference.beta_max",
        lambda c: (
            c.reference.name != "variance_preserving"
            or c.reference.beta_max >= c.reference.beta_min
        ),
        lambda c: f"a number ≥ reference.beta_min = {c.reference.beta_min:g}",
    ),
    Relation(
        "optimiser.warmup_steps",
        lambda c: c.optimiser.warmup_steps < _fewest_steps(c),
        lambda c: f"fewer than the {_fewest_steps(c)} gradient steps of one process",
    ),
)


def validate(config: ConfigDict) -> ConfigDict:
    """Checks a configuration and returns a locked copy in which every key has its own type.

    Raises:
        InputError: At the first key that is missing, unknown or holds what it may not.
    """
    checked = check_fields(config)
    check_endpoints(checked)
    for relation in RELATIONS:
        if not relation.holds(checked):
            raise refusal(
                relation.field, get(checked, relation.field), relation.allowed(checked)
            )
    return checked


def check_fields(config: ConfigDict) -> ConfigDict:
    """Checks every key by itself; see `validate`."""
    given = dict(flatten(config))
    for name in given:
        check_known(name)
    checked = base.get_config()
    for name, rule in FIELDS.items():
        if name not in given:
            raise InputError(f"{name}: missing: must be {rule.allowed}")
        value = given[name]
        if not rule.holds(value):
            raise refusal(name, value, rule.allowed)
        section, _, leaf = name.rpartition(".")
        (checked[section] if section else checked)[leaf] = rule.convert(value)
    return checked.lock()


def check_known(name: str) -> None:
    """Raises InputError, with the nearest right name, if no configuration has this key."""
    if name in FIELDS or _section_of_options(name):
        return
    if inside := [key for key in FIELDS if key.startswith(name + ".")]:
        raise InputError(f"{name}: is a section: must be set key by key, e.g. {inside[0]}")
    nearest = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.6)
    if not nearest:
        leaf = name.rpartition(".")[2]
        nearest = [key for key in FIELDS if key.rpartition(".")[2] == leaf][:1]
    hint = f": did you mean {nearest[0]}?" if nearest else ""
    raise InputError(f"{name}: unknown key{hint or ': see experiments/configs/base.py'}")


def check_endpoints(config: ConfigDict) -> None:
    """Builds both ends: they must exist, offer the access asked for and agree in dimension."""
    # Imported here: it brings in jax, and a misspelt key should be refused at once.
    from d2ejax.endpoints import registry
    from d2ejax.endpoints.base import restrict

    dims = {}
    for end in ("source", "target"):
        section = config[end]
        options = section.options.to_dict()
        try:
            endpoint = registry.make_endpoint(section.name, **options)
        except (TypeError, ValueError) as error:
            given = f" with {end}.options = {options}" if options else ""
            raise InputError(
                f"{end}.name = {section.name!r}{given}: {one_line(error)}"
            ) from error
        try:
            restrict(endpoint, section.access)
        except ValueError as error:
            # Its message begins with "access = ...".
            raise InputError(f"{end}.{one_line(error)}") from error
        dims[end] = endpoint.dim
    if dims["source"] != dims["target"]:
        raise InputError(
            f"target.name = {config.target.name!r}: has dimension {dims['target']}: must be "
            f"{dims['source']}, the dimension of the source {config.source.name!r}"
        )


def refusal(field: str, value: Any, allowed: str) -> InputError:
    """The error for a key whose value is not allowed."""
    shown = value.to_dict() if isinstance(value, ConfigDict) else value
    return InputError(f"{field} = {shown!r}: must be {allowed}")


def get(config: ConfigDict, name: str) -> Any:
    """The value of a dotted key."""
    value = config
    for part in name.split("."):
        value = value[part]
    return value


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every dotted key with its value; the free-form `options` count as one value."""
    for key in config:
        name, value = prefix + key, config[key]
        if isinstance(value, ConfigDict) and name not in FIELDS:
            yield from flatten(value, name + ".")
        else:
            yield name, value


def _section_of_options(name: str) -> bool:
    return any(
        name.startswith(key + ".") for key in FIELDS if key.rpartition(".")[2] == "options"
    )
