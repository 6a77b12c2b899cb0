"""Matching: no gradient at the exact Gaussian bridge, and an algorithm like the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import couplings, endpoints, exact, losses, parallel, references, time_grids
from d2ejax.algorithms import matching
from d2ejax.typing import EmbeddedNetwork
from tests import gaussian_case

T_MAX = 0.7
REFERENCES = {
    "brownian": references.brownian(0.9),
    "ornstein_uhlenbeck": references.ornstein_uhlenbeck(0.9, 1.1),
}
MOMENTS = gaussian_case.MOMENTS[2]
TIMES = np.asarray([0.05, 0.2, 0.4, 0.55, 0.65], np.float32)
"""Not symmetric in time: what is read backwards is seen."""
BATCHES, SIZE = 400, 64


@functools.cache
def bridge_of(name):
    (mean_0, var_0), (mean_1, var_1) = MOMENTS
    return exact.gaussian_bridge(
        mean_0, np.diag(var_0), mean_1, np.diag(var_1), REFERENCES[name], T_MAX
    )


def affine(slopes, offsets, *, reverse=False, times=TIMES):
    """slope_k x + offset_k at the times given, plus what parameters of zeros do not add."""
    slopes, offsets = (jnp.asarray(np.stack(v), jnp.float32) for v in (slopes, offsets))

    def embed(params, t):
        k = jnp.argmin(jnp.abs(times - t))
        k = len(times) - 1 - k if reverse else k
        extra = params["slope"][k], params["offset"][k]
        return slopes[k], offsets[k], extra

    def apply(params, x, embedding):
        slope, offset, (more_slope, more_offset) = embedding
        return slope @ x + offset + more_slope * x + more_offset, jnp.zeros_like(x)

    return EmbeddedNetwork(embed, apply)


NUM_TIMES = len(TIMES)


def zeros(num=NUM_TIMES):
    return {"slope": jnp.zeros((num, 2)), "offset": jnp.zeros((num, 2))}


def exact_networks(name, **options):
    """Current and osmotic networks of the exact bridge: (F - B)/2 - f and (F + B)/2."""
    bridge, law, found = bridge_of(name), REFERENCES[name], []
    for sign in (-1.0, 1.0):
        slopes, offsets = [], []
        for t in TIMES:
            forward = bridge.affine_drift(float(t))
            backward = bridge.affine_backward_drift(float(t))
            pull = float(law.drift(jnp.ones(1), jnp.float32(t))[0]) if sign < 0 else 0.0
            slope = (forward.matrix + sign * backward.matrix) / 2 - pull * np.eye(2)
            slopes.append(slope)
            offsets.append((forward.offset + sign * backward.offset) / 2)
        found.append(affine(slopes, offsets, **options))
    return found


def ends(name, *, coupled="exact"):
    """Batches of ends, `(BATCHES, SIZE, dim)` each, of the exact plan or not."""
    x_0, x_1 = bridge_of(name).sample_plan(np.random.default_rng(3), BATCHES * SIZE)
    if coupled == "itself":
        x_1 = x_0
    if coupled == "product":
        x_1 = np.roll(x_1, 1, axis=0)
    return tuple(jnp.asarray(x.reshape(BATCHES, SIZE, -1), jnp.float32) for x in (x_0, x_1))


def scores(objective, params, pairs, key=None):
    """The gradient's mean over many batches, in standard errors."""
    keys = jax.random.split(jax.random.key(5) if key is None else key, BATCHES)

    def gradient(batch):
        key, x_0, x_1 = batch
        return jax.grad(lambda p: objective(key, x_0, x_1)(p)[0])(params)

    found = gaussian_case.jit(lambda batches: jax.lax.map(gradient, batches))((keys, *pairs))
    return np.abs(gaussian_case.z_scores(found))


def sf2m(name, **options):
    grid = time_grids.uniform(4, T_MAX)
    return matching.flow_and_score(
        *exact_networks(name, **options),
        REFERENCES[name],
        grid,
        draw_times=lambda key: jnp.asarray(TIMES),
    )


PARAMS = {"current": zeros(), "osmotic": zeros()}
"""Forty numbers: none beyond 4.5 standard errors, but for once in three thousand."""


@pytest.mark.parametrize("name", REFERENCES)
def test_flow_and_score_have_no_gradient_at_the_exact_bridge(name):
    assert scores(sf2m(name), PARAMS, ends(name)).max() < 4.5


@pytest.mark.parametrize("coupled", ["itself", "product"])
def test_the_proof_would_notice_a_wrong_coupling(coupled):
    found = scores(sf2m("brownian"), PARAMS, ends("brownian", coupled=coupled))
    assert found.max() > 20


def summed(current, osmotic):
    """The network of the forward drift; its parameters add to it as those of `current` do."""

    def embed(params, t):
        return current.embed(params, t), osmotic.embed(zeros(), t)

    def apply(params, x, embedding):
        along, log_variance = current.apply(params, x, embedding[0])
        return along + osmotic.apply(zeros(), x, embedding[1])[0], log_variance

    return EmbeddedNetwork(embed, apply)


@pytest.mark.parametrize("of", ["forward", "current"])
def test_a_drift_less_its_score_has_no_gradient_at_the_exact_bridge(of):
    current, osmotic = exact_networks("brownian")
    objective = matching.flow_and_score(
        summed(current, osmotic) if of == "forward" else current,
        osmotic,
        REFERENCES["brownian"],
        time_grids.uniform(4, T_MAX),
        draw_times=lambda key: jnp.asarray(TIMES),
        of_drift=True,
    )
    found = scores(objective, PARAMS, ends("brownian")).max()
    assert found < 4.5 if of == "forward" else found > 20


def test_the_score_learns_nothing_from_the_flow_of_a_drift():
    objective = matching.flow_and_score(
        *exact_networks("brownian"),
        REFERENCES["brownian"],
        time_grids.uniform(4, T_MAX),
        draw_times=lambda key: jnp.asarray(TIMES),
        score_weight=0.0,
        of_drift=True,
    )
    x_0, x_1 = (x[0] for x in ends("brownian"))
    found = jax.jit(jax.grad(lambda p: objective(jax.random.key(0), x_0, x_1)(p)[0]))(PARAMS)
    assert all(np.all(leaf == 0.0) for leaf in jax.tree.leaves(found["osmotic"]))
    assert all(np.any(leaf != 0.0) for leaf in jax.tree.leaves(found["current"]))


def _without_half(x, mean, variance, mean_rate, variance_rate):
    return mean_rate + variance_rate / variance * (x - mean)


PLANTED = {
    "half": ("conditional_flow", _without_half),
    "sigma": ("conditional_score", lambda x, mean, variance: 0.81 * (mean - x) / variance),
    "sign": ("conditional_score", lambda x, mean, variance: (x - mean) / variance),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_the_proof_would_notice_a_wrong_target(monkeypatch, bug):
    monkeypatch.setattr(losses, *PLANTED[bug])
    assert scores(sf2m("brownian"), PARAMS, ends("brownian")).max() > 10


def test_the_proof_would_notice_time_that_runs_backwards():
    swapped = sf2m("brownian", reverse=True)
    assert scores(swapped, PARAMS, ends("brownian")).max() > 20


def test_the_proof_would_notice_a_drift_of_the_reference_that_is_left_in(monkeypatch):
    objective = sf2m("ornstein_uhlenbeck")
    law = REFERENCES["ornstein_uhlenbeck"]._replace(drift=lambda x, t: jnp.zeros_like(x))
    plain = matching.flow_and_score(
        *exact_networks("ornstein_uhlenbeck"),
        law,
        time_grids.uniform(4, T_MAX),
        draw_times=lambda key: jnp.asarray(TIMES),
    )
    pairs = ends("ornstein_uhlenbeck")
    assert scores(plain, PARAMS, pairs).max() > 10 > scores(objective, PARAMS, pairs).max()


@pytest.mark.parametrize("path_std", [0.0, 0.3])
@pytest.mark.parametrize("right", [True, False])
def test_a_flow_has_no_gradient_at_the_regression_of_the_displacement(path_std, right):
    # E[x_1 - x_0 | x_t] / T, read off the joint Gaussian of the plan.
    plan, eye = bridge_of("brownian").plan, np.eye(2)
    step = np.hstack([-eye, eye]) / T_MAX
    slopes, offsets = [], []
    for t in TIMES.astype(np.float64):
        s = t / T_MAX if right else 1.0 - t / T_MAX
        mix = np.hstack([(1 - s) * eye, s * eye])
        spread = mix @ plan.cov @ mix.T + path_std**2 * eye
        slope = step @ plan.cov @ mix.T @ np.linalg.inv(spread)
        slopes.append(slope)
        offsets.append(step @ plan.mean - slope @ mix @ plan.mean)
    objective = matching.flow_alone(
        affine(slopes, offsets),
        REFERENCES["brownian"],
        time_grids.uniform(4, T_MAX),
        draw_times=lambda key: jnp.asarray(TIMES),
        path_std=path_std,
    )
    found = scores(objective, {"current": zeros()}, ends("brownian")).max()
    assert found < 4.5 if right else found > 20


@pytest.mark.parametrize("coupled", ["exact", "itself", "product"])
def test_bridges_have_no_gradient_at_the_exact_kernels(coupled):
    case = gaussian_case.make(2)
    objective = matching.bridge_regression(
        *(gaussian_case.process(case, backward=backward) for backward in (False, True)),
        case.law,
        case.grid,
    )
    params = {
        name: gaussian_case.exact_params(case, backward=name == "backward")
        for name in ("forward", "backward")
    }
    # The case is the Brownian one of above.
    found = scores(objective, params, ends("brownian", coupled=coupled)).max()
    assert found < 4.5 if coupled == "exact" else found > 20


# ---- Times


def test_a_time_is_embedded_once_for_all_pairs(key):
    def embed(params, t):
        return jnp.tan(params * t)

    def apply(params, x, embedding):
        return jnp.sinh(x) * embedding, jnp.zeros_like(x)

    network = EmbeddedNetwork(embed, apply)
    objective = matching.flow_and_score(
        network,
        network,
        REFERENCES["brownian"],
        time_grids.uniform(4, T_MAX),
        draw_times=lambda key: jnp.asarray(TIMES),
    )
    params, x = {"current": jnp.ones(()), "osmotic": jnp.ones(())}, jnp.ones((7, 2))
    program = str(jax.make_jaxpr(lambda p: objective(key, x, x)(p)[0])(params))
    assert program.count("f32[5] = tan") == 2 == program.count("= tan")
    assert program.count("f32[35,2] = sinh") == 2 == program.count("= sinh")


@pytest.mark.parametrize("spacing", matching.SPACINGS)
def test_times_fall_into_their_strata(key, spacing):
    grid = time_grids.end_refined(5, 2.0)
    draw = matching.stratified_times(grid, 10, spacing=spacing)
    times = np.asarray(jax.vmap(draw)(jax.random.split(key, 200)))
    edges = np.linspace(0.0, 2.0, 11)
    if spacing == "grid":
        knots = np.asarray(grid.times, np.float64)
        middles = (knots[1:] + knots[:-1]) / 2
        edges = np.sort(np.concatenate([knots, middles]))
    assert np.all(times >= edges[:-1] - 1e-6) and np.all(times <= edges[1:] + 1e-6)
    assert times.min() >= 2e-3 * (1 - 1e-5) and times.max() <= 2.0 - 2e-3 * (1 - 1e-5)
    shares = (times - edges[:-1]) / np.diff(edges)
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(1 / 12 / shares.size) + 1e-3


def test_bad_times_are_refused():
    grid = time_grids.uniform(5, 2.0)
    with pytest.raises(ValueError, match="num_times = 0: must be ≥ 1"):
        matching.stratified_times(grid, 0)
    with pytest.raises(ValueError, match="spacing = 'grids': must be one of"):
        matching.stratified_times(grid, 3, spacing="grids")


# ---- The algorithm


def algorithm(*, axis_name=None, batch_size=16, sources=None, couple=couplings.independent):
    """[SF]²M of networks that are off by what their parameters add."""
    (mean_0, var_0), (mean_1, var_1) = MOMENTS
    both = sources or (
        endpoints.gaussian(mean=mean_0, covariance=np.diag(var_0)),
        endpoints.gaussian(mean=mean_1, covariance=np.diag(var_1)),
    )
    return matching.matching(
        tuple(endpoints.restrict(end, "samples") for end in both),
        couple,
        sf2m("brownian"),
        batch_size=batch_size,
        init_params=lambda key: PARAMS,
        optimiser=optax.adam(0.01),
        ema_decay=0.9,
        axis_name=axis_name,
    )


def numbers(state):
    return [
        np.asarray(jax.random.key_data(leaf))
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else np.asarray(leaf)
        for leaf in jax.tree.leaves(state)
    ]


@pytest.mark.parametrize("num_devices", [1, 2])
def test_it_trains_over_devices_and_goes_on_from_a_state(key, num_devices):
    devices = jax.local_devices()[:num_devices]
    couple = couplings.entropic(REFERENCES["brownian"], T_MAX)
    trainer = parallel.data_parallel(
        algorithm(axis_name=parallel.AXIS, couple=couple), devices=devices
    )
    whole, metrics = trainer.run(trainer.init(key), 4)
    half, _ = trainer.run(trainer.init(key), 2)
    leaves, structure = jax.tree.flatten(half)
    rest, _ = trainer.run(jax.tree.unflatten(structure, leaves), 2)
    for one, other in zip(numbers(whole), numbers(rest), strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(whole, matching.State)
    np.testing.assert_array_equal(whole.step, np.full(num_devices, 4))
    assert {"loss", "flow_loss", "score_loss", "gradient_norm", "skipped"} == set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    # One set of parameters, moved, and a key for each device.
    for leaf in jax.tree.leaves(whole.model.params):
        assert np.any(leaf) and np.all(leaf == leaf[:1])
    assert len({tuple(k) for k in np.asarray(jax.random.key_data(whole.key))}) == num_devices


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_the_batch_of_all_devices_is_coupled(key, num_devices):
    def couple(key, x_0, x_1):
        # Every point of one end meets all of the other, and the same draw on all devices.
        assert x_0.shape == x_1.shape == (8, 1)
        order = jax.random.permutation(key, 8)
        return x_0, x_1[order]

    size = 8 // num_devices
    x_0 = jnp.arange(8.0).reshape(num_devices, size, 1)
    keys = jax.random.split(key, num_devices)
    mapped = jax.pmap(
        lambda k, a, b: matching._coupled(couple, k, a, b, parallel.AXIS),
        axis_name=parallel.AXIS,
        devices=jax.local_devices()[:num_devices],
    )
    first, second = mapped(keys, x_0, 10 * x_0)
    np.testing.assert_array_equal(first, x_0)
    expected = 10 * x_0.reshape(8, 1)[jax.random.permutation(keys[0], 8)]
    np.testing.assert_array_equal(second.reshape(8, 1), expected)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(key):
    broken = endpoints.gaussian(dim=2)._replace(sample=lambda key, n: jnp.full((n, 2), jnp.nan))
    one = algorithm(sources=(endpoints.gaussian(dim=2), broken))
    start = one.init(key)
    state, metrics = gaussian_case.jit(one.step)(start)
    for old, new in zip(
        jax.tree.leaves(start.model), jax.tree.leaves(state.model), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert (int(state.step), int(state.skipped), int(state.consecutive_skipped)) == (1, 1, 1)
    assert float(metrics["skipped"]) == 1.0


def test_an_end_without_samples_is_refused():
    blind = endpoints.gaussian(dim=2)._replace(sample=None)
    with pytest.raises(ValueError, match="offers no samples"):
        matching.matching(
            (endpoints.gaussian(dim=2), blind),
            couplings.independent,
            sf2m("brownian"),
            batch_size=4,
            init_params=lambda key: PARAMS,
            optimiser=optax.adam(0.01),
            ema_decay=0.9,
        )
