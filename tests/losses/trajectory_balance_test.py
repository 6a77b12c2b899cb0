"""Log-variance and trajectory balance: by hand, at the bridge, and what they do not see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import losses, rollouts
from tests import gaussian_case

DIMS = pytest.mark.parametrize("dim", [1, 2])
SIDES = pytest.mark.parametrize(("dim", "backward"), [(1, False), (2, False), (2, True)])
DIRECTIONS = pytest.mark.parametrize("backward", [False, True])


@functools.cache
def setting(dim, backward):
    """The exact parameters of both processes, and groups of off-policy paths."""
    case = gaussian_case.make(dim)
    trained = gaussian_case.exact_params(case, backward=backward)
    opposite = gaussian_case.exact_params(case, backward=not backward)
    # Any paths will do at a zero-variance optimum: here those of a drift that is off.
    behaviour = gaussian_case.perturbed(trained)
    start_key, path_key = jax.random.split(jax.random.key(1))
    starts = case.ends[1 if backward else 0].sample(start_key, 24)
    paths = gaussian_case.paths(path_key, behaviour, starts, 5, dim=dim, backward=backward)
    return trained, opposite, paths


def log_ratios(params, opposite, paths, *, dim, backward, scale=1.0, shift=0.0, swapped=False):
    """ℓ of each path; its goal has scale · log p + shift, taken at its start if swapped."""
    case = gaussian_case.make(dim)
    goal = 0 if backward else 1
    trained = gaussian_case.process(case, backward=backward)
    still = gaussian_case.process(case, backward=not backward)
    goal_end, start_end = (0, -1) if backward else (-1, 0)

    def log_goal(path):
        where = jnp.where(swapped, path[start_end], path[goal_end])
        return case.ends[goal].log_density(where)

    def one(path):
        return losses.log_path_ratio(
            path,
            log_trained=lambda p: rollouts.log_density(trained, params, p),
            log_opposite=lambda p: rollouts.log_density(still, opposite, p),
            log_goal=lambda p: scale * log_goal(p) + shift,
        )

    return jax.vmap(jax.vmap(one))(paths)


def log_h(dim, backward, starts):
    """log h: the density of the exact bridge at the start, for a normalised goal."""
    case = gaussian_case.make(dim)
    values = gaussian_case.log_density(case, 1 if backward else 0, np.asarray(starts))
    return jnp.asarray(values, jnp.float32)


def starts_of(paths, backward):
    return paths[:, 0, -1 if backward else 0]


def test_log_ratio_of_a_case_worked_out_by_hand():
    # log P = 2 · (0 + 1 + 4) θ = 10 θ, log R = 1 · 3 = 3, -E = 4 · 0.5: ℓ(θ = 0.7) = 7 - 5.
    path = jnp.asarray([[0.0], [1.0], [2.0]])

    def ratio(theta):
        return losses.log_path_ratio(
            path,
            log_trained=lambda p: 2.0 * theta * jnp.sum(p**2),
            log_opposite=lambda p: theta / 0.7 * jnp.sum(p),
            log_goal=lambda p: theta / 0.7 * 0.5 * p[-1, 0] ** 2,
        )

    np.testing.assert_allclose(ratio(jnp.float32(0.7)), 2.0, rtol=1e-6)
    # Only the trained process carries a gradient.
    np.testing.assert_allclose(jax.grad(ratio)(jnp.float32(0.7)), 10.0, rtol=1e-6)


def test_losses_of_a_case_worked_out_by_hand():
    ratios = jnp.asarray([[1.0, -1.0, 3.0], [2.0, 0.0, 1.0]])
    # Sample variances (0 + 4 + 4) / 2 = 4 and (1 + 1 + 0) / 2 = 1.
    np.testing.assert_allclose(losses.log_variance_loss(ratios), 2.5, rtol=1e-6)
    # (1.5² + 0.5² + 3.5² + 1² + 1² + 0²) / 6.
    balance = losses.trajectory_balance_loss(ratios, jnp.asarray([0.5, -1.0]))
    np.testing.assert_allclose(balance, 16.75 / 6, rtol=1e-6)
    # (2² + 0 + 4² + 3² + 1² + 2²) / 6.
    balance = losses.trajectory_balance_loss(ratios, jnp.float32(1.0))
    np.testing.assert_allclose(balance, 34 / 6, rtol=1e-6)


def test_pooled_starts_give_another_value():
    # Each start's paths agree, so the variance is 0; pooled, it is that of 0, 0, 2, 2.
    ratios = jnp.asarray([[0.0, 0.0], [2.0, 2.0]])
    assert float(losses.log_variance_loss(ratios)) == 0.0
    np.testing.assert_allclose(losses.log_variance_loss(ratios.reshape(1, 4)), 4 / 3, rtol=1e-6)


@DIMS
@DIRECTIONS
def test_both_losses_vanish_path_by_path_at_the_bridge(dim, backward):
    params, opposite, paths = setting(dim, backward)
    ratios = gaussian_case.jit(functools.partial(log_ratios, dim=dim, backward=backward))(
        params, opposite, paths
    )
    h = log_h(dim, backward, starts_of(paths, backward))
    np.testing.assert_allclose(ratios, jnp.broadcast_to(-h[:, None], ratios.shape), atol=2e-4)
    assert losses.log_variance_loss(ratios) < 1e-8
    assert losses.trajectory_balance_loss(ratios, h) < 1e-8


@SIDES
@pytest.mark.parametrize("loss", ["log_variance", "trajectory_balance"])
def test_gradient_vanishes_at_the_bridge_alone(dim, backward, loss):
    params, opposite, paths = setting(dim, backward)
    h = log_h(dim, backward, starts_of(paths, backward))

    @gaussian_case.jit
    def gradient(params, opposite, h, pooled, swapped):
        def value(params, h):
            ratios = log_ratios(
                params, opposite, paths, dim=dim, backward=backward, swapped=swapped
            )
            if loss == "trajectory_balance":
                return losses.trajectory_balance_loss(ratios, h)
            apart, together = map(losses.log_variance_loss, (ratios, ratios.reshape(1, -1)))
            return jnp.where(pooled, together, apart)

        return jax.grad(value, argnums=(0, 1))(params, h)

    def size(params=params, opposite=opposite, h=h, pooled=False, swapped=False):
        return gaussian_case.largest(gradient(params, opposite, h, pooled, swapped))

    assert size() < 2e-3
    # Planted faults, one at a time.
    assert size(params=gaussian_case.perturbed(params)) > 0.1
    assert size(opposite=gaussian_case.perturbed(opposite)) > 0.1
    assert size(swapped=True) > 0.1
    if loss == "log_variance":
        assert size(pooled=True) > 0.1
    else:
        # One number in place of log h(x_0) is pooling, for trajectory balance.
        assert size(h=jnp.full_like(h, jnp.mean(h))) > 0.1


@DIRECTIONS
def test_a_constant_in_the_energy_is_invisible_to_log_variance_only(backward):
    params, opposite, paths = setting(2, backward)
    params = gaussian_case.perturbed(params)
    ratios = functools.partial(log_ratios, dim=2, backward=backward)

    @gaussian_case.jit
    def value_and_grad(shift, scale):
        def value(params):
            return losses.log_variance_loss(
                ratios(params, opposite, paths, shift=shift, scale=scale)
            )

        return jax.value_and_grad(value)(params)

    value, gradient = value_and_grad(0.0, 1.0)
    shifted, shifted_gradient = value_and_grad(7.0, 1.0)
    scaled, _ = value_and_grad(0.0, 2.0)
    np.testing.assert_allclose(shifted, value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        gradient,
        shifted_gradient,
    )
    assert abs(scaled - value) > 0.1 * value


@DIRECTIONS
def test_a_constant_in_the_energy_moves_the_balance_and_its_optimum_by_itself(backward):
    params, opposite, paths = setting(1, backward)
    params = gaussian_case.perturbed(params)
    h = log_h(1, backward, starts_of(paths, backward))
    shift = 3.0

    def best(ratios):
        """The minimiser over log h: quadratic with Hessian 2/S, so one Newton step is exact."""
        gradient = jax.grad(losses.trajectory_balance_loss, argnums=1)(ratios, h)
        return h - gradient * h.shape[0] / 2.0

    @gaussian_case.jit
    def shifted(shift):
        return log_ratios(params, opposite, paths, dim=1, backward=backward, shift=shift)

    ratios, moved = shifted(0.0), shifted(shift)
    balance = losses.trajectory_balance_loss
    assert abs(balance(moved, h) - balance(ratios, h)) > 1.0
    # log p + c is E - c: h = ∫ e^(-E) ∏ R grows by the factor e^c.
    np.testing.assert_allclose(best(moved) - best(ratios), shift, rtol=1e-3)
    np.testing.assert_allclose(
        balance(moved, best(moved)), balance(ratios, best(ratios)), rtol=1e-3
    )


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2, 2)])
def test_log_variance_refuses_what_has_no_variance(shape):
    with pytest.raises(ValueError, match="log_ratios has shape"):
        losses.log_variance_loss(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("ratios", "h"), [((4,), ()), ((4, 2), (2,)), ((4, 2), (4, 1)), ((4, 2), (4, 2))]
)
def test_balance_refuses_a_normaliser_that_would_broadcast(ratios, h):
    with pytest.raises(ValueError, match="log_h"):
        losses.trajectory_balance_loss(jnp.zeros(ratios), jnp.zeros(h))
