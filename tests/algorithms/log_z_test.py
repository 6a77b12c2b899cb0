"""Every loss of an energy finds log Z of a Gaussian and of a mixture, from next to the optimum.

By the weights of what it trained, within 3 standard errors, as any process gives it that
reaches far enough, and by the lower bound, which only the bridge itself has close. Losses of
balance learn log Z as well.

Of two losses it is not quite the constant of the target's energy. Plain control, the adjoint
method without a corrector, does not reach a target but from a start that is forgotten: like
fine-tuning it is given a reward here, and log Z is that of the tilt from each start by itself.
Entropic neural optimal transport sees samples of the target alone: its log Z is that of a
target whose density is known to the test. Half-steps of samples have no energy, and are in
`recovery_test`; there and in `samplers_test` are more losses trained from nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import kernels, metrics, references
from d2ejax.algorithms import adjoint, base, enot, fine_tuning, ipf, samplers
from d2ejax.algorithms.adjoint_objective import AdjointSampler, objective
from d2ejax.algorithms.adjoint_replay import Pairs
from d2ejax.algorithms.half_steps import HalfStep, Inputs
from d2ejax.exploration import replay_buffer
from d2ejax.exploration.particles import Particles
from tests import gaussian_case, log_z_case
from tests.log_z_case import FORWARD, GRID, LAW, LOG_Z, POTENTIAL, REFERENCE, T_MAX

CLOSE = {"gaussian": 0.02, "mixture": 0.1}
"""Nats that the lower bound may be short of log Z: of a mixture 0.05 are left by steps that are
Gaussian."""
LEARNED = 0.15
"""Nats that a learned log Z may be off: it converges last."""
NUM_STEPS = 150
EMA = 0.9


def optimisers(*num_steps):
    return tuple(optax.adam(optax.cosine_decay_schedule(0.05, n)) for n in num_steps)


def at_start(params, x):
    """A potential log ψ_0 of trainable ψ."""
    return POTENTIAL.log_value(params, x, 0.0)


def half_step(loss, key, problem, dial):
    source, target = problem.ends()

    def balanced(params, x):
        # log h = log p_0 + log Z, of which all but log ψ_0 and log Z is given.
        return at_start(params, x) + POTENTIAL.log_value(problem.phi, x, T_MAX)

    half = HalfStep(
        loss=loss,
        trained=FORWARD,
        opposite=log_z_case.BACKWARD,
        reference=REFERENCE,
        law=LAW,
        grid=GRID,
        start=source,
        goal=target,
        potential=balanced if loss == "trajectory_balance" else at_start,
        particles=(None, None),
        batch_size=64,
        num_paths=4,
        num_anchors=64,
        min_anchors=dial,
    )
    size, step = 512, jnp.zeros((), jnp.int32)
    goals = replay_buffer.add(replay_buffer.init(size, 2), target.sample(key, size))

    def objective(key, params):
        inputs = Inputs(params, params, {"drift": problem.phi}, (None, goals), step, step)
        return ipf.objective(half, key, inputs)[0]

    def init_params(key):
        return {"drift": log_z_case.off(problem.psi), "potential": log_z_case.off(problem.psi)}

    (optimiser,) = optimisers(NUM_STEPS)
    algorithm = base.of_one_model(
        objective,
        init_params=init_params,
        optimiser=optimiser,
        ema_decay=EMA,
        axis_name=None,
    )

    def read(state):
        params, starts = state.model.average, source.sample(key, 1000)
        of_start = jax.vmap(at_start, (None, 0))
        added = of_start(params["potential"], starts) - of_start(problem.psi, starts)
        return params["drift"], jnp.mean(added)

    return algorithm, NUM_STEPS, read


def sampler(loss, key, problem, _):
    gaussian = {"mean": jnp.zeros(2), "variance": log_z_case.POINT_STD**2}
    prior, target = problem.ends()
    marginals = references.gaussian_marginals(LAW, GRID, **gaussian)

    def flow(params, x, t):
        # What the base lacks of log F: log ψ_t, and the share of log target.
        share = t / T_MAX
        at = jnp.argmin(jnp.abs(GRID.times - t))
        own = marginals(jnp.broadcast_to(x, (GRID.num_steps + 1, 2)))[at]
        return POTENTIAL.log_value(params, x, t) + share * (own - target.log_density(x))

    given = samplers.Sampler(
        loss=loss,
        process=FORWARD,
        reversal=kernels.gaussian_reversal(LAW, GRID, **gaussian),
        reference=REFERENCE,
        prior=prior,
        target=target,
        marginals=marginals,
        times=GRID.times,
        particles=Particles(512, None, 1, 0.0, target.sample),
        flow=flow,
        batch_size=64,
    )

    def init_params(key):
        return {"drift": log_z_case.off(problem.psi), "flow": log_z_case.off(problem.psi)}

    (optimiser,) = optimisers(NUM_STEPS)
    algorithm = samplers.diffusion_sampler(
        given, init_params=init_params, optimiser=optimiser, ema_decay=EMA
    )
    return (
        algorithm,
        NUM_STEPS,
        lambda state: (state.model.average["drift"], state.model.average["log_z"]),
    )


def adjoint_method(corrector, problem):
    source, target = problem.ends()
    if corrector == "none":
        target = target._replace(log_density=problem.reward)
    return AdjointSampler(
        corrector=corrector,
        forward=log_z_case.INDEPENDENT if corrector == "independent" else FORWARD,
        backward=log_z_case.BACKWARD,
        reference=REFERENCE,
        law=LAW,
        grid=GRID,
        source=source,
        target=target,
        learn_variance=False,
        potential=at_start,
        score=lambda params, x: POTENTIAL.score(params, x, 0.0),
        batch_size=128,
        num_anchors=128,
        rollout_size=256,
        replay_size=1024,
        rollout_every=10,
    )


def adjoint_sampler(corrector, key, problem, _):
    given, learned = adjoint_method(corrector, problem), corrector == "learned"
    stages = adjoint.AdjointStages(*((8, 30, 20, 1) if learned else (1, NUM_STEPS, 0, 1)))

    def init_params(key):
        forward = {"drift": log_z_case.off(problem.psi)}
        if corrector == "semi_discrete":
            forward["potential"] = log_z_case.off(problem.psi)
        correction = log_z_case.off(problem.phi) if learned else {}
        return forward, correction, problem.phi or problem.psi

    algorithm = adjoint.adjoint_sampler(
        given,
        stages,
        init_params=init_params,
        optimisers=optimisers(240 if learned else NUM_STEPS, 160, 1),
        ema_decay=EMA,
    )
    return (
        algorithm,
        stages.total,
        lambda state: (state.models[adjoint.FORWARD].average["drift"], jnp.nan),
    )


def saddle_point(loss, key, problem, _):
    source, target = problem.ends()
    given = enot.Enot(
        forward=FORWARD,
        backward=log_z_case.BACKWARD,
        reference=REFERENCE,
        law=LAW,
        grid=GRID,
        source=source,
        target=target,
        potential=lambda params, x: POTENTIAL.log_value(params, x, T_MAX),
        num_steps=400,
        backward_steps=1,
        inner_steps=3,
        batch_size=128,
    )

    def init_params(key):
        return log_z_case.off(problem.psi), log_z_case.off(problem.psi), problem.phi

    algorithm = enot.enot(
        given, init_params=init_params, optimisers=optimisers(300, 100, 1), ema_decay=EMA
    )
    return (
        algorithm,
        given.total,
        lambda state: (state.models[enot.FORWARD].average, jnp.nan),
    )


def tuning_of(loss, problem):
    return fine_tuning.FineTuning(
        loss=loss,
        process=FORWARD,
        base=REFERENCE,
        base_params=None,
        start=problem.source.sample,
        reward=problem.reward,
        batch_size=128,
        num_paths=4,
    )


def tuning(loss, key, problem, _):
    (optimiser,) = optimisers(NUM_STEPS)
    algorithm = fine_tuning.fine_tuning(
        tuning_of(loss, problem),
        init_params=lambda key: log_z_case.off(problem.psi),
        optimiser=optimiser,
        ema_decay=EMA,
    )

    def read(state):
        params = state.model.average
        # Of the reference itself: that of the tilt, from the point where all paths start.
        return params["drift"], params["log_z"] - at_start(problem.psi, jnp.zeros(2))

    return algorithm, NUM_STEPS, read


@functools.cache
def trainer(make, loss):
    """Compiles a whole training: maps a key, a problem and a dial to what is `read` of it.

    Only hybrid half-steps read the dial, their `min_anchors`; of those the last number is the
    share of gradient steps in closed form.
    """

    @gaussian_case.jit
    def train(key, problem, dial):
        own_key, init_key = jax.random.split(key)
        algorithm, num_steps, read = make(loss, own_key, problem, dial)

        def advance(_, carried):
            state, closed = carried
            state, found = algorithm.step(state)
            return state, closed + found.get("closed_form", 0.0)

        start = algorithm.init(init_key), jnp.zeros(())
        state, closed = jax.lax.fori_loop(0, num_steps, advance, start)
        return *read(state), closed / num_steps

    return train


def trained(make, loss, problem, dial=0.0):
    return trainer(make, loss)(jax.random.key(1), problem, jnp.asarray(dial))


def failures(target, drift, problem, *, log_z=None, of="bridge"):
    """What is wrong with a trained process, and with a log Z that was learned beside it."""
    weights = log_z_case.log_weights(drift, problem, of)
    found, lower = metrics.log_z_importance(weights), metrics.log_z_lower(weights)
    # Weights that are all equal leave the error of single precision.
    tolerated = 3 * max(found.standard_error, 1e-4)
    bound = 3 * max(lower.standard_error, 1e-4)
    checks = {
        "noisy": found.standard_error < 0.02,
        "importance": abs(found.value - LOG_Z) < tolerated,
        "above": lower.value < LOG_Z + bound,
        "lower": LOG_Z - lower.value < CLOSE[target],
        "learned": log_z is None or abs(log_z - LOG_Z) < LEARNED,
    }
    return [name for name, right in checks.items() if not right]


TARGETS = ("gaussian", "mixture")
HYBRID = {
    "semi_discrete": {"gaussian": 0.0, "mixture": 0.0},
    "hybrid": {"gaussian": 56.0, "mixture": 28.0},
    "log_variance": {"gaussian": np.inf, "mixture": np.inf},
}
"""Half-steps by the `min_anchors` with which the hybrid one is them, step for step."""
BALANCED = [
    (half_step, "trajectory_balance", "wide"),
    (sampler, "trajectory_balance", "point"),
    (tuning, "relative_trajectory_balance", "point"),
]
OTHERS = [
    (sampler, "subtrajectory_balance", "point"),
    *((adjoint_sampler, loss, "wide") for loss in ("learned", "semi_discrete", "none")),
    (adjoint_sampler, "reference", "point"),
    (saddle_point, "enot", "wide"),
    *((tuning, loss, "wide") for loss in fine_tuning.LOSSES[1:]),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("make", "loss", "start"), BALANCED)
def test_balances_find_log_z_and_learn_it(make, loss, start, target):
    problem = log_z_case.problem(start, target)
    drift, log_z, _ = trained(make, loss, problem)
    assert failures(target, drift, problem, log_z=log_z) == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("make", "loss", "start"), OTHERS)
def test_log_z_is_found(make, loss, start, target):
    problem = log_z_case.problem(start, target)
    drift, *_ = trained(make, loss, problem)
    assert failures(target, drift, problem) == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("loss", HYBRID)
def test_half_steps_of_a_variance_find_log_z(loss, target):
    problem = log_z_case.problem("wide", target)
    drift, _, closed = trained(half_step, "hybrid", problem, HYBRID[loss][target])
    assert failures(target, drift, problem) == []
    if loss == "hybrid":
        assert 0.02 < closed < 0.98
    else:
        assert float(closed) == (loss == "semi_discrete")


@pytest.mark.parametrize("target", TARGETS)
def test_independent_pairs_find_log_z(target):
    problem = log_z_case.independent_problem(target)
    drift, *_ = trained(adjoint_sampler, "independent", problem)
    assert failures(target, drift, problem, of="independent") == []


# ---- That they could fail


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("start", ["point", "wide", "independent"])
def test_what_training_starts_from_is_far_off_and_the_optimum_is_not(start, target):
    if start == "independent":
        problem, of = log_z_case.independent_problem(target), "independent"
    else:
        problem, of = log_z_case.problem(start, target), "bridge"
    assert failures(target, problem.psi, problem, of=of) == []
    weights = log_z_case.log_weights(log_z_case.off(problem.psi), problem, of)
    assert LOG_Z - metrics.log_z_lower(weights).value > 5 * CLOSE[target]


def with_target_moved(problem):
    moved = problem.target._replace(means=problem.target.means + 0.4)
    return problem._replace(target=moved)


BUGS = {
    "a constant": (lambda problem: problem._replace(log_z=problem.log_z + 0.3), BALANCED),
    "a factor": (
        lambda problem: problem._replace(factor=0.6 * problem.factor),
        [
            (half_step, "trajectory_balance", "wide"),
            (adjoint_sampler, "reference", "point"),
            (tuning, "control", "wide"),
        ],
    ),
    "other samples": (with_target_moved, [(saddle_point, "enot", "wide")]),
}


@pytest.mark.parametrize(
    ("bug", "make", "loss", "start"),
    [(name, *case) for name, (_, cases) in BUGS.items() for case in cases],
)
def test_a_wrong_energy_would_be_seen(bug, make, loss, start):
    problem = log_z_case.problem(start, "gaussian")
    drift, log_z, _ = trained(make, loss, BUGS[bug][0](problem))
    balanced = (make, loss, start) in BALANCED
    found = failures("gaussian", drift, problem, log_z=log_z if balanced else None)
    assert ("learned" if bug == "a constant" else "lower") in found


# ---- Where nothing is left to learn


def plan(key, problem, shape):
    """Ends of the exact bridge."""
    size = int(np.prod(shape))
    start_key, end_key = jax.random.split(key)
    starts = problem.source.sample(start_key, size)
    keys = jax.random.split(end_key, size)
    ends = jax.vmap(POTENTIAL.sample_end, (0, None, 0))(keys, problem.psi, starts)
    return starts.reshape(*shape, 2), ends.reshape(*shape, 2)


@pytest.mark.parametrize(("corrector", "start"), [("reference", "point"), ("none", "wide")])
def test_control_from_an_energy_is_stationary_at_its_bridge_alone(corrector, start, key):
    problem = log_z_case.problem(start, "mixture")

    @gaussian_case.jit
    def gradients(params):
        given = adjoint_method(corrector, problem)

        def gradient(batch):
            own_key, starts, ends = batch
            energy = jax.vmap(jax.grad(lambda x: -given.target.log_density(x)))
            pairs = Pairs(starts, ends, energy(ends))
            options = {"average": None, "corrector": None, "previous": None}
            loss = objective(given, own_key, pairs, step=jnp.zeros((), jnp.int32), **options)
            return jax.grad(loss, has_aux=True)({"drift": params})[0]["drift"]

        batches = jax.random.split(key, 64), *plan(key, problem, (64, 128))
        return jax.lax.map(gradient, batches)

    def largest(params):
        return np.abs(gaussian_case.z_scores(gradients(params))).max()

    assert largest(problem.psi) < 4.0
    assert largest(log_z_case.off(problem.psi)) > 10


def test_relative_trajectory_balance_is_stationary_at_its_tilt_in_every_sample(key):
    problem = log_z_case.problem("point", "gaussian")

    @gaussian_case.jit
    def gradient(drift, log_z):
        given = tuning_of("relative_trajectory_balance", problem)
        params = {"drift": drift, "log_z": log_z}
        loss = fine_tuning.objective(given, key, {"drift": log_z_case.off(drift)})
        return jax.grad(loss, has_aux=True)(params)[0]

    log_z = LOG_Z + at_start(problem.psi, jnp.zeros(2))
    assert gaussian_case.largest(gradient(problem.psi, log_z)) < 3e-3
    assert gaussian_case.largest(gradient(log_z_case.off(problem.psi), log_z)["drift"]) > 0.1
    off = gradient(problem.psi, log_z + 0.1)["log_z"]
    np.testing.assert_allclose(off, 0.2, rtol=1e-2)
