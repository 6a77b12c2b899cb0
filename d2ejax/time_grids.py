"""Discretisations of the time interval [0, T]."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from d2ejax.typing import Array


class TimeGrid(NamedTuple):
    """Times 0 = t_0 < ... < t_K = T.

    Attributes:
        times: Shape `(num_steps + 1,)`, in the time unit of the reference process.
    """

    times: Array

    @property
    def num_steps(self) -> int:
        """The number K of steps."""
        return self.times.shape[0] - 1

    @property
    def steps(self) -> Array:
        """Step lengths Δ_k = t_{k+1} - t_k, shape `(num_steps,)`."""
        return self.times[1:] - self.times[:-1]

    @property
    def t_max(self) -> Array:
        """The final time T."""
        return self.times[-1]


def uniform(num_steps: int, t_max: float) -> TimeGrid:
    """Equal steps: t_k = T k / K.

    Args:
        num_steps: The number K of steps, at least 1.
        t_max: The final time T > 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    return end_refined(num_steps, t_max, power=1.0)


def end_refined(num_steps: int, t_max: float, *, power: float = 2.0) -> TimeGrid:
    """Steps that shrink towards t = T, where a bridge's drift is stiff.

    t_k = T (1 - (1 - k / K)^power). Power 1 is the uniform grid; with power 2 the last step
    has length T / K², a factor K shorter than a uniform one.

    Args:
        num_steps: The number K of steps, at least 1.
        t_max: The final time T > 0.
        power: How strongly to refine, at least 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 1 <= power < math.inf:
        raise ValueError(f"power = {power}: must be ≥ 1 and finite")
    return _from_fractions(1.0 - (1.0 - _fractions(num_steps)) ** power, t_max)


def cosine(num_steps: int, t_max: float) -> TimeGrid:
    """Steps that shrink towards both ends: t_k = T (1 - cos(π k / K)) / 2.

    Args:
        num_steps: The number K of steps, at least 1.
        t_max: The final time T > 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    return _from_fractions((1.0 - np.cos(np.pi * _fractions(num_steps))) / 2.0, t_max)


def _fractions(num_steps: int) -> np.ndarray:
    if num_steps < 1 or num_steps != int(num_steps):
        raise ValueError(f"num_steps = {num_steps}: must be a whole number ≥ 1")
    return np.arange(num_steps + 1) / num_steps


def _from_fractions(fractions: np.ndarray, t_max: float) -> TimeGrid:
    if not 0 < t_max < math.inf:
        raise ValueError(f"t_max = {t_max}: must be > 0 and finite")
    # Formed in float64: near T the steps are far smaller than the times themselves.
    times = (fractions * t_max).astype(np.float32)
    if not np.all(np.diff(times) > 0):
        raise ValueError(
            f"num_steps = {len(times) - 1}: steps this fine vanish in float32; "
            "use fewer steps or a smaller power"
        )
    return TimeGrid(jnp.asarray(times))
