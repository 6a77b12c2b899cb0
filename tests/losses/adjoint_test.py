"""Adjoint losses: by hand, and the lean adjoint against what it is the gradient of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, losses, references, rollouts, time_grids


def test_values_worked_out_by_hand():
    # Two paths of two steps: misses 1 + 2·0.5 = 2 and -1 + 1·1 = 0, then 0 and 3.
    shifts = jnp.asarray([[[1.0], [-1.0]], [[0.0], [0.0]]])
    adjoints = jnp.asarray([[[0.5], [1.0]], [[0.0], [3.0]]])
    pulls, variances = jnp.asarray([2.0, 1.0]), jnp.asarray([4.0, 9.0])
    loss = losses.adjoint_matching_loss(shifts, adjoints, pulls, variances)
    np.testing.assert_allclose(loss, (4 / 8 + 9 / 18) / 2, rtol=1e-6)
    found, target = jnp.asarray([[1.0, 2.0], [0.0, 0.0]]), jnp.asarray([[0.0, 2.0], [2.0, 1.0]])
    half = 0.5 * 3.0 * (1 + 5) / 2
    np.testing.assert_allclose(losses.corrector_loss(found, target, jnp.asarray(3.0)), half)
    # The potential rises where costs fall.
    found = losses.potential_gradient_loss(found, -target, jnp.asarray(3.0))
    np.testing.assert_allclose(found, half)


def test_shapes_are_checked():
    three, two, one = jnp.zeros((4, 3, 2)), jnp.zeros((4, 2)), jnp.zeros(())
    with pytest.raises(ValueError, match=r"pulls \(2,\).*must be \(num_paths"):
        losses.adjoint_matching_loss(three, three, jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"their targets \(2,\)"):
        losses.corrector_loss(two, two[0], one)
    with pytest.raises(ValueError, match=r"variance \(4,\): must be"):
        losses.potential_gradient_loss(two, two, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"times \(4,\): must be"):
        losses.lean_adjoint(lambda x, t: x, three[0], two[0], jnp.zeros(4))


def test_adjoints_carry_no_gradient():
    ones = jnp.ones((2, 3, 1))

    def loss(scale):
        return losses.adjoint_matching_loss(ones, scale * ones, jnp.ones(3), jnp.ones(3))

    assert jax.grad(loss)(1.0) == 0.0


def test_the_lean_adjoint_is_the_gradient_of_the_end_through_the_base_process(key):
    # A drift that is neither linear nor a gradient, in Euler's steps with additive noise.
    def drift(x, t):
        return jnp.stack([jnp.sin(x[1]) - t * x[0], x[0] * x[1]])

    def cost(x):
        return jnp.sum(x**4) + x[0]

    law, grid = references.brownian(0.7), time_grids.end_refined(6, 1.0)
    base = kernels.process(lambda params, x, t: (drift(x, t), x), law, grid, variance="fixed")
    path = rollouts.simulate(key, base, None, jnp.asarray([0.4, -0.3]))
    found = losses.lean_adjoint(drift, path, jax.grad(cost)(path[-1]), grid.times)
    noise = (
        path[1:] - path[:-1] - grid.steps[:, None] * jax.vmap(drift)(path[:-1], grid.times[:-1])
    )

    def end_cost(x, first):
        for k in range(first, 6):
            x = x + grid.steps[k] * drift(x, grid.times[k]) + noise[k]
        return cost(x)

    expected = [jax.grad(functools.partial(end_cost, first=k))(path[k]) for k in range(6)]
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=2e-4, atol=1e-5)


def test_for_a_linear_reference_it_is_a_factor_of_time():
    law, grid = references.ornstein_uhlenbeck(1.0, 0.8), time_grids.uniform(400, 1.0)
    path, gradient = jnp.zeros((401, 2)), jnp.asarray([1.0, -2.0])
    found = losses.lean_adjoint(law.drift, path, gradient, grid.times)
    expected = law.scale(grid.times[:-1], 1.0)[:, None] * gradient[None]
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert abs(expected[0, 0] - 1) > 0.5
