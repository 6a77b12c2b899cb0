"""What a configuration may hold, checked before anything is compiled.

Three tables say it all, and are checked in this order:

- `fields.FIELDS`: one rule per key, of its value alone;
- `relations.RELATIONS_OF_ENDS`: conditions between the keys that name the ends;
- the endpoints, which are built to learn their dimension and what they offer;
- `relations_of_methods.RELATIONS_OF_METHODS` and `relations.RELATIONS`: conditions between
  keys.

To add a key: its default goes to `configs/base.py`, or to `defaults_of_methods` if it is of one
method, and its rule to `fields.FIELDS`.
"""

import difflib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ml_collections import ConfigDict

from experiments import rules
from experiments.configs import base
from experiments.errors import InputError, one_line
from experiments.fields import FIELDS
from experiments.relations import RELATIONS, RELATIONS_OF_ENDS, Relation
from experiments.relations_of_images import RELATIONS_OF_IMAGES
from experiments.relations_of_methods import RELATIONS_OF_METHODS

_T = TypeVar("_T")


def validate(config: ConfigDict) -> ConfigDict:
    """Checks a configuration and returns a locked copy in which every key has its own type.

    Raises:
        InputError: At the first key that is missing, unknown or holds what it may not.
    """
    checked = check_fields(config)
    check_relations(checked, RELATIONS_OF_ENDS)
    check_endpoints(checked)
    check_relations(checked, RELATIONS_OF_IMAGES)
    check_relations(checked, RELATIONS_OF_METHODS)
    check_relations(checked, RELATIONS)
    check_grid(checked)
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
        if allowed := rules.size_allowed(rule, value):
            raise refusal(name, value, allowed)
        section, _, leaf = name.rpartition(".")
        (checked[section] if section else checked)[leaf] = rule.kind(value)
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

    if config.snapshots.name != "none":
        build = functools.partial(ends.build_snapshots, config)
        marginals = _buildable(config, "snapshots", build).marginals
        check_snapshots(config, len(marginals))
        source, target = marginals[0], marginals[-1]
    elif config.pair.name == "none":
        source, target = (
            _buildable(config, end, functools.partial(ends.build_end, config[end]))
            for end in ("source", "target")
        )
        if config.evaluate.reference:
            try:
                ends.with_reference(target, config.target, config.evaluate.reference)
            except ValueError as error:
                raise InputError(one_line(error)) from error
    else:
        source, target, *_ = _buildable(
            config, "pair", functools.partial(ends.build_pair, config)
        )
    for end, endpoint in (("source", source), ("target", target)):
        try:
            restrict(endpoint, config[end].access)
        except ValueError as error:
            # Its message begins with "access = ...".
            raise InputError(f"{end}.{one_line(error)}") from error
    check_network(config, target)
    if config.evaluate.smc and target.log_density is None:
        raise refusal(
            "evaluate.smc", True, f"false with target.name = {config.target.name!r}: no energy"
        )
    if config.method == "fine_tuning":
        check_reward(config, source)
    if source.dim != target.dim:
        raise InputError(
            f"target.name = {config.target.name!r}: has dimension {target.dim}: must be "
            f"{source.dim}, the dimension of the source {config.source.name!r}"
        )


def check_grid(config: ConfigDict) -> None:
    """The steps of the grid must be told apart in float32."""
    from experiments import ends, wiring

    given = config.grid
    snapshots = None if config.snapshots.name == "none" else ends.build_snapshots(config)
    try:
        wiring.build_grid(config, snapshots)
    except (ValueError, MemoryError) as error:
        allowed = (
            f"fewer with grid.spacing = {given.spacing!r}, grid.power = {given.power:g} and "
            f"grid.t_max = {given.t_max:g}: steps this fine vanish in float32"
        )
        raise refusal("grid.num_steps", given.num_steps, allowed) from error


def check_network(config: ConfigDict, target: Any) -> None:
    """What the target asks of the network."""
    if config.network.equivariant and target.particles is None:
        raise refusal(
            "network.equivariant",
            True,
            f"false with target.name = {config.target.name!r}, which is no system of particles",
        )


def check_reward(config: ConfigDict, source: Any) -> None:
    """A reward is the log-density of an endpoint of the source's dimension."""
    from experiments import ends

    section = "fine_tuning.reward"
    build = functools.partial(ends.build_end, config.fine_tuning.reward)
    reward = _buildable(config, section, build)
    if reward.log_density is None or reward.dim != source.dim:
        name = get(config, f"{section}.name")
        raise refusal(
            f"{section}.name",
            name,
            f"an endpoint of dimension {source.dim}, as the source, with a log-density: the "
            "reward with method = 'fine_tuning'",
        )


def check_snapshots(config: ConfigDict, num: int) -> None:
    """What the number of snapshots asks of other keys."""
    if not -1 <= config.snapshots.left_out <= num - 2 or config.snapshots.left_out == 0:
        raise refusal(
            "snapshots.left_out",
            config.snapshots.left_out,
            f"-1 or from 1 to {num - 2}: {num} snapshots, the first and the last of which are "
            "the source and the target",
        )
    if config.grid.num_steps % (num - 1):
        raise refusal(
            "grid.num_steps",
            config.grid.num_steps,
            f"a multiple of {num - 1}: as many steps from each of {num} snapshots to the next",
        )


def _buildable(config: ConfigDict, section: str, build: Callable[[], _T]) -> _T:
    """What `build` makes of a section; its complaints name the section's keys."""
    try:
        return build()
    except (TypeError, ValueError) as error:
        name, options = get(config, f"{section}.name"), get(config, f"{section}.options")
        given = f" with {section}.options = {options.to_dict()}" if options else ""
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
