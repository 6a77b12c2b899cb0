"""Endpoints by name, for configs and the command line."""

import inspect
from collections.abc import Callable
from typing import Any

from d2ejax.endpoints.base import Endpoint
from d2ejax.endpoints.checkerboard import checkerboard
from d2ejax.endpoints.curves import s_curve, swiss_roll, two_circles, two_moons
from d2ejax.endpoints.mixtures import cross, eight_gaussians, gaussian, gaussian_mixture, ring
from d2ejax.endpoints.options import refuse_unknown

ENDPOINTS: dict[str, Callable[..., Endpoint]] = {
    "checkerboard": checkerboard,
    "cross": cross,
    "eight_gaussians": eight_gaussians,
    "gaussian": gaussian,
    "gaussian_mixture": gaussian_mixture,
    "ring": ring,
    "s_curve": s_curve,
    "swiss_roll": swiss_roll,
    "two_circles": two_circles,
    "two_moons": two_moons,
}


def make_endpoint(name: str, /, **options: Any) -> Endpoint:
    """Builds an endpoint by name; runs no JAX computation.

    Args:
        name: A key of `ENDPOINTS`.
        **options: Keyword arguments of that endpoint.

    Returns:
        The endpoint.

    Raises:
        ValueError: If the name or an option is unknown (the message holds the nearest right
            name), a needed option is missing, or a value has the wrong kind, shape or range.
    """
    refuse_unknown("endpoint", name, ENDPOINTS)
    build = ENDPOINTS[name]
    parameters = inspect.signature(build).parameters
    for option in options:
        refuse_unknown(f"option of endpoint {name!r}", option, parameters)
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"endpoint {name!r} needs the option {option!r}")
    try:
        return build(**options)
    except ValueError as error:
        raise ValueError(f"endpoint {name!r}: {error}") from error
