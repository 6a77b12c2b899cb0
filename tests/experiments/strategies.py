"""Random configurations, each key drawn by its rule in `experiments.fields`.

Small where it costs time. The ends are made to fit each other and the method; all else is
repaired as a user would: what a refusal names is drawn again.
"""

import functools
import math
import re
from typing import Any

from hypothesis import event, reject
from hypothesis import strategies as st
from ml_collections import ConfigDict

from d2ejax.endpoints import ENDPOINTS, make_endpoint
from experiments import ends, fields, validation
from experiments.configs import base
from experiments.errors import InputError, one_line
from experiments.fields import FIELDS
from experiments.methods import METHODS
from experiments.relations import RELATIONS, RELATIONS_OF_ENDS
from experiments.relations_of_methods import RELATIONS_OF_METHODS
from experiments.rules import Bounds, Rule, size_allowed
from tests.endpoints import strategies as of_endpoints

DEVICES = 8
"""Of the tests: batches are a multiple of their number."""

_MOST = {
    "seed": 2**32 - 1,
    "network.width": 8,
    "network.depth": 2,
    "graph.width": 8,
    "graph.depth": 2,
    "grid.num_steps": 4,
    "exploration.buffer_size": 32,
    "adjoint.replay_size": 32,
    "loop.max_consecutive_skipped": 10,
}
"""Largest values of integers; of others three more than their least."""

_SHARED = (
    "batch_size",
    "light.batch_size",
    "ipf.likelihood_batch_size",
    "adjoint.rollout_size",
    "parallel.shards",
)
"""What is shared out over the devices."""

_OF_ENDS = ("source", "target", "pair", "snapshots", "method")
_MADE = ("fine_tuning.base", "fine_tuning.base_digest", "evaluate.reference")
"""Keys that are not drawn by their rules, with those that have to do with the ends."""

_FACTOR = 4.0
"""Numbers are at most so many times their default, and at least that part of it."""

_REPAIRS = 60
"""Refusals before a configuration is given up."""


DEFAULTS = dict(validation.flatten(base.get_config()))


def values(name: str) -> st.SearchStrategy:
    """What a key may hold by itself, small where it costs time."""
    rule, default = FIELDS[name], DEFAULTS[name]
    if rule.names:
        return st.sampled_from(rule.names)
    if rule.kind is bool:
        return st.booleans()
    if rule.kind is int:
        return _integers(name, rule.bounds)
    if rule.kind is float:
        return _numbers(rule, default)
    return st.just(default)


def _integers(name: str, bounds: Bounds) -> st.SearchStrategy[int]:
    least = int(bounds.at_least)
    most = _MOST.get(name, least + 3)
    if name in _SHARED:
        return st.integers(min(least, 1), 2 if least == 0 else 4).map(lambda n: DEVICES * n)
    return st.integers(
        least, most if bounds.at_most is None else min(most, int(bounds.at_most))
    )


def _numbers(rule: Rule, default: float) -> st.SearchStrategy[float]:
    bounds, reach = rule.bounds, abs(default) or 1.0
    lows = [default / _FACTOR if default else 0.0, bounds.above, bounds.at_least]
    highs = [_FACTOR * reach, bounds.below, bounds.at_most]
    low = max(bound for bound in lows if bound is not None)
    high = min(bound for bound in highs if bound is not None)
    return st.floats(
        low, high, exclude_min=low == bounds.above, exclude_max=high == bounds.below
    ).filter(lambda value: size_allowed(rule, value) is None)


def is_drawn(name: str) -> bool:
    """Whether a key is drawn by its rule alone."""
    return name.split(".")[0] not in _OF_ENDS and name not in _MADE and "reward" not in name


@st.composite
def configs(draw, methods: tuple[str, ...] = FIELDS["method"].names) -> ConfigDict:
    """Valid configurations, checked, that suit the devices of the tests."""
    config = base.get_config()
    config.method = draw(st.sampled_from(methods))
    for name in filter(is_drawn, FIELDS):
        _put(config, name, draw(values(name)))
    config.enot.num_steps += 1  # Of one step none is left for the potential.
    _draw_ends(draw, config)
    return _repaired(draw, config)


def _put(config: ConfigDict, name: str, value: Any) -> None:
    section, _, leaf = name.rpartition(".")
    (validation.get(config, section) if section else config)[leaf] = value


# ---- The ends, which have to fit each other and the method


def _draw_ends(draw, config: ConfigDict) -> None:
    method = config.method
    source, target = draw(_accesses(method))
    config.source.access, config.target.access = source, target
    if "energy" in (source, target):
        config.ipf.start_from = "reference"  # The other is fitted to samples.
    # Of particles, see below.
    equivariant, config.network.equivariant = config.network.equivariant, False
    generative = method in fields.OF_GENERATIVE_MODELS and draw(st.booleans())
    if method == "diffusion" or generative:
        config.target.access = "samples"
        _make_noisy(draw, config)
    if method in fields.COUPLING_OF_METHOD and draw(_rarely):
        _draw_snapshots(draw, config)
    elif draw(_rarely) and not (generative or method in ("sampler", "diffusion")):
        _draw_pair(draw, config)
    else:
        _draw_endpoints(draw, config, noisy=generative or method == "diffusion")
        particles = ends.build_end(config.target).particles
        config.network.equivariant = equivariant and particles is not None
    if method == "fine_tuning":
        config.fine_tuning.base = "diffusion" if generative else "other"
        if not generative:
            # What a bridge is not tuned with.
            config.fine_tuning.noise = 1.0
            config.fine_tuning.loss = draw(
                st.sampled_from(FIELDS["fine_tuning.loss"].names[1:])
            )
        dim = ends.build_ends(config).source.dim
        config.fine_tuning.reward = draw(_end(dim, "energy"))


_rarely = st.integers(0, 4).map(lambda number: number == 0)


def _accesses(method: str) -> st.SearchStrategy[tuple[str, str]]:
    access = st.sampled_from(FIELDS["source.access"].names)
    samples, energy = st.just("samples"), st.just("energy")
    if method == "ipf":
        return st.tuples(access, access)
    if method in fields.FROM_ENERGY:
        return st.tuples(samples, energy)
    return st.tuples(samples, access if method == "fine_tuning" else samples)


def _draw_endpoints(draw, config: ConfigDict, noisy: bool) -> None:
    config.target.update(draw(_end(None, config.target.access)))
    dim = ends.build_end(config.target).dim
    if noisy:
        config.source.update(_noise(config, dim))
    elif config.method == "sampler":
        options = {
            "dim": dim,
            "mean": draw(of_endpoints.real),
            "std": draw(st.floats(0.1, 3.0)),
        }
        config.source.update(name="gaussian", options=options)
    else:
        config.source.update(draw(_end(dim, config.source.access)))


@st.composite
def _end(draw, dim: int | None, access: str) -> dict[str, Any]:
    """Name and options of an endpoint that offers an access, of some dimension or any."""
    names = [n for n in _offering(access) if dim is None or _can_have(n, dim)]
    name = draw(st.sampled_from(names))
    own = draw(st.sampled_from(of_endpoints.dims(name))) if dim is None else dim
    options = draw(of_endpoints.options(name, own))
    if access == "energy" and options.get("noise") == 0.0:
        options["noise"] = 0.1  # Without noise there is none.
    return {"name": name, "options": ConfigDict(options)}


@functools.cache
def _offering(access: str) -> tuple[str, ...]:
    needed = {"gaussian_mixture": {"means": [[0.0, 0.0]], "stds": 1.0}}
    made = {name: make_endpoint(name, **needed.get(name, {})) for name in ENDPOINTS}
    return tuple(
        name
        for name, end in made.items()
        if (end.sample if access == "samples" else end.log_density) is not None
    )


def _can_have(name: str, dim: int) -> bool:
    # Those that have any may have more than are tried.
    return dim in of_endpoints.dims(name) or of_endpoints.dims(name) == of_endpoints.ANY


def _make_noisy(draw, config: ConfigDict) -> None:
    """A reference that makes noise of data in the time of the grid."""
    config.reference.reversed = config.reference.name.startswith("variance_")
    config.reference.discretisation = "exact"
    config.grid.t_max = draw(st.floats(1.0, 3.0))
    config.reference.rate = draw(st.floats(3.1, 6.0))
    config.reference.beta_max = draw(st.floats(15.0, 25.0))


def _noise(config: ConfigDict, dim: int) -> dict[str, Any]:
    """The Gaussian that the reference makes of data."""
    plain = config.copy_and_resolve_references()
    plain.reference.reversed = False
    flat = plain.reference.name in ("brownian", "variance_exploding")
    # The others come to rest.
    horizon = plain.grid.t_max if flat else 1e3
    std = float(ends.build_reference(plain).variance(0.0, horizon)) ** 0.5
    return {"name": "gaussian", "options": ConfigDict({"dim": dim, "std": std})}


def _draw_pair(draw, config: ConfigDict) -> None:
    config.source.name = config.target.name = "pair"
    # Of one of the pairs the target has no energy.
    names = (
        FIELDS["pair.name"].names[1:] if config.target.access == "samples" else ("mixtures",)
    )
    config.pair.name = draw(st.sampled_from(names))
    options = {
        "num_components": st.integers(1, 3),
        "separation": of_endpoints.positive,
        "std": of_endpoints.positive,
        "seed": of_endpoints.seeds,
    }
    dim = {"dim": st.integers(2, 3)}
    config.pair.options = ConfigDict(draw(st.fixed_dictionaries(dim, optional=options)))


def _draw_snapshots(draw, config: ConfigDict) -> None:
    config.source.name = config.target.name = "snapshots"
    config.snapshots.name = draw(st.sampled_from(FIELDS["snapshots.name"].names[1:]))
    num = draw(st.integers(3, 4))
    if config.snapshots.name == "gapminder":
        years = st.lists(st.sampled_from(range(1952, 2008, 5)), min_size=num, max_size=num)
        options = {"years": sorted(draw(years.filter(lambda given: len(set(given)) == num)))}
    else:
        options = {"num_snapshots": num} | draw(
            st.fixed_dictionaries({}, optional=_OPTIONS_OF_SNAPSHOTS[config.snapshots.name])
        )
    config.snapshots.options = ConfigDict(options)
    config.snapshots.left_out = draw(st.sampled_from((-1, *range(1, num - 1))))
    config.grid.num_steps = (num - 1) * draw(st.integers(1, 2))


_OPTIONS_OF_SNAPSHOTS: dict[str, dict[str, st.SearchStrategy]] = {
    "branching": {"dim": st.integers(2, 4)},
    "regulatory": {
        "circuit": st.sampled_from(("myeloid", "random")),
        "noise": st.floats(0.05, 1.0),
        "spread": st.floats(0.05, 1.0),
        "num_cells": st.integers(2, 20),
        "seed": of_endpoints.seeds,
    },
}


# ---- Repair


def refused(config: ConfigDict) -> str | None:
    """Why a configuration is refused before anything is compiled, None if it is not."""
    try:
        METHODS[config.method].check(validation.validate(config))
    except (InputError, ValueError) as error:
        return one_line(error)
    return None


def named(message: str) -> str:
    """The key that a refusal names."""
    return re.match(r"[\w.]+", message).group()


def _repaired(draw, config: ConfigDict) -> ConfigDict:
    for count in range(_REPAIRS):
        message = _broken(config) or refused(config)
        if message is None:
            event(f"repairs: {count}")
            return validation.validate(config)
        name = named(message)
        fitting = _fitting(config, name) if name in FIELDS and is_drawn(name) else []
        if not fitting:
            break
        _put(config, name, draw(st.sampled_from(fitting)))
    event(f"given up: {message[:90]}")
    reject()


def _broken(config: ConfigDict) -> str | None:
    """As `refused`, by the relations and the devices alone: without building the ends."""
    try:
        for relations in (RELATIONS_OF_ENDS, RELATIONS_OF_METHODS, RELATIONS):
            validation.check_relations(config, relations)
        METHODS[config.method].check(config)
    except (InputError, ValueError) as error:
        return one_line(error)
    return None


def _fitting(config: ConfigDict, name: str) -> list[Any]:
    """The values of a key with which it is not what is refused."""
    rule, found = FIELDS[name], []
    most = DEVICES * 8 if name in _SHARED else _MOST.get(name, 6)
    small = {bool: (False, True), int: range(most + 1)}
    candidates = rule.names or small.get(rule.kind, (DEFAULTS[name],))
    for value in filter(rule.holds, candidates):
        trial = config.copy_and_resolve_references()
        _put(trial, name, value)
        message = _broken(trial)
        if message is None or named(message) != name:
            found.append(value)
    return found


# ---- What is wrong


def broken_values(name: str, *, as_text: bool = False) -> st.SearchStrategy:
    """Values that a key by itself may not have; with `as_text`, not as text either."""
    rule = FIELDS[name]
    odd = [-3, -1, 1.5, math.nan, math.inf, -math.inf, 10**400, -(10**400), "three", ""]
    if not as_text:
        odd += [None, True, 3, [1, 2], ()]
    found = [st.sampled_from([value for value in odd if not rule.holds(value)])]
    for bound, sign in zip(rule.bounds, (-1, -1, 1, 1), strict=True):
        if bound is not None:
            beyond = st.floats(1e-3, 100.0) if rule.kind is float else st.integers(1, 100)
            found.append(beyond.map(functools.partial(_beyond, rule.kind(bound), sign)))
    if rule.names:
        found.append(misspelt(rule.names))
    return st.one_of(found)


def _beyond(bound: float, sign: int, distance: float) -> float:
    return bound + sign * distance


@st.composite
def misspelt(draw, names: tuple[str, ...]) -> str:
    """One of some names with a slip: a letter dropped, doubled, or swapped with the next."""
    name = draw(st.sampled_from(names))
    i = draw(st.integers(0, len(name) - 1))
    a, b, rest = name[:i], name[i], name[i + 1 :]
    slip = draw(st.sampled_from((a + rest, a + b + b + rest, a + rest[:1] + b + rest[1:])))
    return slip if slip not in names else name + "x"


def broken(config: ConfigDict, name: str, value: Any) -> ConfigDict:
    """A copy with one key that holds something else, of whatever type."""
    found = ConfigDict(config.to_dict())
    section, _, leaf = name.rpartition(".")
    holder = validation.get(found, section) if section else found
    if leaf in holder:
        del holder[leaf]  # Else it would be made a float, if it is a number in place of one.
    holder[leaf] = value
    return found
