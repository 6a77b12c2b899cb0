"""Half-steps: stationary at the exact bridge, and every setting reaches the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import kernels, losses, references, rollouts
from d2ejax.algorithms import ipf
from d2ejax.exploration import behaviour, langevin
from d2ejax.exploration.particles import Particles
from tests import gaussian_case

DIRECTIONS = pytest.mark.parametrize("backward", [False, True])


def exact_models(case, loss, *, backward):
    """Parameters of the trained and the opposite model at the exact bridge."""
    start = 1 if backward else 0
    if loss == "semi_discrete":
        potential = gaussian_case.centred_potential(case, start)
    else:
        # log h is the density of the bridge at the start.
        potential = gaussian_case.as_quadratic(
            functools.partial(gaussian_case.log_density, case, start), case.dim
        )
    trained = gaussian_case.exact_params(case, backward=backward)
    opposite = gaussian_case.exact_params(case, backward=not backward)
    return {"drift": trained, "potential": potential}, {"drift": opposite}


def gradient_samples(half, opposite, buffers, *, count, batch_size):
    """Maps parameters to gradients on independent data, a tree of `(count, ...)`."""

    @gaussian_case.jit
    def run(params):
        def one(key):
            inputs = gaussian_case.inputs(params, opposite, buffers)
            loss, _ = ipf.objective(half, key, inputs)
            return jax.grad(loss, has_aux=True)(params)[0]

        keys = jax.random.split(jax.random.key(5), count)
        return jax.lax.map(one, keys, batch_size=batch_size)

    return run


@DIRECTIONS
def test_likelihood_is_stationary_at_the_bridge_reanchored_or_not(key, backward):
    # The bridge is a mixture of the reference's pinned bridges: re-anchoring leaves its law.
    case = gaussian_case.make(2)
    params, opposite = exact_models(case, "likelihood", backward=backward)
    buffers = gaussian_case.buffers(key, case)
    half = gaussian_case.half_step(case, "likelihood", backward=backward, batch_size=64)
    for reanchor in (False, True):
        which = half._replace(reanchor=reanchor)
        run = gradient_samples(which, opposite, buffers, count=128, batch_size=64)
        scores = gaussian_case.z_scores(run(params)["drift"])
        assert np.abs(scores).max() < 4.0
        wrong = params | {"drift": gaussian_case.perturbed(params["drift"])}
        assert np.abs(gaussian_case.z_scores(run(wrong)["drift"])).max() > 10.0


@DIRECTIONS
def test_bridge_matching_is_stationary_at_the_bridge(key, backward):
    case = gaussian_case.make(2)
    params, opposite = exact_models(case, "bridge_matching", backward=backward)
    buffers = gaussian_case.buffers(key, case)
    half = gaussian_case.half_step(case, "bridge_matching", backward=backward, batch_size=64)
    run = gradient_samples(half, opposite, buffers, count=128, batch_size=64)
    assert np.abs(gaussian_case.z_scores(run(params)["drift"])).max() < 4.0
    wrong = params | {"drift": gaussian_case.perturbed(params["drift"])}
    assert np.abs(gaussian_case.z_scores(run(wrong)["drift"])).max() > 10.0


@DIRECTIONS
def test_independent_ends_are_coupled_in_the_first_half_step_alone(key, monkeypatch, backward):
    case = gaussian_case.make(1)
    params, opposite = exact_models(case, "bridge_matching", backward=backward)
    buffers = gaussian_case.buffers(key, case)
    half = gaussian_case.half_step(
        case,
        "bridge_matching",
        backward=backward,
        batch_size=4096,
        first_coupling="independent",
    )
    seen = []
    monkeypatch.setattr(
        references,
        "pinned_step",
        lambda law, paths, *rest, **options: (
            seen.append(paths),
            (jnp.zeros((4096, gaussian_case.NUM_STEPS, 1)), jnp.ones(gaussian_case.NUM_STEPS)),
        )[1],
    )
    for opposite_step in (0, 1):
        given = gaussian_case.inputs(params, opposite, buffers, opposite_step=opposite_step)
        ipf.objective(half, key, given)[0](params)
    first, later = (np.asarray(paths[:, [0, -1], 0], np.float64) for paths in seen)
    cov = np.asarray(case.bridge.plan.cov)
    plan = cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])
    tolerance = 4 / np.sqrt(4096)
    # x_0 with x_T, not with itself, and either end by its own law.
    assert abs(np.corrcoef(first.T)[0, 1]) < tolerance
    assert abs(np.corrcoef(later.T)[0, 1] - plan) < tolerance
    for ends in (first, later):
        for end, endpoint in enumerate(case.ends):
            mean, variance = endpoint.moments[0][0], endpoint.moments[1][0, 0]
            assert abs(ends[:, end].mean() - mean) < tolerance * np.sqrt(variance)


@DIRECTIONS
@pytest.mark.parametrize("loss", ["log_variance", "trajectory_balance"])
def test_balance_is_stationary_at_the_bridge_in_every_sample(key, loss, backward):
    case = gaussian_case.make(2)
    params, opposite = exact_models(case, loss, backward=backward)
    half = gaussian_case.half_step(case, loss, backward=backward)
    buffers = gaussian_case.buffers(key, case)
    run = gradient_samples(half, opposite, buffers, count=4, batch_size=4)
    assert gaussian_case.largest(run(params)) < 3e-3
    wrong = params | {"drift": gaussian_case.perturbed(params["drift"])}
    assert gaussian_case.largest(run(wrong)["drift"]) > 0.1


@pytest.mark.parametrize(("dim", "backward"), [(2, False), (1, True)])
def test_semi_discrete_is_stationary_at_the_bridge(key, dim, backward):
    case = gaussian_case.make(dim)
    params, opposite = exact_models(case, "semi_discrete", backward=backward)
    half = gaussian_case.half_step(
        case, "semi_discrete", backward=backward, batch_size=16, num_paths=2, num_anchors=2048
    )
    buffers = gaussian_case.buffers(key, case)
    run = gradient_samples(half, opposite, buffers, count=96, batch_size=8)
    assert np.abs(gaussian_case.z_scores(run(params))).max() < 4.0
    wrong = params | {"drift": gaussian_case.perturbed(params["drift"])}
    assert np.abs(gaussian_case.z_scores(run(wrong)["drift"])).max() > 10.0
    moved = params["potential"] | {"linear": params["potential"]["linear"] + 0.3}
    wrong = params | {"potential": moved}
    assert np.abs(gaussian_case.z_scores(run(wrong)["drift"])).max() > 6.0
    assert np.abs(gaussian_case.z_scores(run(wrong)["potential"])).max() > 6.0


def evaluation(half):
    """Maps the inputs of one gradient step to its loss, metrics and buffers."""

    @gaussian_case.jit
    def run(inputs):
        loss, buffers = ipf.objective(half, jax.random.key(0), inputs)
        value, metrics = loss(inputs.params)
        return value, metrics, buffers

    return run


@pytest.mark.parametrize(
    ("min_anchors", "stands_in"), [(1.0, "semi_discrete"), (65.0, "log_variance")]
)
def test_hybrid_is_the_closed_form_with_enough_of_64_anchors_and_else_the_learned_process(
    key, min_anchors, stands_in
):
    case = gaussian_case.make(2)
    params, opposite = exact_models(case, "semi_discrete", backward=False)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    given = gaussian_case.inputs(params, opposite, gaussian_case.buffers(key, case))

    def gradients(loss):
        half = gaussian_case.half_step(case, loss, backward=False, min_anchors=min_anchors)

        @gaussian_case.jit
        def run():
            objective, _ = ipf.objective(half, jax.random.key(1), given)
            return jax.grad(objective, has_aux=True)(params)[0]

        return run()

    found, expected = gradients("hybrid"), gradients(stands_in)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    # The potential of the closed form means nothing beside the learned process.
    moved = gaussian_case.largest(found["potential"])
    assert moved > 0.01 if stands_in == "semi_discrete" else moved == 0.0


@pytest.fixture(scope="module")
def start_of_training():
    """A case with untrained models, and particles."""
    case = gaussian_case.make(1)
    zeros = jax.tree.map(jnp.zeros_like, gaussian_case.centred_potential(case, 0))
    model = {"drift": gaussian_case.zero_params(case), "potential": zeros}
    return case, model, gaussian_case.buffers(jax.random.key(9), case)


@pytest.mark.parametrize("loss", ["likelihood", "log_variance"])
def test_the_first_half_step_sees_the_reference_and_not_a_net(start_of_training, loss):
    case, model, buffers = start_of_training
    half = gaussian_case.half_step(case, loss, backward=True)
    # The reference itself, with no parameters at all.
    bare = kernels.process(
        kernels.zero_network,
        case.law,
        case.grid,
        backward=False,
        variance="fixed",
    )
    params = model | {"drift": gaussian_case.exact_params(case, backward=True)}
    found, _, _ = evaluation(half)(gaussian_case.inputs(params, model, buffers))
    of_reference = evaluation(half._replace(opposite=bare))
    expected, _, _ = of_reference(gaussian_case.inputs(params, {"drift": None}, buffers))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("reanchor", [False, True])
def test_likelihood_paths_of_the_first_half_step_have_the_law_of_the_reference(
    start_of_training, monkeypatch, reanchor
):
    # The loss is replaced by the paths that it would be of.
    case, model, buffers = start_of_training
    monkeypatch.setattr(rollouts, "step_log_densities", lambda process, params, path: path)
    monkeypatch.setattr(losses, "trajectory_likelihood_loss", lambda paths: paths)
    half = gaussian_case.half_step(
        case, "likelihood", backward=True, batch_size=4096, reanchor=reanchor
    )
    paths, _, _ = evaluation(half)(gaussian_case.inputs(model, model, buffers))
    paths = np.asarray(paths[..., 0], np.float64)
    (mean,), (variance,) = gaussian_case.MOMENTS[1][0]
    # Brownian motion from N(mean, variance): Cov(x_s, x_t) = variance + σ² min(s, t).
    times = case.times
    covariance = variance + gaussian_case.SIGMA**2 * np.minimum.outer(times, times)
    spread = np.diag(covariance)
    errors = np.abs(paths.mean(axis=0) - mean) / np.sqrt(spread / len(paths))
    assert errors.max() < 4.0
    standard = np.sqrt((covariance**2 + np.outer(spread, spread)) / len(paths))
    assert np.max(np.abs(np.cov(paths.T) - covariance) / standard) < 4.5


@DIRECTIONS
def test_reanchoring_keeps_the_ends_and_draws_the_interior_anew(
    start_of_training, monkeypatch, backward
):
    # An opposite process that makes a detour: two of its steps kick the path off and back.
    case, model, buffers = start_of_training
    monkeypatch.setattr(rollouts, "step_log_densities", lambda process, params, path: path)
    monkeypatch.setattr(losses, "trajectory_likelihood_loss", lambda paths: paths)
    kick = 1.0 / np.sqrt(np.diff(case.times)[1:3])
    offset = jnp.zeros((gaussian_case.NUM_STEPS, 1))
    offset = offset.at[1:3, 0].set(jnp.asarray(kick * np.array([1.0, -1.0]), jnp.float32))
    opposite = model | {"drift": model["drift"] | {"offset": offset}}
    half = gaussian_case.half_step(case, "likelihood", backward=backward, batch_size=2048)
    plain, reanchored = (
        np.asarray(
            evaluation(half._replace(reanchor=reanchor))(
                gaussian_case.inputs(model, opposite, buffers)
            )[0][..., 0],
            np.float64,
        )
        for reanchor in (False, True)
    )
    np.testing.assert_array_equal(plain[:, [0, -1]], reanchored[:, [0, -1]])
    # Brownian bridges: Gaussian about the line between the ends, variance σ² t (T - t) / T.
    t, t_max = case.times[1:-1], case.times[-1]
    spread = gaussian_case.SIGMA * np.sqrt(t * (t_max - t) / t_max)

    def scores(paths):
        line = paths[:, :1] + (paths[:, -1:] - paths[:, :1]) * t / t_max
        return (paths[:, 1:-1] - line) / spread

    assert np.abs(scores(plain).mean(axis=0)).max() > 0.5
    assert np.abs(scores(reanchored).mean(axis=0)).max() < 4 / np.sqrt(2048)
    assert np.abs(scores(reanchored).var(axis=0) - 1.0).max() < 4 * np.sqrt(2 / 2048)


@pytest.fixture(scope="module")
def loss_at(start_of_training):
    """The log-variance loss at a step, of schedules that jump at step 5 and a scaled energy."""
    case, model, buffers = start_of_training
    target = case.ends[1]

    @gaussian_case.jit
    def run(step, ratios, temperatures, scale):
        half = gaussian_case.half_step(
            case,
            "log_variance",
            backward=False,
            goal=target._replace(log_density=lambda x: scale * target.log_density(x)),
            off_policy_ratio=lambda step: jnp.where(step < 5, ratios[0], ratios[1]),
            inverse_temperature=lambda step: jnp.where(step < 5, *temperatures),
        )
        inputs = gaussian_case.inputs(model, model, buffers, step=step)
        objective, _ = ipf.objective(half, jax.random.key(0), inputs)
        return objective(model)[0]

    def value(step=0, *, ratios=(0.5, 0.5), temperatures=(1.0, 1.0), scale=1.0):
        return float(run(step, ratios, temperatures, scale))

    return value


def test_schedules_are_read_at_the_gradient_step(loss_at):
    for name in ("ratios", "temperatures"):
        low, high = loss_at(**{name: (0.2, 0.2)}), loss_at(**{name: (1.0, 1.0)})
        assert abs(high - low) > 0.01 * low
        assert loss_at(4, **{name: (0.2, 1.0)}) == low
        assert loss_at(5, **{name: (0.2, 1.0)}) == high


def test_inverse_temperature_scales_the_energy(loss_at):
    np.testing.assert_allclose(loss_at(temperatures=(0.4, 0.4)), loss_at(scale=0.4), rtol=1e-5)


def test_schedules_of_optax_hold_to_strict_promotion(start_of_training):
    case, model, buffers = start_of_training
    half = gaussian_case.half_step(
        case,
        "log_variance",
        backward=False,
        off_policy_ratio=optax.linear_schedule(1.0, 0.2, 10),
        inverse_temperature=optax.linear_schedule(0.1, 1.0, 10),
    )
    value, _, _ = jax.eval_shape(evaluation(half), gaussian_case.inputs(model, model, buffers))
    assert (value.shape, value.dtype) == ((), jnp.float32)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("reuse_path", [False, True])
def test_settings_of_the_groups_are_not_ignored(
    start_of_training, monkeypatch, backward, reuse_path
):
    case, model, buffers = start_of_training
    seen = {}
    mixed_paths, weights = behaviour.mixed_paths, losses.anchor_log_weights

    def spy_on_paths(*arguments, **options):
        seen.update(options, shape=mixed_paths(*arguments, **options).shape)
        return mixed_paths(*arguments, **options)

    def spy_on_anchors(log_transitions, potentials, log_importance):
        seen["num_anchors"] = log_transitions.shape
        return weights(log_transitions, potentials, log_importance)

    monkeypatch.setattr(behaviour, "mixed_paths", spy_on_paths)
    monkeypatch.setattr(losses, "anchor_log_weights", spy_on_anchors)
    half = gaussian_case.half_step(
        case,
        "semi_discrete",
        backward=backward,
        batch_size=24,
        num_paths=3,
        num_anchors=17,
        reuse_path=reuse_path,
    )
    jax.eval_shape(evaluation(half), gaussian_case.inputs(model, model, buffers))
    assert seen["shape"] == (8, 3, gaussian_case.NUM_STEPS + 1, 1)
    assert seen["num_anchors"] == (17,)
    assert seen["reuse_path"] is reuse_path
    assert seen["backward"] is backward


@DIRECTIONS
def test_one_end_point_of_each_group_joins_the_buffer(start_of_training, backward):
    case, model, buffers = start_of_training
    half = gaussian_case.half_step(case, "log_variance", backward=backward)
    inputs = gaussian_case.inputs(model, model, buffers)
    _, _, after = evaluation(half)(inputs)
    goal, start = (0, 1) if backward else (1, 0)
    jax.tree.map(np.testing.assert_array_equal, after[start], buffers[start])
    changed = np.any(np.asarray(after[goal].positions != buffers[goal].positions), axis=1)
    np.testing.assert_array_equal(changed, np.arange(256) < 32 // 4)
    assert int(after[goal].next_slot) == 32 // 4


@DIRECTIONS
def test_starts_of_an_unsampled_end_are_its_particles(start_of_training, backward):
    # All particles of the start sit at one point; so does every on-policy path's start.
    case, model, buffers = start_of_training
    start = 1 if backward else 0
    moved = buffers[start]._replace(positions=jnp.full_like(buffers[start].positions, 2.5))
    particles = (moved, buffers[1]) if start == 0 else (buffers[0], moved)
    ends = tuple(end._replace(sample=None) for end in case.ends)
    half = gaussian_case.half_step(
        case._replace(ends=ends),
        "log_variance",
        backward=backward,
        off_policy_ratio=optax.constant_schedule(0.0),
    )

    @gaussian_case.jit
    def gradient(model):
        inputs = gaussian_case.inputs(model, model, particles)
        objective, _ = ipf.objective(half, jax.random.key(0), inputs)
        return jax.grad(objective, has_aux=True)(model)[0]["drift"]

    # The network is affine in x, so where all starts are 2.5 the gradient of the first step's
    # slope is 2.5 times that of its offset.
    found, first = gradient(model), -1 if backward else 0
    np.testing.assert_allclose(found["slope"][first], 2.5 * found["offset"][first], rtol=1e-4)
    assert abs(float(found["offset"][first, 0])) > 1e-3


def test_particles_of_both_unsampled_ends_are_refreshed(start_of_training):
    case, model, buffers = start_of_training
    acceptance = jnp.asarray(0.5)

    def refresh(key, positions, log_density):
        return positions + 10.0, acceptance

    explorer = Particles(256, refresh, 4, 0.0, functools.partial(gaussian_case.noise, dim=1))
    half = gaussian_case.half_step(case, "log_variance", backward=False)
    run = evaluation(half._replace(particles=(explorer, explorer)))
    for step, moved in ((0, 10.0), (1, 0.0), (4, 10.0)):
        inputs = gaussian_case.inputs(model, model, buffers, step=step)
        _, metrics, after = run(inputs)
        for old, new in zip(buffers, after, strict=True):
            # The first slots of the goal's hold the new end points.
            difference = np.asarray(new.positions - old.positions)[32:]
            np.testing.assert_allclose(difference, moved, atol=1e-5)
        for end in ("source", "target"):
            assert np.isnan(metrics[f"acceptance_{end}"]) == (moved == 0.0)


def test_semi_discrete_reads_the_average_of_the_potential(start_of_training):
    case, model, buffers = start_of_training
    half = gaussian_case.half_step(case, "semi_discrete", backward=False)
    moved = model["potential"] | {"linear": jnp.ones(1)}
    slow = model | {"potential": moved}

    @gaussian_case.jit
    def drift_gradient(average, params):
        inputs = gaussian_case.inputs(model, model, buffers, average=average)
        objective, _ = ipf.objective(half, jax.random.key(0), inputs)
        gradient, _ = jax.grad(objective, has_aux=True)(params)
        return gradient["drift"]["offset"]

    plain = drift_gradient(model, model)
    assert np.abs(drift_gradient(slow, model) - plain).max() > 1e-3
    # The fast one enters its own regression alone.
    np.testing.assert_array_equal(drift_gradient(model, slow), plain)


def test_semi_discrete_counts_the_anchors_behind_it(start_of_training):
    case, model, buffers = start_of_training
    half = gaussian_case.half_step(case, "semi_discrete", backward=False, num_anchors=64)
    inputs = gaussian_case.inputs(model, model, buffers)
    _, metrics, _ = evaluation(half)(inputs)
    assert 1.0 < float(metrics["anchors"]) < 64.0
    _, metrics, _ = evaluation(half._replace(loss="log_variance"))(inputs)
    assert np.isnan(metrics["anchors"])


def test_one_key_gives_one_result_under_jit_and_vmap(start_of_training):
    case, model, buffers = start_of_training

    def refresh(key, positions, log_density):
        return langevin.refresh(
            key, positions, log_density, method="ula", step_size=0.1, num_steps=2
        )

    half = gaussian_case.half_step(case, "log_variance", backward=False)
    explorer = half.particles[0]._replace(refresh=refresh)
    half = half._replace(particles=(explorer, explorer))
    inputs = gaussian_case.inputs(model, model, buffers)

    def run(seed):
        objective, after = ipf.objective(half, jax.random.key(seed), inputs)
        return objective(model)[0], after[1].positions

    compiled = gaussian_case.jit(run)
    once, again = compiled(0), compiled(0)
    jax.tree.map(np.testing.assert_array_equal, once, again)
    batch = gaussian_case.jit(jax.vmap(run))(jnp.arange(3))
    for one, many in zip(once, batch, strict=True):
        np.testing.assert_allclose(one, many[0], rtol=1e-4, atol=1e-5)
    assert len(np.unique(np.asarray(batch[0]))) == 3
