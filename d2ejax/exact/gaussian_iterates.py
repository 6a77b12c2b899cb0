"""The iterates of iterative proportional fitting between two Gaussians, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from d2ejax.exact.base import check_horizon, transition
from d2ejax.exact.gaussian_laws import (
    AffineMap,
    GaussianPlan,
    as_plan,
    check_gaussian,
    extend,
    regress,
    swap,
)
from d2ejax.references import Reference


class IPFIterates(NamedTuple):
    """The plans of IPF half-step by half-step, one entry per iteration.

    Attributes:
        backward: Law of (x_0, x_T) of the backward process started in p_1, after the
            backward half-step of each iteration.
        forward: Law of (x_0, x_T) of the forward process started in p_0, after the forward
            half-step of each iteration.
    """

    backward: list[GaussianPlan]
    forward: list[GaussianPlan]


def gaussian_ipf(
    mean_0: ArrayLike,
    cov_0: ArrayLike,
    mean_1: ArrayLike,
    cov_1: ArrayLike,
    reference: Reference,
    t_max: float,
    *,
    num_iterations: int,
) -> IPFIterates:
    """The exact iterates of IPF between two Gaussians.

    The forward process is at first the reference started in p_0. Iteration n is a backward
    half-step, which keeps the forward process's law of x_0 given x_T and replaces the
    marginal at T by p_1, and a forward half-step, which keeps that one's law of x_T given
    x_0 and replaces the marginal at 0 by p_0.

    Args:
        mean_0: (dim,), the mean at time 0.
        cov_0: (dim, dim), the covariance at time 0, positive definite.
        mean_1: (dim,), the mean at time T.
        cov_1: (dim, dim), the covariance at time T, positive definite.
        reference: The reference process.
        t_max: The horizon T > 0.
        num_iterations: Number of pairs of half-steps.

    Returns:
        The plan after every half-step.

    Raises:
        ValueError: If a covariance is not positive definite or t_max is not positive and
            finite.

    Source: De Bortoli et al. (2021), arXiv:2106.01357, section 3.1.
    """
    check_horizon(t_max)
    start, end = check_gaussian(mean_0, cov_0, "0"), check_gaussian(mean_1, cov_1, "1")
    scale, variance = transition(reference, 0.0, t_max)
    eye = np.eye(len(start[0]))
    kernel = (AffineMap(scale * eye, np.zeros(len(start[0]))), variance * eye)
    forward_law = extend(start, *kernel)
    backward, forward = [], []
    for _ in range(num_iterations):
        backward_law = extend(end, *regress(swap(forward_law)))
        forward_law = extend(start, *regress(swap(backward_law)))
        backward.append(as_plan(swap(backward_law)))
        forward.append(as_plan(forward_law))
    return IPFIterates(backward, forward)
