"""SDE likelihood: by hand, and the expected gradient that it shares with mean matching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, losses, references, rollouts, time_grids
from tests import gaussian_case


def test_value_of_a_case_worked_out_by_hand():
    # One path of two steps in the plane. û·(û/2 + u): 1·1.5 + 2·(1 - 1) and 0·3 + 2·(1 + 1);
    # g² = 4 and 0.5: 0.5 · (1.5 / 4 - 3) + 2 · (4 / 0.5 + 1).
    drifts = jnp.asarray([[[1.0, 2.0], [0.0, 2.0]]])
    opposite_drifts = jnp.asarray([[[1.0, -1.0], [3.0, 1.0]]])
    loss = losses.sde_likelihood_loss(
        drifts,
        jnp.asarray([[-3.0, 1.0]]),
        opposite_drifts,
        variances=jnp.asarray([2.0, 1.0]),
        lengths=jnp.asarray([0.5, 2.0]),
    )
    np.testing.assert_allclose(loss, 0.5 * (0.375 - 3.0) + 2.0 * 9.0, rtol=1e-6)


def test_the_opposite_process_carries_no_gradient(key):
    drifts, opposite_drifts = jax.random.normal(key, (2, 4, 3, 2))
    steps = jnp.ones(3)
    gradient = jax.grad(losses.sde_likelihood_loss, argnums=2)(
        drifts, jnp.zeros((4, 3)), opposite_drifts, steps, steps
    )
    np.testing.assert_array_equal(gradient, 0.0)


def test_shapes_are_checked():
    three, two, one = jnp.zeros((4, 3, 2)), jnp.zeros((4, 3)), jnp.zeros(3)
    with pytest.raises(ValueError, match=r"divergences \(4,\)"):
        losses.sde_likelihood_loss(three, jnp.zeros(4), three, one, one)
    with pytest.raises(ValueError, match=r"opposite_drifts \(4, 3\)"):
        losses.sde_likelihood_loss(three, two, two, one, one)
    with pytest.raises(ValueError, match=r"lengths \(2,\)"):
        losses.sde_likelihood_loss(three, two, three, one, jnp.zeros(2))


def curved(params, x, t):
    drift = params[0] * jnp.sin(2.0 * x) + params[1] * t * x[::-1] + params[2]
    return drift, jnp.zeros_like(x)


def gradient_differences(key, law, backward, wrong=lambda **given: given):
    """Gradients of the SDE likelihood less those of mean matching, path by path.

    Both processes are far from linear, and the grid is not uniform.
    """
    grid, n = time_grids.end_refined(4, 0.8), 10_000
    trained, opposite = (
        kernels.process(curved, law, grid, backward=b, variance="fixed")
        for b in (backward, not backward)
    )
    params, opposite_params = jnp.asarray([0.7, -0.5, 0.2]), jnp.asarray([-1.0, 0.8, 0.5])
    steps = trained.steps
    start_key, path_key = jax.random.split(key)
    starts = jax.random.normal(start_key, (n, 2))

    def difference(path_key, start):
        path = rollouts.simulate(path_key, opposite, opposite_params, start)[None]
        given, at = (path[:, 1:], path[:, :-1]) if backward else (path[:, :-1], path[:, 1:])
        target = losses.reversal_means(
            given,
            rollouts.step_kernels(opposite, opposite_params, at).mean,
            rollouts.step_kernels(opposite, opposite_params, given).mean,
        )

        def matching(params):
            means = rollouts.step_kernels(trained, params, given).mean
            return losses.mean_matching_loss(means, target, jnp.exp(steps.log_variance))

        def likelihood(params):
            drifts, divergences = rollouts.step_divergences(trained, params, given)
            arguments = {
                "drifts": drifts,
                "divergences": divergences,
                "opposite_drifts": rollouts.step_drifts(opposite, opposite_params, given),
                "variances": jnp.exp(steps.log_variance),
                "lengths": steps.length,
            }
            return losses.sde_likelihood_loss(**wrong(**arguments))

        return jax.grad(likelihood)(params) - jax.grad(matching)(params)

    run = gaussian_case.jit(jax.vmap(difference))
    return run(jax.random.split(path_key, n), starts)


# Theory, exact for every K: given x_k, x_{k+1} is Gaussian about F̄(x_k) with variance v, so by
# Stein's lemma E[(x_{k+1} - F̄(x_k))ᵀh(x_{k+1})] = v E[∇·h(x_{k+1})] turns the divergence into
# the regression's target.
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "law", [references.brownian(1.4), references.ornstein_uhlenbeck(1.2, 0.7)]
)
def test_its_expected_gradient_is_that_of_mean_matching(key, law, backward):
    differences = gradient_differences(key, law, backward)
    assert np.abs(gaussian_case.z_scores(differences)).max() < 4.0
    # Not path by path: the noise is another.
    assert np.asarray(differences).std() > 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda **given: given | {"variances": given["lengths"]},
        lambda **given: given | {"opposite_drifts": -given["opposite_drifts"]},
        lambda **given: given | {"opposite_drifts": given["opposite_drifts"][:, ::-1]},
        lambda **given: given | {"divergences": -given["divergences"]},
    ],
    ids=["without σ²", "sign of z", "z in reversed time", "sign of the divergence"],
)
def test_a_wrong_term_would_be_seen(key, wrong):
    differences = gradient_differences(key, references.brownian(1.4), True, wrong)
    assert np.abs(gaussian_case.z_scores(differences)).max() > 6.0
