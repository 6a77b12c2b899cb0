"""Mean and drift matching: by hand, and how they weight the steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import losses


def test_the_target_of_a_case_worked_out_by_hand():
    # One step from x_0 = 1 to x_1 = 3 by a kernel with mean 2x + 5: 3 + 7 - 11 = -1.
    given, opposite_means, means_at_given = (
        jnp.asarray([[value]]) for value in (3.0, 7.0, 11.0)
    )
    target = losses.reversal_means(given, opposite_means, means_at_given)
    np.testing.assert_array_equal(target, [[-1.0]])
    # The slope of that mean undone: 3 + (7 - 11) / 2 = 1, where x_0 was.
    target = losses.reversal_means(given, opposite_means, means_at_given, jnp.asarray([2.0]))
    np.testing.assert_array_equal(target, [[1.0]])


def test_values_of_a_case_worked_out_by_hand():
    # Two paths of two steps in the plane. Squared errors 1 + 4 and 0, then 9 and 1.
    means = jnp.asarray([[[1.0, 2.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]])
    targets = jnp.zeros((2, 2, 2))
    # (5 / 2 + 0 / 4 + 9 / 2 + 1 / 4) / 2 paths / 2.
    loss = losses.mean_matching_loss(means, targets, jnp.asarray([2.0, 4.0]))
    np.testing.assert_allclose(loss, 7.25 / 4, rtol=1e-6)
    # (5 / 0.25 + 0 / 4 + 9 / 0.25 + 1 / 4) / 2 paths / 2 steps.
    loss = losses.drift_matching_loss(means, targets, jnp.asarray([0.5, 2.0]))
    np.testing.assert_allclose(loss, 56.25 / 4, rtol=1e-6)


def test_the_target_carries_no_gradient(key):
    means, targets = jax.random.normal(key, (2, 4, 3, 2))
    for loss in (losses.mean_matching_loss, losses.drift_matching_loss):
        gradient = jax.grad(loss, argnums=1)(means, targets, jnp.ones(3))
        np.testing.assert_array_equal(gradient, 0.0)


def test_on_a_uniform_grid_the_two_are_one_up_to_a_factor(key):
    sigma, length, num_steps = 1.3, 0.25, 3
    means, targets = jax.random.normal(key, (2, 5, num_steps, 2))
    of_means = losses.mean_matching_loss(means, targets, jnp.full(num_steps, sigma**2 * length))
    of_drifts = losses.drift_matching_loss(means, targets, jnp.full(num_steps, length))
    np.testing.assert_allclose(
        of_means, of_drifts * num_steps * length / (2 * sigma**2), rtol=1e-5
    )


def test_shapes_are_checked():
    three, steps = jnp.zeros((4, 3, 2)), jnp.zeros(3)
    with pytest.raises(ValueError, match=r"given has shape \(4, 3, 2\), opposite_means \(3,\)"):
        losses.reversal_means(three, steps, three)
    with pytest.raises(ValueError, match=r"scales has shape \(2,\): must be \(3,\)"):
        losses.reversal_means(three, three, three, jnp.ones(2))
    with pytest.raises(ValueError, match=r"and variances \(2,\): must be"):
        losses.mean_matching_loss(three, three, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"means have shape \(4, 3\)"):
        losses.drift_matching_loss(three[..., 0], three[..., 0], steps)
    with pytest.raises(ValueError, match=r"target_means \(4, 1, 2\)"):
        losses.drift_matching_loss(three, three[:, :1], steps)
