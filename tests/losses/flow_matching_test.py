"""Flow and score targets by hand, and the losses on arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import losses, references
from tests.reference_cases import T_MAX, every_reference

X_0, X_1, NOISE = jnp.asarray([0.5, -2.0]), jnp.asarray([3.0, 1.0]), jnp.asarray([0.4, -1.1])


def at(reference, t, t_max, noise=NOISE):
    """A point of the pinned bridge, its flow and its score."""
    span = {"start": jnp.float32(0), "end": jnp.float32(t_max)}
    mean, variance = references.pinned(reference, X_0, X_1, jnp.float32(t), **span)
    rates = references.pinned_rates(reference, X_0, X_1, jnp.float32(t), **span)
    x = mean + jnp.sqrt(variance) * noise
    flow = losses.conditional_flow(x, mean, variance, *rates)
    return x, flow, losses.conditional_score(x, mean, variance), variance


def test_targets_of_a_case_worked_out_by_hand():
    # σ = 2, T = 4, t = 1: s = 1/4, σ_t² = 16 · 3/16 = 3. With x_0 = 0, x_1 = 8 and x = 5:
    # μ = 2, u = 8/4 + (1/2) / (2 · 3/16 · 4) · 3 = 2 + 1 = 3, score = -3/3 = -1.
    span = {"start": jnp.float32(0), "end": jnp.float32(4)}
    ends, x, t = (jnp.zeros(1), jnp.full(1, 8.0)), jnp.full(1, 5.0), jnp.float32(1)
    law = references.brownian(2.0)
    mean, variance = references.pinned(law, *ends, t, **span)
    rates = references.pinned_rates(law, *ends, t, **span)
    np.testing.assert_allclose(losses.conditional_flow(x, mean, variance, *rates), [3.0])
    np.testing.assert_allclose(losses.conditional_score(x, mean, variance), [-1.0])


@pytest.mark.parametrize("t", [0.002, 0.3, 0.9, 1.4])
def test_targets_of_brownian_motion(t):
    sigma, t_max = 0.8, 1.5
    s = t / t_max
    mean = (1 - s) * X_0 + s * X_1
    x, flow, score, variance = at(references.brownian(sigma), t, t_max)
    expected = (X_1 - X_0) / t_max + (1 - 2 * s) / (2 * s * (1 - s) * t_max) * (x - mean)
    np.testing.assert_allclose(flow, expected, rtol=2e-4)
    np.testing.assert_allclose(variance, sigma**2 * t_max * s * (1 - s), rtol=1e-5)
    np.testing.assert_allclose(score, (mean - x) / (sigma**2 * t_max * s * (1 - s)), rtol=2e-3)


@every_reference
@pytest.mark.parametrize("t", [0.2, 0.75, 1.3])
def test_the_flow_carries_the_bridge_and_with_the_score_gives_its_drifts(reference, t):
    # The flow moves μ + σ ε along with the bridge's moments, by a difference in float64; and
    # u ± g²/2 score are the drifts of the bridge: f + g² ∇log q(x_1 | x) forward, and backward
    # f - g² ∇log q(x | x_0).
    with jax.enable_x64(True):
        law = reference
        time, end = jnp.asarray(t), jnp.asarray(T_MAX)
        span = {"start": jnp.zeros(()), "end": end}
        x_0, x_1, noise = (jnp.asarray(np.asarray(v, np.float64)) for v in (X_0, X_1, NOISE))

        def point(time):
            mean, variance = references.pinned(law, x_0, x_1, time, **span)
            return mean + jnp.sqrt(variance) * noise

        mean, variance = references.pinned(law, x_0, x_1, time, **span)
        rates = references.pinned_rates(law, x_0, x_1, time, **span)
        x = point(time)
        flow = losses.conditional_flow(x, mean, variance, *rates)
        score = losses.conditional_score(x, mean, variance)
        moved = (point(time + 1e-5) - point(time - 1e-5)) / 2e-5
        np.testing.assert_allclose(flow, moved, rtol=1e-6)

        squared = law.diffusion(time) ** 2
        scale, left = law.scale(time, end), law.variance(time, end)
        ahead = squared * scale * (x_1 - scale * x) / left
        behind = squared * (law.scale(0.0, time) * x_0 - x) / law.variance(0.0, time)
        drift = law.drift(x, time)
        np.testing.assert_allclose(flow + squared / 2 * score, drift + ahead, rtol=1e-6)
        np.testing.assert_allclose(flow - squared / 2 * score, drift - behind, rtol=1e-6)


@every_reference
@pytest.mark.parametrize("share", [1e-3, 1 - 1e-3])
def test_targets_in_single_precision_near_the_ends(reference, share):
    found = at(reference, share * T_MAX, T_MAX)
    _, _, score, variance = found
    assert all(np.isfinite(value).all() for value in found)
    # What is squared, √λ times the score: minus the noise, bounded.
    np.testing.assert_allclose(jnp.sqrt(variance) * score, -NOISE, rtol=0.05, atol=0.02)


def test_losses_of_a_case_worked_out_by_hand():
    # Two paths, two times: squares 1 + 4 and 9 + 0, then 0 + 0 and 0 + 4, with weights 1 and 2:
    # (5 + 2 · 9 + 0 + 2 · 4) / 4.
    found = jnp.asarray([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]])
    targets, weights = jnp.zeros((2, 2, 2)), jnp.asarray([1.0, 2.0])
    for loss in (losses.flow_matching_loss, losses.score_matching_loss):
        np.testing.assert_allclose(loss(found, targets, weights), 31.0 / 4.0)


def test_shapes_are_checked():
    three, two = jnp.zeros((4, 3, 2)), jnp.zeros(3)
    with pytest.raises(ValueError, match=r"velocities have shape .* weights \(4,\): must be"):
        losses.flow_matching_loss(three, three, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"scores have shape .* targets \(4, 2, 2\)"):
        losses.score_matching_loss(three, three[:, :2], two)
    with pytest.raises(ValueError, match=r"a variance or its rate \(2,\)"):
        losses.conditional_score(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"a mean or its rate \(\)"):
        losses.conditional_flow(
            jnp.zeros(2), jnp.zeros(2), jnp.ones(()), jnp.zeros(()), jnp.ones(())
        )
