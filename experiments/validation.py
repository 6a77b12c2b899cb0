"""What a configuration may hold, checked before anything is compiled.

Three tables say it all, and are checked in this order:

- `FIELDS`: one rule per key, of its value alone;
- `RELATIONS_OF_ENDS`: conditions between the keys that name the ends;
- the endpoints, which are built to learn their dimension and what they offer;
- `RELATIONS`: conditions between keys.

To add a key: its default goes to `configs/base.py`, its rule to `FIELDS`.
"""

import difflib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

from experiments.configs import base
from experiments.errors import InputError, one_line
from experiments.rules import Rule, boolean, choice, integer, mapping, number, text

if TYPE_CHECKING:  # At run time it would bring in jax, which refusing a config can do without.
    from d2ejax.algorithms.half_steps import Loss

_ANCHORED_LOSSES = ("semi_discrete", "hybrid")
_VARIANCE_LOSSES = ("log_variance", *_ANCHORED_LOSSES)
_ENERGY_LOSSES = ("trajectory_balance", *_VARIANCE_LOSSES)
_SAMPLE_LOSSES = ("likelihood", "bridge_matching")
LOSSES = ("auto", *_SAMPLE_LOSSES, *_ENERGY_LOSSES)

_T = TypeVar("_T")


FIELDS: dict[str, Rule] = {
    "seed": integer(0, 2**32 - 1),
    "method": choice("ipf"),
    "source.name": text(),
    "source.access": choice("samples", "energy"),
    "source.options": mapping(),
    "target.name": text(),
    "target.access": choice("samples", "energy"),
    "target.options": mapping(),
    "pair.name": choice("none", "mixtures", "gaussian_plan"),
    "pair.options": mapping(),
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
    "network.dtype": choice("float32", "bfloat16"),
    "network.steps_at_once": integer(0),
    "batch_size": integer(1),
    "ipf.iterations": integer(1),
    "ipf.forward_steps": integer(1),
    "ipf.backward_steps": integer(1),
    "ipf.forward_loss": choice(*LOSSES),
    "ipf.backward_loss": choice(*LOSSES),
    "ipf.reanchor": choice("none", "backward", "forward", "both"),
    "ipf.first_coupling": choice("reference", "independent"),
    "ipf.warm_start": boolean(),
    "ipf.paths_per_start": integer(1),
    "ipf.num_anchors": integer(1),
    "ipf.min_anchors": number(at_least=0),
    "ipf.likelihood_batch_size": integer(0),
    "ipf.use_ema_opposite": boolean(),
    "optimiser.name": choice("adamw", "muon"),
    "optimiser.learning_rate": number(above=0),
    "optimiser.backward_ratio": number(above=0),
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
    "exploration.priority_power": number(at_least=0),
    "exploration.refresh_method": choice("none", "ula", "averaged_ula", "mala", "hmc"),
    "exploration.refresh_every": integer(1),
    "exploration.refresh_steps": integer(1),
    "exploration.refresh_step_size": number(above=0),
    "exploration.restart_fraction": number(at_least=0, at_most=1),
    "exploration.restart_std": number(above=0),
    "exploration.inverse_temperature_start": number(above=0, at_most=1),
    "exploration.anneal_fraction": number(at_least=0, at_most=1),
    "parallel.backend": choice("pmap", "shard_map"),
    "parallel.cpu_devices": integer(1),
    "loop.steps_per_dispatch": integer(1),
    "loop.checkpoint_every": integer(1),
    "loop.keep": integer(1),
    "loop.max_consecutive_skipped": integer(1),
    "evaluate.num_samples": integer(2),
    "evaluate.num_paths": integer(2),
    "evaluate.plots": boolean(),
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
    if given_backward in _ANCHORED_LOSSES and forward == "semi_discrete":
        forward = "log_variance"  # One of the two may have anchors, and it is given.
    found = (
        backward if given_backward == "auto" else given_backward,
        forward if given_forward == "auto" else given_forward,
    )
    plain = [
        "likelihood" if given == "auto" and loss == "bridge_matching" and not anew else loss
        for given, loss, anew in zip(
            (given_backward, given_forward), found, _reanchored(config), strict=True
        )
    ]
    return plain[0], plain[1]


def _reanchored(config: ConfigDict) -> tuple[bool, bool]:
    """Whether the backward and the forward half-step rejoin their ends by the reference."""
    given = config.ipf.reanchor
    return given in ("both", "backward"), given in ("both", "forward")


def _has_loss(config: ConfigDict, *losses: str) -> bool:
    return any(loss in losses for loss in resolve_losses(config))


def _loss_relation(field: str, pinned: str) -> Relation:
    """What the loss of a half-step asks of the end that it pins."""
    allowed = {
        "samples": f"'auto' or one of {_SAMPLE_LOSSES}",
        "energy": f"'auto' or one of {_ENERGY_LOSSES}",
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


def _relations_of_end(end: str) -> tuple[Relation, ...]:
    """An end is one of the pair exactly if there is a pair, and has then no options itself."""
    return (
        Relation(
            f"{end}.name",
            lambda c: (c[end].name == "pair") == (c.pair.name != "none"),
            lambda c: (
                "the name of an endpoint with pair.name = 'none'"
                if c.pair.name == "none"
                else f"'pair' with pair.name = {c.pair.name!r}"
            ),
        ),
        Relation(
            f"{end}.options",
            lambda c: c.pair.name == "none" or not c[end].options,
            lambda c: f"empty with {end}.name = 'pair': see pair.options",
        ),
    )


RELATIONS_OF_ENDS: tuple[Relation, ...] = (
    *_relations_of_end("source"),
    *_relations_of_end("target"),
    Relation(
        "pair.options",
        lambda c: c.pair.name != "none" or not c.pair.options,
        lambda c: "empty with pair.name = 'none'",
    ),
)

RELATIONS: tuple[Relation, ...] = (
    _loss_relation("forward_loss", pinned="target"),
    _loss_relation("backward_loss", pinned="source"),
    Relation(
        "ipf.reanchor",
        lambda c: all(
            loss != "bridge_matching" or anew
            for loss, anew in zip(resolve_losses(c), _reanchored(c), strict=True)
        ),
        lambda c: (
            "'both', or the half-step of the loss 'bridge_matching', which fits bridges of the "
            "reference"
        ),
    ),
    Relation(
        "ipf.backward_loss",
        lambda c: not all(loss in _ANCHORED_LOSSES for loss in resolve_losses(c)),
        lambda c: f"another loss: one of the two may be one of {_ANCHORED_LOSSES}",
    ),
    Relation(
        "ipf.paths_per_start",
        lambda c: c.ipf.paths_per_start >= 2 or not _has_loss(c, *_VARIANCE_LOSSES),
        lambda c: (
            f"an integer ≥ 2 with the losses {', '.join(_VARIANCE_LOSSES)}: a variance over "
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
        "network.steps_at_once",
        lambda c: (
            not c.network.steps_at_once or c.grid.num_steps % c.network.steps_at_once == 0
        ),
        lambda c: f"0 or a divisor of grid.num_steps = {c.grid.num_steps}",
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
    check_relations(checked, RELATIONS_OF_ENDS)
    check_endpoints(checked)
    check_relations(checked, RELATIONS)
    return checked


def check_relations(config: ConfigDict, relations: tuple[Relation, ...]) -> None:
    """Raises InputError at the first condition that is not met."""
    for relation in relations:
        if not relation.holds(config):
            value = get(config, relation.field)
            raise refusal(relation.field, value, relation.allowed(config))


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
    from d2ejax.endpoints.base import restrict
    from experiments import ends

    if config.pair.name == "none":
        source, target = (
            _buildable(config, end, functools.partial(ends.build_end, config[end]))
            for end in ("source", "target")
        )
    else:
        build = functools.partial(ends.build_pair, config)
        source, target, _ = _buildable(config, "pair", build)
    for end, endpoint in (("source", source), ("target", target)):
        try:
            restrict(endpoint, config[end].access)
        except ValueError as error:
            # Its message begins with "access = ...".
            raise InputError(f"{end}.{one_line(error)}") from error
    if source.dim != target.dim:
        raise InputError(
            f"target.name = {config.target.name!r}: has dimension {target.dim}: must be "
            f"{source.dim}, the dimension of the source {config.source.name!r}"
        )


def _buildable(config: ConfigDict, section: str, build: Callable[[], _T]) -> _T:
    """What `build` makes of a section; its complaints name the section's keys."""
    try:
        return build()
    except (TypeError, ValueError) as error:
        name, options = config[section].name, config[section].options.to_dict()
        given = f" with {section}.options = {options}" if options else ""
        raise InputError(f"{section}.name = {name!r}{given}: {one_line(error)}") from error


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
