import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from d2ejax.exploration import langevin

METHODS = ("ula", "averaged_ula", "mala", "hmc")
VARIANCES = np.asarray([1.0, 4.0])


def gaussian(x):
    return -0.5 * jnp.sum(x**2 / jnp.asarray(VARIANCES, jnp.float32))


def logistic(x):
    return jnp.sum(-x - 2.0 * jax.nn.softplus(-x))


def gaussian_samples(key, n):
    scale = jnp.asarray(np.sqrt(VARIANCES), jnp.float32)
    return jax.random.normal(key, (n, 2)) * scale[None, :]


def assert_variance(samples, variance, standard_errors=4.0):
    samples = np.asarray(samples, np.float64)
    tolerance = standard_errors * variance * np.sqrt(2.0 / samples.shape[0])
    np.testing.assert_array_less(np.abs(np.mean(samples**2, axis=0) - variance), tolerance)


refresh = jax.jit(
    langevin.refresh,
    static_argnames=("log_density", "method", "num_steps", "num_integration_steps"),
)


@pytest.mark.parametrize(
    ("method", "variance"),
    # After 3 steps at h = 0.1 where ∇log p = 0: 3·2h; (h/2)(1 + 4 + 4 + 1); 3·2h; 3·(4√(2h))².
    [("ula", 0.6), ("averaged_ula", 0.5), ("mala", 0.6), ("hmc", 9.6)],
)
def test_step_size_means_the_same_for_every_method(key, method, variance):
    start = jnp.zeros((20_000, 2))
    end, acceptance = refresh(
        key,
        start,
        lambda x: 0.0 * jnp.sum(x),
        method=method,
        step_size=0.1,
        num_steps=3,
        num_integration_steps=4,
    )
    assert_variance(end, variance)
    assert float(acceptance) == 1.0


@pytest.mark.parametrize(
    ("method", "variance"),
    # ULA's is s²/(1 - h/2s²) at h = 1/2: 4/3 and 64/15. The others are exact.
    [("ula", [4 / 3, 64 / 15]), ("averaged_ula", [1, 4]), ("mala", [1, 4]), ("hmc", [1, 4])],
)
def test_stationary_variance_on_a_gaussian(key, method, variance):
    start = jnp.zeros((20_000, 2))
    end, _ = refresh(key, start, gaussian, method=method, step_size=0.5, num_steps=60)
    assert_variance(end, np.asarray(variance))


def test_averaged_noise_keeps_the_law_over_refreshes_of_one_step(key):
    # Exactly s² + h²/4s² after one step at h = 0.4. Starting the averaging from a noise
    # independent of the position would give s² - h + h²/s²: 0.76 and 3.64.
    start = gaussian_samples(key, 100_000)
    end, _ = refresh(
        jax.random.key(1), start, gaussian, method="averaged_ula", step_size=0.4, num_steps=1
    )
    assert_variance(end, np.asarray([1.04, 4.01]))


def kolmogorov_smirnov(method):
    end, acceptance = refresh(
        jax.random.key(2), jnp.zeros((10_000, 1)), logistic, method=method,
        step_size=3.0, num_steps=60, num_integration_steps=2,
    )  # fmt: skip
    return scipy.stats.kstest(np.asarray(end[:, 0]), "logistic").pvalue, float(acceptance)


@pytest.mark.parametrize("method", ["mala", "hmc"])
def test_corrected_methods_reach_a_law_that_is_not_gaussian(method):
    p_value, acceptance = kolmogorov_smirnov(method)
    assert p_value > 1e-3
    assert 0.5 < acceptance < 0.95  # low enough that the correction matters


def test_the_same_step_size_is_visibly_biased_without_correction():
    assert kolmogorov_smirnov("ula")[0] < 1e-6


@pytest.mark.parametrize("method", ["mala", "hmc"])
def test_acceptance_agrees_with_quadrature(key, method):
    # One leapfrog step of length √(2h) is a MALA step of size h, so both share this number.
    h, n = 1.2, 100_000
    x, y = np.meshgrid(np.linspace(-6, 6, 601), np.linspace(-8, 8, 801), indexing="ij")
    forward = scipy.stats.norm.pdf(x) * scipy.stats.norm.pdf(y, x - h * x, np.sqrt(2 * h))
    backward = scipy.stats.norm.pdf(y) * scipy.stats.norm.pdf(x, y - h * y, np.sqrt(2 * h))
    expected = np.sum(np.minimum(forward, backward)) * 0.02 * 0.02
    assert expected < 0.9
    _, acceptance = refresh(
        jax.random.key(3),
        jax.random.normal(key, (n, 1)),
        lambda x: -0.5 * jnp.sum(x**2),
        method=method,
        step_size=h,
        num_steps=1,
        num_integration_steps=1,
    )
    standard_error = np.sqrt(expected * (1 - expected) / n)
    assert abs(float(acceptance) - expected) < 4 * standard_error


def walled(x):
    """Finite in (-1, 1)³ only; past a wall it is -∞, +∞ or NaN, by the coordinate."""
    inside = jnp.abs(x) < 1.0
    return (
        jnp.where(inside[0], -0.5 * x[0] ** 2, -jnp.inf)
        + jnp.where(inside[1], -0.5 * x[1] ** 2, jnp.inf)
        + jnp.log(1.0 - x[2])
        + jnp.log(1.0 + x[2])
    )


@pytest.mark.parametrize("method", METHODS)
def test_particles_never_enter_where_the_density_is_not_finite(key, method):
    start = jax.random.uniform(key, (500, 3), minval=-0.9, maxval=0.9)
    # One more starts outside, where there is no gradient to follow, and must not move.
    start = start.at[0, 2].set(1.5)
    end, acceptance = refresh(key, start, walled, method=method, step_size=0.03, num_steps=20)
    assert bool(jnp.all(jnp.abs(end[1:]) < 1.0))
    np.testing.assert_array_equal(end[0], start[0])
    assert 0.0 < float(acceptance) < 0.95
    assert float(jnp.mean(end == start)) < 0.2


@pytest.mark.parametrize("method", ["ula", "hmc"])
def test_a_position_that_overflows_is_not_taken(key, method):
    start = jnp.asarray([[1e20], [0.5]])
    end, _ = refresh(
        key, start, lambda x: -0.25 * jnp.sum(x**4), method=method, step_size=0.01, num_steps=30
    )
    assert float(end[0, 0]) == float(start[0, 0])
    assert np.isfinite(end[1, 0]) and float(end[1, 0]) != 0.5


def test_acceptance_is_the_fraction_of_moves_taken(key):
    start = jnp.zeros((500, 3))
    end, acceptance = refresh(key, start, walled, method="ula", step_size=0.2, num_steps=1)
    moved = jnp.any(end != start, axis=1)
    assert 0.1 < float(acceptance) < 0.9
    assert float(acceptance) == pytest.approx(float(jnp.mean(moved)))


@pytest.mark.parametrize("method", ["averaged_ula", "hmc"])
def test_runs_inside_a_scan_with_a_traced_step_size(key, method):
    run = functools.partial(refresh, log_density=gaussian, method=method, num_steps=2)
    start, step_sizes = jnp.ones((4, 2)), jnp.asarray([0.1, 0.05, 0.2])
    keys = jax.random.split(key, 3)

    @jax.jit
    def outer(positions):
        return jax.lax.scan(
            lambda x, inputs: run(inputs[0], x, step_size=inputs[1]),
            positions,
            (keys, step_sizes),
        )

    end, acceptances = outer(start)
    expected = start
    for i in range(3):
        expected, _ = run(keys[i], expected, step_size=step_sizes[i])
    np.testing.assert_allclose(end, expected, rtol=1e-5)
    assert len(np.unique(end)) == 8  # chains from one point are independent
    assert acceptances.shape == (3,) and end.dtype == start.dtype


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"method": "nuts"}, "method must be one of ula.*got 'nuts'"),
        ({"step_size": 0.0}, "step_size must be positive.*got 0.0"),
        ({"step_size": float("nan")}, "step_size must be positive.*got nan"),
        ({"step_size": float("inf")}, "step_size must be positive.*got inf"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_integration_steps": 0}, "num_integration_steps must be at least 1, got 0"),
        ({"positions": jnp.zeros(3)}, r"positions must have shape \(n, dim\)"),
    ],
)
def test_bad_arguments_are_refused(key, bad, message):
    good = {"positions": jnp.zeros((2, 2)), "method": "hmc", "step_size": 0.1, "num_steps": 1}
    with pytest.raises(ValueError, match=message):
        langevin.refresh(key, log_density=gaussian, **(good | bad))
