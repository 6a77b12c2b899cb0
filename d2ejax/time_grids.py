"""Discretisations of the time interval [0, T]."""

import itertools
import math
from collections.abc import Callable, Sequence
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


def through(stops: Sequence[float], make: Callable[[float], TimeGrid]) -> TimeGrid:
    """A grid that has some times among its points, made piece by piece.

    Args:
        stops: 0 = s_0 < s_1 < ... < s_m = T.
        make: Maps the length of a piece, from one of them to the next, to its grid.

    Raises:
        ValueError: If the stops do not begin at 0 and increase, or a piece cannot be made.
    """
    if len(stops) < 2 or stops[0] != 0 or any(b <= a for a, b in itertools.pairwise(stops)):
        raise ValueError(f"stops = {tuple(stops)}: must begin at 0 and increase")
    times = [np.zeros(1)]
    for start, end in itertools.pairwise(stops):
        times.append(start + np.asarray(make(end - start).times[1:], np.float64))
        times[-1][-1] = end
    return _from_times(np.concatenate(times))


def cut(grid: TimeGrid, knots: Sequence[int]) -> tuple[TimeGrid, ...]:
    """The pieces of a grid between some of its points.

    Args:
        grid: The grid.
        knots: Which of its points between the first and the last, counted from 0; ascending.

    Returns:
        One piece more than knots; all but the first start later than at 0.

    Raises:
        ValueError: If the knots do not increase, or are not between the ends of the grid.
    """
    edges = [0, *knots, grid.num_steps]
    if any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"knots = {tuple(knots)}: must increase, from 1 to {grid.num_steps - 1} at most"
        )
    return tuple(TimeGrid(grid.times[a : b + 1]) for a, b in itertools.pairwise(edges))


def _fractions(num_steps: int) -> np.ndarray:
    if num_steps < 1 or num_steps != int(num_steps):
        raise ValueError(f"num_steps = {num_steps}: must be a whole number ≥ 1")
    return np.arange(num_steps + 1) / num_steps


def _from_fractions(fractions: np.ndarray, t_max: float) -> TimeGrid:
    if not 0 < t_max < math.inf:
        raise ValueError(f"t_max = {t_max}: must be > 0 and finite")
    # Formed in float64: near T the steps are far smaller than the times themselves.
    return _from_times(fractions * t_max)


def _from_times(exact: np.ndarray) -> TimeGrid:
    times = exact.astype(np.float32)
    if not np.all(np.diff(times) > 0):
        raise ValueError(
            f"num_steps = {len(times) - 1}: steps this fine vanish in float32; "
            "use fewer steps or a smaller power"
        )
    return TimeGrid(jnp.asarray(times))
