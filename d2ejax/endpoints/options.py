"""Checks of the options an endpoint is built from; all errors name option and value."""

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

Built = TypeVar("Built")


def finite(name: str, value: Any) -> float:
    """Returns `value` as a float; raises ValueError unless it is a finite number."""
    # A bool is an int to Python, but `std=True` is a slip.
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ValueError(f"{name} = {value!r} is not allowed: must be a finite number")
    return float(value)


def positive(name: str, value: Any) -> float:
    """Returns `value` as a float; raises ValueError unless it is finite and above zero."""
    if not finite(name, value) > 0.0:
        raise ValueError(f"{name} = {value!r} is not allowed: must be above zero")
    return float(value)


def integer(name: str, value: Any, *, minimum: int) -> int:
    """Returns `value` as an int; raises ValueError unless it is one, and >= `minimum`."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < minimum:
        raise ValueError(f"{name} = {value!r} is not allowed: must be an integer >= {minimum}")
    return int(value)


def array(name: str, value: Any, *, ndims: tuple[int, ...]) -> np.ndarray:
    """Returns numbers, sequences or arrays as a float64 array.

    Args:
        name: Of the option, for the message.
        value: Number, nested sequence or array.
        ndims: Allowed numbers of axes.

    Returns:
        A new float64 array.

    Raises:
        ValueError: If it is not an array of finite numbers with an allowed number of axes, or
            if it is empty.
    """
    allowed = " or ".join(str(ndim) for ndim in ndims)
    message = (
        f"{name} = {value!r} is not allowed: must hold finite numbers in {allowed} dimension(s)"
    )
    try:
        # Without a dtype here, strings and booleans would be turned into numbers.
        raw = np.asarray(value)
    except ValueError as error:
        raise ValueError(message) from error
    good = raw.dtype.kind in "iuf" and raw.ndim in ndims and raw.size > 0
    if not good or not np.isfinite(raw).all():
        raise ValueError(message)
    return raw.astype(np.float64)


def refuse_unknown(what: str, name: Any, allowed: Iterable[str]) -> None:
    """Raises ValueError unless `name` is allowed, with the nearest right name."""
    names = sorted(allowed)
    if name in names:
        return
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {what} {name!r}: {hint}allowed: {', '.join(names) or 'none'}")


def build_by_name(
    what: str,
    table: Mapping[str, Callable[..., Built]],
    name: str,
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
) -> Built:
    """Calls the entry of a table, every error naming the entry and what is allowed.

    Args:
        what: What the table holds, for messages.
        table: Functions by name.
        name: A key of the table.
        arguments: The first arguments of the function, which are no options.
        options: Its other arguments.

    Returns:
        What the function returns.

    Raises:
        ValueError: If the name or an option is unknown, a needed option is missing, or the
            function refuses a value.
    """
    refuse_unknown(what, name, table)
    build = table[name]
    parameters = list(inspect.signature(build).parameters.values())[len(arguments) :]
    for option in options:
        refuse_unknown(f"option of {what} {name!r}", option, [p.name for p in parameters])
    for parameter in parameters:
        if parameter.default is inspect.Parameter.empty and parameter.name not in options:
            raise ValueError(f"{what} {name!r} needs the option {parameter.name!r}")
    try:
        return build(*arguments, **options)
    except ValueError as error:
        raise ValueError(f"{what} {name!r}: {error}") from error
