"""Random valid options of every endpoint of the registry."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from d2ejax.endpoints import ENDPOINTS

ANY = (1, 2, 3, 5)
"""Dimensions of those that have any."""


class Entry(NamedTuple):
    """What an endpoint may be made with.

    Attributes:
        dims: Dimensions to try.
        options: Maps one of these to options that have it, by name.
        needed: Options that it is not made without.
    """

    dims: tuple[int, ...]
    options: Callable[[int], dict[str, st.SearchStrategy]]
    needed: tuple[str, ...] = ()


positive = st.floats(0.05, 20.0)
real = st.floats(-10.0, 10.0)
seeds = st.integers(0, 2**32 - 1)


def _vectors(size: int, values: st.SearchStrategy = real) -> st.SearchStrategy:
    return st.lists(values, min_size=size, max_size=size)


@st.composite
def _covariances(draw, dim: int) -> list[list[float]]:
    factor = np.array([draw(_vectors(dim, st.floats(-2.0, 2.0))) for _ in range(dim)])
    return (factor @ factor.T + draw(st.floats(0.05, 2.0)) * np.eye(dim)).tolist()


def _curves(**more: st.SearchStrategy) -> Entry:
    # Of no noise there is no density.
    noise = st.just(0.0) | st.just(1e-3) | st.floats(1e-3, 2.0)
    frame = {"noise": noise, "scale": positive, "shift": real | _vectors(2)}
    return Entry((2,), lambda dim: frame | more)


def _plane(**options: st.SearchStrategy) -> Entry:
    return Entry((2,), lambda dim: options)


def _field(least: int, **options: st.SearchStrategy) -> Entry:
    """Of side² sites."""
    squares = tuple(side**2 for side in range(least, 4))
    return Entry(squares, lambda dim: {"side": st.just(round(dim**0.5)), **options}, ("side",))


@st.composite
def _mixtures(draw, dim: int) -> dict[str, Any]:
    size = draw(st.integers(1, 4))
    options = {"means": draw(_vectors(size, _vectors(dim)))}
    if draw(st.booleans()):
        per_axis = _vectors(size, _vectors(dim, positive))
        options["stds"] = draw(positive | _vectors(size, positive) | per_axis)
    else:
        options["covariances"] = draw(_covariances(dim) | _vectors(size, _covariances(dim)))
    if draw(st.booleans()):
        options["weights"] = draw(_vectors(size, positive))
    return options


@st.composite
def _gaussians(draw, dim: int) -> dict[str, Any]:
    options = {"dim": dim}
    if draw(st.booleans()):
        options["mean"] = draw(real | _vectors(dim))
    if draw(st.booleans()):
        options["std"] = draw(positive)
    elif draw(st.booleans()):
        options["covariance"] = draw(_covariances(dim))
    return options


def _particles(space_dim: int, dim: int, **options: st.SearchStrategy) -> dict:
    return {"num_particles": st.just(dim // space_dim + 1), **options}


WHOLE: dict[str, Callable[[int], st.SearchStrategy[dict[str, Any]]]] = {
    "gaussian": _gaussians,
    "gaussian_mixture": _mixtures,
}
"""Those whose options hang together, of any dimension."""

ENTRIES: dict[str, Entry] = {
    "checkerboard": _plane(num_squares=st.integers(2, 6), half_width=positive),
    "cross": _plane(std=positive),
    "double_well_particles": Entry(
        (2, 4, 6),
        lambda dim: _particles(
            2,
            dim,
            linear=real,
            quadratic=real,
            quartic=positive,
            offset=positive,
            temperature=positive,
        ),
        ("num_particles",),
    ),
    "double_wells": Entry(
        ANY,
        lambda dim: {
            "dim": st.just(dim),
            "num_wells": st.none() | st.integers(1, dim),
            "separation": positive | st.just(100.0),
        },
        ("dim",),
    ),
    "eight_gaussians": _plane(radius=positive, std=positive),
    "funnel": Entry(
        (2, 3, 5), lambda dim: {"dim": st.just(dim), "std": st.floats(0.1, 4.0)}, ("dim",)
    ),
    "grid_mixture": Entry(
        (2, 3, 5),
        lambda dim: {
            "dim": st.just(dim),
            "side": st.integers(1, 4),
            "spacing": positive,
            "std": positive,
        },
        ("dim",),
    ),
    "lennard_jones": Entry(
        (3, 6, 9),
        lambda dim: _particles(
            3,
            dim,
            epsilon=positive,
            radius=positive,
            oscillator=positive,
            temperature=positive,
            core=st.just(0.0) | st.floats(0.1, 0.9),
        ),
        ("num_particles",),
    ),
    "log_gaussian_cox": _field(2, whitened=st.booleans(), seed=seeds),
    "logistic_regression": Entry(
        (5, 14),
        lambda dim: {"dataset": st.just({5: "iris_1_2", 14: "wine_1_2"}[dim])},
        ("dataset",),
    ),
    "many_well": Entry((2, 4), lambda dim: {"dim": st.just(dim)}, ("dim",)),
    "phi4": _field(3, mass_squared=real, coupling=positive),
    "random_mixture": Entry(
        ANY,
        lambda dim: {
            "dim": st.just(dim),
            "num_modes": st.integers(1, 8),
            "half_width": positive,
            "std": positive,
            "seed": seeds,
        },
        ("dim",),
    ),
    "ring": _plane(num_modes=st.integers(1, 9), radius=positive, std=positive),
    "s_curve": _curves(),
    "student_mixture": Entry(
        ANY,
        lambda dim: {
            "dim": st.just(dim),
            "num_modes": st.integers(1, 8),
            "df": st.floats(0.5, 20.0) | st.just(2.0),
            "half_width": positive,
            "seed": seeds,
        },
        ("dim",),
    ),
    "swiss_roll": _curves(),
    "two_circles": _curves(factor=st.floats(0.05, 0.95)),
    "two_moons": _curves(),
}

assert {*WHOLE, *ENTRIES} == set(ENDPOINTS)


def dims(name: str) -> tuple[int, ...]:
    """Dimensions in which an endpoint is tried."""
    return ANY if name in WHOLE else ENTRIES[name].dims


def options(name: str, dim: int) -> st.SearchStrategy[dict[str, Any]]:
    """Valid options of an endpoint that give it a dimension."""
    if name in WHOLE:
        return WHOLE[name](dim)
    made = ENTRIES[name].options(dim)
    needed = {key: made.pop(key) for key in ENTRIES[name].needed}
    return st.fixed_dictionaries(needed, optional=made)


def names(name: str) -> list[str]:
    """All options of an endpoint."""
    return list(inspect.signature(ENDPOINTS[name]).parameters)
