"""Convolutions that are as fast within a loop as outside of it, also on a CPU.

XLA brings convolutions to the one order of axes that its CPU kernels know, but does so in the
outermost computation only. The gradients of a convolution come in other orders, and inside a
`lax.scan` they fall back to naive loops, which makes a training step seven times as slow. Here
they are written in that order to begin with.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from d2ejax.typing import Array

_ORDER = ("NHWC", "HWIO", "NHWC")


class _Window(NamedTuple):
    """Of a convolution over two axes; hashable."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    lhs_dilation: tuple[int, int]
    rhs_dilation: tuple[int, int]


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """`jax.lax.conv_general_dilated` for images, to be handed to `flax.linen.Conv`.

    Differentiable in reverse mode, any number of times. Under `vmap` the gradient with respect
    to a kernel that all examples share is computed once for each of them: give a batch as a
    batch.

    Args:
        lhs: Images, `(n, height, width, channels_in)`.
        rhs: The kernel, `(rows, columns, channels_in, channels_out)`.
        window_strides: Two strides.
        padding: "SAME", "VALID" or two pairs.
        lhs_dilation: Two dilations of the images.
        rhs_dilation: Two dilations of the kernel.
        dimension_numbers: Must be those above, which are flax's.
        feature_group_count: Must be one.
        precision: Must be None.

    Returns:
        `(n, new_height, new_width, channels_out)`.

    Raises:
        ValueError: If one of the last three is another.
    """
    order = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, _ORDER)
    given = order if dimension_numbers is None else dimension_numbers
    if jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, given) != order:
        raise ValueError(f"dimension_numbers = {given} is not allowed: must be {_ORDER}")
    if feature_group_count != 1 or precision is not None:
        raise ValueError(
            f"feature_group_count = {feature_group_count} and precision = {precision} are not "
            "allowed: must be 1 and None"
        )
    if isinstance(padding, str):
        dilated = [1 + (n - 1) * d for n, d in zip(rhs.shape[:2], rhs_dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], dilated, window_strides, padding)
    first, second = ((int(low), int(high)) for low, high in padding)
    window = _Window(
        _two(window_strides), (first, second), _two(lhs_dilation), _two(rhs_dilation)
    )
    return _convolve(lhs, rhs, window)


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(lhs: Array, rhs: Array, window: _Window) -> Array:
    return jax.lax.conv_general_dilated(
        lhs,
        rhs,
        window.strides,
        window.padding,
        lhs_dilation=window.lhs_dilation,
        rhs_dilation=window.rhs_dilation,
        dimension_numbers=_ORDER,
    )


@jax.tree_util.register_static
class _Sizes(NamedTuple):
    """Of the images; no array."""

    sizes: tuple[int, int]


def _forward(lhs: Any, rhs: Any, window: _Window) -> tuple[Array, Any]:
    # The gradient of a kernel that is a constant is not only lost work: under `vmap` it is a
    # convolution of as many groups as there are examples, of which there has to be a number.
    kept = lhs.value if rhs.perturbed else None
    sizes = _Sizes((lhs.value.shape[1], lhs.value.shape[2]))
    return _convolve(lhs.value, rhs.value, window), (kept, sizes, rhs.value)


def _backward(window: _Window, residuals: Any, cotangent: Any) -> tuple[Array, Array | None]:
    """Both gradients, themselves convolutions of this kind.

    Strides of the one are dilations of the other; the paddings are those that give back the
    size of the input, and that of the kernel.
    """
    lhs, (sizes,), rhs = residuals
    strides, padding, lhs_dilation, rhs_dilation = window
    for_lhs, for_rhs = [], []
    for axis in (0, 1):
        size = _dilated(sizes[axis], lhs_dilation[axis])
        kernel = _dilated(rhs.shape[axis], rhs_dilation[axis])
        result = _dilated(cotangent.shape[1 + axis], strides[axis])
        low = padding[axis][0]
        for_lhs.append((kernel - 1 - low, size - result + low))
        for_rhs.append((low, result + kernel - 1 - size - low))
    turned = jnp.swapaxes(jnp.flip(rhs, (0, 1)), 2, 3)
    window_lhs = _Window(lhs_dilation, (for_lhs[0], for_lhs[1]), strides, rhs_dilation)
    images = _convolve(cotangent, turned, window_lhs)
    if lhs is None:
        return images, None
    # Channels take the place of examples, examples that of channels.
    window_rhs = _Window(rhs_dilation, (for_rhs[0], for_rhs[1]), lhs_dilation, strides)
    by_channel = jnp.transpose(lhs, (3, 1, 2, 0))
    as_kernel = jnp.transpose(cotangent, (1, 2, 0, 3))
    gradient = _convolve(by_channel, as_kernel, window_rhs)
    return images, jnp.transpose(gradient, (1, 2, 0, 3))


def _dilated(size: int, dilation: int) -> int:
    return 1 + (size - 1) * dilation


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)
