"""What one key of a configuration may hold."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Rule(NamedTuple):
    """What one key may hold.

    Attributes:
        allowed: The end of the sentence "must be ...".
        holds: Whether a value is allowed.
        convert: From an allowed value to the type that the key always has.
    """

    allowed: str
    holds: Callable[[Any], bool]
    convert: Callable[[Any], Any]


def integer(minimum: int, maximum: int | None = None) -> Rule:
    """An integer between the bounds given."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and value >= minimum
            and (maximum is None or value <= maximum)
        )

    limit = "" if maximum is None else f" and ≤ {maximum}"
    return Rule(f"an integer ≥ {minimum}{limit}", holds, int)


def number(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Rule:
    """A finite number between the bounds given."""
    bounds = [
        (sign, bound)
        for sign, bound in ((">", above), ("≥", at_least), ("<", below), ("≤", at_most))
        if bound is not None
    ]

    def holds(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )

    limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds)
    return Rule(f"a number {limits}".rstrip(), holds, float)


def choice(*names: str) -> Rule:
    """One of the names given."""
    quoted = ", ".join(repr(name) for name in names)
    return Rule(f"one of {quoted}" if len(names) > 1 else quoted, lambda v: v in names, str)


def boolean() -> Rule:
    """True or False."""
    return Rule("true or false", lambda value: isinstance(value, bool), bool)


def text() -> Rule:
    """Some text."""
    return Rule("a name in quotes", lambda v: isinstance(v, str) and bool(v), str)


def file_name() -> Rule:
    """The name of a file, or nothing."""
    return Rule("the name of a file, or empty", lambda v: isinstance(v, str), str)


def mapping() -> Rule:
    """Keyword options, checked by the function that they are handed to."""
    return Rule("a ConfigDict", lambda value: isinstance(value, ConfigDict), ConfigDict)
