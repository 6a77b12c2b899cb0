"""Adjoint methods: nothing to learn at the exact bridge, and the drift of a mixture found."""

import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import endpoints, exact, gaussians, kernels, losses, references, time_grids
from d2ejax.algorithms import adjoint, adjoint_replay, partners
from d2ejax.algorithms.adjoint_objective import AdjointSampler, corrector_objective, objective
from d2ejax.algorithms.adjoint_replay import Pairs
from d2ejax.exploration.particles import Particles
from tests import gaussian_case
from tests.algorithms import recovery_test

SIGMA, T_MAX, NUM_STEPS = 0.9, 0.7, 5
# scale(t, T), g² and both ends of the grid are all far from one.
LAW, GRID = references.ornstein_uhlenbeck(SIGMA, 1.2), time_grids.end_refined(NUM_STEPS, T_MAX)
TIMES = np.asarray(GRID.times, np.float64)
BATCHES, SIZE = 64, 512
STEP = jnp.zeros((), jnp.int32)


@functools.cache
def case():
    (mean_0, var_0), (mean_1, var_1) = gaussian_case.MOMENTS[2]
    ends = gaussian_case.make(2).ends
    bridge = exact.gaussian_bridge(mean_0, np.diag(var_0), mean_1, np.diag(var_1), LAW, T_MAX)
    return gaussian_case.Case(ends, LAW, GRID, bridge)


def affine(params, x, t):
    k = jnp.argmin(jnp.abs(GRID.times[:-1] - t))
    return params["slope"][k] * x + params["offset"][k], params["raw"][k]


CHAIN = kernels.process(
    affine, LAW, GRID, variance="bounded", bound=gaussian_case.BOUND, discretisation="exact"
)


def of_kernels(slopes, offsets, variances):
    """The parameters with which the process has these affine kernels, `(K, dim)` each."""
    scale, gain = (np.asarray(x)[:, None] for x in (CHAIN.steps.scale, CHAIN.steps.gain))
    ratio = np.log(variances) - np.asarray(CHAIN.steps.log_variance)[:, None]
    params = {
        "slope": (slopes - scale) / gain,
        "offset": offsets / gain,
        "raw": gaussian_case.BOUND * np.arctanh(ratio / gaussian_case.BOUND),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def of_bridge():
    law = case().bridge.forward_kernels(TIMES)
    slopes, variances = (np.einsum("kii->ki", x) for x in (law.matrix, law.cov))
    return of_kernels(slopes, law.offset, variances)


def of_independent_ends():
    """The kernels of the bridges between independent ends, made Markov."""
    (mean_0, var_0), (mean_1, var_1) = (map(np.asarray, m) for m in gaussian_case.MOMENTS[2])
    slopes, offsets, variances = [], [], []
    for s, t in itertools.pairwise(TIMES):
        of_start, of_end, spread = references.pinned_weights(LAW, s, start=0.0, end=T_MAX)
        variance = of_start**2 * var_0 + of_end**2 * var_1 + spread
        slope = of_end * var_1 / variance
        given = mean_1 - slope * (of_start * mean_0 + of_end * mean_1)
        of_now, of_later, noise = references.pinned_weights(LAW, t, start=s, end=T_MAX)
        slopes.append(of_now + of_later * slope)
        offsets.append(of_later * given)
        variances.append(noise + of_later**2 * (var_1 - slope**2 * variance))
    return of_kernels(*(np.stack(x).astype(np.float64) for x in (slopes, offsets, variances)))


def score(params, x):
    return jax.grad(gaussian_case.quadratic, argnums=1)(params, x)


def method(corrector, **options):
    defaults = {
        "learn_variance": True,
        "potential": gaussian_case.quadratic,
        "score": score,
        "num_anchors": 2048,
    }
    return AdjointSampler(
        corrector=corrector,
        forward=CHAIN,
        backward=gaussian_case.process(case(), backward=True),
        reference=kernels.reference_process(LAW, GRID, discretisation="exact"),
        law=LAW,
        grid=GRID,
        source=case().ends[0],
        target=case().ends[1],
        **(defaults | options),
    )


def with_gradients(starts, ends):
    gradients = -jax.vmap(jax.grad(case().ends[1].log_density))(ends)
    return Pairs(starts, ends, gradients)


@functools.cache
def plan(independent):
    """Batches of ends of the exact bridge, or of independent ones."""
    rng = np.random.default_rng(0)
    starts, ends = case().bridge.sample_plan(rng, BATCHES * SIZE)
    if independent:
        ends = rng.permutation(ends)
    starts, ends = (jnp.asarray(x, jnp.float32) for x in (starts, ends))
    pairs = jax.jit(with_gradients)(starts, ends)
    return jax.tree.map(lambda x: np.asarray(x).reshape(BATCHES, -1, 2), pairs)


@functools.cache
def gradients(corrector, size=SIZE, independent=False, curvature=0.0):
    """Compiles the gradients on all batches, with factors that are one unless a bug is."""
    given, original = method(corrector, curvature=curvature), losses.adjoint_matching_loss
    keys = jax.random.split(jax.random.key(1), BATCHES)
    batches = jax.tree.map(lambda x: x[:, :size], plan(independent))

    @gaussian_case.jit
    def run(params, corrector_params, no_scale, no_diffusion):
        scales = jnp.where(no_scale, LAW.scale(GRID.times[:-1], T_MAX), 1.0)
        diffusion = jnp.where(no_diffusion, SIGMA**2, 1.0)

        def spoilt(shifts, adjoints, pulls, variances):
            adjoints = adjoints / scales[None, :, None]
            return original(shifts, adjoints, pulls / diffusion, variances)

        def gradient(batch):
            key, pairs = batch
            options = {"corrector": corrector_params, "previous": None, "step": STEP}
            loss = objective(given, key, pairs, average=params, **options)
            return jax.grad(loss, has_aux=True)(params)[0]

        with mock.patch.object(losses, "adjoint_matching_loss", spoilt):
            return jax.lax.map(gradient, (keys, batches), batch_size=8)

    return run


def largest(tree):
    return np.abs(gaussian_case.z_scores(tree)).max()


def test_the_adjoint_stage_is_stationary_at_the_bridge_alone():
    params, potential = {"drift": of_bridge()}, gaussian_case.centred_potential(case(), 1)
    run = gradients("learned")
    assert largest(run(params, potential, False, False)) < 4.5
    # What would be no bug, were the reference Brownian with σ = 1.
    assert largest(run(params, potential, True, False)["drift"]) > 10
    assert largest(run(params, potential, False, True)["drift"]) > 10
    forgotten = jax.tree.map(jnp.zeros_like, potential)
    assert largest(run(params, forgotten, False, False)["drift"]) > 10
    moved = params["drift"] | {"offset": params["drift"]["offset"] + 0.3}
    assert largest(run({"drift": moved}, potential, False, False)) > 10
    # The variance is fitted to what the means leave, which adjoints know nothing of.
    wider = params["drift"] | {"raw": params["drift"]["raw"] + 0.1}
    found = run({"drift": wider}, potential, False, False)["drift"]
    assert largest(found["raw"]) > 10
    assert largest({name: found[name] for name in ("slope", "offset")}) < 4.5


def test_the_pull_to_the_end_takes_noise_away_and_adds_no_bias():
    params, potential = {"drift": of_bridge()}, gaussian_case.centred_potential(case(), 1)
    # Of -log ψ_T along the first axis.
    curvature = float(1 / gaussian_case.MOMENTS[2][1][1][0] + 2 * potential["square"][0])
    assert curvature > 1
    plain, mixed = (
        gradients("learned", curvature=value)(params, potential, False, False)["drift"]
        for value in (0.0, curvature)
    )
    assert largest(mixed["offset"][..., 1]) < 4.5
    # Where it is exact there is no noise at all.
    spread = [np.std(found["offset"], axis=0)[:, 0] for found in (plain, mixed)]
    assert np.all(spread[1] < 0.01 * spread[0])
    moved = params["drift"] | {"offset": params["drift"]["offset"] + 0.3}
    run = gradients("learned", curvature=curvature)
    found = run({"drift": moved}, potential, False, False)["drift"]
    assert largest(found["offset"][..., 1]) > 10


def test_the_closed_form_is_stationary_at_the_bridge():
    params = {"drift": of_bridge(), "potential": gaussian_case.centred_potential(case(), 0)}
    run = gradients("semi_discrete", size=32)
    found = run(params, {}, False, False)
    # The constant of the potential has no gradient at all.
    assert np.all(found["potential"].pop("constant") == 0)
    assert largest(found) < 4.5
    moved = params["potential"] | {"linear": params["potential"]["linear"] + 0.3}
    found = run(params | {"potential": moved}, {}, False, False)
    del found["potential"]["constant"]
    assert largest(found["drift"]) > 6 and largest(found["potential"]) > 6


def test_independent_ends_are_stationary_at_their_own_bridges():
    run = gradients("independent", independent=True)
    assert largest(run({"drift": of_independent_ends()}, {}, False, False)) < 4.5
    assert largest(run({"drift": of_bridge()}, {}, False, False)) > 10


def test_the_corrector_is_the_gradient_of_the_potential_at_the_end():
    given, potential = method("learned"), gaussian_case.centred_potential(case(), 1)
    batches = plan(False)

    @gaussian_case.jit
    def run(params):
        def gradient(pairs):
            loss = corrector_objective(given, pairs)
            found = jax.grad(loss, has_aux=True)(params)[0]
            return {name: found[name] for name in ("square", "linear")}

        return jax.lax.map(gradient, batches)

    assert largest(run(potential)) < 4.0
    assert largest(run(potential | {"linear": potential["linear"] + 0.1})) > 10


def test_the_closed_form_is_the_gradient_of_the_estimate(key):
    anchors = partners.Anchors(case().ends[0].sample(key, 50), None)
    potentials = jnp.sin(anchors.positions[:, 0])

    def log_potential(y):
        laws = jax.vmap(lambda x: references.transition(LAW, x, 0.0, T_MAX))(anchors.positions)
        log_transitions = jax.vmap(gaussians.log_density, (0, None))(laws, y)
        return losses.log_potential(losses.anchor_log_weights(log_transitions, potentials))

    goal = jnp.asarray([0.7, -1.0])
    found, effective = partners.potential_gradient(anchors, potentials, LAW, GRID, goal)
    np.testing.assert_allclose(found, jax.grad(log_potential)(goal), rtol=1e-4)
    assert 5 < effective < 50


def test_damping_weighs_the_previous_iterate():
    params = {"drift": of_bridge()}
    moved = {"drift": params["drift"] | {"offset": params["drift"]["offset"] + 0.3}}
    pairs = jax.tree.map(lambda x: x[0], plan(False))

    def gradient(damping, previous):
        given = method("none", damping=damping, learn_variance=False)
        options = {"average": None, "corrector": None, "previous": previous, "step": STEP}
        loss = objective(given, jax.random.key(0), pairs, **options)
        return jax.grad(loss, has_aux=True)(moved)[0]["drift"]["offset"]

    plain = gradient(0.0, None)
    # Where it is itself the previous iterate it is drawn there by nothing.
    np.testing.assert_allclose(gradient(3.0, moved["drift"]), plain / 4, rtol=1e-4)
    mixed, still = gradient(3.0, params["drift"]), gradient(1e6, params["drift"])
    np.testing.assert_allclose(mixed, (plain + 3 * still) / 4, rtol=1e-3, atol=1e-4)
    assert np.abs(still).max() > 0.01


# ---- The replay


def test_nothing_that_is_not_finite_enters_the_replay(key):
    def log_density(x):
        return jnp.log(x[0]) - 50.0 * x[0] ** 2

    starts = jnp.asarray([[0.0], [1.0], [2.0], [jnp.nan]])
    ends = jnp.asarray([[2.0], [-1.0], [0.1], [1.0]])
    add = functools.partial(adjoint_replay.add, log_density=log_density, max_gradient=20.0)
    replay, shares = gaussian_case.jit(add)(adjoint_replay.init(8, 1), starts, ends)
    # The start that is not finite comes with a finite energy.
    assert shares == {"invalid": 0.25, "outside": 0.0}
    assert int(replay.num_filled) == 2
    pairs = adjoint_replay.sample(key, replay, 200)
    of_first = pairs.ends[:, 0] == 2.0
    assert set(pairs.starts[:, 0].tolist()) == {0.0, 2.0} and 40 < of_first.sum() < 160
    # ∇E = 100 x - 1 / x: cut where it is longer than 20.
    np.testing.assert_allclose(pairs.gradients[:, 0], jnp.where(of_first, 20.0, 0.0), atol=1e-5)
    empty = adjoint_replay.sample(key, adjoint_replay.init(8, 2), 4)
    assert np.isnan(empty.gradients).all()
    # Both stages leave out a step on nothing.
    potential = gaussian_case.centred_potential(case(), 1)
    options = {"average": None, "corrector": None, "previous": None, "step": STEP}
    params = {"drift": of_bridge()}
    for given, found in (
        ("none", lambda given, pairs: objective(given, key, pairs, **options)(params)),
        ("learned", lambda given, pairs: corrector_objective(given, pairs)(potential)),
    ):
        value, _ = gaussian_case.jit(functools.partial(found, method(given)))(empty)
        assert np.isnan(value)


def test_a_huge_gradient_keeps_its_direction():
    long = jnp.asarray([3e30, -4e30])
    np.testing.assert_allclose(adjoint_replay.clipped(long, 5.0), [3.0, -4.0], rtol=1e-5)
    np.testing.assert_allclose(adjoint_replay.clipped(jnp.zeros(2), 5.0), [0.0, 0.0])
    np.testing.assert_allclose(adjoint_replay.clipped(long[:1], jnp.inf), [3e30])


def test_particles_of_the_target_are_coupled_to_the_source_as_by_the_bridge(key):
    size = 1024
    goals = case().ends[1].sample(key, size)
    explorer = Particles(size, None, 1, 0.0, lambda key, n: goals[:n])
    given = method(
        "semi_discrete",
        particles=explorer,
        rollout_size=size,
        replay_size=size,
        num_anchors=4096,
        off_policy_ratio=optax.constant_schedule(1.0),
    )
    params = {"drift": of_bridge(), "potential": gaussian_case.centred_potential(case(), 0)}
    algorithm = adjoint.adjoint_sampler(
        given,
        adjoint.AdjointStages(1, 1, 0, 0),
        init_params=lambda key: (params, {}, gaussian_case.zero_params(case())),
        optimisers=(optax.sgd(0.0),) * 3,
        ema_decay=0.5,
    )
    roll_out = gaussian_case.jit(functools.partial(adjoint.roll_out, given))
    state, shares = roll_out(key, algorithm.init(key))
    assert shares == {"invalid": 0.0, "outside": 0.0}
    rows = np.asarray(state.replay.positions[:, :4], np.float64)
    assert int(state.replay.num_filled) == size
    bridge = case().bridge.plan
    spread = np.sqrt(np.diag(bridge.cov))
    assert np.abs((rows.mean(axis=0) - bridge.mean) / spread).max() < 0.16
    found = np.cov(rows.T) / np.outer(spread, spread)
    np.testing.assert_allclose(found, bridge.cov / np.outer(spread, spread), atol=0.16)
    # Far from independent.
    assert bridge.cov[0, 2] / (spread[0] * spread[2]) > 0.5


# ---- AdjointStages


def test_stages_alternate_and_end_with_the_backward_process():
    stages = adjoint.AdjointStages(2, 3, 2, 4)
    found = [tuple(map(int, stages.at(jnp.asarray(k)))) for k in range(stages.total)]
    once = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [pair[0] for pair in found[10:]] == [2] * 4 and found[:10] == once * 2


def test_what_is_missing_is_named():
    options = {"init_params": None, "optimisers": (), "ema_decay": 0.0}
    plain, learned = adjoint.AdjointStages(1, 1, 0, 1), adjoint.AdjointStages(1, 1, 1, 1)
    for given, stages, message in (
        (method("lerned"), plain, "corrector = 'lerned': must be one of"),
        (method("learned"), plain, "corrector_steps = 0: must be > 0"),
        (method("semi_discrete"), learned, "corrector_steps = 1: must be .* 0 with all others"),
        (method("learned", score=None), learned, "score = None: must be a network"),
        (method("semi_discrete", potential=None), plain, "potential = None: must be a network"),
        (method("none", particles=0), plain, "particles: must be None"),
        (
            method("none")._replace(target=endpoints.ring()._replace(log_density=None)),
            plain,
            "no log-density",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            adjoint.adjoint_sampler(given, stages, **options)


# ---- From nothing


@pytest.mark.parametrize("corrector", ["learned", "semi_discrete"])
def test_the_drift_of_a_mixture_and_its_log_z_are_found(corrector):
    pair, (law, grid) = recovery_test.pair(), (recovery_test.LAW, recovery_test.GRID)
    network = recovery_test.NETWORK
    embedded = network.apply

    def vector(params, x):
        return embedded(params, x, grid.t_max)[0]

    forward = recovery_test.process(False, "bridge")
    given = AdjointSampler(
        corrector=corrector,
        forward=forward,
        backward=recovery_test.process(True, "bridge"),
        reference=kernels.reference_process(law, grid),
        law=law,
        grid=grid,
        source=endpoints.restrict(pair.source, "samples"),
        target=endpoints.restrict(recovery_test.shifted(pair.target), "energy"),
        learn_variance=True,
        potential=recovery_test.POTENTIAL_NETWORK,
        score=vector,
        num_anchors=256,
        rollout_size=512,
        replay_size=2048,
        rollout_every=10,
    )
    learned = corrector == "learned"
    stages = adjoint.AdjointStages(*((15, 40, 20, 1) if learned else (1, 450, 0, 1)))

    def init_params(key):
        keys = jax.random.split(key, 4)
        params = {"drift": network.init(keys[0])}
        if not learned:
            params["potential"] = recovery_test.INIT_POTENTIAL(keys[1])
        return params, network.init(keys[2]) if learned else {}, network.init(keys[3])

    algorithm = adjoint.adjoint_sampler(
        given,
        stages,
        init_params=init_params,
        optimisers=tuple(recovery_test.annealed(n) for n in (600 if learned else 450, 300, 1)),
        ema_decay=0.95,
    )
    state = recovery_test.trained(algorithm, stages.total)
    assert int(state.skipped) == 0
    params = state.models[adjoint.FORWARD].average["drift"]
    assert recovery_test.drift_error(forward, params) < 0.05
    recovery_test.assert_log_z(False, params)
