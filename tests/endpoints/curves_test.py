import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax.endpoints import s_curve, swiss_roll, two_circles, two_moons
from tests.endpoints.agreement import (
    assert_gradient_sound,
    assert_mean_in_errors,
    assert_samples_follow_density,
)

PAPER_MOONS = {"noise": 0.2, "scale": 3, "shift": -1}
CURVES = {
    "moons": (two_moons(), 0.05),
    "moons, [SF]²M": (two_moons(**PAPER_MOONS), 0.6),
    "circles": (two_circles(), 0.05),
    "circles, moved": (two_circles(factor=0.3, noise=0.2, scale=2.0, shift=(1.0, -1.0)), 0.4),
    "roll": (swiss_roll(), 0.05),
    "roll, moved": (swiss_roll(noise=0.1, scale=2.0, shift=(0.5, 0.0)), 0.2),
    "s": (s_curve(), 0.05),
    "s, moved": (s_curve(noise=0.15, scale=0.5, shift=1.0), 0.075),
}


@pytest.mark.parametrize("name", CURVES)
def test_samples_follow_the_density(name, key):
    endpoint, std = CURVES[name]
    assert_samples_follow_density(endpoint, key, std=std)


@pytest.mark.parametrize("name", CURVES)
def test_gradient(name, key):
    endpoint, std = CURVES[name]
    assert_gradient_sound(endpoint, key, std=std)


def fine_log_density(points, pieces, std):
    """log ∫ N(x; γ(u), std² I) du by Simpson's rule on 4001 nodes, in float64."""
    weights = np.ones(4_001)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    u = np.linspace(0.0, 1.0, 4_001)
    total = np.zeros(len(points))
    for piece in pieces:
        squares = ((points[:, None, :] - np.stack(piece(u), -1)) ** 2).sum(-1)
        total += np.exp(-0.5 * squares / std**2) @ (weights / 12_000.0) / len(pieces)
    return np.log(total / (2.0 * np.pi * std**2))


def moon_pieces(u):
    return np.cos(np.pi * u), np.sin(np.pi * u)


PIECES = {
    "moons": [moon_pieces, lambda u: (1 - moon_pieces(u)[0], 0.5 - moon_pieces(u)[1])],
    "circles": [moon_pieces, lambda u: (0.5 * moon_pieces(u)[0], 0.5 * moon_pieces(u)[1])],
    "roll": [lambda u: ((0.5 + u) * np.cos(v := 3 * np.pi * (0.5 + u)), (0.5 + u) * np.sin(v))],
    "s": [lambda u: (np.sin(v := 3 * np.pi * (u - 0.5)), np.sign(v) * (np.cos(v) - 1))],
}
PIECES["circles"] = [lambda u, f=f: f(2.0 * u) for f in PIECES["circles"]]


@pytest.mark.parametrize("noise", [0.02, 0.25, 0.6])
@pytest.mark.parametrize(
    ("build", "name"),
    [(two_moons, "moons"), (two_circles, "circles"), (swiss_roll, "roll"), (s_curve, "s")],
)
def test_log_density_against_a_finer_rule(build, name, noise, key):
    endpoint = build(noise=noise)
    x = endpoint.sample(key, 100)
    # The second half is wider than the samples: tails, and beyond the ends of the curves.
    spread = 3.0 * noise * jax.random.normal(jax.random.key(1), (50, 2))
    x = jnp.concatenate([x[:50], x[50:] + spread])
    expected = fine_log_density(np.asarray(x, np.float64), PIECES[name], noise)
    error = np.abs(jax.jit(jax.vmap(endpoint.log_density))(x) - expected)
    # Nodes rounded to float32 move the exponent by 6e-8 |x - γ| / noise².
    rounding = 3e-7 / noise
    assert error[:50].max() < 1e-5 + rounding
    assert error[50:].max() < 1e-3 + 10.0 * rounding


def test_moons_in_the_paper_scaling_have_noise_before_scale_and_shift(key):
    x = np.asarray(two_moons(**PAPER_MOONS).sample(key, 200_000), np.float64)
    # Of the bare moons: mean (1/2, 1/4), variances 3/4 and 9/16 - 1/π.
    mean, variances = np.array([0.5, 0.25]), np.array([0.75, 0.5625 - 1.0 / np.pi])
    assert_mean_in_errors(x, 3.0 * mean - 1.0)
    assert_mean_in_errors((x - (3.0 * mean - 1.0)) ** 2, 9.0 * (variances + 0.2**2))


@pytest.mark.parametrize(
    ("build", "square"),
    [
        (two_moons, 1.625 - 1.0 / np.pi),
        (two_circles, 0.625),
        (swiss_roll, 3.25 / 3.0),
        (s_curve, 2.0 + 4.0 / (3.0 * np.pi)),
    ],
)
def test_noise_is_the_standard_deviation_of_each_coordinate(build, square, key):
    # `square` is E|γ(u)|², by hand; independent noise adds its variance twice.
    x = np.asarray(build(noise=0.2, scale=2.0).sample(key, 200_000), np.float64)
    assert_mean_in_errors((x**2).sum(axis=1, keepdims=True), 4.0 * (square + 2.0 * 0.2**2))


def test_samples_without_noise_lie_on_the_curve_and_have_no_density(key):
    endpoint = two_moons(noise=0.0)
    assert endpoint.log_density is None and endpoint.log_z is None
    x = np.asarray(endpoint.sample(key, 1000))
    outer = np.abs(np.hypot(x[:, 0], x[:, 1]) - 1.0) < 1e-5
    inner = np.abs(np.hypot(x[:, 0] - 1.0, x[:, 1] - 0.5) - 1.0) < 1e-5
    assert (outer | inner).all() and (x[outer & ~inner, 1] >= 0).all()
    assert (x[inner & ~outer, 1] <= 0.5).all()
    assert_mean_in_errors(outer[:, None].astype(np.float64), 0.5)


def test_geometry_by_hand(key):
    circles = np.hypot(*np.asarray(two_circles(noise=0.0, factor=0.25).sample(key, 1000)).T)
    assert set(np.round(circles.astype(float), 5)) == {0.25, 1.0}
    roll = np.asarray(swiss_roll(noise=0.0, scale=2.0).sample(key, 20_000))
    radius = np.hypot(*roll.T)
    np.testing.assert_allclose((radius.min(), radius.max()), (1.0, 3.0), atol=1e-3)
    letter = np.asarray(s_curve(noise=0.0).sample(key, 20_000))
    np.testing.assert_allclose(np.abs(letter).max(axis=0), (1.0, 2.0), atol=1e-3)
    assert (np.abs(np.hypot(letter[:, 0], np.abs(letter[:, 1]) - 1.0) - 1.0) < 1e-5).all()


def test_the_gradient_at_the_centre_of_the_circles_is_zero():
    gradient = jax.jit(jax.grad(two_circles(shift=1.0).log_density))(jnp.ones(2))
    np.testing.assert_array_equal(gradient, np.zeros(2))
