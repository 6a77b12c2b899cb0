"""Kernels: exactly the reference at zero, the variance families, and the discretisations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from d2ejax import kernels, networks, references, rollouts, time_grids
from d2ejax.exact.gaussian import gaussian_bridge
from tests.reference_cases import REFERENCES, T_MAX, every_reference

GRID = time_grids.end_refined(6, T_MAX)
every_variance = pytest.mark.parametrize("variance", kernels.VARIANCES)
every_discretisation = pytest.mark.parametrize("discretisation", kernels.DISCRETISATIONS)
both_directions = pytest.mark.parametrize("backward", [False, True])


def all_steps(process, params, x, transform=lambda function: function):
    """The kernels of all steps from one state: means and variances, each (K, dim)."""
    law = transform(jax.vmap(process.kernel, (None, None, 0)))(params, x, process.steps)
    return np.asarray(law.mean), np.asarray(jnp.exp(law.log_variance))


@pytest.fixture(scope="module")
def fresh():
    network = networks.drift_network(2, T_MAX, width=8, depth=2)
    return network, network.init(jax.random.key(0))


def constant_network(params, x, t):
    """Drift and log-variance per coordinate handed in as the parameters."""
    del t
    return jnp.broadcast_to(params[0], x.shape), jnp.broadcast_to(params[1], x.shape)


def host_variance(reference, s, t):
    with jax.enable_x64(True):
        return float(reference.variance(jnp.asarray(s), jnp.asarray(t)))


def host_scale(reference, s, t):
    with jax.enable_x64(True):
        return float(reference.scale(jnp.asarray(s), jnp.asarray(t)))


def pinned_variances(reference, backward):
    """Var(x_{k+1} | x_k, x_T), or Var(x_k | x_{k+1}, x_0), by Gaussian conditioning."""
    values = []
    for s, t in zip(GRID.times[:-1].tolist(), GRID.times[1:].tolist(), strict=True):
        start, wanted, far = (0.0, s, t) if backward else (s, t, float(GRID.t_max))
        # The law of (wanted, far) given the start, which is itself the pinned end backward.
        variance = host_variance(reference, start, wanted)
        scale = host_scale(reference, wanted, far)
        total = scale**2 * variance + host_variance(reference, wanted, far)
        values.append(variance - (scale * variance) ** 2 / total)
    return np.array(values)


@every_reference
@every_discretisation
@every_variance
def test_zero_network_is_the_reference_forward(reference, discretisation, variance):
    x = jnp.asarray([0.7, -1.9])
    options = {"discretisation": discretisation}
    zero = kernels.process(kernels.zero_network, reference, GRID, variance=variance, **options)
    mean, var = all_steps(zero, None, x)
    plain = all_steps(kernels.reference_process(reference, GRID, **options), None, x)
    np.testing.assert_array_equal(mean, plain[0])
    np.testing.assert_array_equal(var, plain[1])

    for k, (t, length) in enumerate(zip(GRID.times[:-1], GRID.steps, strict=True)):
        if discretisation == "euler":
            truth = x + reference.drift(x, t) * length, reference.diffusion(t) ** 2 * length
        else:
            law = references.transition(reference, x, t, GRID.times[k + 1])
            truth = law.mean, jnp.exp(law.log_variance)
        np.testing.assert_allclose(mean[k], truth[0], rtol=1e-6)
        np.testing.assert_allclose(var[k], np.broadcast_to(truth[1], 2), rtol=2e-6)


@every_reference
@every_variance
@every_discretisation
def test_zero_network_is_the_reversal_with_zero_score(reference, variance, discretisation):
    x = jnp.asarray([0.7, -1.9])
    options = {"backward": True, "discretisation": discretisation}
    zero = kernels.process(kernels.zero_network, reference, GRID, variance=variance, **options)
    mean, var = all_steps(zero, None, x)
    fixed = kernels.process(kernels.zero_network, reference, GRID, variance="fixed", **options)
    plain = all_steps(fixed, None, x)
    np.testing.assert_array_equal(mean, plain[0])
    np.testing.assert_array_equal(var, plain[1])

    if discretisation == "euler":
        # The reverse drift -f + g² ∇log p without the score.
        for k, (t, t_next) in enumerate(zip(GRID.times[:-1], GRID.times[1:], strict=True)):
            length = t_next - t
            expected = x - reference.drift(x, t_next) * length
            np.testing.assert_allclose(mean[k], expected, rtol=1e-6)
            truth = reference.diffusion(t) ** 2 * length
            np.testing.assert_allclose(var[k], np.broadcast_to(truth, 2), rtol=2e-6)


@every_reference
@every_discretisation
@both_directions
def test_fresh_network_is_bitwise_the_reference(reference, discretisation, backward, fresh):
    network, params = fresh
    options = {"backward": backward, "discretisation": discretisation}
    x = jnp.asarray([0.7, -1.9])
    fixed = kernels.process(kernels.zero_network, reference, GRID, variance="fixed", **options)
    plain = all_steps(fixed, None, x)
    for variance in kernels.VARIANCES:
        learned = kernels.process(network.apply, reference, GRID, variance=variance, **options)
        mean, var = all_steps(learned, params, x)
        np.testing.assert_array_equal(mean, plain[0])
        np.testing.assert_array_equal(var, plain[1])


@every_variance
@both_directions
def test_fresh_network_is_bitwise_the_reference_when_compiled(variance, backward, fresh):
    network, params = fresh
    options = {"backward": backward, "reference": REFERENCES["variance_preserving"]}
    x = jnp.asarray([0.7, -1.9])
    fixed = kernels.process(kernels.zero_network, grid=GRID, variance="fixed", **options)
    learned = kernels.process(network.apply, grid=GRID, variance=variance, **options)
    plain = all_steps(fixed, None, x, jax.jit)
    mean, var = all_steps(learned, params, x, jax.jit)
    np.testing.assert_array_equal(mean, plain[0])
    np.testing.assert_array_equal(var, plain[1])


@every_reference
def test_exact_reversal_is_bayes_rule_with_a_flat_prior(reference):
    x_next, k = 0.7, 2
    options = {"backward": True, "variance": "fixed", "discretisation": "exact"}
    process = kernels.process(kernels.zero_network, reference, GRID, **options)
    mean, var = all_steps(process, None, jnp.asarray([x_next]))
    s, t = float(GRID.times[k]), float(GRID.times[k + 1])
    std = np.sqrt(host_variance(reference, s, t))
    x = np.linspace(x_next - 12 * std, x_next + 12 * std, 4001) / host_scale(reference, s, t)
    weights = np.exp(-0.5 * ((x_next - host_scale(reference, s, t) * x) / std) ** 2)
    weights /= weights.sum()
    np.testing.assert_allclose(mean[k, 0], weights @ x, rtol=1e-5)
    np.testing.assert_allclose(var[k, 0], weights @ x**2 - (weights @ x) ** 2, rtol=1e-4)


@every_reference
@both_directions
def test_bridge_variance_reproduces_the_exact_gaussian_bridge(reference, backward):
    bridge = gaussian_bridge(
        [0.0, 1.0], np.diag([1.0, 0.3]), [2.0, -1.0], np.diag([0.2, 1.5]), reference, T_MAX
    )
    times = [*GRID.times[:-1].tolist(), T_MAX]
    exact = (bridge.backward_kernels if backward else bridge.forward_kernels)(times)
    # What the network has to say: the spread of the far end, in units of the reference's own.
    offsets = []
    for t in times[1:] if backward else times[:-1]:
        if backward:
            far = bridge.backward_kernels([0.0, t]).cov[0]
            own = host_variance(reference, 0.0, t) / host_scale(reference, 0.0, t) ** 2
        else:
            far = bridge.forward_kernels([t, T_MAX]).cov[0]
            own = host_variance(reference, t, T_MAX)
        offsets.append(np.log(np.diag(far) / own))
    bound = 1e3  # So large that the bounding map is the identity.
    process = kernels.process(
        constant_network,
        reference,
        GRID,
        backward=backward,
        variance="bridge",
        bound=bound,
        discretisation="exact",
    )
    params = jnp.zeros((6, 2)), jnp.asarray(np.array(offsets), jnp.float32)
    law = jax.vmap(process.kernel, (0, None, 0))(params, jnp.zeros(2), process.steps)
    truth = np.stack([np.diag(cov) for cov in exact.cov])
    np.testing.assert_allclose(jnp.exp(law.log_variance), truth, rtol=1e-4)
    # Not met by the reference's own variance.
    unlearned = all_steps(process, (jnp.zeros(2), jnp.zeros(2)), jnp.zeros(2))[1]
    assert np.max(np.abs(unlearned / truth - 1)) > 0.1


@every_reference
@both_directions
def test_bridge_variance_never_falls_below_the_pinned_one(reference, backward):
    process = kernels.process(
        constant_network,
        reference,
        GRID,
        backward=backward,
        variance="bridge",
        bound=30.0,
        discretisation="exact",
    )
    floor = pinned_variances(reference, backward)
    # The step that ends in the far end: nothing is left there once that is pinned.
    free = 0 if backward else len(floor) - 1
    held = np.arange(len(floor)) != free
    for raw in (-1e4, -30.0, -3.0):
        _, variance = all_steps(process, (jnp.zeros(1), jnp.full(1, raw)), jnp.zeros(1))
        assert np.all(variance[held, 0] >= floor[held] * (1 - 1e-4))
    _, smallest = all_steps(process, (jnp.zeros(1), jnp.full(1, -1e4)), jnp.zeros(1))
    np.testing.assert_allclose(smallest[held, 0], floor[held], rtol=1e-4)
    _, unlearned = all_steps(process, (jnp.zeros(1), jnp.zeros(1)), jnp.zeros(1))
    np.testing.assert_allclose(np.log(smallest[free, 0] / unlearned[free, 0]), -30.0, rtol=1e-4)


@every_discretisation
@both_directions
def test_bounded_variance_stays_within_its_bound(discretisation, backward):
    reference = REFERENCES["ornstein_uhlenbeck"]
    process = kernels.process(
        constant_network,
        reference,
        GRID,
        backward=backward,
        variance="bounded",
        bound=2.0,
        discretisation=discretisation,
    )

    def log_variance(raw):
        return np.log(all_steps(process, (jnp.zeros(1), jnp.full(1, raw)), jnp.zeros(1))[1])

    for raw, offset in ((1e4, 2.0), (-1e4, -2.0), (1e-2, 1e-2)):
        np.testing.assert_allclose(log_variance(raw) - log_variance(0.0), offset, atol=1e-5)


def test_fixed_variance_ignores_the_network():
    process = kernels.process(constant_network, REFERENCES["brownian"], GRID, variance="fixed")
    x, drift = jnp.zeros(2), jnp.asarray([1.0, -2.0])
    mean, variance = all_steps(process, (drift, jnp.zeros(2)), x)
    moved_mean, moved_variance = all_steps(process, (drift, jnp.full(2, 3.0)), x)
    np.testing.assert_array_equal(moved_variance, variance)
    np.testing.assert_array_equal(moved_mean, mean)
    np.testing.assert_allclose(mean, np.outer(GRID.steps, drift), rtol=1e-6)


@both_directions
def test_network_sees_the_time_of_the_state_it_is_given(backward):
    def clock(params, x, t):
        return jnp.broadcast_to(t, x.shape), jnp.zeros_like(x)

    process = kernels.process(clock, REFERENCES["brownian"], GRID, backward=backward)
    mean, _ = all_steps(process, None, jnp.zeros(1))
    seen = mean[:, 0] / np.asarray(GRID.steps)
    np.testing.assert_allclose(seen, GRID.times[1:] if backward else GRID.times[:-1], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "brownian"])
@both_directions
def test_euler_differs_from_exact_at_second_order(name, backward):
    lengths, mean_errors, variance_errors = [0.08, 0.04, 0.02], [], []
    for length in lengths:
        laws = [
            all_steps(
                kernels.process(
                    kernels.zero_network,
                    REFERENCES[name],
                    time_grids.uniform(6, 6 * length),
                    backward=backward,
                    variance="fixed",
                    discretisation=discretisation,
                ),
                None,
                jnp.ones(1),
            )
            for discretisation in kernels.DISCRETISATIONS
        ]
        # The first step alone: the others move with the grid.
        mean_errors.append(abs(laws[0][0][0, 0] - laws[1][0][0, 0]))
        variance_errors.append(abs(laws[0][1][0, 0] - laws[1][1][0, 0]))

    def order(errors):
        return np.polyfit(np.log(lengths), np.log(errors), 1)[0]

    assert 1.8 < order(variance_errors) < 2.2
    if name == "variance_exploding":  # No drift: both means are the state itself.
        assert max(mean_errors) == 0.0
    else:
        assert 1.8 < order(mean_errors) < 2.2


@both_directions
def test_euler_is_exact_for_brownian_motion(backward):
    laws = [
        all_steps(
            kernels.process(
                kernels.zero_network,
                REFERENCES["brownian"],
                GRID,
                backward=backward,
                discretisation=discretisation,
            ),
            None,
            jnp.ones(1),
        )
        for discretisation in kernels.DISCRETISATIONS
    ]
    np.testing.assert_allclose(laws[0][0], laws[1][0], rtol=1e-6)
    np.testing.assert_allclose(laws[0][1], laws[1][1], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": "learned"}, r"variance = 'learned': must be one of .*'bridge'"),
        ({"discretisation": "heun"}, r"discretisation = 'heun': must be one of .*'exact'"),
        ({"bound": 0.0}, r"bound = 0\.0: must be > 0"),
        ({"bound": float("nan")}, r"bound = nan: must be > 0"),
        ({"steps_at_once": 4}, r"steps_at_once = 4: must be a divisor of 6"),
        ({"steps_at_once": 0}, r"steps_at_once = 0: must be a divisor of 6"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kernels.process(kernels.zero_network, REFERENCES["brownian"], GRID, **options)


@every_reference
@both_directions
def test_a_predicted_endpoint_is_where_the_step_is_pinned(reference, backward):
    process = kernels.process(
        constant_network,
        reference,
        GRID,
        backward=backward,
        discretisation="exact",
        prediction="endpoint",
    )
    x, shift = jnp.asarray([0.4, -1.2]), jnp.asarray([0.3, 0.7])
    found, _ = all_steps(process, (shift, jnp.zeros(2)), x)
    zero = jnp.float32(0)
    for k, (t, t_next) in enumerate(zip(GRID.times[:-1], GRID.times[1:], strict=True)):
        if backward:
            # Under a flat marginal the reference's own prediction of x_0 is x / scale.
            end = x / reference.scale(zero, t_next) + T_MAX * shift
            mean, _ = references.pinned(reference, end, x, t, start=zero, end=t_next)
        else:
            end = reference.scale(t, GRID.t_max) * x + T_MAX * shift
            mean, _ = references.pinned(reference, x, end, t_next, start=t, end=GRID.t_max)
        np.testing.assert_allclose(found[k], mean, rtol=2e-4, atol=1e-5)


@every_reference
def test_exact_steps_take_a_drift_as_the_reference_tilted_by_it_does(reference):
    # h(x_T) = exp(cᵀx_T) tilts a step by its variance times what is left of c at its end, and
    # is a drift of g(t)² scale(t, T) c.
    c = jnp.asarray([0.6, -1.1])

    def network(params, x, t):
        size = reference.diffusion(t) ** 2 * reference.scale(t, GRID.t_max)
        return size * c, jnp.zeros_like(x)

    process = kernels.process(network, reference, GRID, discretisation="exact")
    found, _ = all_steps(process, None, jnp.zeros(2))
    for k, (t, t_next) in enumerate(zip(GRID.times[:-1], GRID.times[1:], strict=True)):
        left = reference.variance(t, t_next) * reference.scale(t_next, GRID.t_max)
        np.testing.assert_allclose(found[k], left * c, rtol=2e-4)


@every_reference
def test_a_gaussians_reversal_is_bayes_rule(reference, key):
    mean, variance = jnp.array([0.7, -0.4]), 0.3
    grid = time_grids.end_refined(6, T_MAX)
    reversal = kernels.gaussian_reversal(reference, grid, mean=mean, variance=variance)
    chain = kernels.reference_process(reference, grid, discretisation="exact")
    marginals = references.gaussian_marginals(reference, grid, mean=mean, variance=variance)
    # Of any path: p_0 Q = q_T R.
    paths = jax.random.normal(key, (5, 7, 2))
    log_start, log_end = jax.vmap(marginals)(paths)[:, (0, -1)].T
    np.testing.assert_allclose(
        log_start + rollouts.log_density(chain, None, paths),
        log_end + rollouts.log_density(reversal, None, paths),
        rtol=1e-4,
    )
    start = scipy.stats.norm(mean, variance**0.5).logpdf(paths[:, 0]).sum(axis=-1)
    np.testing.assert_allclose(log_start, start, rtol=1e-5)
    with pytest.raises(ValueError, match=r"variance = 0\.0: must be > 0"):
        kernels.gaussian_reversal(reference, grid, mean=mean, variance=0.0)
