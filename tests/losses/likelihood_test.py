"""Trajectory likelihood: by hand, and stationary at the reversal of what it is shown."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, losses, references, rollouts, time_grids
from tests import gaussian_case

DIRECTIONS = pytest.mark.parametrize("backward", [False, True])


@functools.partial(gaussian_case.jit, static_argnames=("dim", "backward"))
def gradients(params, paths, *, dim, backward):
    """The gradient of each path's loss, `(num_paths, ...)`."""
    chain = gaussian_case.process(gaussian_case.make(dim), backward=backward)

    def loss(params, path):
        return losses.trajectory_likelihood_loss(
            rollouts.step_log_densities(chain, params, path)[None]
        )

    return jax.vmap(jax.grad(loss), (None, 0))(params, paths)


def scores(key, params, end, *, dim, backward):
    """z-scores of the gradient on paths that the exact opposite process draws from an end."""
    case = gaussian_case.make(dim)
    goal_key, path_key = jax.random.split(key)
    goals = case.ends[end].sample(goal_key, 4096)
    opposite = gaussian_case.exact_params(case, backward=not backward)
    paths = gaussian_case.paths(path_key, opposite, goals, 1, dim=dim, backward=not backward)
    found = gradients(params, paths[:, 0], dim=dim, backward=backward)
    return np.abs(gaussian_case.z_scores(found))


def test_value_of_a_case_worked_out_by_hand():
    # Path sums -3 and -3.5.
    values = jnp.asarray([[-1.0, -2.0], [0.5, -4.0]])
    np.testing.assert_allclose(losses.trajectory_likelihood_loss(values), 3.25, rtol=1e-6)


@DIRECTIONS
def test_value_on_a_path_worked_out_by_hand(backward):
    # Reference steps of variance 1 and 4 (σ² = 4, steps 1/4 and 1), increments 1 and 2:
    # both one standard deviation, so 2 · (log √(2π) + ½) + log 2 = 1.837877 + 1 + 0.693147.
    grid = time_grids.TimeGrid(jnp.asarray([0.0, 0.25, 1.25]))
    chain = kernels.process(
        kernels.zero_network,
        references.brownian(2.0),
        grid,
        backward=backward,
        variance="fixed",
    )
    path = jnp.asarray([[0.0], [1.0], [3.0]])
    values = rollouts.step_log_densities(chain, None, path)
    loss = losses.trajectory_likelihood_loss(values[None])
    np.testing.assert_allclose(loss, 3.531024, rtol=1e-6)


@pytest.mark.parametrize("dim", [1, 2])
@DIRECTIONS
def test_gradient_is_zero_at_the_bridge_alone(key, dim, backward):
    params = gaussian_case.exact_params(gaussian_case.make(dim), backward=backward)
    goal = 0 if backward else 1
    found = functools.partial(scores, key, dim=dim, backward=backward)
    assert found(params, goal).max() < 4.0
    assert found(gaussian_case.perturbed(params), goal).max() > 10.0
    # Paths from the trained process's own end: x_1 taken for x_0, and the reverse.
    assert found(params, 1 - goal).max() > 10.0


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="step_log_densities has shape"):
        losses.trajectory_likelihood_loss(jnp.zeros(shape))
