"""Half-steps under a fixed variance: where they are stationary, and how near the bridge.

Between Gaussians everything is affine, so that these losses are quadratic in a path's noise,
and a design of 2 (K + 1) paths whose noise has mean zero and covariance I gives their
expectation exactly.

Theory. With the kernels F̄_k of the opposite process, of variance v_k = σ²Δ_k, and the marginals
p_k of its chain, the losses are stationary at the Euler reversal of the chain,

    B_k(y) = -F_k(y) + σ² ∇ log p_{k+1}(y),    F_k = (F̄_k - id) / Δ_k,

for every K. The bridge's own drift is -F(y, t_{k+1}) + σ² ∇ log P_{t_{k+1}}(y). With F_k that
of the bridge at t_k the two differ by F(y, t_{k+1}) - F(y, t_k) = O(Δ) and by the weak error of
Euler's method in the moments behind ∇ log p_{k+1}, O(Δ) as well. So the gradients with respect
to the drifts at the bridge, per unit of time, vanish to first order in 1/K. Mirrored in time
for the other direction.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, losses, rollouts, time_grids
from d2ejax.algorithms import from_samples
from tests import gaussian_case, reference_cases

SIGMA, T_MAX = gaussian_case.SIGMA, gaussian_case.T_MAX
DIRECTIONS = pytest.mark.parametrize("backward", [False, True])
LOSSES = pytest.mark.parametrize("loss", ["mean_matching", "drift_matching", "sde_likelihood"])


def case_of(num_steps):
    return gaussian_case.make(1)._replace(grid=time_grids.uniform(num_steps, T_MAX))


def bridge_drifts(case, *, backward):
    """Slopes and offsets of the bridge's drift where the network of each step is evaluated."""
    times = case.times[1:] if backward else case.times[:-1]
    drift = case.bridge.affine_backward_drift if backward else case.bridge.affine_drift
    maps = [drift(t) for t in times]
    return np.array([m.matrix[0, 0] for m in maps]), np.array([m.offset[0] for m in maps])


def in_order(values, *, backward):
    """Steps in the order in which a process makes them; its own inverse."""
    return values[::-1] if backward else values


def euler_reversal(case, slopes, offsets, *, backward):
    """Drifts of the reversal of a chain that runs backward, or forward, from its own end."""
    means, variances = gaussian_case.MOMENTS[1][1 if backward else 0]
    mean, variance, found = means[0], variances[0], []
    tables = (slopes, offsets, np.diff(case.times))
    for slope, offset, length in zip(
        *(in_order(t, backward=backward) for t in tables), strict=True
    ):
        mean += (slope * mean + offset) * length
        variance = (1 + slope * length) ** 2 * variance + SIGMA**2 * length
        pull = SIGMA**2 / variance
        found.append((-slope - pull, -offset + pull * mean))
    return tuple(np.array(in_order(found, backward=backward)).T)


def as_params(case, slopes, offsets):
    """Of the affine process; its third kind, the variance, stays that of the reference."""
    root = np.sqrt(np.diff(case.times))
    tables = {"slope": slopes * root, "offset": offsets * root, "raw": 0.0 * root}
    return {name: jnp.asarray(t[:, None], jnp.float32) for name, t in tables.items()}


def design(case, slopes, offsets, *, backward, sigma=SIGMA):
    """Paths of the Euler chain of a drift: 2 (K + 1) of them, with the moments of its law."""
    size = len(slopes) + 1
    noise = np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])
    (mean,), (variance,) = gaussian_case.MOMENTS[1][1 if backward else 0]
    states = [mean + np.sqrt(variance) * noise[:, 0]]
    tables = (slopes, offsets, np.diff(case.times))
    tables = (in_order(t, backward=backward) for t in tables)
    for k, (slope, offset, length) in enumerate(zip(*tables, strict=True)):
        x = states[-1]
        step = (slope * x + offset) * length + sigma * np.sqrt(length) * noise[:, k + 1]
        states.append(x + step)
    paths = np.stack(in_order(states, backward=backward), axis=1)
    return jnp.asarray(paths[..., None], jnp.float32)


@functools.cache
def gradient_function(loss, num_steps, backward):
    """Maps the parameters of both processes and paths of the opposite one to the gradient."""
    half = gaussian_case.half_step(case_of(num_steps), loss, backward=backward)

    @gaussian_case.jit
    def gradient(params, opposite, paths):
        inputs = gaussian_case.inputs(None, {"drift": opposite}, (None, None))
        return jax.grad(from_samples.on_paths(half, jax.random.key(0), inputs, paths))(params)

    return gradient


def expected_gradient(
    loss, num_steps, drifts, *, backward, gradients=gradient_function, spoilt=None, sigma=SIGMA
):
    """The gradient with respect to the drift of each step, per unit of time, `(2, K)`.

    The opposite process has the bridge's drift, the trained one those that are given. What the
    loss sees of the opposite one's paths may be spoilt, or its noise of another σ.
    """
    case = case_of(num_steps)
    opposite = bridge_drifts(case, backward=not backward)
    params = as_params(case, *drifts(case, backward=backward))
    paths = design(case, *opposite, backward=not backward, sigma=sigma)
    paths = paths if spoilt is None else spoilt(paths)
    gradient = gradients(loss, num_steps, backward)(params, as_params(case, *opposite), paths)
    # The variance of the reference is all that these losses know.
    np.testing.assert_array_equal(gradient["raw"], 0.0)
    both = np.stack([gradient["slope"][:, 0], gradient["offset"][:, 0]])
    # The parameters are √Δ times the drift's coefficients, and each step has a share of Δ.
    return both / np.sqrt(T_MAX / num_steps)


def reversal_of_the_bridge(case, *, backward):
    opposite = bridge_drifts(case, backward=not backward)
    return euler_reversal(case, *opposite, backward=not backward)


@LOSSES
@DIRECTIONS
def test_stationary_at_the_euler_reversal_for_any_number_of_steps(loss, backward):
    for num_steps in (1, 5):
        found = expected_gradient(loss, num_steps, reversal_of_the_bridge, backward=backward)
        assert np.abs(found).max() < 1e-3


def errors_at_the_bridge(loss, **options):
    """The largest gradient at the bridge, for a number of steps doubled twice."""
    return [
        np.abs(expected_gradient(loss, num_steps, bridge_drifts, **options)).max()
        for num_steps in (10, 20, 40)
    ]


@LOSSES
@DIRECTIONS
def test_gradients_at_the_bridge_vanish_to_first_order_in_the_step(loss, backward):
    errors = errors_at_the_bridge(loss, backward=backward)
    for coarse, fine in itertools.pairwise(errors):
        assert 1.7 < coarse / fine < 2.2


SPOILT = {
    "x_0 coupled with x_0": {
        "spoilt": lambda paths: jnp.broadcast_to(paths[:, :1], paths.shape)
    },
    "time runs backwards": {"spoilt": lambda paths: paths[:, ::-1]},
    "σ² is left out of the noise": {"sigma": 1.0},
}


@LOSSES
@DIRECTIONS
@pytest.mark.parametrize("wrong", SPOILT)
def test_wrong_paths_would_be_seen(loss, backward, wrong):
    found = expected_gradient(
        loss, 5, reversal_of_the_bridge, backward=backward, **SPOILT[wrong]
    )
    assert np.abs(found).max() > 0.05


def mutate(monkeypatch, name, change):
    """Puts a loss of changed arguments in the place of a loss."""
    original = getattr(losses, name)
    monkeypatch.setattr(losses, name, lambda *arrays: original(*change(*arrays)))


WRONG = {
    "a state coupled with itself": (
        "mean_matching",
        "reversal_means",
        lambda given, there, here, a: (given, here, here, a),
    ),
    "the two means swapped": (
        "mean_matching",
        "reversal_means",
        lambda given, there, here, a: (given, here, there, a),
    ),
    "the target is the other state's mean": (
        "drift_matching",
        "reversal_means",
        lambda given, there, here, a: (0 * given, there, 0 * here, a),
    ),
    "half of the target": (
        "drift_matching",
        "drift_matching_loss",
        lambda means, target, lengths: (means, 0.5 * target, lengths),
    ),
    "σ² is left out": (
        "sde_likelihood",
        "sde_likelihood_loss",
        lambda u, div, z, variances, lengths: (u, div, z, lengths, lengths),
    ),
    "the opposite control in reversed time": (
        "sde_likelihood",
        "sde_likelihood_loss",
        lambda u, div, z, variances, lengths: (u, div, z[:, ::-1], variances, lengths),
    ),
    "no divergence": (
        "sde_likelihood",
        "sde_likelihood_loss",
        lambda u, div, z, variances, lengths: (u, 0 * div, z, variances, lengths),
    ),
}


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_loss_would_not_be_stationary(monkeypatch, wrong, backward):
    loss, name, change = WRONG[wrong]
    mutate(monkeypatch, name, change)
    found = expected_gradient(
        loss,
        5,
        reversal_of_the_bridge,
        backward=backward,
        gradients=gradient_function.__wrapped__,
    )
    assert np.abs(found).max() > 0.05


def test_a_wrong_loss_would_not_vanish_at_the_bridge(monkeypatch):
    loss, name, change = WRONG["σ² is left out"]
    mutate(monkeypatch, name, change)
    anew = gradient_function.__wrapped__
    first, _, last = errors_at_the_bridge(loss, backward=False, gradients=anew)
    assert first / last < 1.7


def given(loss, *, dim=1):
    """A half-step, what it reads, and paths of no law in particular."""
    case = gaussian_case.make(dim)
    half = gaussian_case.half_step(case, loss, backward=True)
    opposite = {"drift": gaussian_case.exact_params(case, backward=False)}
    shape = (16, gaussian_case.NUM_STEPS + 1, dim)
    paths = jax.random.normal(jax.random.key(3), shape)
    return case, half, gaussian_case.inputs(None, opposite, (None, None)), paths


@pytest.mark.parametrize("dim", [1, 2])
def test_random_signs_are_exact_where_coordinates_do_not_mix(dim):
    # There εᵀ(∂u/∂x)ε = Σ_i ε_i² ∂u_i/∂x_i, and a sign's square is one.
    case, half, inputs, paths = given("sde_likelihood", dim=dim)
    params = gaussian_case.exact_params(case, backward=True)
    exact, estimated = (
        from_samples.on_paths(
            half._replace(divergence=divergence), jax.random.key(1), inputs, paths
        )(params)
        for divergence in ("exact", "hutchinson")
    )
    np.testing.assert_allclose(estimated, exact, rtol=1e-5)


def test_random_signs_are_drawn_for_each_step_of_each_path(monkeypatch):
    _, half, inputs, paths = given("sde_likelihood", dim=2)
    seen = []
    monkeypatch.setattr(
        rollouts,
        "step_divergences",
        lambda process, params, given, probes: (
            seen.append(probes),
            (jnp.zeros_like(given), jnp.zeros(given.shape[:2])),
        )[1],
    )
    for seed in (0, 1):
        key = jax.random.key(seed)
        from_samples.on_paths(half._replace(divergence="hutchinson"), key, inputs, paths)({})
    one, other = map(np.asarray, seen)
    assert one.shape == (16, gaussian_case.NUM_STEPS, 2)
    assert set(one.ravel()) == {-1.0, 1.0} and not np.array_equal(one, other)
    for axis in (0, 1):
        assert not np.array_equal(one, np.roll(one, 1, axis))


@LOSSES
def test_rejoined_ends_are_refused(loss):
    _, half, inputs, paths = given(loss)
    with pytest.raises(ValueError, match=f"reanchor = True: must be False with .* '{loss}'"):
        from_samples.on_paths(half._replace(reanchor=True), jax.random.key(0), inputs, paths)


@reference_cases.every_reference
@DIRECTIONS
@LOSSES
def test_the_half_step_of_a_reference_with_a_drift_finds_its_reversal(
    reference, backward, loss
):
    grid, mean, variance = time_grids.uniform(6, reference_cases.T_MAX), jnp.zeros(1), 0.7

    def network(params, x, t):
        k = jnp.argmin(jnp.abs((grid.times[1:] if backward else grid.times[:-1]) - t))
        return params[k] * x, jnp.zeros_like(x)

    exact = {"discretisation": "exact", "variance": "fixed"}
    trained = kernels.process(network, reference, grid, backward=backward, **exact)
    still = kernels.process(
        kernels.zero_network, reference, grid, backward=not backward, **exact
    )
    key = jax.random.key(3)
    starts = variance**0.5 * jax.random.normal(key, (20_000, 1))
    keys = jax.random.split(key, len(starts))
    simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
    half = gaussian_case.half_step(
        gaussian_case.make(1), loss, backward=backward, trained=trained, opposite=still
    )

    @gaussian_case.jit
    def slopes():
        paths = simulate(keys, still, None, starts)
        inputs = gaussian_case.inputs(None, {"drift": None}, (None, None))
        value = from_samples.on_paths(half, key, inputs, paths)
        zero = jnp.zeros(grid.num_steps)
        # A quadratic function whose steps do not meet: one step of Newton's finds its least.
        gradient, curvature = jax.grad(value)(zero), jax.hessian(value)(zero)
        return trained.steps.scale - trained.steps.gain * gradient / jnp.diagonal(curvature)

    if backward:
        reversal = kernels.gaussian_reversal(reference, grid, mean=mean, variance=variance)
        expected = reversal.steps.scale
    else:
        # Started in the Gaussian at the other end: by Bayes' rule, step after step.
        expected, spread = [], variance
        for scale, log_variance in zip(
            np.asarray(still.steps.scale)[::-1],
            np.asarray(still.steps.log_variance)[::-1],
            strict=True,
        ):
            total = scale**2 * spread + np.exp(log_variance)
            expected.append(scale * spread / total)
            spread = total
        expected = expected[::-1]
    np.testing.assert_allclose(slopes(), expected, atol=0.02)
