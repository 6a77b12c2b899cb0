"""Convolutions: XLA's own numbers, whatever the window, and their gradients' gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax.images import convolutions

ORDER = ("NHWC", "HWIO", "NHWC")
WINDOWS = {
    "strides": {"window_strides": (2, 2), "padding": "SAME"},
    "uneven": {
        "window_strides": (2, 3),
        "padding": ((0, 2), (1, 0)),
        "lhs_dilation": (2, 1),
        "rhs_dilation": (1, 2),
    },
}


def second_order(convolve, images, kernel, options):
    """A loss, its gradients, and those of a function of a gradient, as R1 has it."""

    def loss(images, kernel):
        return jnp.sum(jnp.sin(convolve(images, kernel, **options)))

    def penalty(images, kernel):
        return jnp.sum(jnp.square(jax.grad(loss)(images, kernel)))

    both = jax.value_and_grad(loss, (0, 1)), jax.grad(penalty, (0, 1))
    return jax.jit(lambda *x: [function(*x) for function in both])(images, kernel)


@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS)
def test_gradients_of_both_orders_are_those_of_xla(key, options):
    def own(images, kernel, **options):
        return convolutions.conv_general_dilated(images, kernel, **options)

    def of_xla(images, kernel, **options):
        return jax.lax.conv_general_dilated(images, kernel, dimension_numbers=ORDER, **options)

    image_key, kernel_key = jax.random.split(key)
    images = jax.random.normal(image_key, (3, 7, 6, 2))
    kernel = jax.random.normal(kernel_key, (3, 2, 2, 4))
    found = second_order(own, images, kernel, options)
    expected = second_order(of_xla, images, kernel, options)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_keep_the_one_order_that_is_fast_in_a_loop(key):
    """Of XLA's, the gradients are convolutions over other axes."""

    def orders(convolve):
        def loss(images, kernel):
            result = convolve(images, kernel, (2, 2), "SAME", dimension_numbers=ORDER)
            return jnp.sum(jnp.square(result))

        text = jax.jit(jax.grad(loss, (0, 1))).lower(images, kernel).as_text()
        marks = [
            line.split("dim_numbers = ")[1] for line in text.splitlines() if "dim_num" in line
        ]
        return {mark.split(",  window")[0].split(", window")[0] for mark in marks}

    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    own = orders(convolutions.conv_general_dilated)
    assert own == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
    assert len(orders(jax.lax.conv_general_dilated)) == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"feature_group_count": 2}, "feature_group_count = 2"),
        ({"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, "dimension_numbers = "),
    ],
)
def test_what_it_has_no_rule_for_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        convolutions.conv_general_dilated(
            jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), (1, 1), "SAME", **option
        )
