"""Diffusion samplers: nothing to learn at the exact one, and log Z found from nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import (
    endpoints,
    exact,
    kernels,
    losses,
    metrics,
    networks,
    references,
    rollouts,
    time_grids,
)
from d2ejax.algorithms import samplers
from d2ejax.exploration import langevin, particles
from tests import gaussian_case

STD, MEAN = 1e-3, np.array([0.2, -0.1])
LOG_Z = 1.7
BALANCED = ("log_variance", "trajectory_balance", "subtrajectory_balance")


@functools.cache
def case():
    """From next to a fixed start to a Gaussian: the bridge is the exact sampler."""
    other = gaussian_case.make(2)
    mean, cov = np.array([0.5, -0.4]), np.diag([0.5, 0.3])
    bridge = exact.gaussian_bridge(
        MEAN, STD**2 * np.eye(2), mean, cov, other.law, gaussian_case.T_MAX
    )
    ends = (
        endpoints.gaussian(mean=MEAN, std=STD),
        endpoints.gaussian(mean=mean, covariance=cov),
    )
    return gaussian_case.Case(ends, other.law, other.grid, bridge)


def with_log_z(end):
    """The same end, unnormalised."""
    return end._replace(log_density=lambda x: end.log_density(x) + LOG_Z, log_z=LOG_Z)


def exact_flow():
    """The network that makes log F_k the exact marginals, given what it is added to."""
    given, target = case(), case().ends[1]
    marginals = references.gaussian_marginals(
        given.law, given.grid, mean=jnp.asarray(MEAN, jnp.float32), variance=STD**2
    )
    laws = [given.bridge.marginal(t) for t in given.times]
    means = jnp.asarray(np.stack([law[0] for law in laws]), jnp.float32)
    variances = jnp.asarray(np.stack([np.diag(law[1]) for law in laws]), jnp.float32)

    def flow(params, x, t):
        k, share = jnp.argmin(jnp.abs(given.grid.times - t)), t / given.grid.t_max
        squares = jnp.square(x - means[k]) / variances[k]
        exact_log = -0.5 * jnp.sum(squares + jnp.log(2 * jnp.pi * variances[k]))
        path = jnp.broadcast_to(x, (len(means), 2))
        base = (1 - share) * marginals(path)[k] + share * target.log_density(x)
        return exact_log - base

    return flow


def make(loss, ends, law, grid, process, *, mean, std, **options):
    gaussian = {"mean": jnp.asarray(mean, jnp.float32), "variance": std**2}
    refresh = functools.partial(langevin.refresh, method="mala", step_size=0.02, num_steps=5)
    options = {"batch_size": 64, **options}
    return samplers.Sampler(
        loss=loss,
        process=process,
        reversal=kernels.gaussian_reversal(law, grid, **gaussian),
        reference=kernels.reference_process(law, grid, discretisation="exact"),
        prior=ends[0],
        target=with_log_z(ends[1]),
        marginals=references.gaussian_marginals(law, grid, **gaussian),
        times=grid.times,
        particles=particles.Particles(
            size=256,
            refresh=refresh,
            refresh_every=20,
            restart_fraction=0.05,
            restart=lambda key, n: jax.random.normal(key, (n, 2)),
        ),
        **options,
    )


def at_exact(loss, **options):
    given = case()
    chain = gaussian_case.process(given, backward=False)
    made = make(loss, given.ends, given.law, given.grid, chain, mean=MEAN, std=STD, **options)
    params = {
        "drift": gaussian_case.exact_params(given, backward=False),
        "log_z": jnp.asarray(LOG_Z),
        "flow": {},
    }
    return made._replace(flow=exact_flow()), params


@pytest.mark.parametrize("loss", BALANCED)
def test_a_balance_is_met_on_any_path_by_the_exact_sampler_alone(loss, key):
    made, params = at_exact(loss)
    # Any paths will do: here those of a drift that is off, and those from the buffer.
    behaviour = params | {"drift": gaussian_case.perturbed(params["drift"])}
    buffer = particles.init(key, made.particles, made.target.log_density)
    drawn, _ = samplers.objective(made, key, behaviour, buffer, jnp.zeros((), jnp.int32))
    loss_fn = gaussian_case.jit(jax.value_and_grad(lambda p: drawn(p)[0]))
    value, gradient = loss_fn(params)
    assert value < 1e-4
    assert optax.tree.norm(gradient) < 2e-2
    worse, worse_gradient = loss_fn(behaviour)
    assert worse > 0.01 and optax.tree.norm(worse_gradient) > 0.1
    if loss == "trajectory_balance":
        off = loss_fn(params | {"log_z": jnp.asarray(LOG_Z + 0.3)})[0]
        np.testing.assert_allclose(off, 0.09, rtol=0.05)


@pytest.mark.parametrize(
    ("tracked_steps", "window"), [(None, "last"), (2, "last"), (2, "random")]
)
def test_path_kl_is_log_z_and_flat_at_the_exact_sampler(tracked_steps, window, key):
    made, params = at_exact(
        "path_kl",
        batch_size=1000,
        tracked_steps=tracked_steps,
        window=window,
        add_ends=False,
    )
    buffer = particles.init(key, made.particles, made.target.log_density)

    @gaussian_case.jit
    def value_and_grad(key):
        loss_fn, _ = samplers.objective(made, key, params, buffer, jnp.zeros((), jnp.int32))
        value, gradient = jax.value_and_grad(lambda p: loss_fn(p)[0])(params)
        return value, gradient["drift"]["offset"]

    values, gradients = map(
        np.asarray, zip(*map(value_and_grad, jax.random.split(key, 16)), strict=True)
    )
    error = values.std(ddof=1) / 4
    assert abs(values.mean() + LOG_Z) < 4 * error and error < 0.02
    errors = gradients.std(axis=0, ddof=1) / 4
    z_scores = gradients.mean(axis=0) / errors
    if tracked_steps is None or window == "random":
        assert np.abs(z_scores).max() < 5
    else:
        # Steps before those that are tracked do not see what they do to the end.
        assert np.abs(z_scores[:-2]).max() > 10 and np.abs(z_scores[-2:]).max() < 5


# From where paths start, and the standard deviation there: a point, or the stationary law.
PINNED = references.brownian(1.0), 1.0, STD
AT_REST = references.ornstein_uhlenbeck(2.0**0.5, 1.0), 3.0, 1.0


@functools.cache
def plane():
    angles = 2 * np.pi * np.arange(3) / 3
    modes = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    targets = {
        "mixture": endpoints.gaussian_mixture(modes, stds=0.3),
        "gaussian": endpoints.gaussian(mean=[0.6, -0.4], std=0.5),
    }
    return targets


@pytest.mark.parametrize(
    ("loss", "name", "start"),
    [
        ("log_variance", "gaussian", PINNED),
        ("log_variance", "mixture", PINNED),
        ("trajectory_balance", "mixture", PINNED),
        ("subtrajectory_balance", "mixture", PINNED),
        ("path_kl", "mixture", PINNED),
        ("path_kl", "gaussian", AT_REST),
        ("log_variance", "mixture", AT_REST),
    ],
)
def test_log_z_is_found(loss, name, start, key):
    law, t_max, std = start
    grid = time_grids.end_refined(10, t_max)
    network = networks.drift_network(
        2, t_max, width=32, depth=2, num_frequencies=4, layer_norm=False, drift_scale=1.0
    )
    chain = kernels.process(network.apply, law, grid, discretisation="exact")
    init_flow, flow = networks.flow_network(2, t_max, width=32, depth=2, layer_norm=False)
    ends = endpoints.gaussian(dim=2, std=std), plane()[name]
    made = make(loss, ends, law, grid, chain, mean=np.zeros(2), std=std)
    made = made._replace(flow=flow, batch_size=128)

    def init_params(key):
        return {"drift": network.init(key), "flow": init_flow(key)}

    algorithm = samplers.diffusion_sampler(
        made,
        init_params=init_params,
        optimiser=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3)),
        ema_decay=0.9,
    )

    @jax.jit
    def train(key):
        state, trace = jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=400
        )
        return state, trace["skipped"]

    state, skipped = train(key)
    assert not skipped.any()

    @jax.jit
    def weights(key):
        start_key, path_key = jax.random.split(key)
        params = state.model.average["drift"]
        starts = made.prior.sample(start_key, 4000)
        paths = jax.vmap(rollouts.simulate, (0, None, None, 0))(
            jax.random.split(path_key, 4000), chain, params, starts
        )
        return (
            rollouts.log_density(made.reversal, None, paths)
            + jax.vmap(made.target.log_density)(paths[:, -1])
            - jax.vmap(made.prior.log_density)(paths[:, 0])
            - rollouts.log_density(chain, params, paths)
        )

    log_weights = weights(jax.random.key(1))
    estimate = metrics.log_z_importance(log_weights)
    assert estimate.standard_error < 0.04
    assert abs(estimate.value - LOG_Z) < 3 * estimate.standard_error
    # Ten Gaussian steps follow the paths of three units of time less well than those of one.
    assert 0 < LOG_Z - metrics.log_z_lower(log_weights).value < (0.5 if t_max == 1.0 else 1.0)
    if loss == "trajectory_balance":
        assert abs(state.model.average["log_z"] - LOG_Z) < 0.3


def test_what_is_missing_is_named():
    made, _ = at_exact("log_variance")
    wrong = {"init_params": None, "optimiser": optax.sgd(1.0), "ema_decay": 0.0}
    for changed, message in (
        ({"loss": "balance"}, "loss = 'balance': must be one of"),
        ({"window": "first"}, "window = 'first': must be one of"),
        ({"loss": "subtrajectory_balance", "flow": None}, "flow = None: must be a network"),
        ({"target": made.target._replace(log_density=None)}, "no log-density"),
        ({"prior": made.prior._replace(sample=None)}, "no samples"),
    ):
        with pytest.raises(ValueError, match=message):
            samplers.diffusion_sampler(made._replace(**changed), **wrong)


def test_balance_of_pieces_by_hand():
    log_ratios = jnp.array([[0.5, -1.0]])
    log_flows = jnp.array([[0.3, 1.0, -0.2]])
    # Of the two steps and of the whole: log F_i + Σ log-ratios - log F_j.
    step, second, whole = 0.3 + 0.5 - 1.0, 1.0 - 1.0 + 0.2, 0.3 - 0.5 + 0.2
    expected = (0.5 * step**2 + 0.5 * second**2 + 0.25 * whole**2) / 1.25
    found = losses.subtrajectory_balance_loss(log_ratios, log_flows, decay=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="num_steps"):
        losses.subtrajectory_balance_loss(log_ratios, log_flows[:, :2])
    with pytest.raises(ValueError, match="decay = 0"):
        losses.subtrajectory_balance_loss(log_ratios, log_flows, decay=0.0)
