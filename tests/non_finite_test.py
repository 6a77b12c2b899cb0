"""Numbers that are not finite: losses of what is left, and a bounded push away from no mass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import losses, non_finite

INF, NAN = np.inf, np.nan
SHAPE = 6, 4
BAD = np.zeros(SHAPE, bool)
BAD[0, 1], BAD[2, :2], BAD[3, 1:], BAD[4] = True, True, True, True
"""One left out, two, all but one, all; others whole."""


def numbers(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def with_bad(values):
    """NaN and infinities where `BAD` says."""
    fill = jnp.resize(jnp.array([NAN, INF, -INF]), values.shape)
    where = BAD.reshape(*BAD.shape, *(1,) * (values.ndim - 2))
    return jnp.where(where, fill, values)


# ---- Bounded log-ratios


def test_what_is_finite_stays_as_it_is():
    ratios = jnp.array([[1.0, -1e10, 3e11, 0.0]])
    found = non_finite.bounded(ratios)
    np.testing.assert_array_equal(found.log_ratios, ratios)
    assert found.where.all() and found.inside.all()
    assert found.shares == {"invalid": 0.0, "outside": 0.0}


def test_without_mass_a_path_is_the_worst_of_its_group_by_a_margin():
    ratios = jnp.array([[2.0, INF, 5.0, NAN], [-7.0, -INF, INF, 1e30], [INF, INF, NAN, -1e30]])
    found = non_finite.bounded(ratios)
    margin = non_finite.MARGIN
    expected = np.zeros((3, 4))
    expected[0, :3], expected[1] = [2.0, 5.0 + margin, 5.0], [-7.0, 0.0, margin - 7, margin - 7]
    np.testing.assert_array_equal(found.log_ratios, expected)
    np.testing.assert_array_equal(found.where, [[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(found.inside, [[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(found.shares["invalid"], 4 / 12)
    np.testing.assert_allclose(found.shares["outside"], 5 / 12)


@pytest.mark.parametrize("loss", ["log_variance", "trajectory_balance"])
def test_a_path_without_mass_is_pushed_away_and_an_undefined_one_has_no_gradient(loss):
    targets = jnp.array([[0.0, -INF, -1.0, NAN]])
    balance = {
        "log_variance": losses.log_variance_loss,
        "trajectory_balance": lambda x, where: losses.trajectory_balance_loss(
            x, jnp.zeros(()), where=where
        ),
    }[loss]

    def value(log_trained):
        ratios, where, _, _ = non_finite.bounded(log_trained - targets)
        return balance(ratios, where=where)

    (gradient,) = jax.grad(value)(jnp.zeros((1, 4)))
    # Down the gradient it becomes less likely, the most of all, and by a bounded amount.
    assert gradient[1] == max(gradient) > 0 and gradient[3] == 0
    assert jnp.isfinite(gradient).all() and gradient[1] < 2 * (1.0 + non_finite.MARGIN)


def test_an_energy_of_no_mass_has_none_at_any_temperature():
    found = non_finite.tempered(jnp.zeros(()), jnp.array([-INF, NAN, -3.0]))
    np.testing.assert_array_equal(found, [-INF, NAN, 0.0])


def test_a_gradient_that_is_not_finite_is_zero_and_any_other_as_it_was(key):
    def log_density(x):
        return jnp.sqrt(x[0]) - x[1] ** 3

    guarded = non_finite.with_finite_gradient(log_density)
    for x in ([0.0, 2.0], [-1.0, 2.0], [4.0, 2.0]):
        x = jnp.array(x)
        np.testing.assert_array_equal(guarded(x), log_density(x))
        expected = np.nan_to_num(jax.grad(log_density)(x), posinf=0.0)
        np.testing.assert_array_equal(jax.grad(guarded)(x), expected)
        # Also where the cotangent is that of what is left out.
        left_out = jax.grad(lambda x: jnp.where(False, guarded(x), 1.0))(x)
        np.testing.assert_array_equal(left_out, [0.0, 0.0])


def test_a_path_that_is_not_finite_can_be_scored_and_is_named():
    paths = jnp.ones((2, 3, 2)).at[1, 2, 0].set(NAN)
    found, finite = non_finite.finite_paths(paths)
    np.testing.assert_array_equal(finite, [True, False])
    np.testing.assert_array_equal(found, jnp.stack([jnp.ones((3, 2)), jnp.zeros((3, 2))]))


# ---- Losses of what counts


def log_variance(ratios, extra, where):
    return losses.log_variance_loss(ratios, where=where)


def trajectory_balance(ratios, extra, where):
    return losses.trajectory_balance_loss(
        ratios, 0.3 * jnp.arange(float(len(ratios))), where=where
    )


def subtrajectory_balance(ratios, extra, where):
    steps = ratios[..., None] * jnp.array([[[1.0, -0.5, 2.0]]])
    return losses.subtrajectory_balance_loss(steps, extra, decay=0.7, where=where)


def control(ratios, extra, where):
    return losses.control_loss(extra, ratios, where=where)


def policy_gradient(ratios, extra, where):
    flat = extra.reshape(-1, extra.shape[-1])
    own = None if where is None else where.reshape(-1)
    return losses.policy_gradient_loss(flat, 0.5 * flat, ratios.reshape(-1), where=own)


def potential(ratios, extra, where):
    return losses.potential_loss(extra[:, 0, 0], ratios, where=where)


ALL = (
    log_variance,
    trajectory_balance,
    subtrajectory_balance,
    control,
    policy_gradient,
    potential,
)
every_loss = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)


@every_loss
def test_where_all_count_nothing_changes_to_the_last_digit(loss):
    given = numbers(0, *SHAPE), numbers(1, *SHAPE, 4)
    plain = jax.value_and_grad(functools.partial(loss, where=None), argnums=(0, 1))(*given)
    own = functools.partial(loss, where=jnp.ones(SHAPE, bool))
    masked = jax.value_and_grad(own, argnums=(0, 1))(*given)
    jax.tree.map(np.testing.assert_array_equal, masked, plain)


@every_loss
def test_what_does_not_count_has_no_gradient_whatever_it_is(loss):
    first, second = numbers(0, *SHAPE), numbers(1, *SHAPE, 4)
    own = functools.partial(loss, where=jnp.asarray(~BAD))
    clean = jax.value_and_grad(own, argnums=(0, 1))(first, second)
    if loss is not potential:  # Whose second argument has no path to belong to.
        second = with_bad(second)
    dirty = jax.value_and_grad(own, argnums=(0, 1))(with_bad(first), second)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert np.isfinite(dirty[0]) and not np.asarray(dirty[1][0])[BAD].any()


def test_a_loss_of_what_is_left_is_that_of_a_batch_of_it():
    ratios, extra, where = numbers(0, *SHAPE), numbers(1, *SHAPE, 4), jnp.asarray(~BAD)
    # Pooled, each path is a start of its own; the others compare those of one start.
    rows, flat, own = np.nonzero(~BAD)[0], ratios[where][:, None], extra[where][:, None]
    groups = [np.asarray(ratios[i][~BAD[i]], np.float64) for i in range(SHAPE[0])]
    slopes = np.asarray(extra[:, 0, 0], np.float64)
    expected = {
        log_variance: np.mean([np.var(group, ddof=1) for group in groups if len(group) > 1]),
        trajectory_balance: losses.trajectory_balance_loss(
            flat, 0.3 * jnp.asarray(rows, jnp.float32)
        ),
        subtrajectory_balance: subtrajectory_balance(flat, own, None),
        control: control(flat, own, None),
        policy_gradient: policy_gradient(flat, own, None),
        potential: np.mean(
            [
                (c + np.mean(group)) ** 2
                for c, group in zip(slopes, groups, strict=True)
                if len(group)
            ]
        ),
    }
    for loss in ALL:
        np.testing.assert_allclose(loss(ratios, extra, where), expected[loss], rtol=1e-5)


@every_loss
def test_of_nothing_a_loss_is_nan_so_that_the_step_is_left_out(loss):
    assert np.isnan(loss(numbers(0, *SHAPE), numbers(1, *SHAPE, 4), jnp.zeros(SHAPE, bool)))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"where has shape \(4,\): must be that of \(6, 4\)"):
        losses.log_variance_loss(numbers(0, *SHAPE), where=jnp.ones(4, bool))
