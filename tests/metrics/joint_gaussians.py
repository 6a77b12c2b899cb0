"""Laws of whole 1-D Gaussian chains as joint Gaussians: oracles made of matrices only."""

from typing import NamedTuple

import numpy as np


class Joint(NamedTuple):
    mean: np.ndarray
    covariance: np.ndarray


def chain(mean, variance, steps):
    """The law of a chain from N(mean, variance); steps are (slope, shift, variance)."""
    slopes, shifts, variances = np.array(steps).T
    size = len(slopes) + 1
    # A x = c + noise with a bidiagonal A.
    solve = np.linalg.inv(np.eye(size) - np.diag(slopes, -1))
    noise = np.diag([variance, *variances])
    return Joint(solve @ np.array([mean, *shifts]), solve @ noise @ solve.T)


def reverse(joint):
    """The same law with the order of time reversed."""
    return Joint(joint.mean[::-1], joint.covariance[::-1, ::-1])


def kl_divergence(p, q):
    precision = np.linalg.inv(q.covariance)
    shift = q.mean - p.mean
    log_determinants = np.linalg.slogdet(q.covariance)[1] - np.linalg.slogdet(p.covariance)[1]
    trace = np.trace(precision @ p.covariance)
    return 0.5 * (trace + shift @ precision @ shift - len(shift) + log_determinants)
