"""Processes of which no path is seen, only samples at some times: snapshots.

Two of them are the ends of a bridge. More are what is known of cells that are destroyed to be
measured, or of anybody who is asked once: the bridge through all of them, of a reference
without memory, is made of the bridges from one to the next (Lavenant et al. 2024,
arXiv:2102.09204).
Leaving one out says how well it interpolates (Tong et al. 2024, arXiv:2307.03672).
"""

import csv
import gzip
import importlib.metadata
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax import circuits
from d2ejax.circuits import Circuit
from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint, square_around
from d2ejax.typing import Array, Key


class Snapshots(NamedTuple):
    """A process as it is observed.

    Attributes:
        times: 0 = t_0 < ... < t_m = T, in the time unit of the reference process.
        marginals: What is known about the process at each of them: samples.
        labels: What each time is called.
        tracks: Individuals that were followed after all, `(num_individuals, m + 1, dim)`, to
            judge by; None where there is none.
        circuit: What drives the process, where its graph is known, to judge by.
    """

    times: tuple[float, ...]
    marginals: tuple[Endpoint, ...]
    labels: tuple[str, ...]
    tracks: np.ndarray | None = None
    circuit: Circuit | None = None


# The wells of the branching process, in units of time where it takes one: the centres of each
# at the knots. All are one until the first fork, the last two until the second; the first is
# the same to both of its sides.
_KNOTS = np.asarray([0.0, 0.25, 0.6, 1.0], np.float32)
_WELLS = np.asarray(
    [
        [[-2.0, 0.0], [-1.0, 0.0], [0.4, 1.0], [2.0, 1.4]],
        [[-2.0, 0.0], [-1.0, 0.0], [0.4, -1.0], [2.0, -0.1]],
        [[-2.0, 0.0], [-1.0, 0.0], [0.4, -1.0], [2.0, -1.9]],
    ],
    np.float32,
)
_WEIGHTS = np.asarray([0.5, 0.25, 0.25], np.float32)
_PULL, _NOISE, _REACH = 10.0, 1.0, 0.4
_STD = _NOISE / (2.0 * _PULL) ** 0.5
_STEPS = 200


def branching(t_max: float, *, dim: int = 2, num_snapshots: int = 5) -> Snapshots:
    """A population that moves along a valley which forks, and one of whose arms forks again.

    dX = -∇V(X, t) dt + dW in units of time where it takes one, with the moving wells c_b(t) of

        V(x, t) = -κ r² log Σ_b w_b exp(-‖x - c_b(t)‖² / 2r²),   κ = 10, r = 0.4:

    everybody is drawn to the wells that are near. They are one at first and part at 0.25; one
    of the two, which half of all follow, parts again at 0.6. Samples are fresh at every draw,
    by 200 steps of Euler and Maruyama in a unit of time; further coordinates than the two of
    the wells are noise around zero, as wide as a well.

    Args:
        t_max: The horizon T > 0, which the unit of time is stretched to.
        dim: Number of coordinates, at least 2.
        num_snapshots: Observed times, evenly spread over [0, T], at least 3.

    Returns:
        The snapshots; samples alone.

    Raises:
        ValueError: If an option is out of range.
    """
    horizon = options.positive("t_max", t_max)
    dim = options.integer("dim", dim, minimum=2)
    num = options.integer("num_snapshots", num_snapshots, minimum=3)
    shares = [i / (num - 1) for i in range(num)]

    def marginal(share: float) -> Endpoint:
        return Endpoint(
            name=f"branching at {share * horizon:.3g}",
            dim=dim,
            sample=partial(_branching_sample, share=share, dim=dim),
            extent=square_around(_WELLS.reshape(-1, 2), _STD),
        )

    return Snapshots(
        times=tuple(share * horizon for share in shares),
        marginals=tuple(map(marginal, shares)),
        labels=tuple(f"t = {share * horizon:.3g}" for share in shares),
    )


# Jitted, so that what is drawn outside of a compiled function is not compiled at every draw.
@partial(jax.jit, static_argnames=("n", "share", "dim"))
def _branching_sample(key: Key, n: int, *, share: float, dim: int) -> Array:
    """The branching process at a share of its time, `(n, dim)`."""
    start_key, path_key = jax.random.split(key)
    x = _STD * jax.random.normal(start_key, (n, dim)) + _wells(jnp.zeros(()), dim)[:1]
    steps = round(_STEPS * share)
    if not steps:
        return x
    length = share / steps

    def advance(x: Array, inputs: tuple[Array, Key]) -> tuple[Array, None]:
        t, step_key = inputs
        noise = _NOISE * length**0.5 * jax.random.normal(step_key, x.shape)
        return x + length * jax.vmap(_branching_drift, (0, None))(x, t) + noise, None

    times = length * jnp.arange(steps, dtype=x.dtype)
    return jax.lax.scan(advance, x, (times, jax.random.split(path_key, steps)))[0]


def _branching_drift(x: Array, t: Array) -> Array:
    centres = _wells(t, x.shape[0])
    squares = jnp.sum(jnp.square(x[None] - centres), axis=1)
    shares = jax.nn.softmax(jnp.log(jnp.asarray(_WEIGHTS)) - squares / (2.0 * _REACH**2))
    return _PULL * (shares @ centres - x)


def _wells(t: Array, dim: int) -> Array:
    """The centres of the wells at a time, `(3, dim)`."""
    knots, paths = jnp.asarray(_KNOTS), jnp.asarray(_WELLS)
    along = jax.vmap(jax.vmap(lambda values: jnp.interp(t, knots, values), 1), 0)(paths)
    return jnp.pad(along, ((0, 0), (0, dim - 2)))


_GAPMINDER = "plotly/package_data/datasets/gapminder.csv.gz"


def gapminder(
    t_max: float, *, years: Sequence[int] = (1957, 1967, 1977, 1987, 1997, 2007)
) -> Snapshots:
    """The wealth and health of 142 countries, year by year: data that the package plotly ships.

    The coordinates are the decimal logarithm of the domestic product per head and the life
    expectancy at birth, less their mean over the countries in the first of the years, in units
    of their deviation there. A snapshot does not say which country is which; the tracks do.
    Its law is that of a country drawn at random.

    Args:
        t_max: The horizon T > 0, the time of the last of the years; the first is at 0.
        years: At least three of 1952, 1957, ..., 2007, ascending.

    Returns:
        The snapshots, with tracks: samples alone.

    Raises:
        ValueError: If an option is out of range, or plotly is not installed.

    Source: gapminder.org, CC BY 4.0.
    """
    horizon = options.positive("t_max", t_max)
    known, countries = _countries()
    if not isinstance(years, Sequence) or isinstance(years, str):
        raise ValueError(f"years = {years!r} is not allowed: must be a sequence of years")
    chosen = [options.integer("years", year, minimum=0) for year in years]
    if len(chosen) < 3 or chosen != sorted(set(chosen) & set(known)):
        raise ValueError(
            f"years = {tuple(years)} is not allowed: must be at least three of {known}, "
            "in order"
        )
    points = countries[:, [known.index(year) for year in chosen]]
    tracks = (points - points[:, 0].mean(axis=0)) / points[:, 0].std(axis=0)
    tracks = tracks.astype(np.float32)

    def marginal(index: int) -> Endpoint:
        return Endpoint(
            name=f"countries in {chosen[index]}",
            dim=tracks.shape[-1],
            sample=partial(_draw_rows, rows=tracks[:, index]),
            extent=(float(tracks.min()) - 1.0, float(tracks.max()) + 1.0),
        )

    span = chosen[-1] - chosen[0]
    return Snapshots(
        times=tuple(horizon * (year - chosen[0]) / span for year in chosen),
        marginals=tuple(map(marginal, range(len(chosen)))),
        labels=tuple(map(str, chosen)),
        tracks=tracks,
    )


def _countries() -> tuple[list[int], np.ndarray]:
    """The years, and log10 of the product per head and the life expectancy in each of them.

    Returns:
        `(num_years,)`, and `(num_countries, num_years, 2)` in the order of the years.

    Raises:
        ValueError: If plotly is not installed.
    """
    try:
        # Its file alone: importing the package would take longer than reading it.
        path = importlib.metadata.distribution("plotly").locate_file(_GAPMINDER)
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            "its data come with the package plotly, which is not installed: pip install plotly"
        ) from error
    found: dict[str, dict[int, tuple[float, float]]] = {}
    with gzip.open(str(path), "rt", newline="") as file:
        for row in csv.DictReader(file):
            values = np.log10(float(row["gdpPercap"])), float(row["lifeExp"])
            found.setdefault(row["country"], {})[int(row["year"])] = values
    years = sorted(next(iter(found.values())))
    return years, np.asarray([[track[year] for year in years] for track in found.values()])


def _draw_rows(key: Key, n: int, *, rows: np.ndarray) -> Array:
    return jnp.asarray(rows)[jax.random.randint(key, (n,), 0, len(rows))]


CIRCUITS = ("myeloid", "random")


def regulatory(
    t_max: float,
    *,
    circuit: str = "myeloid",
    noise: float = 0.2,
    spread: float = 0.3,
    num_snapshots: int = 9,
    num_cells: int = 500,
    seed: int = 0,
) -> Snapshots:
    """Simulated expression of genes that regulate each other, in cells that are seen once.

    See `d2ejax.circuits`. The cells are as many as were measured: samples are drawn from them.

    Args:
        t_max: The horizon T > 0, in lifetimes of what the genes make.
        circuit: "myeloid", eleven genes by which blood cells choose their lineage, or "random",
            ten genes with two regulators each.
        noise: σ > 0, per square root of a lifetime: what the reference's should be.
        spread: Standard deviation of the cells around the circuit's start at time 0, > 0.
        num_snapshots: Observed times, evenly spread over [0, T], at least 3.
        num_cells: Cells in each snapshot, at least 2.
        seed: Of the cells, and of the random circuit.

    Returns:
        The snapshots, with their circuit: samples alone.

    Raises:
        ValueError: If an option is out of range.
    """
    horizon = options.positive("t_max", t_max)
    options.refuse_unknown("circuit", circuit, CIRCUITS)
    num = options.integer("num_snapshots", num_snapshots, minimum=3)
    cells = options.integer("num_cells", num_cells, minimum=2)
    seed = options.integer("seed", seed, minimum=0)
    made = _circuit(circuit, seed)
    times = tuple(horizon * i / (num - 1) for i in range(num))
    given = {"noise": options.positive("noise", noise)}
    given["spread"] = options.positive("spread", spread)
    draw = partial(_simulated, circuit, seed, times, cells, **given)

    def marginal(index: int) -> Endpoint:
        def sample(key: Key, n: int) -> Array:
            return _draw_rows(key, n, rows=draw()[index])

        name = f"{circuit} circuit at {times[index]:.3g}"
        return Endpoint(name, made.dim, sample=sample, extent=(-1.0, 2.0))

    return Snapshots(
        times=times,
        marginals=tuple(map(marginal, range(num))),
        labels=tuple(f"t = {time:.3g}" for time in times),
        circuit=made,
    )


def _circuit(name: str, seed: int) -> Circuit:
    if name == "myeloid":
        return circuits.myeloid()
    return circuits.random_circuit(np.random.default_rng([seed, 0]))


@lru_cache(maxsize=4)
def _simulated(
    name: str, seed: int, times: tuple[float, ...], num_cells: int, **given: float
) -> np.ndarray:
    """The cells, `(num_times, num_cells, dim)`; not before anybody asks, and then once."""
    generator = np.random.default_rng([seed, 1])
    cells = circuits.simulate(generator, _circuit(name, seed), times, num_cells, **given)
    return cells.astype(np.float32)


SNAPSHOTS: dict[str, Callable[..., Snapshots]] = {
    "branching": branching,
    "gapminder": gapminder,
    "regulatory": regulatory,
}


def make_snapshots(name: str, t_max: float, /, **options_: Any) -> Snapshots:
    """Builds snapshots by name.

    Args:
        name: A key of `SNAPSHOTS`.
        t_max: The horizon T.
        **options_: Keyword arguments of that process.

    Returns:
        The snapshots.

    Raises:
        ValueError: If the name or an option is unknown (the message holds the nearest right
            name), or a value has the wrong kind or range.
    """
    return options.build_by_name("snapshots", SNAPSHOTS, name, (t_max,), options_)
