"""The light potential against float64 bridges of mixtures, the paper's formulas, quadrature."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from d2ejax import kernels, pairs, references, time_grids
from d2ejax.exact.base import local_coefficients, transition
from d2ejax.light import LightPotential
from tests.gaussian_case import jit
from tests.reference_cases import REFERENCES, T_MAX, every_reference

GRID = time_grids.end_refined(5, T_MAX)
TIMES = np.asarray(GRID.times, np.float64)


@functools.cache
def exact(reference):
    """A bridge of mixtures, the potential and the parameters that hold it."""
    bridge = pairs.mixture_pair(reference, T_MAX, dim=3, num_components=4, seed=1).bridge
    potential = LightPotential(reference, T_MAX)
    psi = (jnp.asarray(part, jnp.float32) for part in bridge.psi)
    return bridge, potential, potential.from_mixture(*psi)


def points(bridge, t, n=200):
    """Points of a marginal, as float32 and as what those are in float64."""
    x = bridge.marginal(float(t)).sample(np.random.default_rng(3), n).astype(np.float32)
    return jnp.asarray(x), x.astype(np.float64)


def over(function, params):
    """A function of parameters, a point and a time (or a step), over points; compiled once."""
    mapped = jit(jax.vmap(functools.partial(function, params), (0, None)))
    return lambda x, t: mapped(x, jax.tree.map(jnp.float32, t))


@every_reference
def test_values_are_those_of_the_exact_potential(reference):
    bridge, potential, params = exact(reference)
    value = over(potential.log_value, params)
    for t in (0.0, 0.4, T_MAX):
        x, host = points(bridge, t)
        step = transition(reference, t, T_MAX)
        expected = bridge.psi.push(1.0, step.variance).log_density(step.scale * host)
        np.testing.assert_allclose(value(x, t), expected, atol=2e-4)


@every_reference
def test_the_law_of_the_end_is_the_exact_one(reference):
    bridge, potential, params = exact(reference)
    posterior = over(potential.posterior, params)
    for t in TIMES[:-1]:
        x, host = points(bridge, t)
        step = transition(reference, t, T_MAX)
        expected = bridge.psi.observe(step.scale * host, 1.0, step.variance)
        law = posterior(x, t)
        weights = np.exp(np.asarray(law.log_weights, np.float64))
        np.testing.assert_allclose(weights, np.exp(expected.log_weights), atol=2e-4)
        np.testing.assert_allclose(law.means, expected.means, atol=2e-4)
        np.testing.assert_allclose(law.variances[0], expected.variances, rtol=1e-4)
        mean, variance = jax.vmap(lambda one: one.mean_and_variance())(law)
        true_mean, true_variance = expected.mean_and_variance()
        np.testing.assert_allclose(mean, true_mean, atol=2e-3)
        np.testing.assert_allclose(variance, true_variance, rtol=1e-3, atol=1e-3)


@every_reference
def test_the_drift_is_the_exact_one(reference):
    bridge, potential, params = exact(reference)
    drift = over(potential.drift, params)
    for t in TIMES[:-1]:
        x, host = points(bridge, t)
        rate, _ = local_coefficients(reference, float(t))
        expected = bridge.drift(host, float(t)) - rate * host
        np.testing.assert_allclose(drift(x, t), expected, rtol=1e-3, atol=1e-3)
    x, _ = points(bridge, T_MAX)
    slopes = over(jax.grad(potential.log_value, argnums=1), params)(x, T_MAX)
    score = over(potential.score, params)(x, T_MAX)
    np.testing.assert_allclose(score, slopes, rtol=1e-3, atol=1e-3)


@every_reference
@pytest.mark.parametrize("match_variance", [True, False])
def test_kernels_have_the_exact_moments_of_every_step(reference, match_variance):
    bridge, potential, params = exact(reference)
    process = potential.process(GRID, match_variance=match_variance)
    assert not process.backward and process.num_steps == GRID.num_steps
    kernel = over(process.kernel, params)
    for k, (t, t_next) in enumerate(itertools.pairwise(TIMES)):
        x, host = points(bridge, t)
        step = jax.tree.map(lambda leaf, k=k: leaf[k], process.steps)
        law = kernel(x, step)
        mean, variance = bridge.step_moments(host, float(t), float(t_next))
        if not match_variance:
            variance = np.full_like(mean, transition(reference, t, t_next).variance)
        np.testing.assert_allclose(law.mean, mean, atol=2e-3)
        np.testing.assert_allclose(np.exp(law.log_variance), variance, rtol=2e-3)


@every_reference
def test_over_the_reverse_it_is_the_potential_of_the_source_and_the_chain_runs_backward(
    reference,
):
    bridge, _, _ = exact(reference)
    potential = LightPotential(references.reverse(reference, T_MAX), T_MAX)
    params = potential.from_mixture(*(jnp.asarray(part, jnp.float32) for part in bridge.phi))
    process = potential.process(GRID, backward=True)
    plain = kernels.process(
        kernels.zero_network, reference, GRID, backward=True, discretisation="exact"
    )
    assert process.backward
    for name, leaf in process.steps._asdict().items():
        np.testing.assert_allclose(leaf, getattr(plain.steps, name), rtol=2e-4, atol=1e-6)
    kernel = over(process.kernel, params)
    for k, (t, t_next) in enumerate(itertools.pairwise(TIMES)):
        x, host = points(bridge, t_next)
        law = kernel(x, jax.tree.map(lambda leaf, k=k: leaf[k], process.steps))
        mean, cov = bridge.backward_step_law(host, float(t_next), float(t))
        np.testing.assert_allclose(law.mean, mean, atol=2e-3)
        variance = np.einsum("nii->ni", cov)
        np.testing.assert_allclose(np.exp(law.log_variance), variance, rtol=2e-3)


def test_moments_are_told_apart_by_those_tolerances():
    bridge, _, _ = exact(REFERENCES["brownian"])
    _, host = points(bridge, 0.0)
    mean, variance = bridge.step_moments(host, 0.0, float(TIMES[1]))
    _, later = bridge.step_moments(host, 0.01, float(TIMES[1]))
    shift = mean - host
    assert np.abs(shift).max() > 0.1
    assert np.abs(later / variance - 1).max() > 0.01
    # What the law of total variance adds to the variance within components.
    law = bridge.conditional_plan(host)
    within = np.exp(law.log_weights) @ law.variances
    assert np.abs(law.mean_and_variance()[1] / within - 1).max() > 0.1


def test_steps_at_once_must_make_a_path():
    potential = LightPotential(REFERENCES["brownian"], T_MAX)
    assert potential.process(GRID, steps_at_once=5).steps_at_once == 5
    with pytest.raises(ValueError, match="steps_at_once = 2: must be a divisor of 5"):
        potential.process(GRID, steps_at_once=2)


def wide(rng, epsilon, dim, num):
    """S on both sides of one, LightSB's parameters in float64 and ours."""
    shares = np.exp(rng.uniform(-2.0, 1.5, size=(num, dim)))
    weights, centres = rng.normal(size=num), 0.7 * rng.normal(size=(num, dim))
    params = {
        "log_weights": weights,
        "means": centres,
        "log_variances": np.log(epsilon * shares),
    }
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    return shares, weights, centres, single


def test_it_is_lightsb():
    # Korotin et al. 2024, eqs. 9 and 10: v(x_1) = Σ α N(x_1; r, ε S) and
    # c(x_0) = Σ α exp((x_0ᵀ S x_0 + 2 rᵀ x_0) / 2ε), the plan's components N(r + S x_0, ε S).
    rng = np.random.default_rng(0)
    sigma, t_max = 0.8, 0.6
    epsilon = sigma**2 * t_max
    shares, weights, centres, params = wide(rng, epsilon, 3, 5)
    assert shares.min() < 1.0 < shares.max()
    potential = LightPotential(references.brownian(sigma), t_max)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    host = x.astype(np.float64)
    log_c_parts = (host**2 @ shares.T + 2.0 * host @ centres.T) / (2 * epsilon) + weights
    log_c = special.logsumexp(log_c_parts, axis=1)
    components = stats.norm.logpdf(host[:, None], centres, np.sqrt(epsilon * shares))
    log_v = special.logsumexp(components.sum(axis=2) + weights, axis=1)
    each = functools.partial(jax.vmap, in_axes=(None, 0))
    found_c = jit(each(potential.log_normaliser))(params, x)
    found_v = jit(each(potential.log_adjusted))(params, x)
    np.testing.assert_allclose(found_c, log_c, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found_v, log_v, rtol=1e-5, atol=1e-4)
    law = over(potential.posterior, params)(x, 0.0)
    np.testing.assert_allclose(
        np.exp(law.log_weights), np.exp(log_c_parts - log_c[:, None]), atol=1e-5
    )
    np.testing.assert_allclose(law.means, centres + shares * host[:, None], atol=1e-4)
    np.testing.assert_allclose(law.variances[0], epsilon * shares, rtol=1e-5)


@pytest.mark.parametrize("name", ["brownian", "ornstein_uhlenbeck"])
def test_potentials_that_grow_against_quadrature(name):
    # S > 1: ψ is no mixture of Gaussians, and yet ∫ q(y | x_t) ψ(y) dy is finite for all t.
    reference = REFERENCES[name]
    potential = LightPotential(reference, T_MAX)
    whole = transition(reference, 0.0, T_MAX)
    shares, weights, centres, params = wide(np.random.default_rng(1), whole.variance, 1, 3)
    assert shares.max() > 1.2
    y, width = np.linspace(-40, 40, 40_001, retstep=True)
    deviations = np.sqrt(whole.variance * shares)
    log_v = stats.norm.logpdf(y[:, None], centres.T, deviations.T) + weights
    log_psi = special.logsumexp(log_v, axis=1) + y**2 / (2 * whole.variance)
    x = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    value, posterior = (over(f, params) for f in (potential.log_value, potential.posterior))
    for t in (0.0, 0.7, 1.4):
        step = transition(reference, t, T_MAX)
        q = stats.norm.logpdf(y, step.scale * x.astype(np.float64), np.sqrt(step.variance))
        log_terms = q + log_psi
        expected = special.logsumexp(log_terms, axis=1) + np.log(width)
        np.testing.assert_allclose(value(x, t), expected, rtol=1e-4, atol=1e-4)
        shares_of_y = special.softmax(log_terms, axis=1)
        mean = shares_of_y @ y
        variance = shares_of_y @ y**2 - mean**2
        moments = jax.vmap(lambda one: one.mean_and_variance())(posterior(x, t))
        np.testing.assert_allclose(moments[0][:, 0], mean, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(moments[1][:, 0], variance, rtol=2e-3)


def test_ends_are_drawn_from_the_conditional_plan(key):
    bridge, potential, params = exact(REFERENCES["ornstein_uhlenbeck"])
    x, host = points(bridge, 0.0, n=1)
    n = 20_000
    draw = jit(jax.vmap(lambda k: potential.sample_end(k, params, x[0])))
    ends = np.asarray(draw(jax.random.split(key, n)), np.float64)
    mean, covariance = bridge.conditional_moments(host)
    error = ends.std(axis=0) / np.sqrt(n)
    assert np.all(np.abs(ends.mean(axis=0) - mean[0]) < 4.5 * error)
    centred = ends - mean[0]
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(axis=0) / np.sqrt(n)
    assert np.all(np.abs(products.mean(axis=0) - covariance[0]) < 4.5 * error)


def test_the_start_has_equal_weights_and_one_variance():
    potential = LightPotential(references.brownian(0.5), 2.0)
    centres = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    params = potential.init(centres, share=0.2)
    np.testing.assert_allclose(np.exp(params["log_weights"]), 0.5, rtol=1e-6)
    np.testing.assert_array_equal(params["means"], centres)
    np.testing.assert_allclose(np.exp(params["log_variances"]), 0.2 * 0.5, rtol=1e-6)
