"""Matching through more marginals than two: exact bridges leg by leg, and one leg as before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import couplings, endpoints, exact, kernels, references, time_grids
from d2ejax.algorithms import legs, matching
from d2ejax.typing import EmbeddedNetwork
from tests import gaussian_case
from tests.algorithms.matching_test import BATCHES, REFERENCES, SIZE, affine, scores, zeros

GRID = time_grids.through((0.0, 0.3, 0.7), lambda length: time_grids.uniform(3, length))
KNOTS = (3,)
STOPS = (0.0, 0.3, 0.7)
MOMENTS = (([0.3, -0.5], [0.8, 0.4]), ([1.0, 0.2], [0.2, 0.5]), ([-0.4, 1.0], [0.3, 0.9]))
"""Not on the bridge between the first and the last: the drift has a jump at the knot."""
TIMES = np.asarray([0.02, 0.1, 0.25, 0.35, 0.5, 0.65], np.float32)


@functools.cache
def bridges(name):
    """Of either leg; the references do not depend on the time but by its length."""
    return [
        exact.gaussian_bridge(
            MOMENTS[i][0],
            np.diag(MOMENTS[i][1]),
            MOMENTS[i + 1][0],
            np.diag(MOMENTS[i + 1][1]),
            REFERENCES[name],
            STOPS[i + 1] - STOPS[i],
        )
        for i in range(2)
    ]


def pairs(name, *, plan="exact"):
    """Batches of the ends of both legs, `(BATCHES, 2, SIZE, 2)` each."""
    rng = np.random.default_rng(3)
    drawn = [bridge.sample_plan(rng, BATCHES * SIZE) for bridge in bridges(name)]
    if plan == "product":
        drawn[1] = drawn[1][0], np.roll(drawn[1][1], 1, axis=0)
    stacked = (
        np.stack([leg[end].reshape(BATCHES, SIZE, -1) for leg in drawn], axis=1)
        for end in range(2)
    )
    return tuple(jnp.asarray(x, jnp.float32) for x in stacked)


def exact_networks(name):
    """Current and osmotic networks of the bridges of both legs, each at its own times."""
    law, found = REFERENCES[name], []
    for sign in (-1.0, 1.0):
        slopes, offsets = [], []
        for t in TIMES.astype(np.float64):
            leg = int(t > STOPS[1])
            forward, backward = (
                drift(t - STOPS[leg])
                for drift in (
                    bridges(name)[leg].affine_drift,
                    bridges(name)[leg].affine_backward_drift,
                )
            )
            pull = float(law.drift(jnp.ones(1), jnp.float32(t))[0]) if sign < 0 else 0.0
            slopes.append((forward.matrix + sign * backward.matrix) / 2 - pull * np.eye(2))
            offsets.append((forward.offset + sign * backward.offset) / 2)
        found.append(affine(slopes, offsets, times=TIMES))
    return found


PARAMS = {"current": zeros(len(TIMES)), "osmotic": zeros(len(TIMES))}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("plan", ["exact", "product"])
def test_flow_and_score_have_no_gradient_at_the_bridges_of_the_legs(name, plan):
    objective = matching.flow_and_score(
        *exact_networks(name),
        REFERENCES[name],
        GRID,
        draw_times=lambda key: jnp.asarray(TIMES),
        knots=KNOTS,
    )
    found = scores(objective, PARAMS, pairs(name, plan=plan))
    # Forty-eight numbers: none beyond 4.5 standard errors, but for once in three thousand.
    assert found.max() < 4.5 if plan == "exact" else found.max() > 20


@pytest.mark.parametrize("plan", ["exact", "product"])
def test_a_flow_has_no_gradient_at_the_regression_of_the_displacement_of_a_leg(plan):
    eye, slopes, offsets = np.eye(2), [], []
    for t in TIMES.astype(np.float64):
        leg = int(t > STOPS[1])
        length = STOPS[leg + 1] - STOPS[leg]
        joint, s = bridges("brownian")[leg].plan, (t - STOPS[leg]) / length
        step, mix = np.hstack([-eye, eye]) / length, np.hstack([(1 - s) * eye, s * eye])
        slopes.append(step @ joint.cov @ mix.T @ np.linalg.inv(mix @ joint.cov @ mix.T))
        offsets.append(step @ joint.mean - slopes[-1] @ mix @ joint.mean)
    objective = matching.flow_alone(
        affine(slopes, offsets, times=TIMES),
        REFERENCES["brownian"],
        GRID,
        draw_times=lambda key: jnp.asarray(TIMES),
        knots=KNOTS,
    )
    found = scores(objective, {"current": zeros(len(TIMES))}, pairs("brownian", plan=plan))
    assert found.max() < 4.5 if plan == "exact" else found.max() > 20


def chain(*, backward):
    """Affine kernels looked up by time, of a variance of their own; see `gaussian_case`."""
    knots = GRID.times[1:] if backward else GRID.times[:-1]

    def network(params, x, t):
        k = jnp.argmin(jnp.abs(knots - t))
        shift = params["slope"][k] * x + params["offset"][k]
        return shift / GRID.steps[k], params["raw"][k]

    law = REFERENCES["brownian"]
    return kernels.process(network, law, GRID, backward=backward, variance="bounded", bound=6.0)


def exact_chain(*, backward):
    """Parameters of `chain` at which it is the bridge of either leg, step by step."""
    params = {"slope": [], "offset": [], "raw": []}
    for bridge, piece in zip(bridges("brownian"), time_grids.cut(GRID, KNOTS), strict=True):
        times = np.asarray(piece.times, np.float64)
        times -= times[0]
        law = (bridge.backward_kernels if backward else bridge.forward_kernels)(times)
        ratio = np.log(np.einsum("kii->ki", law.cov) / (0.81 * np.diff(times)[:, None]))
        params["slope"].append(np.einsum("kii->ki", law.matrix) - 1.0)
        params["offset"].append(law.offset)
        params["raw"].append(6.0 * np.arctanh(ratio / 6.0))
    return {name: jnp.asarray(np.concatenate(v), jnp.float32) for name, v in params.items()}


@pytest.mark.parametrize("plan", ["exact", "product"])
def test_bridges_have_no_gradient_at_the_kernels_of_the_legs(plan):
    both = {"forward": False, "backward": True}
    objective = matching.bridge_regression(
        *(chain(backward=b) for b in both.values()), REFERENCES["brownian"], GRID, knots=KNOTS
    )
    params = {name: exact_chain(backward=b) for name, b in both.items()}
    found = scores(objective, params, pairs("brownian", plan=plan))
    assert found.max() < 4.5 if plan == "exact" else found.max() > 20


def test_a_leg_counts_by_its_divergence_whatever_the_others(key):
    # The loss through two legs is the sum of the losses of each by itself.
    law, network = REFERENCES["brownian"], exact_networks("brownian")
    x_0, x_1 = (x[0] for x in pairs("brownian"))

    def loss(grid, times, ends, knots=()):
        objective = matching.flow_and_score(
            *network, law, grid, draw_times=lambda key: jnp.asarray(times), knots=knots
        )
        # So many pairs and times that the noise hardly matters.
        keys = jax.random.split(key, 200)
        return np.mean(jax.lax.map(lambda k: objective(k, *ends)(PARAMS)[0], keys))

    whole = loss(GRID, TIMES, (x_0, x_1), KNOTS)
    pieces = time_grids.cut(GRID, KNOTS)
    parts = [loss(pieces[i], TIMES[3 * i : 3 * i + 3], (x_0[i], x_1[i])) for i in range(2)]
    np.testing.assert_allclose(whole, sum(parts), rtol=0.02)
    assert min(parts) > 0.1 * whole


# ---- Times and draws


@pytest.mark.parametrize("spacing", matching.SPACINGS)
def test_every_leg_has_as_many_times(key, spacing):
    draw = matching.stratified_times(GRID, 4, spacing=spacing, knots=KNOTS)
    times = np.asarray(jax.vmap(draw)(jax.random.split(key, 200)))
    assert times.shape == (200, 8) and np.all(np.diff(times, axis=1) > 0)
    margins = 1e-3 * np.diff(STOPS)
    assert np.all(times[:, :4] >= margins[0] * 0.999)
    assert np.all(times[:, :4] <= 0.3 - margins[0] * 0.99)
    assert np.all(times[:, 4:] >= 0.3 + margins[1] * 0.99)
    assert np.all(times[:, 4:] <= 0.7 - margins[1] * 0.99)
    # The middle of a leg, where its steps are equal.
    np.testing.assert_allclose(times.mean(axis=0).reshape(2, 4).mean(1), [0.15, 0.5], atol=5e-3)


def test_one_leg_draws_as_if_alone_and_no_two_draw_alike(key):
    (alone,) = legs.keys(key, 1)
    first, *others = legs.keys(key, 4)
    assert jax.random.key_data(alone).tolist() == jax.random.key_data(key).tolist()
    assert jax.random.key_data(first).tolist() == jax.random.key_data(key).tolist()
    seen = {tuple(jax.random.key_data(k).tolist()) for k in (first, *others)}
    # Nor as what a sampler or a coupling may split its own key into.
    seen |= {tuple(jax.random.key_data(k).tolist()) for k in jax.random.split(key, 9)}
    assert len(seen) == 4 + 9


def algorithm(ends, **options):
    """Matching whose metrics are the pairs, and which has nothing to train."""

    def objective(key, x_0, x_1):
        return lambda params: (jnp.sum(params["w"] ** 2), {"x_0": x_0, "x_1": x_1})

    return matching.matching(
        ends,
        options.pop("couple", couplings.independent),
        objective,
        batch_size=4,
        init_params=lambda key: {"w": jnp.ones(2)},
        optimiser=optax.sgd(0.1),
        ema_decay=0.5,
    )


def drawn(ends, key, **options):
    made = algorithm(ends, **options)
    found = gaussian_case.jit(lambda key: made.step(made.init(key))[1])(key)
    return np.asarray(found["x_0"]), np.asarray(found["x_1"])


def test_further_ends_leave_the_first_leg_as_it_is_and_legs_meet_at_their_ends(key):
    ends = [endpoints.gaussian(dim=2, mean=[float(i), 0.0]) for i in range(4)]
    two, four = drawn(ends[:2], key), drawn(ends, key)
    for few, many in zip(two, four, strict=True):
        assert few.shape == (1, 4, 2) and many.shape == (3, 4, 2)
        np.testing.assert_array_equal(few[0], many[0])
    np.testing.assert_array_equal(four[0][1:], four[1][:-1])
    noise = four[1] - np.asarray([[[float(i), 0.0]] for i in (1, 2, 3)])
    assert len({tuple(row) for row in noise.reshape(12, 2).round(5).tolist()}) == 12


def test_every_leg_has_its_own_coupling(key):
    ends = [endpoints.gaussian(dim=2) for _ in range(3)]
    shifts = [lambda key, x, y, by=by: (x, y + by) for by in (10.0, 20.0)]
    moved = drawn(ends, key, couple=shifts)[1] - drawn(ends, key)[1]
    np.testing.assert_allclose(moved[0], 10.0, atol=1e-5)
    np.testing.assert_allclose(moved[1], 20.0, atol=1e-5)
    with pytest.raises(ValueError, match=r"couple: has 1 couplings: must be one, or one for"):
        algorithm(ends, couple=shifts[:1])
    with pytest.raises(ValueError, match=r"couple: has 0 couplings"):
        algorithm(ends[:1])


# ---- One leg as before


OLD = {"sf2m": 13.061163, "cfm": 13.816745, "eot": 16.950674}
"""Losses of the objectives below before there were legs."""


def test_the_objectives_of_one_leg_are_what_they_were():
    law, grid = references.ornstein_uhlenbeck(0.9, 1.1), time_grids.end_refined(4, 0.7)
    network = EmbeddedNetwork(
        lambda params, t: params * t, lambda params, x, e: (jnp.tanh(params * x + e), 0.1 * x)
    )
    draw = functools.partial(matching.stratified_times, grid, 3)
    processes = (kernels.process(network, law, grid, backward=b) for b in (False, True))
    objectives = {
        "sf2m": matching.flow_and_score(network, network, law, grid, draw_times=draw()),
        "cfm": matching.flow_alone(
            network, law, grid, draw_times=draw(spacing="grid"), path_std=0.1
        ),
        "eot": matching.bridge_regression(*processes, law, grid),
    }
    params = dict.fromkeys(("current", "osmotic", "forward", "backward"), jnp.float32(0.5))
    x_0, x_1 = jax.random.normal(jax.random.key(1), (2, 8, 2))
    for name, objective in objectives.items():
        loss = gaussian_case.jit(lambda p, o=objective: o(jax.random.key(2), x_0, x_1)(p)[0])
        np.testing.assert_allclose(loss(params), OLD[name], rtol=1e-6)
