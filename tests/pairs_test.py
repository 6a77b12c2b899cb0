"""Pairs: endpoints in float32 against the exact float64 mixtures that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import pairs
from d2ejax.exact.mixtures import Mixture
from d2ejax.references import brownian, ornstein_uhlenbeck
from tests.endpoints.agreement import (
    assert_gradient_sound,
    assert_mean_in_errors,
    assert_samples_follow_density,
)

REFERENCE = brownian(1.0)


@pytest.fixture(scope="module")
def planar():
    return pairs.mixture_pair(REFERENCE, 1.0)


@pytest.fixture(scope="module")
def plan():
    return pairs.gaussian_plan_pair(REFERENCE, 1.0, dim=3)


@pytest.mark.parametrize("end", ["source", "target"])
def test_planar_ends_are_sound(end, planar, key):
    endpoint = getattr(planar, end)
    assert_samples_follow_density(endpoint, key, std=0.35)
    assert_gradient_sound(endpoint, key, std=0.35)


@pytest.mark.parametrize(
    ("reference", "dim"),
    [(brownian(0.4), 40), (ornstein_uhlenbeck(1.0, 0.8), 3)],
    ids=["brownian", "ou"],
)
def test_the_sum_of_potentials_is_the_mixture(reference, dim, key):
    pair = pairs.mixture_pair(reference, 0.7, dim=dim, num_components=3)
    for end, law in ((pair.source, pair.bridge.source), (pair.target, pair.bridge.target)):
        x = end.sample(key, 64)
        assert end.log_z == 0.0 and x.shape == (64, dim) and x.dtype == jnp.float32
        value, score = jax.jit(jax.vmap(jax.value_and_grad(end.log_density)))(x)
        points = np.asarray(x, np.float64)
        np.testing.assert_allclose(value, law.log_density(points), atol=2e-3)
        np.testing.assert_allclose(score, law.score(points), rtol=1e-3, atol=1e-2)


def test_samples_in_many_dimensions_have_the_moments_of_the_mixture(key):
    pair = pairs.mixture_pair(brownian(0.5), 1.0, dim=20)
    for end, law in ((pair.source, pair.bridge.source), (pair.target, pair.bridge.target)):
        x = np.asarray(end.sample(key, 40_000), np.float64)
        mean, covariance = law.mean_and_covariance()
        assert_mean_in_errors(x, mean)
        centred = x - mean
        assert_mean_in_errors(centred**2, np.diag(covariance))
        assert_mean_in_errors(
            centred * np.roll(centred, 1, axis=1), np.diag(np.roll(covariance, 1, axis=0))
        )


@pytest.mark.parametrize("epsilon", [0.1, 10.0])
@pytest.mark.parametrize("dim", [2, 16])
def test_no_component_starves(dim, epsilon):
    pair = pairs.mixture_pair(brownian(epsilon**0.5), 1.0, dim=dim)
    masses = np.exp(pair.bridge.source.log_weights).reshape(4, 4)
    np.testing.assert_allclose(masses.sum(axis=0), 0.25, atol=1e-3)
    np.testing.assert_allclose(masses.sum(axis=1), 0.25, atol=1e-3)
    for end in (pair.source, pair.target):
        np.testing.assert_allclose(end.mode_weights.sum(), 1.0, atol=1e-6)
        assert end.mode_weights.min() > 0.2


def test_modes_split_the_mass_as_metrics_count_it(planar, key):
    for end in (planar.source, planar.target):
        x = end.sample(key, 50_000)
        squares = np.sum((np.asarray(x)[:, None] - end.modes) ** 2, axis=-1)
        nearest = np.eye(len(end.modes))[np.argmin(squares, axis=1)]
        # The weights are estimates too, from four times as many draws.
        assert_mean_in_errors(nearest, end.mode_weights, errors=5.0)
        # Centres of well-separated components are means of what lies nearest to them.
        for i, mode in enumerate(end.modes):
            near = np.asarray(x)[nearest[:, i] > 0].mean(axis=0)
            np.testing.assert_allclose(near, mode, atol=0.1)


def test_centres_keep_apart():
    for dim in (2, 5, 50):
        phi = pairs.mixture_pair(brownian(3.0), 1.0, dim=dim, separation=2.0).bridge.phi
        np.testing.assert_allclose(np.linalg.norm(phi.means, axis=1), 2.0)
        gaps = np.linalg.norm(phi.means[:, None] - phi.means, axis=-1) + 10 * np.eye(4)
        assert gaps.min() > 2.0


def test_the_seed_decides():
    first, again, other = (
        pairs.mixture_pair(REFERENCE, 1.0, dim=4, seed=seed).bridge.phi for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.means, again.means)
    assert np.abs(first.means - other.means).max() > 0.1


def test_target_of_a_gaussian_plan_has_the_moments_of_the_plan(plan, key):
    assert plan.target.log_density is None and plan.target.log_z is None
    x = np.asarray(plan.target.sample(key, 100_000), np.float64)
    mean, covariance = plan.bridge.target_moments()
    # Against estimates from more draws than these.
    assert_mean_in_errors(x, mean, errors=6.0)
    centred = x - mean
    products = (centred[:, :, None] * centred[:, None, :]).reshape(-1, 9)
    assert_mean_in_errors(products, covariance.ravel(), errors=6.0)
    low, high = plan.target.extent
    assert low < x.min() and x.max() < high
    np.testing.assert_allclose(plan.target.mode_weights, 0.2, atol=0.02)


def test_source_of_a_gaussian_plan_is_a_standard_gaussian(plan):
    mean, covariance = plan.source.moments
    np.testing.assert_array_equal(mean, np.zeros(3))
    np.testing.assert_array_equal(covariance, np.eye(3))
    law = plan.bridge.source
    assert isinstance(law, Mixture)
    np.testing.assert_array_equal(law.means, np.zeros((1, 3)))
    np.testing.assert_array_equal(law.variances, np.ones((1, 3)))


def test_pairs_by_name():
    pair = pairs.make_pair("mixtures", REFERENCE, 1.0, dim=3, num_components=2)
    assert pair.source.dim == pair.target.dim == 3 and len(pair.source.modes) == 2


@pytest.mark.parametrize("name", sorted(pairs.PAIRS))
@pytest.mark.parametrize("t_max", [0.0, -1.0, float("nan"), float("inf")])
def test_horizons_are_positive(name, t_max):
    with pytest.raises(ValueError, match=f"pair '{name}': t_max = {t_max} is not allowed"):
        pairs.make_pair(name, REFERENCE, t_max)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixture", {}, "unknown pair 'mixture': did you mean 'mixtures'?"),
        (
            "mixtures",
            {"dims": 2},
            "unknown option of pair 'mixtures' 'dims': did you mean 'dim'",
        ),
        ("mixtures", {"t_max": 2.0}, "unknown option of pair 'mixtures' 't_max'"),
        ("mixtures", {"dim": 1}, "pair 'mixtures': dim = 1 is not allowed"),
        ("mixtures", {"std": 0.0}, "std = 0.0 is not allowed"),
        ("gaussian_plan", {"separation": -1.0}, "separation = -1.0 is not allowed"),
        ("gaussian_plan", {"num_components": 0}, "num_components = 0 is not allowed"),
        ("gaussian_plan", {"seed": 0.5}, "seed = 0.5 is not allowed"),
    ],
)
def test_bad_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError) as caught:
        pairs.make_pair(name, REFERENCE, 1.0, **options)
    assert message in str(caught.value)
