"""Simulated paths have the reference's law; scores match scipy; time work is done once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from d2ejax import kernels, networks, references, rollouts, time_grids
from tests.reference_cases import REFERENCES, T_MAX, every_reference

GRID = time_grids.end_refined(5, T_MAX)
both_directions = pytest.mark.parametrize("backward", [False, True])


def affine_network(params, x, t):
    """A drift and a log-variance that depend on everything."""
    drift = params["slope"] * x + params["push"] * jnp.cos(t)
    return drift, params["spread"] * jnp.tanh(x) + params["level"]


PARAMS = {
    "slope": jnp.float32(-0.4),
    "push": jnp.float32(0.5),
    "spread": jnp.float32(0.2),
    "level": jnp.float32(0.1),
}
OTHER = {name: value * 0.7 for name, value in PARAMS.items()}


def affine_process(backward, variance="bridge"):
    reference = REFERENCES["ornstein_uhlenbeck"]
    return kernels.process(
        affine_network, reference, GRID, backward=backward, variance=variance
    )


def simulate_many(key, process, params, x, n):
    draw = jax.vmap(rollouts.simulate, (0, None, None, None))

    # The steps are handed in, so that the compiler does not fold them away.
    def run(key, steps):
        return draw(jax.random.split(key, n), process._replace(steps=steps), params, x)

    return jax.jit(run)(key, process.steps)


def host_transition(reference, s, t):
    with jax.enable_x64(True):
        s, t = jnp.asarray(s), jnp.asarray(t)
        return float(reference.scale(s, t)), float(reference.variance(s, t))


def assert_gaussian(values, mean, cov, errors=4.5):
    """Sample mean and covariance of `(n, m)` values, in standard errors."""
    values, n, variances = np.asarray(values, np.float64), len(values), np.diag(cov)
    assert np.all(np.abs(values.mean(0) - mean) < errors * np.sqrt(variances / n))
    allowed = errors * np.sqrt((np.outer(variances, variances) + cov**2) / n)
    assert np.all(np.abs(np.cov(values.T) - cov) < allowed)


@every_reference
@both_directions
def test_reference_paths_have_the_reference_law(reference, backward, key):
    process = kernels.process(
        kernels.zero_network, reference, GRID, backward=backward, discretisation="exact"
    )
    x, n, times = jnp.asarray([1.2]), 20_000, GRID.times.tolist()
    paths = simulate_many(key, process, None, x, n)
    assert paths.shape == (n, 6, 1)
    # From its start the chain has a law N(scale x, variance) at each time. Under a flat prior
    # x_s | x_T ~ N(x_T / a, v / a²), with a and v the transition's from s to T.
    later = times[:-1][::-1] if backward else times[1:]
    scales, variances = [], []
    for t in later:
        a, v = host_transition(reference, *((t, T_MAX) if backward else (0.0, t)))
        scales.append(1 / a if backward else a)
        variances.append(v / a**2 if backward else v)
    # Markov: what a later state shares with an earlier one is the latter, carried on.
    cov = np.array(
        [
            [variances[min(i, j)] * scales[max(i, j)] / scales[min(i, j)] for j in range(5)]
            for i in range(5)
        ]
    )
    values = paths[:, :-1, 0][:, ::-1] if backward else paths[:, 1:, 0]
    assert_gaussian(values, 1.2 * np.array(scales), cov)


@both_directions
def test_paths_start_where_told_and_run_in_the_order_of_time(backward, key):
    def clock(params, x, t):
        return jnp.broadcast_to(1.0 + t, x.shape), jnp.zeros_like(x)

    quiet = references.brownian(1e-4)
    process = kernels.process(clock, quiet, GRID, backward=backward)
    start = jnp.asarray([0.3, -7.0])
    path = np.asarray(rollouts.simulate(key, process, None, start))
    np.testing.assert_array_equal(path[-1 if backward else 0], start)
    # Walk it by hand; noise of 1e-4 is far below a step's drift.
    times, walked = GRID.times.tolist(), [np.asarray(start, np.float64)]
    for k in range(5):
        later, earlier = (times[5 - k], times[4 - k]) if backward else (times[k + 1], times[k])
        walked.append(walked[-1] + (later - earlier) * (1 + (later if backward else earlier)))
    np.testing.assert_allclose(path, walked[::-1] if backward else walked, atol=1e-3)


@both_directions
def test_steps_score_as_scipy_does(backward, key):
    process = affine_process(backward)
    path = rollouts.simulate(key, process, PARAMS, jnp.asarray([0.5, -1.0]))
    scores = rollouts.step_log_densities(process, PARAMS, path)
    assert scores.shape == (5,)
    truth = []
    for k, step in enumerate(
        kernels.Step(*leaves) for leaves in zip(*process.steps, strict=True)
    ):
        given, drawn = (path[k + 1], path[k]) if backward else (path[k], path[k + 1])
        law = process.kernel(PARAMS, given, step)
        cov = np.diag(np.exp(np.asarray(law.log_variance, np.float64)))
        truth.append(stats.multivariate_normal(np.asarray(law.mean), cov).logpdf(drawn))
    np.testing.assert_allclose(scores, truth, rtol=1e-4, atol=1e-4)
    total = rollouts.log_density(process, PARAMS, path)
    assert total.shape == ()
    np.testing.assert_allclose(total, np.sum(truth), rtol=1e-4)


@both_directions
def test_a_batch_of_paths_scores_as_one_at_a_time(backward, key):
    process = affine_process(backward)
    paths = jax.random.normal(key, (3, 4, 6, 2))

    def total(score):
        return jax.value_and_grad(lambda params: jnp.sum(jnp.square(score(params))))(PARAMS)

    def apart(params):
        one = functools.partial(rollouts.step_log_densities, process, params)
        return jnp.stack([jnp.stack([one(path) for path in group]) for group in paths])

    scores = rollouts.step_log_densities(process, PARAMS, paths)
    assert scores.shape == (3, 4, 5)
    np.testing.assert_allclose(scores, apart(PARAMS), rtol=1e-5)
    np.testing.assert_allclose(
        rollouts.log_density(process, PARAMS, paths), scores.sum(2), rtol=1e-5
    )
    together = total(lambda params: rollouts.step_log_densities(process, params, paths))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4), together, total(apart)
    )


@pytest.mark.parametrize("name", ["brownian", "ornstein_uhlenbeck"])
def test_forward_and_backward_reference_score_a_path_alike(name, key):
    # Bayes' rule with a flat prior, over all steps: R(path | x_T) = a(0, T)^dim P(path | x_0).
    options = {"reference": REFERENCES[name], "grid": GRID, "discretisation": "exact"}
    forward, backward = (
        kernels.process(kernels.zero_network, backward=flag, **options)
        for flag in (False, True)
    )
    path = jax.random.normal(key, (6, 2))
    difference = rollouts.log_density(backward, None, path) - rollouts.log_density(
        forward, None, path
    )
    scale, _ = host_transition(REFERENCES[name], 0.0, T_MAX)
    score = abs(float(rollouts.log_density(forward, None, path)))
    np.testing.assert_allclose(difference, 2 * np.log(scale), atol=2e-6 * score)


@both_directions
def test_likelihood_ratio_averages_to_one(backward, key):
    process = affine_process(backward)
    paths = simulate_many(key, process, PARAMS, jnp.asarray([0.5]), 20_000)
    score = jax.vmap(rollouts.log_density, (None, None, 0))
    log_ratio = jax.jit(
        lambda paths: score(process, OTHER, paths) - score(process, PARAMS, paths)
    )(paths)
    weights = np.exp(np.asarray(log_ratio, np.float64))
    error = weights.std() / np.sqrt(len(weights))
    assert 1e-4 < error < 0.02
    assert abs(weights.mean() - 1) < 4 * error


@both_directions
def test_kl_of_each_step_is_the_mean_log_ratio(backward, key):
    process, n = affine_process(backward), 20_000
    # Another reference, so that scale, variance and network differ all at once.
    other = kernels.process(
        affine_network, references.brownian(1.1), GRID, backward=backward, variance="bounded"
    )
    paths = simulate_many(key, process, PARAMS, jnp.asarray([0.5, -1.0]), n)

    def along(path):
        log_ratio = rollouts.step_log_densities(process, PARAMS, path)
        log_ratio = log_ratio - rollouts.step_log_densities(other, OTHER, path)
        kl = rollouts.step_kl_divergences(process, PARAMS, other, OTHER, path)
        return kl, log_ratio

    kl, log_ratio = (np.asarray(v, np.float64) for v in jax.jit(jax.vmap(along))(paths))
    assert kl.shape == (n, 5)
    error = (kl - log_ratio).std(0) / np.sqrt(n)
    assert np.all(np.abs((kl - log_ratio).mean(0)) < 4 * error)
    assert np.all(kl > 0) and np.all(kl.mean(0) > 10 * error)


@both_directions
def test_kl_with_oneself_is_zero(backward, key):
    process = affine_process(backward)
    path = jax.random.normal(key, (6, 2))
    kl = rollouts.step_kl_divergences(process, PARAMS, process, PARAMS, path)
    np.testing.assert_array_equal(kl, np.zeros(5))


@both_directions
def test_derivatives_match_finite_differences(backward, key):
    process = affine_process(backward)
    path = rollouts.simulate(key, process, PARAMS, jnp.asarray([0.5, -1.0]))

    def score(params):
        return rollouts.log_density(process, params, path)

    def end_point(params):
        states = rollouts.simulate(key, process, params, jnp.asarray([0.5, -1.0]))
        return jnp.sum(jnp.square(states[0 if backward else -1]))

    for function in (score, end_point):
        both = jax.jit(jax.value_and_grad(function))
        _, gradient = both(PARAMS)
        for name in PARAMS:
            above, _ = both({**PARAMS, name: PARAMS[name] + jnp.float32(1e-2)})
            below, _ = both({**PARAMS, name: PARAMS[name] - jnp.float32(1e-2)})
            slope = (above - below) / 2e-2
            np.testing.assert_allclose(gradient[name], slope, rtol=2e-2, atol=2e-2)


# What the compiler is given, counted.

NUM_FREQUENCIES, WIDTH, DEPTH, BATCH = 5, 24, 2, 64


def primitive_sizes(jaxpr, repeats=1):
    """(name, operand shapes, size of all outputs) of every primitive; loops multiply."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = repeats * (equation.params["length"] if name == "scan" else 1)
        bodies = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        bodies = [body for body in bodies if hasattr(body, "eqns")]
        for body in bodies:
            yield from primitive_sizes(body, inner)
        if not bodies:
            shapes = [v.aval.shape for v in equation.invars]
            yield name, shapes, repeats * sum(v.aval.size for v in equation.outvars)


@both_directions
@pytest.mark.parametrize("task", ["simulate", "score"])
def test_time_features_are_computed_once_for_the_whole_batch(task, backward, key):
    network = networks.drift_network(
        2, T_MAX, width=WIDTH, depth=DEPTH, num_frequencies=NUM_FREQUENCIES
    )
    params, k = network.init(key), GRID.num_steps
    process = kernels.process(network.apply, REFERENCES["brownian"], GRID, backward=backward)
    if task == "simulate":
        function = jax.vmap(lambda key, x: rollouts.simulate(key, process, params, x))
        arguments = jax.random.split(key, BATCH), jnp.zeros((BATCH, 2))
    else:
        function = jax.vmap(lambda path: rollouts.log_density(process, params, path))
        arguments = (jnp.zeros((BATCH, k + 1, 2)),)
    counted = list(primitive_sizes(jax.make_jaxpr(function)(*arguments).jaxpr))

    kernel = (2 * NUM_FREQUENCIES, DEPTH * WIDTH)
    products = [entry for entry in counted if entry[0] == "dot_general"]
    of_time = [size for _, shapes, size in products if kernel in shapes]
    assert of_time == [k * DEPTH * WIDTH]
    cosines = sum(size for name, _, size in counted if name == "cos")
    assert cosines == k * 2 * NUM_FREQUENCIES
    # The control: layers that see x are computed for each example.
    of_state = [size for _, shapes, size in products if (2, WIDTH) in shapes]
    assert of_state == [k * BATCH * WIDTH]


def curved_process(backward, steps_at_once=None):
    """Of a drift whose Jacobian is dense and depends on the state, in the plane."""
    matrix = jnp.asarray([[0.5, -2.0], [0.7, 0.3]])

    def network(params, x, t):
        return params * jnp.cos(t) * jnp.tanh(matrix @ x), x

    law = REFERENCES["ornstein_uhlenbeck"]
    chain = kernels.process(
        network, law, GRID, backward=backward, variance="fixed", steps_at_once=steps_at_once
    )
    return chain, network


@both_directions
@pytest.mark.parametrize("steps_at_once", [None, 1])
def test_residual_drifts_are_the_networks_and_so_are_their_divergences(
    backward, steps_at_once, key
):
    chain, network = curved_process(backward, steps_at_once)
    given, params = jax.random.normal(key, (3, GRID.num_steps, 2)), jnp.float32(1.5)
    drifts, divergences = rollouts.step_divergences(chain, params, given)
    assert drifts.shape == given.shape and divergences.shape == given.shape[:2]
    # Out of means, in single precision.
    np.testing.assert_allclose(rollouts.step_drifts(chain, params, given), drifts, atol=1e-5)
    for k, t in enumerate(GRID.times[1:] if backward else GRID.times[:-1]):
        for path in range(3):
            x = given[path, k]
            drift, jacobian = (
                function(x)
                for function in (
                    lambda x, t=t: network(params, x, t)[0],
                    jax.jacrev(lambda x, t=t: network(params, x, t)[0]),
                )
            )
            np.testing.assert_allclose(drifts[path, k], drift, atol=1e-4)
            np.testing.assert_allclose(divergences[path, k], jnp.trace(jacobian), atol=1e-4)


def test_hutchinsons_divergence_is_exact_on_average_over_all_signs(key):
    chain, _ = curved_process(backward=True)
    given, params = jax.random.normal(key, (3, GRID.num_steps, 2)), jnp.float32(1.5)

    def divergences(params, probes=None):
        return rollouts.step_divergences(chain, params, given, probes)[1]

    signs = [jnp.asarray([a, b]) for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    probes = [jnp.broadcast_to(sign, given.shape) for sign in signs]
    exact = divergences(params)
    estimates = np.stack([divergences(params, probe) for probe in probes])
    np.testing.assert_allclose(estimates.mean(axis=0), exact, atol=1e-4)
    assert np.abs(estimates[0] - exact).max() > 0.1
    # And so are their gradients.
    gradients = [jax.jacrev(divergences)(params, probe) for probe in probes]
    expected = jax.jacrev(divergences)(params)
    np.testing.assert_allclose(np.mean(gradients, axis=0), expected, atol=1e-4)


@both_directions
def test_the_reference_has_no_residual_drift(backward, key):
    law = REFERENCES["ornstein_uhlenbeck"]
    chain = kernels.process(kernels.zero_network, law, GRID, backward=backward)
    drifts, divergences = rollouts.step_divergences(
        chain, None, jax.random.normal(key, (GRID.num_steps, 2))
    )
    np.testing.assert_allclose(drifts, 0.0, atol=1e-5)
    np.testing.assert_allclose(divergences, 0.0, atol=1e-4)


@both_directions
def test_only_the_last_steps_are_differentiated_through(backward, key):
    (process, _), params = curved_process(backward), jnp.array(0.8)
    x = jnp.array([0.4, -0.3])

    def end(params, tracked_steps):
        path = rollouts.simulate(key, process, params, x, tracked_steps=tracked_steps)
        return jnp.sum(path[0 if backward else -1]), path

    run = jax.jit(jax.value_and_grad(end, has_aux=True), static_argnums=1)
    ((_, path), whole), ((_, same), last) = run(params, None), run(params, 2)
    np.testing.assert_allclose(path, same, rtol=1e-6)
    np.testing.assert_array_equal(run(params, process.num_steps)[0][1], path)

    # By hand: the same two steps from where the path was, taken as given.
    def by_hand(params):
        noise = jax.random.normal(key, (process.num_steps, 2))
        order = [1, 0] if backward else [process.num_steps - 2, process.num_steps - 1]
        state = path[order[0] + (1 if backward else 0)]
        for k in order:
            step = jax.tree.map(lambda leaf, k=k: leaf[k], process.steps)
            law = process.kernel(params, state, step)
            state = law.mean + jnp.exp(0.5 * law.log_variance) * noise[k]
        return jnp.sum(state)

    expected = jax.grad(by_hand)(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), last, expected
    )
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), whole, last)
    assert max(jax.tree.leaves(differences)) > 1e-2
    for bad in (0, process.num_steps + 1):
        with pytest.raises(ValueError, match=f"tracked_steps = {bad}: must be from 1 to"):
            rollouts.simulate(key, process, params, x, tracked_steps=bad)


@both_directions
def test_windows_differentiated_through_average_to_the_whole_gradient(backward, key):
    (process, _), params = curved_process(backward), jnp.array(0.8)
    x, num_steps = jnp.array([0.4, -0.3]), process.num_steps

    def cost(params, start, length):
        path = rollouts.simulate(
            key, process, params, x, tracked_steps=length, window_start=start
        )
        # Of all states, not of the end alone.
        return jnp.sum(path**2), path

    run = jax.jit(jax.value_and_grad(cost, has_aux=True), static_argnums=2)
    (_, path), whole = run(params, None, None)
    for length in (1, 2, num_steps - 1):
        values, gradients = zip(
            *(run(params, start, length) for start in jnp.arange(num_steps)), strict=True
        )
        for _, same in values:
            np.testing.assert_allclose(same, path, rtol=1e-6)
        average = jax.tree.map(lambda *leaves: sum(leaves) / num_steps, *gradients)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), average, whole)
        assert np.ptp([float(jax.tree.leaves(g)[0]) for g in gradients]) > 1e-2
    # A window of the last steps is K / k of what these have.
    last = run(params, None, 2)[1]
    windowed = run(params, jnp.asarray(num_steps - 2), 2)[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, num_steps / 2 * b, rtol=1e-4), windowed, last
    )
