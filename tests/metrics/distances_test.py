import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from d2ejax import metrics


def _cloud(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape)


def test_w2_of_a_translation_is_its_squared_length():
    x = _cloud(0, (300, 3))
    shuffled = np.random.default_rng(1).permutation(x) + np.array([3.0, -4.0, 12.0])
    np.testing.assert_allclose(metrics.w2_squared(x, shuffled), 169.0, rtol=1e-12)


def test_w2_is_the_best_of_all_permutations():
    x, y = _cloud(0, (6, 2)), 2.0 * _cloud(1, (6, 2))
    best = min(
        np.mean([np.dot(x[i] - y[j], x[i] - y[j]) for i, j in enumerate(order)])
        for order in itertools.permutations(range(6))
    )
    np.testing.assert_allclose(metrics.w2_squared(x, y), best, rtol=1e-12)


def test_w1_is_the_best_of_all_permutations_and_of_a_translation_its_length():
    x, y = _cloud(0, (6, 2)), 2.0 * _cloud(1, (6, 2))
    best = min(
        np.mean([np.linalg.norm(x[i] - y[j]) for i, j in enumerate(order)])
        for order in itertools.permutations(range(6))
    )
    np.testing.assert_allclose(metrics.w1(x, y), best, rtol=1e-12)
    shuffled = np.random.default_rng(1).permutation(x) + np.array([3.0, -4.0])
    np.testing.assert_allclose(metrics.w1(x, shuffled), 5.0, rtol=1e-12)


def test_displacement_interpolation_is_a_geodesic_of_w2():
    x, y = _cloud(0, (40, 2)), 1.0 + 2.0 * _cloud(1, (40, 2))
    whole = metrics.w2_squared(x, y)
    between = metrics.displacement_interpolation(x, y, 0.3)
    np.testing.assert_allclose(metrics.w2_squared(x, between), 0.09 * whole, rtol=1e-10)
    np.testing.assert_allclose(metrics.w2_squared(between, y), 0.49 * whole, rtol=1e-10)
    # Row by row, from x on.
    np.testing.assert_allclose(metrics.displacement_interpolation(x, y, 0.0), x)


def test_w2_keeps_float64_where_float32_would_lose_the_distance():
    x = 1e4 + _cloud(0, (50, 2))
    np.testing.assert_allclose(metrics.w2_squared(x, x + 1e-4), 2e-8, rtol=1e-3)


def test_floor_is_not_zero_and_shrinks_with_the_sample_size(key):
    def sample(key, n):
        return jax.random.normal(key, (n, 2))

    small, large = (metrics.w2_squared_floor(key, sample, n) for n in (64, 512))
    # In two dimensions the floor falls like log(n) / n, that is 5.3-fold here.
    assert large > 0.005
    assert 2.0 < small / large < 14.0


def test_floor_of_a_point_mass_is_zero(key):
    floor = metrics.w2_squared_floor(key, lambda key, n: jnp.ones((n, 3)), 10)
    assert floor == 0.0


def test_sliced_w2_in_one_dimension_is_w2(key):
    x, y = _cloud(0, (200, 1)), 3.0 * _cloud(1, (200, 1)) + 1.0
    np.testing.assert_allclose(
        metrics.sliced_w2_squared(key, x, y, num_directions=3),
        metrics.w2_squared(x, y),
        rtol=1e-6,
    )


def test_sliced_w2_of_a_translation_is_its_share_per_dimension(key):
    x, shift = _cloud(0, (50, 4)), np.array([2.0, 0.0, 0.0, 0.0])
    num_directions = 4096
    value = metrics.sliced_w2_squared(key, x, x + shift, num_directions=num_directions)
    # θ_1² is Beta(1/2, 3/2): mean 1/4, variance 1/16.
    assert abs(value - 1.0) < 4.0 * (4.0 * 0.25 / num_directions**0.5)


def test_mmd_of_few_points_by_hand():
    x, y = np.array([[0.0], [2.0]]), np.array([[0.0], [1.0]])
    # h = 1; distances: 2 within x, 1 within y, (0, 1, 2, 1) across.
    value = np.exp(-2.0) + np.exp(-0.5) - 0.5 * (1.0 + 2.0 * np.exp(-0.5) + np.exp(-2.0))
    np.testing.assert_allclose(metrics.mmd_squared(x, y), value, rtol=1e-12)


def test_mmd_is_unbiased_when_the_laws_agree_and_positive_when_not():
    same, shifted = [], []
    for seed in range(200):
        x, y = _cloud((seed, 0), (30, 2)), _cloud((seed, 1), (40, 2))
        same.append(metrics.mmd_squared(x, y))
        shifted.append(metrics.mmd_squared(x + 1.0, y))
    assert abs(np.mean(same)) < 4.0 * np.std(same) / 200**0.5
    assert min(same) < 0.0
    assert np.mean(shifted) > 10.0 * np.std(same)


def test_mmd_takes_its_bandwidth_from_the_true_samples_alone():
    y = _cloud(0, (50, 2))
    # Far away every cross term is 0 and x's own term 1 (one point, repeated): any bandwidth
    # that grew with x would give another value.
    near, far = (metrics.mmd_squared(np.full((5, 2), at), y) for at in (1e3, 1e6))
    np.testing.assert_allclose(near, far, rtol=1e-12)
    assert near > 1.0


def test_energy_distance_of_shifted_energies_is_the_shift():
    energies = _cloud(0, (500,))
    np.testing.assert_allclose(
        metrics.energy_distance(energies[::-1] - 2.5, energies), 2.5, rtol=1e-12
    )


def test_energy_distance_takes_batches_of_different_sizes():
    # Half of the mass moves by 1.
    assert metrics.energy_distance([0.0, 0.0, 1.0, 1.0], [0.0, 0.0]) == 0.5


def test_transport_cost_follows_the_pairs():
    x = np.array([[0.0, 0.0], [1.0, 1.0]])
    cost = metrics.transport_cost(x, x[::-1])
    assert cost == (2.0, 0.0)
    assert metrics.transport_cost(x, x).value == 0.0


def test_transport_cost_matches_its_standard_error():
    # |x_1 - x_0|² is 4 χ²_3 with mean 12 and variance 96.
    x, n = _cloud(0, (20_000, 3)), 20_000
    cost = metrics.transport_cost(x, x + 2.0 * _cloud(1, (n, 3)))
    np.testing.assert_allclose(cost.standard_error, (96.0 / n) ** 0.5, rtol=0.05)
    assert abs(cost.value - 12.0) < 4.0 * cost.standard_error


def test_a_diverged_batch_gives_nan(key):
    good, bad = _cloud(0, (5, 2)), np.full((5, 2), np.nan)
    assert np.isnan(metrics.w2_squared(bad, good)) and np.isnan(metrics.w1(bad, good))
    assert np.isnan(metrics.sliced_w2_squared(key, bad, good))
    assert np.isnan(metrics.mmd_squared(bad, good))
    assert np.isnan(metrics.energy_distance(bad[:, 0], good[:, 0]))
    assert np.isnan(metrics.transport_cost(good, bad).value)


@pytest.mark.parametrize(
    "distance",
    [
        metrics.w2_squared,
        metrics.w1,
        metrics.transport_cost,
        lambda x, y: metrics.displacement_interpolation(x, y, 0.5),
        lambda x, y: metrics.sliced_w2_squared(jax.random.key(0), x, y),
    ],
)
@pytest.mark.parametrize("shape", [(4, 2), (5, 3), (5,), (5, 1)])
def test_batches_of_different_shapes_are_refused(distance, shape):
    with pytest.raises(ValueError, match=r"must be \(5, 2\)"):
        distance(np.zeros((5, 2)), np.zeros(shape))


def test_a_flat_batch_is_refused():
    with pytest.raises(ValueError, match=r"x has shape \(5,\)"):
        metrics.w2_squared(np.zeros(5), np.zeros(5))


def test_mmd_refuses_another_dimension_and_a_degenerate_truth():
    with pytest.raises(ValueError, match="to fit x"):
        metrics.mmd_squared(np.zeros((4, 2)), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="must be > 0"):
        metrics.mmd_squared(_cloud(0, (4, 2)), np.zeros((4, 2)))


def test_energies_with_a_trailing_axis_and_no_directions_are_refused(key):
    with pytest.raises(ValueError, match="true_energies"):
        metrics.energy_distance(np.zeros(4), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="num_directions = 0"):
        metrics.sliced_w2_squared(key, np.zeros((4, 2)), np.ones((4, 2)), num_directions=0)


# ---- On the line


def test_w2_on_the_line_is_that_of_the_sorted_numbers_and_of_a_shift_its_length():
    x, y = _cloud(0, (300,)), 2.0 + 3.0 * _cloud(1, (300,))
    expected = metrics.w2_squared(x[:, None], y[:, None]) ** 0.5
    np.testing.assert_allclose(metrics.w2_on_line(x, y), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.energy_w2(x[::-1] - 2.5, x), 2.5, rtol=1e-12)
    # Two shapes apart, W₁ is less.
    assert metrics.energy_w2(x, y) > 1.02 * metrics.energy_distance(x, y)


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (5, 5), (2, 7)])
def test_w2_on_the_line_of_unequal_sizes_is_that_of_as_many_copies(sizes):
    x, y = _cloud(0, sizes[:1]), 2.0 * _cloud(1, sizes[1:])
    copies = np.sort(np.repeat(x, sizes[1])) - np.sort(np.repeat(y, sizes[0]))
    expected = np.mean(copies**2) ** 0.5
    np.testing.assert_allclose(metrics.w2_on_line(x, y), expected, rtol=1e-12)


def test_energies_that_are_not_finite_are_not_judged():
    assert np.isnan(metrics.energy_w2([0.0, np.inf], [0.0, 1.0]))


# ---- Sinkhorn


@pytest.mark.parametrize("epsilon", [0.5, 5.0])
def test_sinkhorn_of_two_points_is_the_closed_form(epsilon):
    x, y = _cloud(0, (2, 3)), _cloud(1, (2, 3))
    costs = ((x[:, None] - y[None]) ** 2).sum(-1)
    # Half the mass of each row goes straight, in the ratio e^(gap / 2ε) to what is crossed.
    gap = costs[0, 1] + costs[1, 0] - costs[0, 0] - costs[1, 1]
    straight = 0.5 / (1.0 + np.exp(-gap / (2.0 * epsilon)))
    plan = np.array([[straight, 0.5 - straight], [0.5 - straight, straight]])
    expected = np.sum(plan * costs) + epsilon * np.sum(plan * np.log(plan / 0.25))
    found = metrics.sinkhorn(x, y, epsilon=epsilon, threshold=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sinkhorn_of_gaussians_is_the_closed_form():
    # Janati et al. (2020, arXiv:2006.02572), theorem 1, with ε = 2 σ².
    epsilon, shift, scale = 1.0, 0.7, 1.6
    x = stats.norm.ppf((np.arange(300) + 0.5) / 300)[:, None]
    y = shift + scale * x
    a = x.var()
    b = scale**2 * a
    half = epsilon / 2.0
    root = np.sqrt(4.0 * a * b + half**2)
    expected = shift**2 + a + b - root + half * (1.0 - np.log(2.0 * half))
    expected += half * np.log(root + half)
    found = metrics.sinkhorn(x, y, epsilon=epsilon, threshold=1e-5)
    np.testing.assert_allclose(found, expected, rtol=3e-3)
    # ε tells: without it the cost would be this.
    assert abs(found - (shift**2 + a * (scale - 1.0) ** 2)) > 0.1


def test_sinkhorn_cut_short_lies_below_what_it_tends_to():
    x, y = 3.0 * _cloud(0, (40, 2)), 3.0 * _cloud(1, (40, 2))
    exact, epsilon = metrics.w2_squared(x, y), 0.02
    short = metrics.sinkhorn(x, y, epsilon=epsilon, max_iterations=10)
    long = metrics.sinkhorn(x, y, epsilon=epsilon, max_iterations=4000)
    assert exact < long < exact + epsilon * np.log(40)
    assert short < 0.9 * exact


def test_sinkhorn_refuses_what_does_not_fit():
    x = _cloud(0, (3, 2))
    with pytest.raises(ValueError, match=r"must be \(m, 2\) to fit x"):
        metrics.sinkhorn(x, _cloud(0, (3, 1)))
    with pytest.raises(ValueError, match=r"epsilon = 0\.0: must be > 0"):
        metrics.sinkhorn(x, x, epsilon=0.0)
    assert np.isnan(metrics.sinkhorn(x, np.full((3, 2), np.nan)))
