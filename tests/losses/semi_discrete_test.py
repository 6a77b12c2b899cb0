"""The semi-discrete potential: by hand, against the exact one, and at the bridge."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, losses, rollouts
from tests import gaussian_case

SIDES = pytest.mark.parametrize(("dim", "backward"), [(1, False), (2, False), (2, True)])
DIRECTIONS = pytest.mark.parametrize("backward", [False, True])


def test_weights_of_a_case_worked_out_by_hand():
    log_transitions = jnp.asarray([-1.0, -2.0])
    potentials = jnp.asarray([0.5, -0.5])
    # The potentials have mean 0: -1 - 0.5 and -2 + 0.5.
    weights = losses.anchor_log_weights(log_transitions, potentials)
    np.testing.assert_allclose(weights, [-1.5, -1.5], rtol=1e-6)
    np.testing.assert_allclose(losses.log_potential(weights), -1.5, rtol=1e-6)
    np.testing.assert_allclose(losses.effective_anchors(weights), 2.0, rtol=1e-6)
    # Importance 1 : 3 has shares 1/4 and 3/4, under which the potentials average -1/4:
    # -1 - 0.75 + log(1/2) and -2 + 0.25 + log(3/2).
    log_importance = jnp.asarray([5.0, 5.0 + np.log(3.0)], jnp.float32)
    weights = losses.anchor_log_weights(log_transitions, potentials, log_importance)
    np.testing.assert_allclose(weights, [-2.443147, -1.344535], rtol=1e-6)
    # Both are e^-1.75 but for the factors 1/2 and 3/2, whose mean is 1.
    np.testing.assert_allclose(losses.log_potential(weights), -1.75, rtol=1e-6)


def test_effective_anchors_of_a_case_worked_out_by_hand():
    # Weights 3 : 1 have (3 + 1)² / (9 + 1), whatever their scale.
    weights = jnp.asarray([np.log(3.0) - 200.0, -200.0], jnp.float32)
    np.testing.assert_allclose(losses.effective_anchors(weights), 1.6, rtol=1e-4)


def test_equal_importance_is_none_and_constants_do_not_matter(key):
    log_transitions, potentials, importance = jax.random.normal(key, (3, 7))
    plain = losses.anchor_log_weights(log_transitions, potentials)
    moved = losses.anchor_log_weights(log_transitions, potentials + 40.0)
    equal = losses.anchor_log_weights(log_transitions, potentials, jnp.full((7,), -3.0))
    np.testing.assert_allclose(moved, plain, atol=1e-5)
    np.testing.assert_allclose(equal, plain, atol=1e-5)
    weighted = losses.anchor_log_weights(log_transitions, potentials, importance)
    moved = losses.anchor_log_weights(log_transitions, potentials + 40.0, importance - 9.0)
    np.testing.assert_allclose(moved, weighted, atol=1e-4)
    assert np.abs(weighted - plain).max() > 0.5


def test_potential_loss_of_a_case_worked_out_by_hand():
    ratios = jnp.asarray([[0.0, 2.0], [1.0, 3.0]])
    potentials = jnp.asarray([1.0, -1.0])
    # Targets -1 and -2: (2² + 1²) / 2, slopes 2 · 2 / 2 and 2 · 1 / 2.
    np.testing.assert_allclose(losses.potential_loss(potentials, ratios), 2.5, rtol=1e-6)
    slopes = jax.grad(losses.potential_loss, argnums=(0, 1))(potentials, ratios)
    np.testing.assert_allclose(slopes[0], [2.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(slopes[1], np.zeros((2, 2)))


@pytest.mark.parametrize(("c", "ratios"), [((4,), (4,)), ((2,), (4, 2)), ((4, 1), (4, 2))])
def test_potential_loss_refuses_shapes_that_would_broadcast(c, ratios):
    with pytest.raises(ValueError, match="log_ratios has shape"):
        losses.potential_loss(jnp.zeros(c), jnp.zeros(ratios))


def potentials_of(case, end, x):
    values = gaussian_case.log_potential(case, end, np.asarray(x, np.float64))
    return jnp.asarray(values, jnp.float32)


@SIDES
def test_log_potential_is_the_exact_one_within_monte_carlo_error(key, dim, backward):
    case = gaussian_case.make(dim)
    start, goal = (1, 0) if backward else (0, 1)
    anchors = np.asarray(case.ends[start].sample(key, 20_000), np.float64)
    c = gaussian_case.log_potential(case, start, anchors)
    mean, variance = (np.asarray(value) for value in gaussian_case.MOMENTS[dim][goal])
    for y in (mean, mean + np.sqrt(variance), mean - 2.0 * np.sqrt(variance)):
        # Brownian motion from time 0 to T, either way round.
        spread = gaussian_case.SIGMA**2 * gaussian_case.T_MAX
        log_q = np.sum(
            -0.5 * ((y - anchors) ** 2 / spread + np.log(2 * np.pi * spread)), axis=1
        )
        weights = losses.anchor_log_weights(
            jnp.asarray(log_q, jnp.float32), jnp.asarray(c, jnp.float32)
        )
        # The library centres c over the anchors.
        exact = gaussian_case.log_potential(case, goal, y[None])[0] + c.mean()
        ratio = np.exp(log_q - c)
        error = ratio.std() / ratio.mean() / np.sqrt(len(ratio))
        assert error < 0.05
        assert abs(float(losses.log_potential(weights)) - exact) < 4 * error


class Setting(NamedTuple):
    trained: Any
    potential: Any
    far_potential: Any
    paths: jax.Array


@functools.cache
def setting(dim, backward):
    """The exact drift and both exact potentials, and groups of off-policy paths."""
    case = gaussian_case.make(dim)
    start, goal = (1, 0) if backward else (0, 1)
    trained = gaussian_case.exact_params(case, backward=backward)
    potential, far_potential = (
        gaussian_case.as_quadratic(
            functools.partial(gaussian_case.log_potential, case, end), dim
        )
        for end in (start, goal)
    )
    start_key, path_key = jax.random.split(jax.random.key(2))
    starts = case.ends[start].sample(start_key, 24)
    behaviour = gaussian_case.perturbed(trained)
    paths = gaussian_case.paths(path_key, behaviour, starts, 5, dim=dim, backward=backward)
    return Setting(trained, potential, far_potential, paths)


def evaluate(exact, *, dim, backward, constant=0.0, swapped=False, pooled=False):
    """Gradients for (drift, potential) of the sum of both losses, and the two losses.

    `constant` is added to the goal's log-density, `swapped` evaluates it at the start of the
    path, `pooled` takes the variance over all paths at once.
    """
    return _evaluate(exact, constant, swapped, pooled, dim=dim, backward=backward)


# All faults are traced arguments, so that one compilation serves them all.
@functools.partial(gaussian_case.jit, static_argnames=("dim", "backward"))
def _evaluate(exact, constant, swapped, pooled, *, dim, backward):
    case = gaussian_case.make(dim)
    goal = case.ends[0 if backward else 1]
    goal_end, start_end = (0, -1) if backward else (-1, 0)
    reference = kernels.reference_process(case.law, case.grid)
    chain = gaussian_case.process(case, backward=backward)

    def log_opposite(path):
        far = gaussian_case.quadratic(exact.far_potential, path[goal_end])
        return rollouts.log_density(reference, None, path) - far

    def log_goal(path):
        where = jnp.where(swapped, path[start_end], path[goal_end])
        return goal.log_density(where) + constant

    def loss(trained, potential):
        def one(path):
            return losses.log_path_ratio(
                path,
                log_trained=lambda p: rollouts.log_density(chain, trained, p),
                log_opposite=log_opposite,
                log_goal=log_goal,
            )

        ratios = jax.vmap(jax.vmap(one))(exact.paths)
        starts = exact.paths[:, 0, start_end]
        c = jax.vmap(gaussian_case.quadratic, (None, 0))(potential, starts)
        apart, together = map(losses.log_variance_loss, (ratios, ratios.reshape(1, -1)))
        drift = jnp.where(pooled, together, apart)
        regression = losses.potential_loss(c, ratios)
        return drift + regression, (drift, regression)

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    return gradient(exact.trained, exact.potential)


def with_potential(exact, **shifts):
    moved = {name: exact.potential[name] + shift for name, shift in shifts.items()}
    return exact._replace(potential=exact.potential | moved)


@SIDES
def test_drift_and_potential_are_stationary_path_by_path_at_the_bridge(dim, backward):
    exact = setting(dim, backward)
    run = functools.partial(evaluate, dim=dim, backward=backward)
    gradients, (drift, regression) = run(exact)
    assert drift < 1e-8 and regression < 1e-8
    assert gaussian_case.largest(gradients) < 2e-3
    # Planted faults: a drift, a potential, the wrong end's energy, pooled starts.
    (of_drift, _), _ = run(exact._replace(trained=gaussian_case.perturbed(exact.trained)))
    assert gaussian_case.largest(of_drift) > 0.1
    (of_drift, of_potential), _ = run(with_potential(exact, linear=0.3))
    assert gaussian_case.largest(of_potential) > 0.1
    assert gaussian_case.largest(of_drift) < 2e-3
    both, _ = run(exact, swapped=True)
    assert min(map(gaussian_case.largest, both)) > 0.1
    (of_drift, _), _ = run(exact, pooled=True)
    assert gaussian_case.largest(of_drift) > 0.1


@DIRECTIONS
def test_a_constant_in_the_energy_moves_the_potential_and_not_the_drift(backward):
    exact = setting(1, backward)
    run = functools.partial(evaluate, dim=1, backward=backward, constant=2.0)
    (of_drift, _), (drift, regression) = run(exact)
    assert gaussian_case.largest(of_drift) < 2e-3
    assert drift < 1e-8
    np.testing.assert_allclose(regression, 4.0, rtol=1e-3)
    _, (_, regression) = run(with_potential(exact, constant=2.0))
    assert regression < 1e-8
