"""The light bridge: its phases and guards, and what it finds on pairs with an exact bridge."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import kernels, pairs, parallel, references, time_grids
from d2ejax.algorithms import light
from d2ejax.endpoints import restrict
from d2ejax.light import LightPotential
from tests import gaussian_case

ADAM = optax.adam(0.02)


def make(case, phases, *, optimiser=ADAM, ends=None, **options):
    """A light bridge around the affine backward process of a Gaussian case."""
    return light.light_bridge(
        LightPotential(case.law, gaussian_case.T_MAX),
        gaussian_case.process(case, backward=True),
        case.ends if ends is None else ends,
        case.grid,
        phases,
        init_backward=lambda key: gaussian_case.zero_params(case),
        optimisers=(optimiser, optimiser),
        **options,
    )


def states(algorithm, num_steps, seed=0):
    """The state before and after each step, on the host, and the metrics of each."""
    step = gaussian_case.jit(algorithm.step)
    state = gaussian_case.jit(algorithm.init)(jax.random.key(seed))
    found, metrics = [state], []
    for _ in range(num_steps):
        state, measured = step(state)
        found.append(state)
        metrics.append(measured)
    return found, metrics


def same(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


TINY = light.LightPhases(2, 3, ends_batch=16, paths_batch=8)


def test_the_potential_is_trained_first_and_then_the_backward_process():
    assert TINY.total == 5
    found, metrics = states(make(gaussian_case.make(2), TINY, num_components=3), 5)
    for k, (old, new) in enumerate(itertools.pairwise(found)):
        assert same(old.potential, new.potential) == (k >= 2)
        assert same(old.backward, new.backward) == (k < 2)
        assert int(new.step) == k + 1 and int(new.skipped) == 0
        assert np.isfinite(metrics[k]["loss"]) and metrics[k]["skipped"] == 0.0
    assert found[0].potential.params["means"].shape == (3, 2)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted():
    case = gaussian_case.make(1)
    broken = case.ends[0]._replace(sample=lambda key, n: jnp.full((n, 1), jnp.nan))
    algorithm = make(case, TINY, ends=(broken, case.ends[1]), num_components=2)
    found, metrics = states(algorithm, 3)
    assert same(found[0].potential, found[-1].potential)
    assert same(found[0].backward, found[-1].backward)
    assert [int(s.consecutive_skipped) for s in found] == [0, 1, 2, 3]
    assert int(found[-1].skipped) == int(found[-1].step) == 3
    assert metrics[0]["skipped"] == 1.0


@pytest.mark.parametrize("end", [0, 1])
def test_an_end_without_samples_is_refused(end):
    case = gaussian_case.make(1)
    ends = list(case.ends)
    ends[end] = restrict(ends[end], "energy")
    with pytest.raises(ValueError, match="offers no samples here"):
        make(case, TINY, ends=tuple(ends))


def test_devices_share_the_steps():
    algorithm = make(gaussian_case.make(1), TINY, num_components=2, axis_name=parallel.AXIS)
    trainer = parallel.data_parallel(algorithm, devices=jax.local_devices()[:2])
    state, metrics = trainer.run(trainer.init(jax.random.key(0)), 5)
    assert np.isfinite(metrics["loss"])
    for model in (state.potential, state.backward):
        for leaf in jax.tree.leaves(model):
            assert leaf.shape[0] == 2
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    # Else the devices would train on the same samples.
    words = jax.random.key_data(state.key)
    assert len(np.unique(words, axis=0)) == 2


def annealed(num_steps, peak):
    return optax.adam(optax.cosine_decay_schedule(peak, num_steps))


def trained(algorithm, num_steps):
    """The state after all steps, in one program."""

    @gaussian_case.jit
    def run(key):
        def advance(_, state):
            return algorithm.step(state)[0]

        return jax.lax.fori_loop(0, num_steps, advance, algorithm.init(key))

    return run(jax.random.key(1))


def test_between_gaussians_both_processes_are_the_exact_ones():
    # One component holds this bridge: v is Gaussian, and so are all kernels.
    case = gaussian_case.make(2)
    phases = light.LightPhases(400, 400, ends_batch=1024, paths_batch=512)
    algorithm = make(
        case, phases, optimiser=annealed(400, 0.05), num_components=1, ema_decay=0.98
    )
    state = trained(algorithm, phases.total)
    potential = LightPotential(case.law, gaussian_case.T_MAX)
    forward = potential.process(case.grid)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)), jnp.float32)
    host = np.asarray(x, np.float64)
    for process, params, law in (
        (forward, state.potential.average, case.bridge.forward_kernels(case.times)),
        (
            gaussian_case.process(case, backward=True),
            state.backward.average,
            case.bridge.backward_kernels(case.times),
        ),
    ):
        at_points = jax.vmap(process.kernel, (None, 0, None))
        found = jax.vmap(at_points, (None, None, 0))(params, x, process.steps)
        mean = np.einsum("kij,nj->kni", law.matrix, host) + law.offset[:, None]
        variance = np.einsum("kii->ki", law.cov)[:, None]
        np.testing.assert_allclose(found.mean, mean, atol=0.05)
        ratio = np.exp(np.asarray(found.log_variance, np.float64)) / variance
        np.testing.assert_allclose(ratio, 1.0, atol=0.05)


@functools.cache
def planar():
    return pairs.mixture_pair(references.brownian(1.0), 1.0, num_components=3)


def drift_error(potential, params, bridge):
    """The root of E‖F - F*‖² / E‖F*‖² along the true marginals."""
    rng, squares = np.random.default_rng(0), np.zeros(2)
    drift = gaussian_case.jit(jax.vmap(functools.partial(potential.drift, params), (0, None)))
    for t in (0.0, 0.2, 0.5, 0.8, 0.95):
        x = bridge.marginal(t).sample(rng, 2000).astype(np.float32)
        exact = bridge.drift(x.astype(np.float64), t)
        found = np.asarray(drift(x, jnp.float32(t)), np.float64)
        squares += np.mean((found - exact) ** 2), np.mean(exact**2)
    return float(np.sqrt(squares[0] / squares[1]))


def test_the_drift_of_a_pair_is_found_from_scratch():
    source, target, bridge = planar()
    potential = LightPotential(references.brownian(1.0), 1.0)
    grid = time_grids.uniform(2, 1.0)
    phases = light.LightPhases(400, 1, ends_batch=512, paths_batch=2)
    algorithm = light.light_bridge(
        potential,
        kernels.process(kernels.zero_network, potential.reference, grid, backward=True),
        (restrict(source, "samples"), restrict(target, "samples")),
        grid,
        phases,
        init_backward=lambda key: {"unused": jnp.zeros(())},
        optimisers=(annealed(400, 0.03), ADAM),
        num_components=16,
        ema_decay=0.98,
    )
    start = gaussian_case.jit(algorithm.init)(jax.random.key(1))
    assert drift_error(potential, start.potential.params, bridge) > 0.2
    state = trained(algorithm, phases.potential_steps)
    assert drift_error(potential, state.potential.average, bridge) < 0.05
