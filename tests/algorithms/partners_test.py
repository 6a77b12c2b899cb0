"""What stands opposite: the learned process, and the half-bridge in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import endpoints, kernels, references, rollouts
from d2ejax.algorithms import partners
from d2ejax.algorithms.partners import Anchors
from tests import gaussian_case

DIRECTIONS = pytest.mark.parametrize("backward", [False, True])


def half_bridge(case, anchors, potentials, *, backward, importance=None):
    return partners.semi_discrete(
        Anchors(anchors, importance),
        potentials,
        case.law,
        kernels.reference_process(case.law, case.grid),
        case.grid,
        backward=backward,
    )


def potentials_at(case, end, anchors):
    values = gaussian_case.log_potential(case, end, np.asarray(anchors, np.float64))
    return jnp.asarray(values, jnp.float32)


@DIRECTIONS
def test_learned_partner_is_the_opposite_process(key, backward):
    case = gaussian_case.make(2)
    params = gaussian_case.exact_params(case, backward=not backward)
    process = gaussian_case.process(case, backward=not backward)
    partner = partners.learned(process, params)
    goals = jax.random.normal(key, (6, 2))
    paths = gaussian_case.jit(partner.draw)(key, goals)
    assert paths.shape == (6, gaussian_case.NUM_STEPS + 1, 2)
    np.testing.assert_array_equal(paths[:, 0 if backward else -1], goals)
    assert len(np.unique(np.asarray(paths[:, 2, 0]))) == 6
    expected = gaussian_case.jit(lambda path: rollouts.log_density(process, params, path))
    found = gaussian_case.jit(partner.log_density)(paths[0])
    np.testing.assert_allclose(found, expected(paths[0]), rtol=1e-6)
    assert np.isnan(partner.effective_anchors(goals[0]))


def exact_half_bridge(case, goal, *, backward):
    """Mean and covariance of all free states given the goal, chained from exact kernels."""
    bridge, dim = case.bridge, case.dim
    law = (bridge.forward_kernels if backward else bridge.backward_kernels)(case.times)
    order = range(gaussian_case.NUM_STEPS)
    means, blocks = [np.asarray(goal, np.float64)], [[np.zeros((dim, dim))]]
    for k in order if backward else reversed(order):
        matrix = law.matrix[k]
        means.append(matrix @ means[-1] + law.offset[k])
        last = blocks[-1]
        cross = [matrix @ block for block in last]
        blocks.append([*cross, matrix @ last[-1] @ matrix.T + law.cov[k]])
    size = len(means)
    cov = np.zeros((size, dim, size, dim))
    for i, row in enumerate(blocks):
        for j, block in enumerate(row):
            cov[i, :, j], cov[j, :, i] = block, block.T
    mean, cov = np.stack(means)[1:], cov[1:, :, 1:]
    return mean.ravel(), cov.reshape(mean.size, mean.size)


@pytest.mark.parametrize(("dim", "backward"), [(1, False), (2, False), (2, True)])
def test_paths_of_the_half_bridge_have_its_exact_law(key, dim, backward):
    # A fresh minibatch for each path, so that the paths are independent.
    case, count, num_anchors = gaussian_case.make(dim), 4000, 512
    start, goal = (1, 0) if backward else (0, 1)
    mean, variance = (np.asarray(v, np.float32) for v in gaussian_case.MOMENTS[dim][goal])
    point = jnp.asarray(mean + 0.8 * np.sqrt(variance))
    potential = gaussian_case.as_quadratic(
        functools.partial(gaussian_case.log_potential, case, start), dim
    )

    @gaussian_case.jit
    def draw(keys):
        def one(key):
            anchor_key, path_key = jax.random.split(key)
            anchors = case.ends[start].sample(anchor_key, num_anchors)
            c = jax.vmap(gaussian_case.quadratic, (None, 0))(potential, anchors)
            partner = half_bridge(case, anchors, c, backward=backward)
            return partner.draw(path_key, point[None])[0]

        return jax.lax.map(one, keys, batch_size=500)

    paths = np.asarray(draw(jax.random.split(key, count)), np.float64)
    np.testing.assert_array_equal(
        paths[:, 0 if backward else -1], np.broadcast_to(point, (count, dim))
    )
    free = paths[:, 1:] if backward else paths[:, -2::-1]
    free = free.reshape(count, -1)
    exact_mean, exact_cov = exact_half_bridge(case, point, backward=backward)
    np.testing.assert_array_less(
        np.abs(free.mean(axis=0) - exact_mean),
        4.5 * np.sqrt(np.diag(exact_cov) / count),
    )
    deviations = free - exact_mean
    products = deviations[:, :, None] * deviations[:, None, :]
    errors = products.std(axis=0) / np.sqrt(count)
    np.testing.assert_array_less(np.abs(products.mean(axis=0) - exact_cov), 4.5 * errors)


@pytest.mark.parametrize(("dim", "backward"), [(1, True), (2, False)])
def test_log_density_is_that_of_the_exact_half_bridge(key, dim, backward):
    # Up to the function φ_0 of the start that the definition leaves out.
    case = gaussian_case.make(dim)
    start = 1 if backward else 0
    anchor_key, path_key = jax.random.split(key)
    anchors = case.ends[start].sample(anchor_key, 20_000)
    c = potentials_at(case, start, anchors)
    partner = half_bridge(case, anchors, c, backward=backward)
    params = gaussian_case.exact_params(case, backward=not backward)
    goals = case.ends[1 - start].sample(path_key, 8)
    paths = gaussian_case.paths(path_key, params, goals, 1, dim=dim, backward=not backward)[
        :, 0
    ]
    found = np.asarray(gaussian_case.jit(jax.vmap(partner.log_density))(paths))
    opposite = gaussian_case.process(case, backward=not backward)
    score = jax.vmap(lambda path: rollouts.log_density(opposite, params, path))
    exact = gaussian_case.jit(score)(paths)
    starts = np.asarray(paths[:, -1 if backward else 0], np.float64)
    log_phi = gaussian_case.log_density(case, start, starts) - gaussian_case.log_potential(
        case, start, starts
    )
    # The library centres c over the anchors.
    expected = np.asarray(exact) - log_phi - float(jnp.mean(c))
    effective = np.asarray(gaussian_case.jit(jax.vmap(partner.effective_anchors))(goals))
    assert np.all((effective > 100) & (effective < 20_000))
    np.testing.assert_array_less(np.abs(found - expected), 4.5 / np.sqrt(effective))


def test_uniform_importance_is_none_and_unequal_importance_moves_the_paths(key):
    case = gaussian_case.make(1)
    anchors = case.ends[0].sample(key, 64)
    c = potentials_at(case, 0, anchors)
    goals = jnp.zeros((512, 1))
    build = functools.partial(half_bridge, case, anchors, c, backward=False)

    @gaussian_case.jit
    def draw(importance):
        return build(importance=importance).draw(key, goals)

    plain = gaussian_case.jit(build().draw)(key, goals)
    np.testing.assert_allclose(draw(jnp.full((64,), 3.0)), plain, rtol=1e-5)
    # All importance on one anchor: every path starts there.
    only = jnp.where(jnp.arange(64) == 7, 0.0, -jnp.inf)
    partner, at_anchor = build(importance=only), jnp.broadcast_to(anchors[7], (512, 1))
    np.testing.assert_array_equal(draw(only)[:, 0], at_anchor)
    assert np.isfinite(gaussian_case.jit(partner.log_density)(plain[0]))
    effective = gaussian_case.jit(partner.effective_anchors)(goals[0])
    np.testing.assert_allclose(effective, 1.0, rtol=1e-5)


def test_smoothed_anchors_represent_the_end_however_bad_the_particles(key):
    # Modes of weight 0.3 and 0.7; nine tenths of the particles sit in the wrong one, too tight.
    weights, centres, stds = np.array([0.3, 0.7]), np.array([-1.5, 1.5]), np.array([0.4, 0.6])
    end = endpoints.gaussian_mixture(
        centres[:, None] * np.ones((1, 2)), stds=stds, weights=weights
    )
    particle_key, anchor_key = jax.random.split(key)
    wrong = jnp.where(jnp.arange(400) < 360, -1.5, 1.5)[:, None]
    particles = wrong + 0.3 * jax.random.normal(particle_key, (400, 2))
    anchors = gaussian_case.jit(partners.smoothed_anchors, static_argnums=(2, 3))(
        anchor_key, particles, end.log_density, 8000
    )
    assert anchors.positions.shape == (8000, 2) and anchors.log_importance.shape == (8000,)
    x = np.asarray(anchors.positions, np.float64)
    w = np.exp(np.asarray(anchors.log_importance, np.float64))
    w /= w.sum()
    mean = weights @ centres
    second = weights @ (centres**2 + stds**2)
    cross = weights @ centres**2
    for values, exact in (
        (x[:, 0], mean),
        (x[:, 1], mean),
        (x[:, 0] ** 2, second),
        (x[:, 0] * x[:, 1], cross),
        (x[:, 0] > 0.0, 0.7 * 0.99379 + 0.3 * 0.0000885),  # Φ(1.5 / 0.6), Φ(-1.5 / 0.4)
    ):
        error = np.sqrt(np.sum(w**2 * (values - exact) ** 2))
        assert error < 0.1
        assert abs(w @ values - exact) < 4 * error
    # The particles themselves are far off.
    assert abs(float(jnp.mean(particles[:, 0])) - mean) > 1.0
    # Draws follow the importance.
    drawn = np.asarray(partners.draw_anchors(key, anchors, 4000), np.float64)
    error = np.sqrt(second - mean**2) * np.sqrt(1 / 4000 + np.sum(w**2))
    assert abs(drawn[:, 0].mean() - mean) < 4 * error


def test_draws_of_true_samples_are_uniform(key):
    positions, count = jnp.arange(10.0)[:, None], 5000
    drawn = partners.draw_anchors(key, Anchors(positions, None), count)
    shares = np.bincount(np.asarray(drawn[:, 0], int), minlength=10) / count
    assert np.all(np.abs(shares - 0.1) < 4 * np.sqrt(0.09 / count))


@pytest.mark.parametrize(("factor", "enough"), [(0.99, True), (1.01, False)])
def test_hybrid_hands_over_below_so_many_effective_anchors_at_the_goals(key, factor, enough):
    case = gaussian_case.make(2)
    anchors = case.ends[0].sample(key, 40)
    closed = half_bridge(case, anchors, potentials_at(case, 0, anchors), backward=False)
    params = gaussian_case.exact_params(case, backward=True)
    other = partners.learned(gaussian_case.process(case, backward=True), params)
    # Far out hardly any anchor is within reach.
    goals = jnp.stack([anchors[0], anchors[0] + 3.0, anchors[0] - 1.0])
    effective = []
    for goal in goals:
        scale, variance = (float(f(0.0, case.grid.t_max)) for f in case.law[2:4])
        offsets = np.asarray(goal) - scale * np.asarray(anchors, np.float64)
        weights = np.exp(
            -0.5 * np.sum(offsets**2, axis=1) / variance
            - np.asarray(potentials_at(case, 0, anchors), np.float64)
        )
        effective.append(weights.sum() ** 2 / np.sum(weights**2))
    assert np.ptp(effective) > 3.0
    threshold = factor * float(np.mean(effective))
    partner = partners.hybrid(closed, other, goals, min_anchors=threshold)
    assert bool(partner.in_closed_form) == enough
    expected = closed if enough else other
    paths = gaussian_case.jit(expected.draw)(key, goals)
    np.testing.assert_array_equal(gaussian_case.jit(partner.draw)(key, goals), paths)
    score = gaussian_case.jit(partner.log_density)
    of_expected = gaussian_case.jit(expected.log_density)(paths[0])
    np.testing.assert_allclose(score(paths[0]), of_expected, rtol=1e-6)
    # Groups of paths, as a half-step hands them over, are scored path by path.
    groups = jnp.stack([paths[:2], paths[1:3]])
    np.testing.assert_allclose(
        score(groups), [[score(path) for path in group] for group in groups], rtol=1e-5
    )


@DIRECTIONS
def test_weights_do_not_depend_on_where_the_origin_is(key, backward):
    # Squared distances are taken from products: far from the origin nothing may cancel.
    case = gaussian_case.make(2)
    law = references.brownian(0.5)
    anchors, path = jax.random.normal(key, (32, 2)), jnp.zeros((gaussian_case.NUM_STEPS + 1, 2))

    def log_density(shift):
        partner = partners.semi_discrete(
            Anchors(anchors + shift, None),
            jnp.zeros(32),
            law,
            kernels.reference_process(law, case.grid),
            case.grid,
            backward=backward,
        )
        return partner.log_density(path + shift)

    shifted, here = map(gaussian_case.jit(log_density), (1000.0, 0.0))
    np.testing.assert_allclose(shifted, here, atol=2e-3)
    # Accelerators round the factors of a product unless told not to; a CPU does not show it.
    assert "HIGHEST" in str(jax.make_jaxpr(log_density)(0.0))
