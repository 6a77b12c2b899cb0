"""Bridge matching: by hand, and what the likelihood of pinned bridges is on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, losses, references, rollouts, time_grids
from tests import gaussian_case
from tests.reference_cases import every_reference


def test_value_of_a_case_worked_out_by_hand():
    # One path of two steps in one dimension. Half of: (1² + 0.5) / 1 + 0 + log 2π, then
    # (0² + 2) / 2 + log 2 + log 2π: 1.5 + 1 + 0.693147 + 2 · 1.837877 = 6.868901.
    means, targets = jnp.asarray([[[1.0], [3.0]]]), jnp.asarray([[[2.0], [3.0]]])
    log_variances = jnp.log(jnp.asarray([[[1.0], [2.0]]]))
    loss = losses.bridge_matching_loss(means, log_variances, targets, jnp.asarray([0.5, 2.0]))
    np.testing.assert_allclose(loss, 6.868901 / 2, rtol=1e-6)


def test_shapes_are_checked():
    three = jnp.zeros((4, 3, 2))
    with pytest.raises(ValueError, match=r"target_variances \(2,\): must be"):
        losses.bridge_matching_loss(three, three, three, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"means have shape \(4, 3\)"):
        losses.bridge_matching_loss(three[..., 0], three, three, jnp.zeros(3))


@every_reference
@pytest.mark.parametrize("backward", [False, True])
def test_steps_of_a_bridge_have_the_moments_of_what_is_drawn(reference, key, backward):
    # Against the joint Gaussian that a pinned path is drawn from: the moments of a step given
    # where it starts are read off as a regression.
    grid, n = time_grids.end_refined(4, 1.5), 40_000
    x_0, x_1 = jnp.asarray([0.5]), jnp.asarray([1.5])
    keys = jax.random.split(key, n)
    draw = jax.vmap(references.pinned_path, (0, None, None, None, None))
    paths = jax.jit(draw, static_argnums=1)(keys, reference, x_0, x_1, grid)
    means, variances = references.pinned_step(reference, paths, grid, backward=backward)
    assert means.shape == (n, 4, 1) and variances.shape == (4,)
    drawn = paths[:, :-1] if backward else paths[:, 1:]
    rest = np.asarray(drawn - means, np.float64)[..., 0]
    given = np.asarray(paths[:, 1:] if backward else paths[:, :-1], np.float64)[..., 0]
    spread = np.sqrt(np.asarray(variances))
    for k in range(4):
        if spread[k] == 0.0:
            np.testing.assert_allclose(rest[:, k], 0.0, atol=1e-5)
            continue
        scores = rest[:, k] / spread[k]
        assert abs(scores.mean()) < 4 / np.sqrt(n)
        assert abs(scores.var() - 1) < 4 * np.sqrt(2 / n)
        if given[:, k].std() > 1e-3:
            assert abs(np.corrcoef(scores, given[:, k])[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("backward", [False, True])
def test_it_is_the_likelihood_of_the_bridges_on_average(key, backward):
    case = gaussian_case.make(2)
    chain = gaussian_case.process(case, backward=backward)
    params = gaussian_case.perturbed(gaussian_case.exact_params(case, backward=backward))
    end_key, path_key = jax.random.split(key)
    n = 4096
    x_0 = case.ends[0].sample(end_key, n)
    x_1 = 0.5 * x_0 + case.ends[1].sample(jax.random.fold_in(end_key, 1), n)
    draw = jax.vmap(references.pinned_path, (0, None, 0, 0, None))
    paths = draw(jax.random.split(path_key, n), case.law, x_0, x_1, case.grid)

    def both(path):
        given = path[1:] if backward else path[:-1]
        law = rollouts.step_kernels(chain, params, given[None])
        target = references.pinned_step(case.law, path[None], case.grid, backward=backward)
        likelihood = losses.trajectory_likelihood_loss(
            rollouts.step_log_densities(chain, params, path[None])
        )
        return losses.bridge_matching_loss(*law, *target), likelihood

    values = gaussian_case.jit(jax.vmap(both))(paths)
    averaged, plain = (np.asarray(value, np.float64) for value in values)
    difference = averaged - plain
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(n)
    # Not path by path: the next state is averaged out.
    assert difference.std() > 0.1


def test_with_a_fixed_variance_it_is_the_regression_of_the_drift(key):
    # Brownian: gradients of Σ_k Δ_k ‖u(x_k) - (x_T - x_k) / (T - t_k)‖² / 2σ².
    sigma, grid = 1.3, time_grids.end_refined(3, 0.8)
    law = references.brownian(sigma)

    def network(params, x, t):
        return params * (1.0 + t) * jnp.sin(x), jnp.zeros_like(x)

    chain = kernels.process(network, law, grid, variance="fixed")
    paths = jax.random.normal(key, (5, 4, 2))
    given, left = paths[:, :-1], grid.times[-1] - grid.times[:-1]
    drift = (paths[:, -1:] - given) / left[None, :, None]

    def matching(params):
        kernel = rollouts.step_kernels(chain, params, given)
        return losses.bridge_matching_loss(*kernel, *references.pinned_step(law, paths, grid))

    def regression(params):
        found = params * (1.0 + grid.times[None, :-1, None]) * jnp.sin(given)
        squares = jnp.sum(jnp.square(found - drift), axis=-1) * grid.steps[None]
        return jnp.mean(jnp.sum(squares, axis=-1)) / (2 * sigma**2)

    at = jnp.float32(0.7)
    np.testing.assert_allclose(jax.grad(matching)(at), jax.grad(regression)(at), rtol=1e-4)
