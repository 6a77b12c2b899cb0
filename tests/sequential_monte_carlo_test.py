"""Sequential Monte Carlo: weights of whole paths without resampling, unbiased with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import endpoints, kernels, metrics, references, rollouts, time_grids
from d2ejax.sequential_monte_carlo import geometric_path, sequential_monte_carlo
from tests import gaussian_case

LAW, GRID = references.brownian(1.0), time_grids.uniform(8, 1.0)
PRIOR = endpoints.gaussian(dim=2, std=0.5)
TARGET = endpoints.gaussian_mixture([(1.5, 0.0), (-1.0, 0.8)], stds=0.4, weights=(0.3, 0.7))
LOG_Z = -2.5
MEAN = jnp.zeros(2)


def log_target(x):
    return TARGET.log_density(x) + LOG_Z


@functools.cache
def setting():
    """A process that has learned little, the reversal, and densities in between."""

    def network(params, x, t):
        return params - 0.5 * x, jnp.zeros_like(x)

    forward = kernels.process(network, LAW, GRID, variance="fixed")
    reversal = kernels.gaussian_reversal(LAW, GRID, mean=MEAN, variance=0.25)
    marginals = references.gaussian_marginals(LAW, GRID, mean=MEAN, variance=0.25)

    def log_marginals(k, x):
        return marginals(jnp.broadcast_to(x, (GRID.num_steps + 1, 2)))[k]

    log_densities = geometric_path(log_marginals, log_target, GRID.times / GRID.t_max)
    return (forward, reversal), (jnp.array([-0.3, 0.2]), None), log_densities


@functools.cache
def compiled(threshold, n):
    processes, params, log_densities = setting()

    def run(key):
        start_key, path_key = jax.random.split(key)
        starts = PRIOR.sample(start_key, n)
        return sequential_monte_carlo(
            path_key, processes, params, starts, log_densities, threshold=threshold
        )

    return gaussian_case.jit(run)


def run(key, *, threshold, n=500):
    return compiled(threshold, n)(key)


def test_without_resampling_the_weights_are_those_of_whole_paths(key):
    (forward, reversal), params, log_densities = setting()
    starts = PRIOR.sample(key, 6)
    found = sequential_monte_carlo(
        key, (forward, reversal), params, starts, log_densities, threshold=0.0
    )
    # The same noise: one key for each step, then one for each path.
    paths = [starts]
    for k, step_key in enumerate(jax.random.split(key, GRID.num_steps)):
        keys = jax.random.split(jax.random.split(step_key)[0], len(starts))
        step = jax.tree.map(lambda leaf, k=k: leaf[k], forward.steps)
        laws = jax.vmap(lambda x, step=step: forward.kernel(params[0], x, step))(paths[-1])
        noise = jnp.stack([jax.random.normal(own, (2,)) for own in keys])
        paths.append(laws.mean + jnp.exp(0.5 * laws.log_variance) * noise)
    paths = jnp.stack(paths, axis=1)
    np.testing.assert_allclose(found.positions, paths[:, -1], rtol=1e-4, atol=1e-5)
    expected = metrics.log_weights(
        log_start=jax.vmap(PRIOR.log_density)(starts),
        log_forward=rollouts.log_density(forward, params[0], paths),
        log_backward=rollouts.log_density(reversal, None, paths),
        log_end=jax.vmap(log_target)(paths[:, -1]),
    )
    np.testing.assert_allclose(found.log_weights, expected, rtol=1e-4, atol=1e-4)
    estimate = metrics.log_z_importance(expected)
    np.testing.assert_allclose(found.log_z, estimate.value, rtol=1e-4)
    ess = metrics.effective_sample_size(expected)
    np.testing.assert_allclose(found.effective[-1], ess, rtol=1e-3)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_estimate_of_z_is_unbiased_whenever_it_resamples(threshold, key):
    runs = 60
    found = [run(k, threshold=threshold) for k in jax.random.split(key, runs)]
    ratios = np.exp([float(f.log_z) - LOG_Z for f in found])
    error = ratios.std(ddof=1) / runs**0.5
    assert abs(ratios.mean() - 1.0) < 4 * error and error < 0.1
    if threshold:
        # And the weighted particles are those of the target: its mean, its first mode's mass.
        shares = [jax.nn.softmax(f.log_weights) for f in found]
        means = np.stack([s @ f.positions for s, f in zip(shares, found, strict=True)])
        errors = means.std(axis=0, ddof=1) / runs**0.5
        expected = 0.3 * np.array([1.5, 0.0]) + 0.7 * np.array([-1.0, 0.8])
        # A ratio of estimates has a bias of a hundredth of its spread.
        assert (np.abs(means.mean(axis=0) - expected) < 4 * errors + 0.01).all()


def test_it_resamples_where_the_threshold_says_and_nowhere_else(key):
    always = run(key, threshold=1.0)
    assert np.ptp(np.asarray(always.log_weights)) == 0
    assert len(np.unique(always.positions, axis=0)) < len(always.positions)
    never = run(key, threshold=0.0)
    lowest = float(never.effective.min())
    same = run(key, threshold=0.99 * lowest)
    np.testing.assert_array_equal(never.positions, same.positions)
    other = run(key, threshold=1.01 * lowest)
    assert float(jnp.max(jnp.abs(other.log_weights - never.log_weights))) > 1e-3


def test_bad_arguments_are_refused(key):
    (forward, reversal), params, log_densities = setting()
    starts = PRIOR.sample(key, 4)
    with pytest.raises(ValueError, match="must be a forward and a backward one"):
        sequential_monte_carlo(key, (reversal, forward), params, starts, log_densities)
    with pytest.raises(ValueError, match=r"threshold = 1\.5: must be from 0 to 1"):
        sequential_monte_carlo(
            key, (forward, reversal), params, starts, log_densities, threshold=1.5
        )


def cut(bad):
    """Densities of which half of the plane has nothing, `bad`, at the end of the paths."""
    log_densities = setting()[2]

    def log_density(k, x):
        value = log_densities(k, x)
        return jnp.where((k == GRID.num_steps) & (x[0] < 0.2), bad, value)

    return log_density


@gaussian_case.jit
def run_cut(key, bad, shift):
    processes, params, _ = setting()
    starts = PRIOR.sample(key, 300) + shift
    return sequential_monte_carlo(key, processes, params, starts, cut(bad), threshold=1.0)


@pytest.mark.parametrize("bad", [-np.inf, np.nan, np.inf])
def test_a_path_without_weight_is_never_copied_and_counts_as_zero(bad, key):
    found = run_cut(key, bad, 0.0)
    assert (found.positions[:, 0] > 0.2).all() and np.isfinite(found.log_weights).all()
    # An estimate of the half that is left: of its two modes the one of weight 0.3.
    assert abs(found.log_z - (LOG_Z + np.log(0.3))) < 0.5
    nothing = run_cut(key, bad, -30.0)
    assert np.isneginf(nothing.log_z) and np.isneginf(nothing.log_weights).all()
    assert np.isnan(nothing.effective[-1]) and np.isfinite(nothing.positions).all()


def test_where_rounded_weights_fall_short_of_one_nothing_dead_is_drawn(key, monkeypatch):
    """blackjax takes the last particle there, whatever its weight."""
    from blackjax.smc import resampling

    monkeypatch.setattr(resampling, "systematic", lambda key, weights, n: jnp.arange(n))
    processes, params, _ = setting()
    starts = PRIOR.sample(key, 20)
    found = sequential_monte_carlo(key, processes, params, starts, cut(-jnp.inf), threshold=1.0)
    assert (found.positions[:, 0] > 0.2).all()


def test_a_constraint_on_the_end_says_nothing_of_the_points_before_it():
    path = geometric_path(
        lambda k, x: -jnp.sum(x**2),
        lambda x: jnp.where(x[0] > 0, -jnp.abs(x[0]), -jnp.inf),
        jnp.asarray([0.0, 0.5, 1.0]),
    )
    values = jax.vmap(jax.vmap(path, (None, 0)), (0, None))(
        jnp.arange(3), jnp.asarray([[2.0], [-2.0]])
    )
    np.testing.assert_allclose(values, [[-4.0, -4.0], [-3.0, -2.0], [-2.0, -np.inf]])
