"""References against moment ODEs, the semigroup property and Gaussian conditioning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from d2ejax import references, time_grids
from tests.reference_cases import REFERENCES, T_MAX, every_reference


def host_transition(reference, s, t):
    """Scale and variance of x_t given x_s in float64."""
    with jax.enable_x64(True):
        s, t = jnp.asarray(s), jnp.asarray(t)
        return float(reference.scale(s, t)), float(reference.variance(s, t))


def path_covariance(reference, times):
    """Scales and the covariance matrix of (x_t)_{t in times} given x_0, from transitions."""
    scales, variances = zip(*[host_transition(reference, 0.0, t) for t in times], strict=True)
    cov = np.empty((len(times), len(times)))
    for i, s in enumerate(times):
        for j, t in enumerate(times[i:], start=i):
            between = host_transition(reference, s, t)[0] if s < t else 1.0
            cov[i, j] = cov[j, i] = between * variances[i]
    return np.array(scales), cov


def condition_on_last(scales, cov, x_0, x_1):
    """Mean (n - 1, dim) and covariance of all but the last, given that the last is x_1."""
    gain = np.linalg.solve(cov[-1:, -1:], cov[-1:, :-1]).T
    mean = scales[:-1, None] * x_0 + gain * (x_1 - scales[-1] * x_0)
    return mean, cov[:-1, :-1] - gain @ cov[-1:, :-1]


@every_reference
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.4), (0.3, 1.1), (0.0, T_MAX), (1.2, T_MAX)])
def test_transition_solves_the_moment_equations(reference, s, t):
    x_s = np.array([0.7, -1.9])
    with jax.enable_x64(True):
        local = jax.jit(
            lambda time, x: (
                reference.drift(x, time),
                jax.jacfwd(reference.drift)(x, time),
                reference.diffusion(time),
            )
        )

        def moments(time, state):
            drift, jacobian, diffusion = local(jnp.asarray(time), jnp.asarray(state[:2]))
            cov = state[2:].reshape(2, 2)
            rate = jacobian @ cov + cov @ jacobian.T + float(diffusion) ** 2 * np.eye(2)
            return np.concatenate([drift, np.ravel(rate)])

        start = np.concatenate([x_s, np.zeros(4)])
        end = integrate.solve_ivp(moments, (s, t), start, rtol=1e-9, atol=1e-11).y[:, -1]
    law = references.transition(reference, jnp.asarray(x_s, jnp.float32), s, t)
    np.testing.assert_allclose(law.mean, end[:2], rtol=3e-6)
    np.testing.assert_allclose(
        np.diag(np.exp(law.log_variance)), end[2:].reshape(2, 2), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("name", REFERENCES)
def test_reversed_in_time_it_is_a_reference_with_the_same_rest(name):
    reference = REFERENCES[name]
    reverse = references.time_reversed(reference, T_MAX)
    test_transition_solves_the_moment_equations(reverse, 0.3, 1.1)
    x = jnp.asarray([0.7, -1.9])
    for t in (0.0, 0.4):
        # f/g² is half the score of what it leaves as it is, and that stays what it was.
        scores = (law.drift(x, t) / law.diffusion(t) ** 2 for law in (reference, reverse))
        np.testing.assert_allclose(*scores, rtol=1e-5)
        np.testing.assert_allclose(reverse.diffusion(t), reference.diffusion(T_MAX - t))
        if name in ("brownian", "ornstein_uhlenbeck"):
            np.testing.assert_allclose(
                reverse.variance(t, 1.1), reference.variance(t, 1.1), rtol=1e-5
            )


@every_reference
def test_the_reverse_is_a_reference_with_the_same_bridges(reference):
    reverse = references.reverse(reference, T_MAX)
    test_transition_solves_the_moment_equations(reverse, 0.3, 1.1)
    x_0, x_1 = jnp.asarray([0.4]), jnp.asarray([-1.2])
    for t in (0.2, 0.9):
        given = {"start": jnp.float32(0.0), "end": jnp.float32(T_MAX)}
        mean, variance = references.pinned(reference, x_0, x_1, jnp.float32(t), **given)
        mirrored = references.pinned(reverse, x_1, x_0, jnp.float32(T_MAX - t), **given)
        np.testing.assert_allclose(mirrored[0], mean, rtol=1e-4)
        np.testing.assert_allclose(mirrored[1], variance, rtol=1e-4)


@every_reference
def test_two_transitions_make_one(reference):
    (a, v), (b, w) = host_transition(reference, 0.2, 0.7), host_transition(reference, 0.7, 1.4)
    np.testing.assert_allclose(
        host_transition(reference, 0.2, 1.4), (a * b, b**2 * v + w), rtol=1e-12
    )
    assert host_transition(reference, 0.7, 0.7) == (1.0, 0.0)


def test_known_variances():
    assert host_transition(references.brownian(0.5), 1.0, 3.0) == (1.0, 0.5)
    # Stationary: σ² / 2α.
    _, stationary = host_transition(references.ornstein_uhlenbeck(3.0, 2.0), 0.0, 50.0)
    np.testing.assert_allclose(stationary, 9.0 / 4.0)
    _, whole = host_transition(references.variance_exploding(0.1, 5.0, 2.0), 0.0, 2.0)
    np.testing.assert_allclose(whole, 25.0 - 0.01, rtol=1e-12)


@pytest.mark.parametrize("t", [0.1, 0.6, T_MAX])
def test_variance_preserving_marginal(t):
    beta_min, beta_max = 0.2, 4.0
    integral, _ = integrate.quad(
        lambda time: np.interp(time, [0, T_MAX], [beta_min, beta_max]), 0, t
    )
    scale, variance = host_transition(REFERENCES["variance_preserving"], 0.0, t)
    np.testing.assert_allclose(scale**2, np.exp(-integral), rtol=1e-10)
    np.testing.assert_allclose(variance, 1 - np.exp(-integral), rtol=1e-10)


@every_reference
@pytest.mark.parametrize("t", [0.01, 0.5, 1.49])
def test_pinned_is_gaussian_conditioning(reference, t):
    x_0, x_1 = np.array([0.5, -2.0]), np.array([3.0, 1.0])
    mean, cov = condition_on_last(*path_covariance(reference, [t, T_MAX]), x_0, x_1)
    ends = jnp.asarray(x_0, jnp.float32), jnp.asarray(x_1, jnp.float32)
    span = {"start": jnp.float32(0), "end": jnp.float32(T_MAX)}
    value, variance = references.pinned(reference, *ends, jnp.float32(t), **span)
    np.testing.assert_allclose(value, mean[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, cov[0, 0], rtol=1e-4)


@every_reference
def test_pinned_is_exact_at_both_ends(reference):
    x_0, x_1 = jnp.asarray([0.1, -2.3]), jnp.asarray([3.7, 1.1])
    t_max = jnp.float32(T_MAX)
    for time, end in ((jnp.float32(0), x_0), (t_max, x_1)):
        mean, variance = references.pinned(
            reference, x_0, x_1, time, start=jnp.float32(0), end=t_max
        )
        np.testing.assert_array_equal(mean, end)
        assert variance == 0.0


def test_pinned_brownian_by_hand():
    # Halfway: the mean of the ends and σ² T / 4.
    mean, variance = references.pinned(
        references.brownian(2.0), jnp.zeros(1), jnp.ones(1), 0.5, start=0.0, end=1.0
    )
    np.testing.assert_allclose((mean[0], variance), (0.5, 1.0))


@every_reference
def test_pinned_path_has_the_law_of_the_bridge(reference, key):
    n, grid = 20_000, time_grids.end_refined(6, T_MAX)
    x_0, x_1 = jnp.asarray([0.5]), jnp.asarray([1.5])
    draw = functools.partial(
        references.pinned_path, reference=reference, x_0=x_0, x_1=x_1, grid=grid
    )
    paths = jax.jit(jax.vmap(draw))(jax.random.split(key, n))
    assert paths.shape == (n, 7, 1)
    np.testing.assert_array_equal(paths[:, 0], jnp.broadcast_to(x_0, (n, 1)))
    np.testing.assert_array_equal(paths[:, -1], jnp.broadcast_to(x_1, (n, 1)))

    times = [float(t) for t in grid.times[1:]]
    mean, cov = condition_on_last(*path_covariance(reference, times), *np.array([0.5, 1.5]))
    inner = np.asarray(paths[:, 1:-1, 0], np.float64)
    variances = np.diag(cov)
    assert np.all(np.abs(inner.mean(0) - mean[:, 0]) < 4.5 * np.sqrt(variances / n))
    standard_error = np.sqrt((np.outer(variances, variances) + cov**2) / n)
    assert np.all(np.abs(np.cov(inner.T) - cov) < 4.5 * standard_error)


def test_pinned_path_coordinates_are_independent(key):
    reference, grid, n = REFERENCES["ornstein_uhlenbeck"], time_grids.uniform(3, T_MAX), 10_000
    paths = jax.vmap(
        lambda k: references.pinned_path(k, reference, jnp.zeros(2), jnp.ones(2), grid)
    )(jax.random.split(key, n))
    correlation = np.corrcoef(paths[:, 1, 0], paths[:, 1, 1])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(n)


@every_reference
@pytest.mark.parametrize(
    "whole", [lambda t: t, jnp.asarray, np.int64], ids=["int", "jax", "np"]
)
def test_integer_times_are_times_like_others(reference, whole):
    x = jnp.asarray([0.7, -1.9])
    for values in (
        [reference.diffusion(t) for t in (whole(1), 1.0)],
        [reference.drift(x, t) for t in (whole(1), 1.0)],
        [reference.scale(s, t) for s, t in ((whole(0), whole(1)), (0.0, 1.0))],
        [reference.variance(s, t) for s, t in ((whole(0), whole(1)), (0.0, 1.0))],
    ):
        assert values[0].dtype == values[1].dtype == jnp.float32
        np.testing.assert_allclose(*values, rtol=1e-6)


def test_the_diffusion_is_not_cut_at_an_integer_time():
    for make in (references.brownian, lambda s: references.ornstein_uhlenbeck(s, 1.0)):
        np.testing.assert_allclose(make(2**0.5).diffusion(jnp.asarray(0)), 1.41421356)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: references.brownian(0.0), r"sigma = 0\.0: must be > 0"),
        (lambda: references.ornstein_uhlenbeck(-1.0, 1.0), r"sigma = -1\.0: must be > 0"),
        (lambda: references.ornstein_uhlenbeck(1.0, 0.0), r"rate = 0\.0: must be > 0"),
        (lambda: references.variance_exploding(0.0, 1.0, 1.0), r"sigma_min = 0\.0"),
        (lambda: references.variance_exploding(1.0, 1.0, 1.0), r"sigma_max = 1\.0: must be >"),
        (lambda: references.variance_exploding(0.1, 1.0, 0.0), r"t_max = 0\.0"),
        (lambda: references.variance_preserving(0.0, 1.0, 1.0), r"beta_min = 0\.0"),
        (lambda: references.variance_preserving(2.0, 1.0, 1.0), r"beta_max = 1\.0: must be ≥"),
        (lambda: references.brownian(float("nan")), r"sigma = nan"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
