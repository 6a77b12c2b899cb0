"""Functions of arrays as StableHLO programs: what `jax.export` makes, in bytes and back.

A program is operations on arrays, for XLA to compile. It has no access to Python, to files or
to the network; the one way out of StableHLO are *custom calls*, names of functions within JAX's
own libraries, a Python callback among them. A program with any that is not listed here is
refused, when it is written and when it is read.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import export
from jax.export import Exported

PLATFORMS = ("cpu", "cuda", "tpu")

_CUSTOM_CALLS = frozenset(
    {
        "shape_assertion",  # that the size of a batch is at least one
        "cu_threefry2x32_ffi",  # random bits
        "hip_threefry2x32_ffi",
    }
)
_CUSTOM_CALL = re.compile(r'custom_call(?:\s+@("[^"]*"|[\w.$]+)\()?')

Aval = tuple[tuple[int | str, ...], str]
"""Shape, with "n" for the size of a batch, and dtype."""


def spec(*shape: int | str, dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    """An argument of a program; "n" in its shape is any number of rows."""
    if "n" in shape:
        symbolic = export.symbolic_shape(", ".join(map(str, shape)))
        return jax.ShapeDtypeStruct(symbolic, dtype)
    return jax.ShapeDtypeStruct(shape, dtype)


def write(
    function: Callable, args: Sequence[Any], *, differentiable: bool
) -> tuple[bytes, tuple[str, ...]]:
    """Exports a function, for all platforms that it can be lowered for.

    Args:
        function: Of arrays, or of trees of dicts and tuples of them.
        args: What it takes; see `spec`.
        differentiable: Whether `jax.vjp` is to work on it: its pullback is exported as well,
            if it has one.

    Returns:
        The program, and the platforms.

    Raises:
        ValueError: If it cannot be lowered for any, or has custom calls that are not allowed.
    """
    given = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    try:
        # Every operation would name the line of source that it comes from: no concern of those
        # who get the program, and as long again.
        jax.config.update("jax_traceback_in_locations_limit", 0)
        exported = _export(function, args)
        content = _serialised(exported, int(differentiable))
    finally:
        jax.config.update("jax_traceback_in_locations_limit", given)
    read(content)  # as whoever loads it will
    return content, exported.platforms


def read(content: bytes) -> Exported:
    """A program from its bytes; nothing is compiled or run.

    Raises:
        ValueError: If it cannot be read, or has custom calls that are not allowed.
    """
    try:
        exported = export.deserialize(bytearray(content))
        modules = [level.mlir_module() for level in _with_pullbacks(exported)]
    except Exception as error:  # flatbuffers and MLIR raise whatever they like
        raise ValueError(f"is no program that JAX {jax.__version__} can read") from error
    found = {match.group(1) for text in modules for match in _CUSTOM_CALL.finditer(text)}
    if refused := found - _CUSTOM_CALLS:
        names = sorted(str(name) for name in refused)
        raise ValueError(f"custom calls {names}: must be among {sorted(_CUSTOM_CALLS)}")
    return exported


def _with_pullbacks(exported: Exported) -> Iterator[Exported]:
    yield exported
    while exported.has_vjp():
        exported = exported.vjp()
        yield exported


def signature(avals: Sequence[Any]) -> list[Aval]:
    """Shapes and dtypes of arguments or results."""
    return [
        (tuple(d if isinstance(d, int) else str(d) for d in aval.shape), str(aval.dtype))
        for aval in avals
    ]


def _serialised(exported: Exported, vjp_order: int) -> bytes:
    try:
        return bytes(exported.serialize(vjp_order=vjp_order))
    except Exception as error:  # each primitive refuses in its own way
        if vjp_order:  # A function without a reverse-mode rule is worth having all the same.
            return _serialised(exported, 0)
        raise ValueError(f"cannot be exported: {error}") from error


def _export(function: Callable, args: Sequence[Any]) -> Exported:
    def lowered(platforms: Sequence[str]) -> Exported | Exception:
        try:
            return export.export(jax.jit(function), platforms=platforms)(*args)
        except Exception as error:  # each primitive refuses in its own way
            return error

    found = lowered(PLATFORMS)
    if isinstance(found, Exception):
        works = [p for p in PLATFORMS if not isinstance(lowered((p,)), Exception)]
        if works:
            found = lowered(works)
    if isinstance(found, Exception):
        raise ValueError(f"cannot be exported: {found}") from found
    return found
