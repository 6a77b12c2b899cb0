"""What the metrics share: estimates with standard errors, and checks of shapes.

Metrics are host-side and in float64, whatever produced their arrays: sums over thousands of
paths in float32 lose the digits that are compared. A batch with NaN in it (a run that diverged)
gives NaN rather than an error.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

HostArray = NDArray[np.float64]


class Estimate(NamedTuple):
    """A Monte-Carlo estimate.

    Attributes:
        value: The estimate.
        standard_error: Its standard deviation under resampling, in the unit of the value.
    """

    value: float
    standard_error: float


def mean_estimate(values: HostArray) -> Estimate:
    """The mean of independent values, with its standard error s / √n.

    Args:
        values: Shape `(n,)`, n ≥ 2, one value for each independent draw.

    Returns:
        The mean; a mean of -inf or +inf has the standard error NaN.
    """
    with np.errstate(invalid="ignore"):
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    return Estimate(mean, spread / len(values) ** 0.5)


def vector(name: str, values: ArrayLike, *, size: int | None = None) -> HostArray:
    """Returns one number for each draw as a float64 vector.

    Args:
        name: Of the argument, for the message.
        values: Shape `(n,)`.
        size: The n that is needed; None for any n ≥ 2, of which a standard error exists.

    Raises:
        ValueError: If the shape is any other; `(n, 1)` too, as it would broadcast to `(n, n)`.
    """
    array = np.asarray(values, dtype=np.float64)
    if size is None and (array.ndim != 1 or len(array) < 2):
        raise ValueError(f"{name} has shape {array.shape}: must be (n,) with n >= 2")
    if size is not None and array.shape != (size,):
        raise ValueError(f"{name} has shape {array.shape}: must be ({size},)")
    return array


def points(name: str, values: ArrayLike, *, like: HostArray | None = None) -> HostArray:
    """Returns a batch of points as a float64 array.

    Args:
        name: Of the argument, for the message.
        values: Shape `(n, dim)`.
        like: Points whose shape is needed; None for any n ≥ 2 and dim ≥ 1.

    Raises:
        ValueError: If the shape is any other.
    """
    array = np.asarray(values, dtype=np.float64)
    if like is not None:
        if array.shape != like.shape:
            raise ValueError(f"{name} has shape {array.shape}: must be {like.shape}")
    elif array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise ValueError(f"{name} has shape {array.shape}: must be (n, dim) with n >= 2")
    return array
