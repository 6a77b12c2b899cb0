import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from d2ejax.endpoints import (
    cross,
    eight_gaussians,
    gaussian,
    gaussian_mixture,
    grid_mixture,
    random_mixture,
    ring,
)
from tests.endpoints.agreement import (
    assert_gradient_sound,
    assert_mean_in_errors,
    assert_samples_follow_density,
)

TILTED = [[[0.30, 0.10], [0.10, 0.20]], [[0.05, -0.03], [-0.03, 0.08]]]
PLANAR = {
    "gaussian": (gaussian(mean=(0.5, -1.0), std=0.7), 0.7),
    "correlated": (gaussian(covariance=TILTED[0]), 0.35),
    "ring": (ring(), 0.1),
    "ring of three": (ring(num_modes=3, radius=2.0, std=0.3), 0.3),
    "cross": (cross(), 0.1),
    "eight_gaussians": (eight_gaussians(), 0.56),
    "unequal": (
        gaussian_mixture([(0, 0), (1, 2)], covariances=TILTED, weights=(3, 1)),
        0.15,
    ),
    "diagonal": (
        gaussian_mixture([(0, 0), (1, 1)], stds=[(0.2, 0.6), (0.5, 0.3)], weights=(1, 2)),
        0.2,
    ),
    "isotropic": (gaussian_mixture([(0, 0), (1, 0)], stds=(0.2, 0.5), weights=(0.2, 0.8)), 0.2),
}


@pytest.mark.parametrize("name", PLANAR)
def test_samples_follow_the_density(name, key):
    endpoint, std = PLANAR[name]
    assert_samples_follow_density(endpoint, key, std=std)


@pytest.mark.parametrize("name", PLANAR)
def test_gradient(name, key):
    endpoint, std = PLANAR[name]
    assert_gradient_sound(endpoint, key, std=std)


# Dimensions on both sides of the switch between the unrolled and the reduced sum.
@pytest.mark.parametrize("dim", [1, 3, 8, 9, 30])
@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full"])
def test_log_density_equals_scipy(dim, kind):
    rng = np.random.default_rng(dim)
    means, points = rng.normal(size=(3, dim)), rng.normal(size=(10, dim))
    weights = np.array([0.5, 0.2, 0.3])
    if kind != "full":
        stds = np.array([0.5, 1.0, 2.0])
        if kind == "diagonal":
            stds = stds[:, None] * rng.uniform(0.5, 2.0, size=(3, dim))
        covariances = stds.reshape(3, -1, 1) ** 2 * np.eye(dim)
        endpoint = gaussian_mixture(means, stds=stds, weights=weights)
    else:
        roots = rng.normal(size=(3, dim, 2 * dim)) / np.sqrt(2 * dim)
        covariances = roots @ np.swapaxes(roots, 1, 2)
        endpoint = gaussian_mixture(means, covariances=covariances, weights=weights)
    parts = [
        stats.multivariate_normal(mean, covariance).logpdf(points)
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    expected = np.logaddexp.reduce(np.stack(parts) + np.log(weights)[:, None], axis=0)
    actual = jax.vmap(endpoint.log_density)(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_samples_of_a_gaussian_have_its_moments(key):
    covariance = np.array([[1.0, 0.3, 0.0], [0.3, 0.5, -0.2], [0.0, -0.2, 2.0]])
    endpoint = gaussian(mean=(1, 2, 3), covariance=covariance)
    mean, stored = endpoint.moments
    np.testing.assert_array_equal(mean, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(stored, covariance)
    assert mean.dtype == stored.dtype == np.float64
    x = np.asarray(endpoint.sample(key, 100_000), np.float64) - mean
    assert_mean_in_errors(x, np.zeros(3))
    assert_mean_in_errors((x[:, :, None] * x[:, None, :]).reshape(-1, 9), covariance.ravel())


def test_gaussian_takes_its_size_from_what_is_given():
    assert gaussian().dim == 2
    assert gaussian(mean=(0, 0, 0)).dim == 3
    assert gaussian(covariance=np.eye(4)).dim == 4
    wide = gaussian(dim=5, mean=-0.1, std=2)
    mean, covariance = wide.moments
    np.testing.assert_array_equal(mean, np.full(5, -0.1))
    np.testing.assert_array_equal(covariance, 4.0 * np.eye(5))


def test_modes_and_weights(key):
    endpoint = ring()
    np.testing.assert_allclose(endpoint.modes[0], [1.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(endpoint.modes[1], [0.5**0.5, 0.5**0.5], atol=1e-6)
    np.testing.assert_allclose(endpoint.modes[6], [0.0, -1.0], atol=1e-6)
    assert endpoint.mode_weights.shape == (8,) and endpoint.mode_weights.dtype == np.float32
    assert endpoint.moments is None and gaussian().modes is None

    unequal = gaussian_mixture([(-1, 0), (1, 0)], stds=0.1, weights=(3, 1))
    np.testing.assert_allclose(unequal.mode_weights, [0.75, 0.25])
    left = np.asarray(unequal.sample(key, 20_000))[:, :1] < 0.0
    assert_mean_in_errors(left.astype(np.float64), 0.75)


def test_named_mixtures_have_the_published_geometry():
    wide = eight_gaussians()
    np.testing.assert_allclose(wide.modes[0], [5.0, 0.0])
    # At a mode the others are out of reach: density 1/8 · 1/(2π√0.1).
    density = np.exp(wide.log_density(jnp.asarray([5.0, 0.0])))
    np.testing.assert_allclose(density, 0.0629122, rtol=1e-4)
    five = cross().modes
    expected = {(0.0, 0.0), (0.6, 0.36), (0.6, -0.36), (-0.6, 0.36), (-0.6, -0.36)}
    assert {tuple(np.round(mode.astype(float), 6)) for mode in five} == expected
    assert [e.name for e in (ring(), wide, cross())] == ["ring", "eight_gaussians", "cross"]


def test_grids_are_the_published_ones():
    for side, ticks in ((5, {-10.0, -5.0, 0.0, 5.0, 10.0}), (3, {-5.0, 0.0, 5.0})):
        modes = grid_mixture(side=side).modes
        assert {tuple(mode) for mode in modes.tolist()} == {
            (a, b) for a in ticks for b in ticks
        }
    # At a mode the others are out of reach: density 1/25 · 1/(2π · 0.3).
    density = np.exp(grid_mixture().log_density(jnp.asarray([-5.0, 10.0])))
    np.testing.assert_allclose(density, 0.04 / (0.6 * np.pi), rtol=1e-4)
    lifted = grid_mixture(dim=50)
    assert lifted.modes.shape == (25, 50) and np.all(lifted.modes[:, 2:] == 0.0)
    assert lifted.name == "grid_mixture"


def test_random_centres_depend_on_the_seed_alone():
    endpoint = random_mixture()
    assert endpoint.modes.shape == (40, 2) and random_mixture(dim=50).modes.shape == (40, 50)
    # Of the frozen stream of seed 0: these are the target, whatever is installed.
    expected = [[3.905080, 17.215149], [8.221070, 3.590655]]
    np.testing.assert_allclose(endpoint.modes[:2], expected, atol=1e-5)
    assert 30.0 < np.abs(endpoint.modes).max() < 40.0
    assert np.abs(random_mixture(seed=1).modes - endpoint.modes).min() > 1e-3
    # The deviation is the softplus of one: log(1 + e) = 1.3133.
    narrow = random_mixture(num_modes=1)
    value = narrow.log_density(jnp.asarray(narrow.modes[0]))
    np.testing.assert_allclose(value, -np.log(2.0 * np.pi * 1.3132617**2), rtol=1e-5)


@pytest.mark.parametrize("stds", [[(0.1, 0.2)], [(0.1, 0.2), (0.1, 0.0)], [0.1, 0.2, 0.3]])
def test_deviations_of_a_wrong_shape_or_sign_are_refused(stds):
    with pytest.raises(ValueError, match=r"stds = .* is not allowed"):
        gaussian_mixture([(0, 0), (1, 1)], stds=stds)


def test_a_batch_is_not_taken_for_a_point():
    with pytest.raises(AssertionError):
        ring().log_density(jnp.zeros((2, 2)))
