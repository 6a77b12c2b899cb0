"""Flows: reversals made of a flow and a score, and the ODE that has a bridge's marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import exact, flows, kernels, references, rollouts, time_grids
from d2ejax.typing import EmbeddedNetwork
from tests.reference_cases import T_MAX, every_reference

MEANS, VARIANCES = (0.4, -0.9), (0.5, 0.2)


def bridge_of(reference):
    ends = [([mean], [[variance]]) for mean, variance in zip(MEANS, VARIANCES, strict=True)]
    return exact.gaussian_bridge(*ends[0], *ends[1], reference, T_MAX)


def exact_networks(reference, grid):
    """Current and osmotic networks of the exact bridge at the inner times of a grid."""
    bridge = bridge_of(reference)
    times = np.asarray(grid.times, np.float64)[1:-1]
    tables = []
    for t in times:
        forward, backward = bridge.affine_drift(t), bridge.affine_backward_drift(t)
        pull = float(reference.drift(jnp.ones(1), jnp.float32(t))[0])
        tables.append(
            [
                [
                    (forward.matrix - backward.matrix)[0, 0] / 2 - pull,
                    (forward.offset - backward.offset)[0] / 2,
                ],
                [
                    (forward.matrix + backward.matrix)[0, 0] / 2,
                    (forward.offset + backward.offset)[0] / 2,
                ],
            ]
        )
    table = jnp.asarray(np.asarray(tables), jnp.float32)

    def network(which):
        def embed(params, t):
            return params * table[jnp.argmin(jnp.abs(grid.times[1:-1] - t)), which]

        def apply(params, x, embedding):
            return embedding[0] * x + embedding[1], jnp.ones_like(x)

        return EmbeddedNetwork(embed, apply)

    return network(0), network(1)


@every_reference
def test_flow_and_score_make_the_two_drifts_of_the_bridge(reference):
    grid, bridge = time_grids.uniform(10, T_MAX), bridge_of(reference)
    forward, backward = flows.drift_networks(*exact_networks(reference, grid))
    params, x = {"current": jnp.ones(()), "osmotic": jnp.ones(())}, jnp.asarray([0.3])
    points = np.asarray(x, np.float64)[None]
    for t in np.asarray(grid.times, np.float64)[1:-1]:
        time = jnp.float32(t)
        pull = reference.drift(x, time)
        drift, log_variance = forward(params, x, time)
        back, _ = backward(params, x, time)
        np.testing.assert_array_equal(log_variance, jnp.zeros(1))
        # F = f + forward, B = -f + backward: each other's reversal, by the sum g² ∇log p_t.
        np.testing.assert_allclose(pull + drift, bridge.drift(points, t)[0], rtol=1e-4)
        reversed_drift = bridge.backward_drift(points, t)[0]
        np.testing.assert_allclose(back - pull, reversed_drift, rtol=1e-4, atol=1e-4)
        mean, cov = bridge.marginal(t)
        score = -(points[0] - mean) / cov[0, 0]
        squared = float(reference.diffusion(time)) ** 2
        np.testing.assert_allclose(drift + back, squared * score, rtol=1e-3, atol=1e-4)


@every_reference
def test_a_network_of_the_forward_drift_can_take_the_place_of_that_of_the_flow(reference):
    grid = time_grids.uniform(10, T_MAX)
    current, osmotic = exact_networks(reference, grid)

    def total(params, x, embedding):
        along, push = (
            n.apply(params, x, e)[0] for n, e in zip((current, osmotic), embedding, strict=True)
        )
        return along + push, jnp.ones_like(x)

    drift = EmbeddedNetwork(lambda p, t: (current.embed(p, t), osmotic.embed(p, t)), total)
    params = {"current": jnp.ones(()), "osmotic": jnp.ones(())}
    x, t = jnp.asarray([0.3]), grid.times[3]
    pairs = zip(
        flows.drift_networks(drift, osmotic, of_drift=True),
        flows.drift_networks(current, osmotic),
        strict=True,
    )
    for found, expected in pairs:
        np.testing.assert_allclose(found(params, x, t), expected(params, x, t), rtol=1e-5)
    velocity = flows.current_network(drift, osmotic)(params, x, t)[0]
    np.testing.assert_allclose(velocity, current(params["current"], x, t)[0], rtol=1e-5)


@every_reference
@pytest.mark.parametrize("backward", [False, True])
def test_networks_of_zeros_are_the_reference_and_its_reversal(reference, backward):
    grid = time_grids.end_refined(4, T_MAX)
    networks = flows.drift_networks(*exact_networks(reference, grid))
    params, options = (
        {"current": jnp.zeros(()), "osmotic": jnp.zeros(())},
        {"variance": "fixed"},
    )
    ours, plain = (
        kernels.process(network, reference, grid, backward=backward, **options)
        for network in (networks[int(backward)], kernels.zero_network)
    )
    x = jnp.linspace(-1.0, 1.0, 4)[None, :, None]
    for one, other in zip(
        rollouts.step_kernels(ours, params, x),
        rollouts.step_kernels(plain, None, x),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def moments(paths, step):
    return float(jnp.mean(paths[:, step])), float(jnp.var(paths[:, step]))


@pytest.mark.parametrize("tolerance", [None, 1e-4])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_flow_of_the_exact_bridge_carries_its_marginals(key, tolerance, reverse):
    # The flow of a Gaussian bridge on the line is affine, and maps the deviation of any point
    # in units of the standard deviation to itself.
    reference, grid = references.brownian(0.8), time_grids.uniform(60, T_MAX)
    bridge = bridge_of(reference)

    def table(t):
        forward, backward = bridge.affine_drift(t), bridge.affine_backward_drift(t)
        return (
            (forward.matrix - backward.matrix)[0, 0] / 2,
            (forward.offset - backward.offset)[0] / 2,
        )

    # At neither end are both drifts known: there the flow goes on as nearby.
    inner = np.clip(np.asarray(grid.times, np.float64), 1e-3, T_MAX - 1e-3)
    knots = jnp.asarray([table(t) for t in inner], jnp.float32)

    def velocity(x, t):
        slope, offset = (jnp.interp(t, grid.times, knots[:, i]) for i in (0, 1))
        return slope * x + offset

    start = 1 if reverse else 0
    deviations = jnp.asarray([-2.0, 0.0, 1.0])
    x = (MEANS[start] + deviations * VARIANCES[start] ** 0.5)[:, None]
    run = jax.jit(
        jax.vmap(
            lambda x: flows.probability_flow(
                velocity, x, grid, reverse=reverse, tolerance=tolerance
            )
        )
    )
    paths = run(x)
    assert paths.shape == (3, 61, 1)
    np.testing.assert_allclose(paths[:, -1 if reverse else 0], x, rtol=1e-6)
    for index in (0, 15, 45, 60):
        mean, cov = bridge.marginal(float(grid.times[index]))
        expected = mean[0] + np.asarray(deviations) * cov[0, 0] ** 0.5
        np.testing.assert_allclose(paths[:, index, 0], expected, atol=3e-3)


@pytest.mark.parametrize("num_steps", [1, 80])
def test_the_velocity_of_two_processes_is_half_their_difference(num_steps):
    reference, grid = (
        references.ornstein_uhlenbeck(0.8, 0.7),
        time_grids.uniform(num_steps, T_MAX),
    )
    bridge = bridge_of(reference)
    knots = np.asarray(grid.times, np.float64)

    def chain(backward):
        drift = bridge.affine_backward_drift if backward else bridge.affine_drift
        at = knots[1:] if backward else knots[:-1]
        sign = 1.0 if backward else -1.0
        table = jnp.asarray(
            [(drift(t).matrix[0, 0] - sign * 0.7, drift(t).offset[0]) for t in at], jnp.float32
        )

        def network(params, x, t):
            slope, offset = table[jnp.argmin(jnp.abs(jnp.asarray(at, jnp.float32) - t))]
            return slope * x + offset, jnp.zeros_like(x)

        return kernels.process(network, reference, grid, backward=backward, variance="fixed")

    velocity = flows.process_velocity((chain(False), chain(True)), (None, None), grid)
    x, points = jnp.asarray([0.3]), np.asarray([[0.3]])
    if num_steps == 1:
        expected = (bridge.drift(points, 0.0) - bridge.backward_drift(points, T_MAX)) / 2
        for t in (0.0, 0.4, T_MAX):
            np.testing.assert_allclose(velocity(x, jnp.float32(t)), expected[0], rtol=1e-4)
        return
    for t in (knots[20], knots[47], 0.5 * (knots[30] + knots[31])):
        expected = (bridge.drift(points, t) - bridge.backward_drift(points, t)) / 2
        np.testing.assert_allclose(velocity(x, jnp.float32(t)), expected[0], rtol=1e-3)


def test_a_tolerance_must_be_positive():
    grid = time_grids.uniform(2, 1.0)
    with pytest.raises(ValueError, match="tolerance = 0: must be > 0"):
        flows.probability_flow(lambda x, t: x, jnp.ones(1), grid, tolerance=0)
