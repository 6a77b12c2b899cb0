"""Every loss finds the drift of a paired mixture in the plane, from nothing, within 5 per cent.

And those of an energy its log Z: within 3 standard errors by the weights of what they trained,
which any process gives that reaches far enough, and by a lower bound, which only a bridge does.

The losses of half-steps are regressions on the opposite process: given the exact one they must
find its reversal, with the exact backward drift. IPF, which has to find both, starts from the
reference. Drift matching is left out, being mean matching up to a factor on a uniform grid; the
light bridge has its test beside its algorithm.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import (
    couplings,
    endpoints,
    flows,
    kernels,
    metrics,
    networks,
    pairs,
    references,
    rollouts,
    time_grids,
)
from d2ejax.algorithms import base, ipf, matching
from d2ejax.algorithms.half_steps import (
    FROM_SAMPLES,
    WITH_FIXED_VARIANCE,
    WITH_POTENTIAL,
    HalfStep,
    Inputs,
)
from d2ejax.exploration import replay_buffer
from d2ejax.light import LightPotential
from tests import gaussian_case

SIGMA, T_MAX = 0.8, 1.0
LAW, GRID = references.brownian(SIGMA), time_grids.uniform(10, T_MAX)
POTENTIAL = LightPotential(LAW, T_MAX)
NETWORK = networks.drift_network(
    2, T_MAX, width=32, depth=2, num_frequencies=4, layer_norm=False, drift_scale=SIGMA
)
INIT_POTENTIAL, POTENTIAL_NETWORK = networks.potential_network(
    2, width=32, depth=2, layer_norm=False
)
NUM_STEPS = 450
LOG_Z = 1.5
CLOSE = 0.2
"""Nats that the lower bound of log Z may be short of it; an untrained process has 1.7."""


@functools.cache
def pair():
    return pairs.make_pair("mixtures", LAW, T_MAX, num_components=3, separation=1.5, std=0.5)


@functools.cache
def exact_potential():
    psi = (jnp.asarray(part, jnp.float32) for part in pair().bridge.psi)
    return POTENTIAL.from_mixture(*psi)


@functools.cache
def process(backward, variance, prediction="drift"):
    return kernels.process(
        NETWORK.apply, LAW, GRID, backward=backward, variance=variance, prediction=prediction
    )


@functools.cache
def truth(backward):
    """Points along the true marginals where a step starts, and the drifts there."""
    bridge, rng = pair().bridge, np.random.default_rng(0)
    times = np.asarray(GRID.times, np.float64)
    times, drift = (
        (times[1:], bridge.backward_drift) if backward else (times[:-1], bridge.drift)
    )
    points = np.stack([bridge.marginal(t).sample(rng, 500) for t in times])
    points = points.astype(np.float32)
    exact = [drift(x.astype(np.float64), t) for x, t in zip(points, times, strict=True)]
    return np.swapaxes(points, 0, 1), np.stack(exact)


def drift_error(chain, params):
    """The relative squared error of the drifts of a process along the true marginals."""
    points, exact = truth(chain.backward)
    found = rollouts.step_drifts(chain, params, jnp.asarray(points))
    return relative(np.swapaxes(found, 0, 1), exact)


def exact_chain(backward):
    """Matched kernels of the bridge in either direction, with their parameters."""
    bridge = pair().bridge
    parts = (
        jnp.asarray(part, jnp.float32) for part in (bridge.phi if backward else bridge.psi)
    )
    return POTENTIAL.process(GRID, backward=backward), POTENTIAL.from_mixture(*parts)


def shifted(end):
    """The same end with another log Z."""
    return end._replace(log_density=lambda x: end.log_density(x) + LOG_Z, log_z=LOG_Z)


@functools.cache
def weigher(backward):
    """Compiles the weights of a process with the bridge's family of variances."""
    chain, opposite = process(backward, "bridge"), exact_chain(not backward)
    ends = (pair().source, pair().target)
    start, goal = reversed(ends) if backward else ends
    at_start, at_goal = (-1, 0) if backward else (0, -1)

    @gaussian_case.jit
    def weights(key, params):
        start_key, path_key = jax.random.split(key)
        starts, keys = start.sample(start_key, 4000), jax.random.split(path_key, 4000)
        paths = jax.vmap(rollouts.simulate, (0, None, None, 0))(keys, chain, params, starts)
        return {
            "log_start": jax.vmap(start.log_density)(paths[:, at_start]),
            "log_forward": rollouts.log_density(chain, params, paths),
            "log_backward": rollouts.log_density(*opposite, paths),
            "log_end": jax.vmap(shifted(goal).log_density)(paths[:, at_goal]),
        }

    return weights


def log_weights(backward, params):
    """Weights of a process's paths beside the exact opposite; their mean is Z of its end."""
    return metrics.log_weights(**weigher(backward)(jax.random.key(2), params))


def assert_log_z(backward, params):
    """Within 3 standard errors, and the bound nearer than an untrained process has it."""
    weights = log_weights(backward, params)
    found = metrics.log_z_importance(weights)
    assert found.standard_error < 0.03
    assert abs(found.value - LOG_Z) < 3 * found.standard_error
    assert LOG_Z - metrics.log_z_lower(weights).value < CLOSE


def relative(found, exact):
    return metrics.drift_error(found, exact, np.asarray(GRID.steps)).value


def annealed(num_steps):
    return optax.adam(optax.cosine_decay_schedule(0.03, num_steps))


def test_nothing_is_far_from_it():
    for backward in (True, False):
        params = NETWORK.init(jax.random.key(0))
        assert drift_error(process(backward, "fixed"), params) > 0.9
        weights = log_weights(backward, params)
        assert LOG_Z - metrics.log_z_lower(weights).value > 3 * CLOSE


# ---- Half-steps


def half_step(loss, *, backward=True, prediction="drift", **options):
    source, target = pair().source, pair().target
    variance = "fixed" if loss in WITH_FIXED_VARIANCE else "bridge"
    return HalfStep(
        loss=loss,
        trained=process(backward, variance, prediction),
        opposite=process(not backward, variance, prediction),
        reference=kernels.reference_process(LAW, GRID),
        law=LAW,
        grid=GRID,
        start=target if backward else source,
        goal=source if backward else target,
        potential=POTENTIAL_NETWORK,
        particles=(None, None),
        batch_size=128,
        num_anchors=128,
        reanchor=False,
        **options,
    )


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("likelihood", {}),
        ("bridge_matching", {"prediction": "endpoint"}),
        ("mean_matching", {}),
        ("sde_likelihood", {"divergence": "exact"}),
        ("sde_likelihood", {"divergence": "hutchinson"}),
        ("log_variance", {}),
        ("trajectory_balance", {}),
        ("semi_discrete", {}),
    ],
)
def test_the_loss_of_a_half_step_finds_the_exact_drift(loss, options):
    half = half_step(loss, **options)
    half = half._replace(
        goal=half.goal if loss in FROM_SAMPLES else shifted(half.goal),
        opposite=POTENTIAL.process(GRID, match_variance=loss not in WITH_FIXED_VARIANCE),
    )
    opposite = {"drift": exact_potential()}
    empty, step = replay_buffer.init(2048, 2), jnp.ones((), jnp.int32)
    optimiser = annealed(NUM_STEPS)

    @gaussian_case.jit
    def train(key):
        init_key, goal_key, own_key = jax.random.split(key, 3)
        goals = replay_buffer.add(empty, half.goal.sample(goal_key, empty.size))
        params = {"drift": NETWORK.init(init_key)}
        if loss in WITH_POTENTIAL:
            params["potential"] = INIT_POTENTIAL(init_key)

        def advance(model, key):
            inputs = Inputs(
                model.params, model.average, opposite, (goals, None), step, opposite_step=step
            )
            value, _ = ipf.objective(half, key, inputs)
            model, _, _ = base.gradient_step(
                value, model, optimiser, decay=0.95, axis_name=None
            )
            return model, None

        start, keys = base.init_model(params, optimiser), jax.random.split(own_key, NUM_STEPS)
        return jax.lax.scan(advance, start, keys)[0].average["drift"]

    params = train(jax.random.key(1))
    assert drift_error(half.trained, params) < 0.05
    if loss not in FROM_SAMPLES:
        assert_log_z(half.trained.backward, params)


# ---- Whole algorithms


def trained(algorithm, num_steps):
    """The state after all steps, in one program."""

    @gaussian_case.jit
    def train(key):
        return jax.lax.fori_loop(
            0, num_steps, lambda _, state: algorithm.step(state)[0], algorithm.init(key)
        )

    return train(jax.random.key(1))


def test_ipf_finds_both_exact_drifts():
    loss, iterations, steps = "bridge_matching", 4, 150
    optimiser = annealed(iterations * steps)
    halves = [half_step(loss, backward=backward) for backward in (True, False)]
    plan = ipf.schedule(
        loss, loss, iterations=iterations, backward_steps=steps, forward_steps=steps
    )
    algorithm = ipf.ipf(
        *halves,
        plan,
        init_params=lambda key: ({"drift": NETWORK.init(key)},) * 2,
        optimisers=(optimiser, optimiser),
        ema_decay=0.95,
    )
    for half, model in zip(halves, trained(algorithm, plan.total).models, strict=True):
        assert drift_error(half.trained, model.average["drift"]) < 0.05


def matched(objective, names, couple, num_steps=NUM_STEPS):
    """The parameters that a matching algorithm leads to, by the objective's names."""
    algorithm = matching.matching(
        tuple(endpoints.restrict(end, "samples") for end in (pair().source, pair().target)),
        couple,
        objective,
        batch_size=128,
        init_params=lambda key: {name: NETWORK.init(key) for name in names},
        optimiser=annealed(num_steps),
        ema_decay=0.95,
    )
    return trained(algorithm, num_steps).model.average


def by_the_plan():
    """The coupling that those of minibatches tend to, without their cost."""
    params = exact_potential()

    def couple(key, x_0, x_1):
        keys = jax.random.split(key, len(x_0))
        return x_0, jax.vmap(POTENTIAL.sample_end, (0, None, 0))(keys, params, x_0)

    return couple


def test_flow_and_score_find_both_exact_drifts():
    networks_ = (NETWORK.apply, NETWORK.apply)
    draw_times = matching.stratified_times(GRID, 16)
    objective = matching.flow_and_score(*networks_, LAW, GRID, draw_times=draw_times)
    # Its targets are the noisiest: they grow without bound towards the ends.
    params = matched(objective, ("current", "osmotic"), by_the_plan(), num_steps=750)
    for backward, network in zip((False, True), flows.drift_networks(*networks_), strict=True):
        chain = kernels.process(network, LAW, GRID, backward=backward, variance="fixed")
        assert drift_error(chain, params) < 0.05


def test_bridge_regression_finds_both_exact_drifts():
    chains = process(False, "bridge"), process(True, "bridge")
    objective = matching.bridge_regression(*chains, LAW, GRID)
    params = matched(objective, ("forward", "backward"), couplings.entropic(LAW, T_MAX))
    assert drift_error(chains[0], params["forward"]) < 0.05
    assert drift_error(chains[1], params["backward"]) < 0.05


def displacement(s, x):
    """E[x_1 - x_0 | x_t = x] for independent ends on straight lines, s = t/T."""
    first, second = pair().bridge.source, pair().bridge.target
    # Each pair of their components is a joint Gaussian: axes 1 and 2.
    means = (1 - s) * first.means[:, None] + s * second.means[None]
    variances = (1 - s) ** 2 * first.variances[:, None] + s**2 * second.variances[None]
    covariances = s * second.variances[None] - (1 - s) * first.variances[:, None]
    misses = x[:, None, None] - means
    logs = -0.5 * np.sum(misses**2 / variances + np.log(variances), axis=-1)
    weights = np.exp(first.log_weights[:, None] + second.log_weights + logs)
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    given = second.means[None] - first.means[:, None] + covariances / variances * misses
    return np.einsum("nij,nijd->nd", weights, given)


def test_a_flow_alone_finds_the_regression_of_the_displacement():
    draw_times = matching.stratified_times(GRID, 8)
    objective = matching.flow_alone(NETWORK.apply, LAW, GRID, draw_times=draw_times)
    params = matched(objective, ("current",), couplings.independent)["current"]
    rng, times = np.random.default_rng(0), GRID.times[:-1]
    ends = [law.sample(rng, 500) for law in (pair().bridge.source, pair().bridge.target)]
    shares = np.asarray(times, np.float64) / T_MAX
    points = [((1 - s) * ends[0] + s * ends[1]).astype(np.float32) for s in shares]
    exact = [
        displacement(s, x.astype(np.float64)) / T_MAX
        for s, x in zip(shares, points, strict=True)
    ]
    given = jnp.stack(points, axis=1)
    found, _ = rollouts.at_times(NETWORK.apply, params, given, times)
    assert relative(np.swapaxes(found, 0, 1), np.stack(exact)) < 0.05
