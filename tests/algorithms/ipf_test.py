"""IPF: its schedule, its guards, and its exact iterates between Gaussians."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import endpoints, exact
from d2ejax.algorithms import ipf
from d2ejax.algorithms.base import Model
from tests import gaussian_case

BACKWARD, FORWARD = ipf.BACKWARD, ipf.FORWARD
ADAM = optax.adam(0.01)


def make(
    case,
    losses,
    *,
    plan=None,
    optimiser=ADAM,
    ema_decay=0.9,
    use_ema=True,
    warm_start=True,
    init_params=None,
    **options,
):
    """IPF of the affine processes of a case; losses of the backward and the forward one."""
    backward, forward = (
        gaussian_case.half_step(case, loss, backward=is_backward, **options)
        for loss, is_backward in zip(losses, (True, False), strict=True)
    )
    if plan is None:
        plan = ipf.schedule(*losses, iterations=2, backward_steps=2, forward_steps=3)
    empty = [
        None if end.sample is not None and end.log_density is None else explorer
        for end, explorer in zip(case.ends, forward.particles, strict=True)
    ]
    potential = jax.tree.map(jnp.zeros_like, gaussian_case.centred_potential(case, 0))
    model = {"drift": gaussian_case.zero_params(case), "potential": potential}
    return ipf.ipf(
        backward._replace(particles=tuple(empty)),
        forward._replace(particles=tuple(empty)),
        plan,
        init_params=init_params or (lambda key: (model, model)),
        optimisers=(optimiser, optimiser),
        ema_decay=ema_decay,
        use_ema_opposite=use_ema,
        warm_start=warm_start,
    )


def restricted(case, access):
    """The case as training sees it; what is not granted raises when it is called."""

    def refuse(*arguments):
        raise AssertionError("this end's samples are not for training")

    ends = []
    for end, kind in zip(case.ends, access, strict=True):
        full = end._replace(sample=refuse) if kind == "energy" else end
        full = full._replace(log_density=refuse) if kind == "samples" else full
        ends.append(endpoints.restrict(full, kind))
    return case._replace(ends=tuple(ends))


def history(algorithm, num_steps):
    """Maps a seed to the first state and, stacked, that after each step and its metrics."""

    @gaussian_case.jit
    def run(key):
        start = algorithm.init(key)

        def advance(state, _):
            state, metrics = algorithm.step(state)
            return state, (state, metrics)

        return start, *jax.lax.scan(advance, start, length=num_steps)[1]

    def on_host(seed=0):
        start, after, metrics = run(jax.random.key(seed))
        start, after = (s._replace(models=jax.device_get(s.models)) for s in (start, after))
        return start, after, metrics

    return on_host


def same(a, b):
    """Whether two trees agree bit for bit."""

    def bits(tree):
        for leaf in jax.tree.leaves(tree):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            yield np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return all(np.array_equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def trained_directions(start, after):
    """Which models each step moved."""
    states = [start.models] + [at(after.models, i) for i in range(len(after.step))]
    return [
        [d for d in (BACKWARD, FORWARD) if not same(new[d], old[d])]
        for old, new in itertools.pairwise(states)
    ]


@pytest.mark.parametrize(
    ("losses", "segments", "boundaries", "total"),
    [
        (
            ("likelihood", "log_variance"),
            ((BACKWARD, 2), (FORWARD, 3)),
            [(BACKWARD, 0, 2), (FORWARD, 0, 5), (BACKWARD, 1, 7), (FORWARD, 1, 10)],
            10,
        ),
        (
            ("likelihood", "semi_discrete"),
            ((FORWARD, 3),),
            [(FORWARD, 0, 3), (FORWARD, 1, 6), (BACKWARD, 2, 10)],
            10,
        ),
        (
            ("semi_discrete", "likelihood"),
            ((BACKWARD, 2),),
            [(BACKWARD, 0, 2), (BACKWARD, 1, 4), (FORWARD, 2, 10)],
            10,
        ),
    ],
)
def test_schedule_of_a_case_worked_out_by_hand(losses, segments, boundaries, total):
    plan = ipf.schedule(*losses, iterations=2, backward_steps=2, forward_steps=3)
    assert plan.segments == segments
    assert plan.boundaries() == boundaries
    assert plan.total == total


@pytest.mark.parametrize("warm_start", [True, False])
def test_a_half_step_starts_warm_or_with_parameters_of_the_seed(warm_start):
    # Parameters start at a random number, and the optimiser adds one, then two, then three ...
    case = gaussian_case.make(1)
    zero = gaussian_case.zero_params(case)

    def init_params(key):
        potential = jax.tree.map(jnp.zeros_like, gaussian_case.centred_potential(case, 0))
        x = 100.0 * jax.random.uniform(key)
        model = {"drift": jax.tree.map(lambda leaf: leaf + x, zero), "potential": potential}
        return model, model

    def update(updates, count, params=None):
        count = count + 1
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, count), updates), count

    count = optax.GradientTransformation(lambda params: jnp.zeros(()), update)
    algorithm = make(
        case,
        ("likelihood", "likelihood"),
        optimiser=count,
        warm_start=warm_start,
        init_params=init_params,
    )
    run = history(algorithm, 10)

    def backward_numbers(seed):
        _, after, _ = run(seed)
        leaf = jax.tree.leaves(after.models[BACKWARD].params["drift"])[0]
        return np.reshape(leaf, (10, -1))[:, 0]

    # Backward half-steps are steps 1, 2 and 6, 7; the optimiser's count goes on.
    steps = [np.diff(backward_numbers(seed)) for seed in (0, 1)]
    for moved in steps:
        np.testing.assert_allclose(np.delete(moved, 4), [2, 0, 0, 0, 4, 0, 0, 0], atol=1e-4)
    anew = [moved[4] - 3.0 for moved in steps]
    if warm_start:
        np.testing.assert_allclose(anew, 0.0, atol=1e-4)
    else:
        assert min(abs(anew[0]), abs(anew[1]), abs(anew[0] - anew[1])) > 0.1


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (("likelihood", "likelihood"), [[0], [0], [1], [1], [1]] * 2),
        (("likelihood", "semi_discrete"), [[1]] * 6 + [[0]] * 4),
    ],
)
def test_each_step_trains_the_direction_of_its_half_step_alone(losses, expected):
    algorithm = make(gaussian_case.make(1), losses)
    start, after, metrics = history(algorithm, 10)()
    assert trained_directions(start, after) == expected
    np.testing.assert_array_equal(after.step, np.arange(1, 11))
    assert np.all(np.isfinite(metrics["loss"])) and not np.any(metrics["skipped"])
    # The state is a pytree like any other.
    leaves, structure = jax.tree.flatten(start)
    assert same(jax.tree.unflatten(structure, leaves), start)
    assert isinstance(jax.tree.unflatten(structure, leaves), ipf.State)


@pytest.mark.parametrize(
    ("access", "losses"),
    [
        (("energy", "energy"), ("log_variance", "log_variance")),
        (("energy", "energy"), ("trajectory_balance", "trajectory_balance")),
        (("samples", "energy"), ("likelihood", "log_variance")),
        (("samples", "energy"), ("likelihood", "semi_discrete")),
        (("energy", "samples"), ("log_variance", "likelihood")),
        (("energy", "samples"), ("semi_discrete", "likelihood")),
        (("samples", "samples"), ("likelihood", "likelihood")),
    ],
)
def test_an_end_is_used_only_by_what_it_grants(access, losses):
    # Tracing runs all Python of init and of both branches of a step.
    algorithm = make(restricted(gaussian_case.make(1), access), losses)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    after, _ = jax.eval_shape(algorithm.step, state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (state, after)]
    assert shapes[0] == shapes[1]
    sampled = [kind == "samples" for kind in access]
    assert [buffer is None for buffer in state.buffers] == sampled


@pytest.mark.parametrize("end", [0, 1])
def test_the_proof_would_notice_a_sampler_that_is_called(end):
    def refuse(key, n):
        raise AssertionError("sampled")

    case = gaussian_case.make(1)
    ends = [case.ends[0], case.ends[1]]
    ends[end] = ends[end]._replace(sample=refuse)
    algorithm = make(case._replace(ends=tuple(ends)), ("log_variance", "log_variance"))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    with pytest.raises(AssertionError, match="sampled"):
        jax.eval_shape(algorithm.step, state)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted():
    case = gaussian_case.make(1)
    target = case.ends[1]._replace(log_density=lambda x: jnp.nan * jnp.sum(x))
    case = restricted(case._replace(ends=(case.ends[0], target)), ("samples", "energy"))
    plan = ipf.Schedule(((FORWARD, 1),), 3)
    start, after, metrics = history(make(case, ("likelihood", "log_variance"), plan=plan), 3)()
    for i in range(3):
        assert same(at(after.models, i), start.models)
        # Nor do the ends of such paths come back as goals.
        assert same(at(after.buffers, i), start.buffers)
    np.testing.assert_array_equal(after.skipped, [1, 2, 3])
    np.testing.assert_array_equal(after.consecutive_skipped, [1, 2, 3])
    np.testing.assert_array_equal(metrics["skipped"], [1.0, 1.0, 1.0])
    # The next step draws other paths.
    assert not same(after.key[0], start.key)


def test_a_good_step_ends_the_run_of_skipped_ones_and_goes_on_from_before_it():
    case = gaussian_case.make(1)
    plan = ipf.Schedule(((FORWARD, 1),), 5)
    bad = jnp.asarray([False, True, True, False, True])
    algorithm = make(
        case,
        ("likelihood", "log_variance"),
        plan=plan,
        inverse_temperature=lambda step: jnp.where(bad[step], jnp.nan, 1.0),
    )
    start, after, metrics = history(algorithm, 5)()
    np.testing.assert_array_equal(after.skipped, [0, 1, 2, 2, 3])
    np.testing.assert_array_equal(after.consecutive_skipped, [0, 1, 2, 0, 1])
    assert trained_directions(start, after) == [[FORWARD], [], [], [FORWARD], []]
    np.testing.assert_array_equal(metrics["skipped"], bad.astype(jnp.float32))


def test_schedules_run_on_the_steps_of_their_own_direction():
    case = gaussian_case.make(1)
    plan = ipf.Schedule(((BACKWARD, 2), (FORWARD, 3)), 1)
    algorithm = make(
        case,
        ("likelihood", "log_variance"),
        plan=plan,
        # Broken at the forward half-step's first step, whatever came before.
        inverse_temperature=lambda step: jnp.where(step == 0, jnp.nan, 1.0),
    )
    _, after, metrics = history(algorithm, 5)()
    np.testing.assert_array_equal(after.own_steps[:, 0], [1, 2, 2, 2, 2])
    np.testing.assert_array_equal(after.own_steps[:, 1], [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(metrics["skipped"], [0.0, 0.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("use_ema", [False, True])
def test_the_opposite_process_is_seen_by_its_average_if_asked(use_ema):
    case = gaussian_case.make(1)
    algorithm = make(case, ("likelihood", "likelihood"), use_ema=use_ema)
    state = algorithm.init(jax.random.key(0))
    average = state.models[FORWARD].average
    other = average | {"drift": gaussian_case.perturbed(average["drift"])}

    @gaussian_case.jit
    def loss(params, average):
        model = Model(params, average, state.models[FORWARD].opt_state)
        return algorithm.step(state._replace(models=(state.models[0], model)))[1]["loss"]

    both, params_moved, average_moved = (
        float(loss(*pair)) for pair in ((average, average), (other, average), (average, other))
    )
    assert (params_moved == both) == use_ema
    assert (average_moved == both) == (not use_ema)


def test_one_key_gives_one_run_another_another_and_the_average_follows():
    algorithm = make(gaussian_case.make(1), ("likelihood", "likelihood"), ema_decay=0.75)
    run = history(algorithm, 2)
    (start, after, _), again, other = run(3), run(3), run(4)
    assert same(after, again[1])
    assert not same(after.models, other[1].models)
    model, old = at(after.models, 0)[BACKWARD], start.models[BACKWARD]
    for new, average, before in zip(
        *map(jax.tree.leaves, (model.params, model.average, old.average)), strict=True
    ):
        np.testing.assert_allclose(average, 0.75 * before + 0.25 * new, rtol=1e-6)
    assert gaussian_case.largest(model.params["drift"]) > 0.0


STEPS, ITERATIONS = 400, 2


def laws(model, case, *, backward):
    """Mean and variance of the free end, and the cross-covariance, chained in float64."""
    process = gaussian_case.process(case, backward=backward)

    def kernel(x):
        at_point = jnp.full((case.dim,), x)
        return jax.vmap(lambda step: process.kernel(model.average["drift"], at_point, step))(
            process.steps
        )

    low, high = (jax.tree.map(np.float64, kernel(x)) for x in (0.0, 1.0))
    mean, variance = gaussian_case.MOMENTS[1][1 if backward else 0]
    mean, variance = mean[0], variance[0]
    cross = variance
    order = range(gaussian_case.NUM_STEPS)
    for k in reversed(order) if backward else order:
        slope = high.mean[k, 0] - low.mean[k, 0]
        mean = slope * mean + low.mean[k, 0]
        variance = slope**2 * variance + np.exp(low.log_variance[k, 0])
        cross *= slope
    return mean, variance, cross


@functools.cache
def exact_iterates():
    case = gaussian_case.make(1)
    (mean_0, var_0), (mean_1, var_1) = gaussian_case.MOMENTS[1]
    return exact.gaussian_ipf(
        mean_0,
        np.diag(var_0),
        mean_1,
        np.diag(var_1),
        case.law,
        gaussian_case.T_MAX,
        num_iterations=ITERATIONS,
    )


# Theory: each iterate of IPF is f(x_0) g(x_T) times the reference, hence Markov and a mixture
# of the reference's pinned bridges, so that re-anchored half-steps have the very same answers.
# With an energy, the minimiser of the log-variance is the same half-bridge as well: its law
# given x_0 is that of the backward process reweighted by its goal, per x_0.
@pytest.mark.parametrize(
    ("access", "losses", "reanchor"),
    [
        (("samples", "samples"), ("likelihood", "likelihood"), False),
        (("samples", "samples"), ("likelihood", "likelihood"), True),
        (("samples", "samples"), ("bridge_matching", "bridge_matching"), False),
        (("samples", "energy"), ("likelihood", "log_variance"), True),
        (("energy", "energy"), ("log_variance", "log_variance"), False),
    ],
)
def test_iterates_are_the_exact_ones_half_step_by_half_step(access, losses, reanchor):
    case = restricted(gaussian_case.make(1), access)

    def rate(count):
        # Each half-step anneals on its own, so that its noise has died down at its end.
        return 0.06 * (1.0 + jnp.cos(jnp.pi * (count % STEPS) / STEPS)) / 2.0

    plan = ipf.schedule(
        *losses, iterations=ITERATIONS, backward_steps=STEPS, forward_steps=STEPS
    )
    algorithm = make(
        case,
        losses,
        plan=plan,
        optimiser=optax.adam(rate),
        ema_decay=0.98,
        batch_size=512,
        reanchor=reanchor,
    )
    advance = gaussian_case.jit(
        lambda state: jax.lax.fori_loop(0, STEPS, lambda _, s: algorithm.step(s)[0], state)
    )
    # A log-variance is zero at its optimum path by path, and leaves no noise in the fit.
    tolerance = 0.002 if set(losses) == {"log_variance"} else 0.02
    state, iterates = algorithm.init(jax.random.key(2)), exact_iterates()
    for direction, iteration, end in plan.boundaries():
        state = advance(state)
        assert int(state.step) == end
        backward = direction == BACKWARD
        plans = iterates.backward if backward else iterates.forward
        mean, cov = plans[iteration]
        free = 0 if backward else 1
        found = laws(state.models[direction], case, backward=backward)
        deviation = np.sqrt(cov[free, free])
        assert abs(found[0] - mean[free]) < tolerance * deviation
        np.testing.assert_allclose(found[1:], [cov[free, free], cov[0, 1]], rtol=tolerance)
    assert int(state.skipped) == 0


def test_successive_exact_iterates_differ_by_more_than_the_tolerance():
    iterates = exact_iterates()
    sequence = [p for pair in zip(*iterates, strict=True) for p in pair]
    for old, new in itertools.pairwise(sequence):
        assert max(np.abs(new.mean - old.mean).max(), np.abs(new.cov - old.cov).max()) > 0.02
