"""Bugs planted on purpose: what has no gradient at the exact Gaussian bridge has one with them.

For each loss, as far as it can be said of it: x_0 coupled with x_0, a factor σ² that is left
out, and time that runs backwards. σ is not one, and neither grid nor times are symmetric. The
losses of a fixed variance have theirs in `reversal_test`, flow and score in `matching_test`,
and the light bridge in the test of its loss.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, losses, time_grids
from d2ejax.algorithms import from_samples, ipf, matching
from d2ejax.typing import EmbeddedNetwork
from tests import gaussian_case

CASE = gaussian_case.make(1)
BUGS = ("none", "x_0 coupled with x_0", "σ² is left out", "time runs backwards")
EVERY_BUG = pytest.mark.parametrize("bug", BUGS)
BATCHES, SIZE = 64, 512


def law_of(sigma):
    """Brownian motion, as `references.brownian`, of a traced σ."""
    return CASE.law._replace(
        diffusion=lambda t: sigma * jnp.ones_like(t),
        variance=lambda s, t: sigma**2 * (jnp.asarray(t) - s),
    )


def grid_of(backwards):
    times = CASE.grid.times
    return time_grids.TimeGrid(jnp.where(backwards, times[-1] - times[::-1], times))


def faults(bug):
    """What the programs take: whether x_0 is coupled with itself, σ, and the sense of time."""
    sigma = 1.0 if bug == BUGS[2] else gaussian_case.SIGMA
    return jnp.asarray(bug == BUGS[1]), jnp.float32(sigma), jnp.asarray(bug == BUGS[3])


def judge(bug, z_scores):
    """Without a bug the gradient's mean is zero within its error, with one far from it."""
    found = np.abs(z_scores).max()
    assert found < 4.5 if bug == "none" else found > 10.0


@functools.cache
def plan():
    """Ends of the exact bridge, `(BATCHES, SIZE, 1)` each."""
    ends = CASE.bridge.sample_plan(np.random.default_rng(0), BATCHES * SIZE)
    return [jnp.asarray(x, jnp.float32).reshape(BATCHES, SIZE, 1) for x in ends]


def gradients(loss):
    """Compiles the gradients on all batches of `loss(params, key, x_0, x_1, sigma, backwards)`.

    One program for all bugs, which are among its arguments.
    """
    keys, ends = jax.random.split(jax.random.key(1), BATCHES), plan()

    @gaussian_case.jit
    def run(params, itself, sigma, backwards):
        def gradient(batch):
            key, x_0, x_1 = batch
            x_1 = jnp.where(itself, x_0, x_1)
            return jax.grad(loss)(params, key, x_0, x_1, sigma, backwards)

        return jax.lax.map(gradient, (keys, *ends))

    return run


@functools.cache
def of_rejoined_ends(loss, prediction, backward):
    """The gradients, and the parameters of the exact kernels under a prediction."""
    half = gaussian_case.half_step(CASE, loss, backward=backward, reanchor=True)
    steps = kernels.process(
        kernels.zero_network, CASE.law, CASE.grid, backward=backward, prediction=prediction
    ).steps
    params = gaussian_case.exact_params(CASE, backward=backward)
    ratio = (steps.length / steps.gain)[:, None]
    params |= {name: ratio * params[name] for name in ("slope", "offset")}

    def value(params, key, x_0, x_1, sigma, backwards):
        given = half._replace(
            trained=half.trained._replace(steps=steps),
            law=law_of(sigma),
            grid=grid_of(backwards),
        )
        # Of these paths the ends are all that counts.
        paths = jnp.stack([x_0, *[x_1] * gaussian_case.NUM_STEPS], axis=1)
        return from_samples.on_paths(given, key, None, paths)(params)

    return gradients(value), params


@EVERY_BUG
@pytest.mark.parametrize(
    ("loss", "prediction"),
    [("likelihood", "drift"), ("bridge_matching", "drift"), ("bridge_matching", "endpoint")],
)
@pytest.mark.parametrize("backward", [True, False])
def test_half_steps_that_rejoin_the_ends(loss, prediction, backward, bug):
    run, params = of_rejoined_ends(loss, prediction, backward)
    judge(bug, gaussian_case.z_scores(run(params, *faults(bug))))


@functools.cache
def of_bridge_regression():
    chains = [gaussian_case.process(CASE, backward=backward) for backward in (False, True)]

    def value(params, key, x_0, x_1, sigma, backwards):
        objective = matching.bridge_regression(*chains, law_of(sigma), grid_of(backwards))
        return objective(key, x_0, x_1)(params)[0]

    return gradients(value)


@EVERY_BUG
def test_bridge_regression(bug):
    params = {
        name: gaussian_case.exact_params(CASE, backward=name == "backward")
        for name in ("forward", "backward")
    }
    judge(bug, gaussian_case.z_scores(of_bridge_regression()(params, *faults(bug))))


@functools.cache
def of_flow_alone():
    times = jnp.asarray([0.05, 0.2, 0.4, 0.55, 0.65])

    def apply(params, x, k):
        return params["slope"][k] * x + params["offset"][k], x

    network = EmbeddedNetwork(lambda params, t: jnp.argmin(jnp.abs(times - t)), apply)
    objective = matching.flow_alone(
        network, CASE.law, CASE.grid, draw_times=lambda key: times, path_std=0.3
    )
    # E[x_1 - x_0 | x_t] / T, read off the joint Gaussian of the plan.
    (mean_0, mean_1), cov = CASE.bridge.plan.mean, CASE.bridge.plan.cov
    shares = np.asarray(times, np.float64) / gaussian_case.T_MAX
    lines = np.stack([1 - shares, shares])
    variances = np.einsum("ik,ij,jk->k", lines, cov, lines) + 0.3**2
    slopes = np.array([-1.0, 1.0]) @ cov @ lines / variances / gaussian_case.T_MAX
    offsets = (mean_1 - mean_0) / gaussian_case.T_MAX - slopes * ([mean_0, mean_1] @ lines)
    params = {"slope": slopes, "offset": offsets}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

    def value(params, key, x_0, x_1, sigma, backwards):
        seen = jax.tree.map(lambda leaf: jnp.where(backwards, leaf[::-1], leaf), params)
        return objective(key, x_0, x_1)({"current": seen})[0]

    return gradients(value), params


# There is no noise here that σ could be the size of.
@pytest.mark.parametrize("bug", [bug for bug in BUGS if "σ" not in bug])
def test_a_flow_alone(bug):
    run, params = of_flow_alone()
    judge(bug, gaussian_case.z_scores(run(params, *faults(bug))))


# ---- Energies


@functools.cache
def of_energies(loss):
    """Gradients of a forward half-step; all that stands opposite sees spoilt paths."""
    half = gaussian_case.half_step(
        CASE, loss, backward=False, batch_size=64, num_paths=2, num_anchors=2048
    )
    particles = gaussian_case.buffers(jax.random.key(3), CASE)
    original = losses.log_path_ratio

    @gaussian_case.jit
    def run(params, opposite, itself, sigma, backwards):
        law = law_of(sigma)
        given = half._replace(
            law=law, opposite=gaussian_case.process(CASE._replace(law=law), backward=True)
        )

        def spoilt(paths, *, log_trained, log_opposite, log_goal):
            seen = jnp.where(itself, paths[..., :1, :], paths)
            seen = jnp.where(backwards, seen[..., ::-1, :], seen)
            return original(
                paths,
                log_trained=log_trained,
                log_opposite=lambda _: log_opposite(seen),
                log_goal=lambda _: log_goal(seen),
            )

        def gradient(key):
            inputs = gaussian_case.inputs(params, opposite, particles)
            value, _ = ipf.objective(given, key, inputs)
            return jax.grad(value, has_aux=True)(params)[0]

        with mock.patch.object(losses, "log_path_ratio", spoilt):
            return jax.lax.map(gradient, jax.random.split(jax.random.key(2), BATCHES))

    return run


@EVERY_BUG
@pytest.mark.parametrize("loss", ["log_variance", "trajectory_balance", "semi_discrete"])
def test_half_steps_with_an_energy(loss, bug):
    potential = gaussian_case.centred_potential(CASE, 0)
    if loss == "trajectory_balance":  # log h is the density of the bridge at the start.
        density = functools.partial(gaussian_case.log_density, CASE, 0)
        potential = gaussian_case.as_quadratic(density, 1)
    params = {
        "drift": gaussian_case.exact_params(CASE, backward=False),
        "potential": potential,
    }
    opposite = {"drift": gaussian_case.exact_params(CASE, backward=True)}
    found = of_energies(loss)(params, opposite, *faults(bug))["drift"]
    if loss == "semi_discrete":
        judge(bug, gaussian_case.z_scores(found))
    else:  # Zero path by path.
        largest = gaussian_case.largest(found)
        assert largest < 3e-3 if bug == "none" else largest > 0.1
