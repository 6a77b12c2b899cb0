"""Energies that are NaN, -∞ or +∞ on part of the space: all methods learn the rest of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from d2ejax import endpoints, kernels, metrics, references, rollouts
from d2ejax.algorithms import adjoint, fine_tuning, ipf, samplers
from d2ejax.exploration import langevin
from d2ejax.exploration.particles import Particles
from d2ejax.exploration.replay_buffer import ReplayBuffer
from tests import gaussian_case
from tests.algorithms import adjoint_test, fine_tuning_test, ipf_test

MEAN, VARIANCE = (value[0] for value in gaussian_case.MOMENTS[1][1])
LOW, HIGH, FAR = MEAN - 0.4, MEAN + 1.0, MEAN + 1.8
"""No mass below the first, undefined above the second, +∞ above the third."""

STANDARD = scipy.stats.norm(MEAN, VARIANCE**0.5)
LOG_Z = np.log(STANDARD.cdf(HIGH) - STANDARD.cdf(LOW))


def log_density(x):
    """That of a Gaussian between LOW and HIGH. Where it is NaN, so is its gradient."""
    value = -0.5 * (jnp.square(x[0] - MEAN) / VARIANCE + np.log(2 * np.pi * VARIANCE))
    value = value + 0.0 * jnp.sqrt(HIGH - x[0])
    value = jnp.where(x[0] > LOW, value, -jnp.inf)
    return jnp.where(x[0] > FAR, jnp.inf, value)


def log_density_2d(x):
    return log_density(x) - 0.5 * jnp.square(x[1] - 0.5)


def in_its_own_part(x):
    return (x[..., 0] > LOW) & (x[..., 0] < HIGH)


def explorer(refresh_every=None):
    refresh = functools.partial(langevin.refresh, method="ula", step_size=0.02, num_steps=2)
    noise = functools.partial(gaussian_case.noise, dim=1)
    return Particles(256, refresh if refresh_every else None, refresh_every, 0.05, noise)


ADAM = optax.adam(0.03)


def train(algorithm, num_steps, seed=0):
    """The first state, the last one, and what each step measured."""

    @gaussian_case.jit
    def run(key):
        start = algorithm.init(key)
        return start, *jax.lax.scan(lambda s, _: algorithm.step(s), start, length=num_steps)

    return run(jax.random.key(seed))


def assert_sound(state):
    """No parameter, moment or particle is anything but finite; the last have mass."""

    def is_buffer(leaf):
        return isinstance(leaf, ReplayBuffer)

    for leaf in jax.tree.leaves(state, is_leaf=is_buffer):
        if is_buffer(leaf):
            filled = np.isfinite(leaf.log_weights)
            assert filled.any() and np.isfinite(leaf.positions).all()
            assert not np.isnan(leaf.log_weights).any()
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all()


def assert_learned(state, found):
    """No step was left out, both kinds of bad ends were counted, and fewer came of them."""
    assert_sound(state)
    assert int(state.skipped) == 0
    assert 0 < np.nanmean(found["invalid"]) < 0.9 and 0 < np.nanmean(found["outside"]) < 0.9


# ---- IPF


@pytest.mark.parametrize("loss", ["semi_discrete", "log_variance"])
def test_ipf_learns_where_the_target_is_defined(loss):
    case = gaussian_case.make(1)
    target = case.ends[1]._replace(log_density=log_density)
    case = ipf_test.restricted(
        case._replace(ends=(case.ends[0], target)), ("samples", "energy")
    )
    algorithm = ipf_test.make(
        case,
        ("likelihood", loss),
        plan=ipf.Schedule(((ipf.FORWARD, 80),), 1),
        optimiser=ADAM,
        particles=(explorer(), explorer(5 if loss == "semi_discrete" else None)),
        batch_size=64,
    )
    _, state, found = train(algorithm, 80)
    assert_learned(state, found)
    bad = np.asarray(found["invalid"] + found["outside"])
    assert bad[-10:].mean() < 0.5 * bad[:5].mean()
    # Particles are drawn where there is mass, and nowhere else.
    positions, log_weights, _ = state.buffers[1]
    np.testing.assert_array_equal(in_its_own_part(positions), log_weights == 0.0)


# ---- Diffusion samplers


PRIOR_STD = 1e-3


def sampler(loss):
    case = gaussian_case.make(1)
    gaussian = {"mean": jnp.zeros(1), "variance": PRIOR_STD**2}
    return samplers.Sampler(
        loss=loss,
        process=gaussian_case.process(case, backward=False),
        reversal=kernels.gaussian_reversal(case.law, case.grid, **gaussian),
        reference=kernels.reference_process(case.law, case.grid, discretisation="exact"),
        prior=endpoints.gaussian(dim=1, std=PRIOR_STD),
        target=endpoints.Endpoint("cut", 1, log_density=log_density),
        marginals=references.gaussian_marginals(case.law, case.grid, **gaussian),
        times=case.grid.times,
        particles=explorer(),
        flow=lambda params, x, t: params["slope"] * x[0],
        batch_size=64,
    )


def log_weights(given, params, n=4000):
    """Of paths of the process, as the metrics take them."""

    @gaussian_case.jit
    def weigh(key, params):
        starts = given.prior.sample(key, n)
        paths = jax.vmap(rollouts.simulate, (0, None, None, 0))(
            jax.random.split(key, n), given.process, params["drift"], starts
        )
        return (
            jax.vmap(given.prior.log_density)(starts),
            rollouts.log_density(given.process, params["drift"], paths),
            rollouts.log_density(given.reversal, None, paths),
            jax.vmap(given.target.log_density)(paths[:, -1]),
        )

    start, forward, backward, end = weigh(jax.random.key(7), params)
    return metrics.log_weights(
        log_start=start, log_forward=forward, log_backward=backward, log_end=end
    )


@pytest.mark.parametrize("loss", ["trajectory_balance", "subtrajectory_balance", "path_kl"])
def test_samplers_learn_where_the_target_is_defined(loss):
    given = sampler(loss)
    drift = gaussian_case.zero_params(gaussian_case.make(1))
    algorithm = samplers.diffusion_sampler(
        given,
        init_params=lambda key: {"drift": drift, "flow": {"slope": jnp.zeros(())}},
        optimiser=ADAM,
        ema_decay=0.8,
    )
    start, state, found = train(algorithm, 80)
    assert_learned(state, found)
    if loss != "trajectory_balance":
        return
    before, after = (log_weights(given, s.model.average) for s in (start, state))
    assert not np.isnan(after).any() and np.isneginf(after).any()
    estimate = metrics.log_z_importance(after)
    assert abs(estimate.value - LOG_Z) < 3 * estimate.standard_error < 0.1
    assert metrics.effective_sample_size(after) > metrics.effective_sample_size(before)
    assert np.isneginf(after).mean() < 0.5 * np.isneginf(before).mean()


# ---- Adjoint methods


def test_adjoint_methods_learn_where_the_target_is_defined():
    given = adjoint_test.method("learned", rollout_size=128, rollout_every=5, replay_size=256)
    given = given._replace(target=endpoints.Endpoint("cut", 2, log_density=log_density_2d))
    case = adjoint_test.case()
    drift = gaussian_case.zero_params(case)
    potential = jax.tree.map(jnp.zeros_like, gaussian_case.centred_potential(case, 1))
    algorithm = adjoint.adjoint_sampler(
        given,
        adjoint.AdjointStages(2, 20, 5, 5),
        init_params=lambda key: ({"drift": drift}, potential, drift),
        optimisers=(ADAM,) * 3,
        ema_decay=0.8,
    )
    _, state, found = train(algorithm, 55)
    assert_learned(state, found)
    # Counted where paths are simulated: every five steps, not for the backward process.
    assert np.isfinite(found["outside"]).sum() == 10
    assert in_its_own_part(state.replay.positions[:, 2:4]).all()


# ---- Fine-tuning


def reward(x):
    """Linear between two bounds: no mass below, undefined above, with its gradient."""
    return jnp.where(x[0] > -1.0, x[0] + x[1] + 0.0 * jnp.sqrt(1.5 - x[0]), -jnp.inf)


@pytest.mark.parametrize("loss", sorted({*fine_tuning.LOSSES} - {"log_variance"}))
def test_fine_tuning_learns_where_the_reward_is_defined(loss):
    given = fine_tuning_test.make(loss, "forgetful", batch_size=64)._replace(reward=reward)
    algorithm = fine_tuning.fine_tuning(
        given,
        init_params=fine_tuning_test.zero_params,
        optimiser=ADAM,
        ema_decay=0.8,
    )
    _, state, found = train(algorithm, 60)
    assert_learned(state, found)
    assert found["reward"][-10:].mean() > found["reward"][:5].mean() + 0.3
    if loss in ("relative_trajectory_balance", "policy_gradient"):
        # Of gradients alone a path without mass has none: these see that it has none.
        assert found["outside"][-10:].mean() < 0.7 * found["outside"][:5].mean()


# ---- Nothing near the source


@functools.cache
def far_away():
    """A sampler whose target has a thousandth of the noise that particles restart from."""
    drift = gaussian_case.zero_params(gaussian_case.make(1))

    @gaussian_case.jit
    def run(key, nothing):
        def far(x):
            return jnp.where(jnp.abs(x[0] - 4.5) < 0.1, 0.0, nothing)

        given = sampler("log_variance")
        algorithm = samplers.diffusion_sampler(
            given._replace(
                target=given.target._replace(log_density=far),
                particles=explorer(1),
            ),
            init_params=lambda key: {"drift": drift},
            optimiser=ADAM,
            ema_decay=0.8,
        )

        def advance(state, _):
            state, metrics = algorithm.step(state)
            return state, (state, metrics)

        return jax.lax.scan(advance, algorithm.init(key), length=60)[1]

    return run


@pytest.mark.parametrize("nothing", [-np.inf, np.nan, -1e30])
def test_where_nothing_is_near_nothing_changes_until_a_particle_finds_the_mass(nothing):
    states, found = far_away()(jax.random.key(3), jnp.float32(nothing))
    assert_sound(states)
    skipped = np.asarray(found["skipped"]).astype(bool)
    first = int(np.argmin(skipped))
    # Left out and counted until there is anything to learn from, and from then on learned.
    assert skipped[:first].all() and 0 < first < 50
    np.testing.assert_array_equal(states.consecutive_skipped[:first], np.arange(1, first + 1))
    assert (
        np.isnan(found["loss"][:first]).all()
        and not states.model.params["drift"]["offset"][first - 1].any()
    )
    assert np.isfinite(found["loss"][first:]).all() and not skipped[first:].any()
    assert states.model.params["drift"]["offset"][-1].all()
    name = "invalid" if np.isnan(nothing) else "outside"
    assert (found[name][:first] == 1.0).all() and (found[name][first + 1 :] < 1.0).all()
