"""What one key of a configuration may hold."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Bounds(NamedTuple):
    """Limits of a number, None where there is none.

    Attributes:
        above: It is larger than this.
        at_least: It is this or larger.
        below: It is smaller than this.
        at_most: It is this or smaller.
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None

    def hold(self, value: float) -> bool:
        """Whether a number is within them."""
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        signed = zip((">", "≥", "<", "≤"), self, strict=True)
        return " and ".join(
            f"{sign} {bound:.12g}" for sign, bound in signed if bound is not None
        )


class Rule(NamedTuple):
    """What one key may hold.

    Attributes:
        allowed: The end of the sentence "must be ...".
        holds: Whether a value is allowed.
        kind: The type that the key always has, and to which it converts an allowed value.
        bounds: The limits of a number.
        names: All that it may be, if that is one of some names.
    """

    allowed: str
    holds: Callable[[Any], bool]
    kind: type
    bounds: Bounds = Bounds()
    names: tuple[str, ...] = ()


def integer(minimum: int, maximum: int | None = None) -> Rule:
    """An integer between the bounds given."""
    bounds = Bounds(at_least=minimum, at_most=maximum)

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and bounds.hold(value)

    return Rule(f"an integer {bounds}", holds, int, bounds)


def number(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Rule:
    """A finite number between the bounds given."""
    bounds = Bounds(above, at_least, below, at_most)

    def holds(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Unlike `math.isfinite`, it can be asked of integers that are no float.
        return is_number and abs(value) <= sys.float_info.max and bounds.hold(value)

    return Rule(f"a number {bounds}".rstrip(), holds, float, bounds)


def choice(*names: str) -> Rule:
    """One of the names given."""
    quoted = ", ".join(repr(name) for name in names)
    allowed = f"one of {quoted}" if len(names) > 1 else quoted
    return Rule(allowed, lambda v: isinstance(v, str) and v in names, str, names=names)


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


_MOST = 2**31 - 1
_SMALLEST, _LARGEST = 1e-18, 1e18


def size_allowed(rule: Rule, value: Any) -> str | None:
    """What the size of an allowed number has to be, if the device could not bear it.

    Integers count and are lengths, in int32; numbers are squared in float32.

    Returns:
        The end of the sentence "must be ..."; None if nothing is wrong.
    """
    if rule.kind is int and rule.bounds.at_most is None and value > _MOST:
        return f"at most {_MOST}, the largest of int32"
    if rule.kind is float and value and not _SMALLEST <= abs(value) <= _LARGEST:
        return f"from {_SMALLEST:g} to {_LARGEST:g} in size, so that float32 holds its square"
    return None
