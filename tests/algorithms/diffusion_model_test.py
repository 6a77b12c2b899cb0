"""Diffusion models of a Gaussian: the reversal of the noise is known at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import endpoints, gaussians, kernels, references, rollouts, time_grids
from d2ejax.algorithms import diffusion_model
from tests import gaussian_case

LAWS = {
    "preserving": references.time_reversed(references.variance_preserving(0.1, 14.0, 1.0), 1.0),
    "exploding": references.time_reversed(references.variance_exploding(0.1, 3.0, 1.0), 1.0),
}
MEAN, VARIANCE = np.array([0.8, -0.5]), np.array([0.3, 0.7])
DIM, BOUND = 2, 4.0
DATA = endpoints.gaussian(mean=MEAN, covariance=np.diag(VARIANCE))

every_law = pytest.mark.parametrize("name", LAWS)


@functools.cache
def setting(name, num_steps=8):
    """The grid and a process affine in x, of other numbers at each step."""
    grid = time_grids.uniform(num_steps, 1.0)

    def network(params, x, t):
        k = jnp.argmin(jnp.abs(grid.times[:-1] - t))
        return params["slope"][k] * x + params["offset"][k], params["raw"][k]

    chain = kernels.process(
        network, LAWS[name], grid, variance="bounded", bound=BOUND, discretisation="exact"
    )
    return grid, chain


def marginals(name, num_steps=8):
    """Means and variances of the noised data at all times, `(num_steps + 1, dim)`."""
    times = np.asarray(setting(name, num_steps)[0].times)
    scale = np.asarray(LAWS[name].scale(times, 1.0), np.float64)[:, None]
    variance = np.asarray(LAWS[name].variance(times, 1.0), np.float64)[:, None]
    return scale * MEAN, scale**2 * VARIANCE + variance


def exact_params(name, num_steps=8):
    """Of the reversal of the noise: Bayes' rule for x_{k+1} given x_k."""
    _, chain = setting(name, num_steps)
    means, variances = marginals(name, num_steps)
    columns = (chain.steps.scale, jnp.exp(chain.steps.log_variance), chain.steps.gain)
    scale, noise, gain = (np.asarray(column, np.float64)[:, None] for column in columns)
    slope = scale * variances[1:] / variances[:-1]
    ratio = np.log(variances[1:] / variances[:-1])
    params = {
        "slope": (slope - scale) / gain,
        "offset": (means[1:] - slope * means[:-1]) / gain,
        "raw": BOUND * np.arctanh(ratio / BOUND),
    }
    assert noise.min() > 0
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def propagated(process, params, mean, variance):
    """Means, variances and covariances with the start of an affine chain, at all times."""
    found = [(mean, variance, variance)]
    at = jax.jit(functools.partial(rollouts.step_kernels, process))
    zeros, ones = jnp.zeros((process.num_steps, DIM)), jnp.ones((process.num_steps, DIM))
    offsets, log_variances = at(params, zeros)
    slopes = np.asarray(at(params, ones).mean - offsets, np.float64)
    offsets, noise = np.asarray(offsets, np.float64), np.exp(np.asarray(log_variances))
    for slope, offset, added in zip(slopes, offsets, noise, strict=True):
        mean, variance, covariance = found[-1]
        found.append((offset + slope * mean, slope**2 * variance + added, slope * covariance))
    return tuple(np.stack(column) for column in zip(*found, strict=True))


@every_law
def test_noise_and_reference_are_each_others_reversals(name, key):
    grid, _ = setting(name)
    noising = diffusion_model.noising(LAWS[name], grid)
    reference = kernels.reference_process(LAWS[name], grid, discretisation="exact")
    paths = jnp.cumsum(jax.random.normal(key, (5, grid.num_steps + 1, DIM)), axis=1)
    forward = rollouts.log_density(reference, None, paths)
    backward = rollouts.log_density(noising, None, paths)
    if name == "preserving":  # Stationary in N(0, I); else under a flat measure.
        standard = gaussians.Gaussian(jnp.zeros(DIM), jnp.zeros(DIM))
        at_rest = jax.vmap(lambda x: gaussians.log_density(standard, x))
        forward, backward = forward + at_rest(paths[:, 0]), backward + at_rest(paths[:, -1])
    np.testing.assert_allclose(forward, backward, rtol=1e-4)
    means, variances = marginals(name)
    ends = jax.vmap(rollouts.simulate, (0, None, None, 0))(
        jax.random.split(key, 4000), noising, None, DATA.sample(key, 4000)
    )
    errors = np.abs(ends.mean(axis=0) - means) / (variances / 4000) ** 0.5
    spreads = np.abs(ends.var(axis=0) / variances - 1) / (2 / 4000) ** 0.5
    assert max(errors.max(), spreads.max()) < 4.5


def batch_objective(name, key, batch_size):
    grid, chain = setting(name)
    given = diffusion_model.DiffusionModel(chain, LAWS[name], grid, DATA, batch_size)
    return diffusion_model.objective(given, key)


@every_law
def test_the_gradient_is_zero_at_the_reversal(name, key):
    @gaussian_case.jit
    def gradients(keys, params):
        def one(key):
            return jax.grad(lambda p: batch_objective(name, key, 400)(p)[0])(params)

        return jax.lax.map(one, keys)

    keys, params = jax.random.split(key, 40), exact_params(name)
    assert np.abs(gaussian_case.z_scores(gradients(keys, params))).max() < 4.5
    moved = params | {"offset": params["offset"] + 0.3}
    assert np.abs(gaussian_case.z_scores(gradients(keys, moved))).max() > 20


@every_law
def test_training_finds_the_reversal_of_the_noise(name, key):
    grid, chain = setting(name)
    zeros = jnp.zeros((grid.num_steps, DIM))
    algorithm = diffusion_model.diffusion_model(
        diffusion_model.DiffusionModel(chain, LAWS[name], grid, DATA, batch_size=512),
        init_params=lambda key: {"slope": zeros, "offset": zeros, "raw": zeros},
        optimiser=optax.adam(optax.cosine_decay_schedule(0.3, 500)),
        ema_decay=0.98,
    )

    @gaussian_case.jit
    def train(key):
        run = jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=500
        )
        return run[0].model.average, run[1]["skipped"]

    params, skipped = train(key)
    assert not skipped.any()
    means, variances = marginals(name)
    found_means, found_variances, _ = propagated(chain, params, means[0], variances[0])
    # In standard errors of as many paths, which are thousands.
    n = 10_000
    assert np.abs((found_means - means) / (variances / n) ** 0.5).max() < 3
    assert np.abs((found_variances / variances - 1) / (2 / n) ** 0.5).max() < 3


@every_law
def test_less_noise_keeps_the_marginals_and_the_memory(name):
    num_steps = 100
    _, chain = setting(name, num_steps)
    params, (means, variances) = exact_params(name, num_steps), marginals(name, num_steps)
    # What the end remembers of the start: all noise, as much as the noise does of the data.
    memory = np.asarray(LAWS[name].scale(0.0, 1.0)) * (VARIANCE / variances[0]) ** 0.5
    for share in (1.0, 0.6, 0.2):
        lean = diffusion_model.with_noise(chain, share)
        found = propagated(lean, params, means[0], variances[0])
        np.testing.assert_allclose(found[0], means, atol=0.02)
        np.testing.assert_allclose(found[1], variances, rtol=0.06)
        # The correlation is exp(-η²/2 ∫ g²/V dt), V the variance of the marginal.
        correlation = found[2][-1] / (variances[0] * variances[-1]) ** 0.5
        np.testing.assert_allclose(correlation, memory**share**2, rtol=0.06)
    # What is missed is of the first order in the steps: twice as many leave half of it.
    missed = np.abs(found[1] / variances - 1).max()
    params, (means, variances) = (f(name, 2 * num_steps) for f in (exact_params, marginals))
    lean = diffusion_model.with_noise(setting(name, 2 * num_steps)[1], share)
    finer = propagated(lean, params, means[0], variances[0])
    assert np.abs(finer[1] / variances - 1).max() < 0.6 * missed


@every_law
def test_all_the_noise_is_the_model_itself(name, key):
    _, chain = setting(name)
    params = exact_params(name)
    given = jax.random.normal(key, (3, chain.num_steps, DIM))
    whole = diffusion_model.with_noise(chain, 1.0)
    for found, own in zip(
        rollouts.step_kernels(whole, params, given),
        rollouts.step_kernels(chain, params, given),
        strict=True,
    ):
        np.testing.assert_allclose(found, own, atol=3e-5)


def test_bad_settings_are_refused():
    grid, chain = setting("exploding")
    given = diffusion_model.DiffusionModel(chain, LAWS["exploding"], grid, DATA)
    wrong = {"init_params": None, "optimiser": optax.sgd(1.0), "ema_decay": 0.0}
    for changed, message in (
        ({"process": chain._replace(backward=True)}, "process: runs backward"),
        ({"data": DATA._replace(sample=None)}, "offers no samples"),
    ):
        with pytest.raises(ValueError, match=message):
            diffusion_model.diffusion_model(given._replace(**changed), **wrong)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"share = {share}: must be > 0 and ≤ 1"):
            diffusion_model.with_noise(chain, share)
