"""Endpoints by name, for configs and the command line."""

from collections.abc import Callable
from typing import Any

from d2ejax.endpoints.base import Endpoint
from d2ejax.endpoints.checkerboard import checkerboard
from d2ejax.endpoints.curves import s_curve, swiss_roll, two_circles, two_moons
from d2ejax.endpoints.heavy_tails import funnel, student_mixture
from d2ejax.endpoints.lattice import phi4
from d2ejax.endpoints.mixtures import (
    cross,
    eight_gaussians,
    gaussian,
    gaussian_mixture,
    grid_mixture,
    random_mixture,
    ring,
)
from d2ejax.endpoints.options import build_by_name
from d2ejax.endpoints.particle_systems import double_well_particles, lennard_jones
from d2ejax.endpoints.posteriors import log_gaussian_cox, logistic_regression
from d2ejax.endpoints.wells import double_wells, many_well

ENDPOINTS: dict[str, Callable[..., Endpoint]] = {
    "checkerboard": checkerboard,
    "cross": cross,
    "double_well_particles": double_well_particles,
    "double_wells": double_wells,
    "eight_gaussians": eight_gaussians,
    "funnel": funnel,
    "gaussian": gaussian,
    "gaussian_mixture": gaussian_mixture,
    "grid_mixture": grid_mixture,
    "lennard_jones": lennard_jones,
    "log_gaussian_cox": log_gaussian_cox,
    "logistic_regression": logistic_regression,
    "many_well": many_well,
    "phi4": phi4,
    "random_mixture": random_mixture,
    "ring": ring,
    "s_curve": s_curve,
    "student_mixture": student_mixture,
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
    return build_by_name("endpoint", ENDPOINTS, name, (), options)
