"""What a marginal offers: samples, an energy, or both."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from d2ejax.endpoints.options import refuse_unknown
from d2ejax.typing import Array, Key, LogDensity

# Standard deviations from a centre to the rim of an extent: 4e-8 of a Gaussian lies beyond,
# for each axis.
_RIM = 5.5


class Endpoint(NamedTuple):
    """One end of a bridge, described by what is known about it.

    Constants are NumPy arrays, so that building an endpoint runs no JAX computation.

    Attributes:
        name: What it is called in messages and plots.
        dim: Number of coordinates of one point.
        sample: `sample(key, n)` draws float32 points `(n, dim)`; `n` is static.
        log_density: `(dim,) -> ()`, differentiable, with every known constant.
        log_z: log ∫ exp(log_density(x)) dx; 0 when normalised, None when unknown.
        modes: Centres of the modes `(num_modes, dim)`, for mode coverage.
        mode_weights: Mass of each mode `(num_modes,)`.
        moments: Mean `(dim,)` and covariance `(dim, dim)` in float64; set only for a Gaussian.
        particles: Their number and the dimension of their space, where points are coordinates
            of a system of particles without its centre of mass; see `to_positions`.
        extent: (low, high) of a square `[low, high]^dim` that holds all but about 1e-6 of the
            mass; grids and plots cover it.
    """

    name: str
    dim: int
    sample: Callable[[Key, int], Array] | None = None
    log_density: LogDensity | None = None
    log_z: float | None = None
    modes: np.ndarray | None = None
    mode_weights: np.ndarray | None = None
    moments: tuple[np.ndarray, np.ndarray] | None = None
    particles: tuple[int, int] | None = None
    extent: tuple[float, float] = (-3.0, 3.0)


def restrict(endpoint: Endpoint, access: str) -> Endpoint:
    """Leaves only what training may see of an endpoint.

    The modes, their weights and the moments go in either case: they are knowledge for metrics,
    which keep the full endpoint.

    Args:
        endpoint: The full endpoint.
        access: "samples" keeps `sample`; "energy" keeps `log_density` and `log_z`.

    Returns:
        An endpoint in which everything else but the name, `dim`, `particles` and `extent` is
        None.

    Raises:
        ValueError: If `access` is unknown, or is not offered by the endpoint.
    """
    refuse_unknown("access", access, ("samples", "energy"))
    seen = endpoint._replace(modes=None, mode_weights=None, moments=None)
    if access == "samples":
        if endpoint.sample is None:
            raise ValueError(
                f"access = 'samples': endpoint {endpoint.name!r} offers energy only"
                " (it has no sampler); allowed: 'energy'"
            )
        return seen._replace(log_density=None, log_z=None)
    if endpoint.log_density is None:
        raise ValueError(
            f"access = 'energy': endpoint {endpoint.name!r} offers samples only"
            " (it has no log-density); allowed: 'samples'"
        )
    return seen._replace(sample=None)


def sampler(endpoint: Endpoint) -> Callable[[Key, int], Array]:
    """The endpoint's `sample`.

    Raises:
        ValueError: If it has none.
    """
    if endpoint.sample is None:
        raise ValueError(f"endpoint {endpoint.name!r} offers no samples here")
    return endpoint.sample


def log_density(endpoint: Endpoint) -> LogDensity:
    """The endpoint's `log_density`.

    Raises:
        ValueError: If it has none.
    """
    if endpoint.log_density is None:
        raise ValueError(f"endpoint {endpoint.name!r} offers no log-density here")
    return endpoint.log_density


def square_around(centres: np.ndarray, spreads: np.ndarray | float) -> tuple[float, float]:
    """Extent of Gaussian clouds around some centres.

    Args:
        centres: `(num_centres, dim)`.
        spreads: Standard deviations, broadcast against `centres`.

    Returns:
        (low, high) such that `[low, high]^dim` reaches 5.5 deviations beyond each centre.
    """
    reach = _RIM * np.asarray(spreads)
    return float((centres - reach).min()), float((centres + reach).max())
