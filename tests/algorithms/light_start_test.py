"""IPF from a light bridge: where it begins, what stays as it was fitted, and resuming."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import kernels, parallel, references, rollouts
from d2ejax.algorithms import from_samples, ipf, light
from d2ejax.endpoints import restrict
from d2ejax.light import LightPotential
from tests import gaussian_case

CASE = gaussian_case.make(1)


@functools.cache
def potential_of(backward):
    law = references.reverse(CASE.law, gaussian_case.T_MAX) if backward else CASE.law
    return LightPotential(law, gaussian_case.T_MAX)


def on_chain(network, *, backward, match_variance=True):
    """The light chain of a direction, and a network's process on top of it."""
    chain = potential_of(backward).process(
        CASE.grid, backward=backward, match_variance=match_variance
    )
    return chain, kernels.on_top(chain, network)


def curved(variance, *, backward, **options):
    """A process that is no bridge's, zero for zero parameters; the chain and both together."""
    network = kernels.process(
        lambda params, x, t: (params * jnp.sin(x), params * x),
        CASE.law,
        CASE.grid,
        backward=backward,
        variance=variance,
        **options,
    )
    match_variance = variance != "fixed"
    return network, *on_chain(network, backward=backward, match_variance=match_variance)


def fit(key, *, backward, num_steps, ends=CASE.ends, **options):
    # A short memory: gradients are the largest at first, by far.
    rate = optax.cosine_decay_schedule(0.05, num_steps)
    return light.fit_potential(
        key,
        potential_of(backward),
        ends[::-1] if backward else ends,
        optimiser=optax.adam(rate, b2=0.95),
        num_steps=num_steps,
        num_components=1,
        **options,
    )


@functools.cache
def some_base():
    means, variances = jnp.asarray([[0.4], [-1.0]]), jnp.asarray([[0.3], [0.8]])
    return potential_of(False).from_mixture(jnp.zeros(2), means, variances)


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(
    ("variance", "prediction"),
    [("bridge", "drift"), ("fixed", "drift"), ("bounded", "endpoint")],
)
def test_a_network_of_zeros_is_what_it_starts_from_and_others_add_to_it(
    variance, prediction, backward
):
    network, chain, both = curved(variance, backward=backward, prediction=prediction)
    assert both.backward == backward
    x = jnp.linspace(-1.0, 1.0, 3 * gaussian_case.NUM_STEPS).reshape(3, -1, 1)
    base = rollouts.step_kernels(chain, some_base(), x)
    scale, spread = (
        np.asarray(leaf)[None, :, None] for leaf in (both.steps.scale, both.steps.log_variance)
    )
    for strength in (0.0, 0.7):
        params = {"base": some_base(), "network": jnp.float32(strength)}
        found = rollouts.step_kernels(both, params, x)
        change = rollouts.step_kernels(network, params["network"], x)
        np.testing.assert_allclose(found.mean - base.mean, change.mean - scale * x, atol=1e-6)
        np.testing.assert_allclose(
            found.log_variance - base.log_variance, change.log_variance - spread, atol=1e-6
        )
        if variance == "fixed":
            np.testing.assert_allclose(
                found.log_variance, np.broadcast_to(spread, x.shape), atol=1e-6
            )
    moved = np.abs(found.mean - base.mean).max()
    assert moved > 0.05 and np.abs(base.mean - scale * x).max() > 0.05


def test_what_it_starts_from_has_a_divergence_and_no_gradient():
    network, chain, both = curved("fixed", backward=False)
    params = {"base": some_base(), "network": jnp.float32(0.7)}
    x = jnp.linspace(-0.5, 1.0, gaussian_case.NUM_STEPS).reshape(1, -1, 1)
    _, found = rollouts.step_divergences(both, params, x)
    parts = [
        rollouts.step_divergences(process, own, x)[1]
        for process, own in ((chain, params["base"]), (network, params["network"]))
    ]
    np.testing.assert_allclose(found, sum(parts), rtol=1e-4, atol=1e-5)
    assert np.abs(parts[0]).min() > 0.01
    gradient = jax.grad(lambda params: jnp.sum(rollouts.step_drifts(both, params, x)))(params)
    assert gaussian_case.largest(gradient["base"]) == 0.0
    assert gaussian_case.largest(gradient["network"]) > 0.0


def algorithm(*, num_steps=2, axis_name=None, batch_size=16):
    """IPF by bridge matching between samples, and its half-steps."""
    ends = tuple(restrict(end, "samples") for end in CASE.ends)
    chains = [
        on_chain(gaussian_case.process(CASE, backward=backward), backward=backward)[1]
        for backward in (True, False)
    ]
    halves = [
        gaussian_case.half_step(
            CASE._replace(ends=ends),
            "bridge_matching",
            backward=direction == ipf.BACKWARD,
            trained=chains[direction],
            opposite=chains[1 - direction],
            batch_size=batch_size,
            particles=(None, None),
            cached_batches=1,
        )
        for direction in (ipf.BACKWARD, ipf.FORWARD)
    ]

    def init_params(key):
        options = {"num_steps": num_steps, "ends": ends, "axis_name": axis_name}
        network = gaussian_case.zero_params(CASE)
        return tuple(
            {"drift": {kernels.BASE: fit(k, backward=b, **options), "network": network}}
            for k, b in zip(jax.random.split(key), (True, False), strict=True)
        )

    # Of a decay nothing is exempt but what is kept from it.
    optimiser = light.with_fixed_base(optax.adamw(0.01, weight_decay=0.1))
    made = ipf.ipf(
        *halves,
        ipf.Schedule(((ipf.BACKWARD, 1), (ipf.FORWARD, 1)), 2),
        init_params=init_params,
        optimisers=(optimiser, optimiser),
        ema_decay=0.9,
        axis_name=axis_name,
    )
    return made, halves


def test_between_gaussians_the_first_half_steps_couple_the_ends_as_the_bridge_does():
    made, halves = algorithm(num_steps=400, batch_size=20_000)
    state, plan = gaussian_case.jit(made.init)(jax.random.key(0)), CASE.bridge.plan
    spread = np.sqrt(np.diag(plan.cov))
    scale = np.outer(spread, spread)
    # Four standard errors of the draws, .04, and what is allowed of the fit in `light_test`.
    tolerance = 0.09
    for direction, half in enumerate(halves):
        opposite = state.models[1 - direction].average
        inputs = gaussian_case.inputs(state.models[direction].params, opposite, state.buffers)
        refresh = functools.partial(from_samples.refresh_cache, half, jax.random.key(1))
        ends = gaussian_case.jit(refresh)(inputs, state.caches[direction])
        ends = np.asarray(ends[..., 0], np.float64)
        np.testing.assert_allclose(np.cov(ends.T) / scale, plan.cov / scale, atol=tolerance)
        mean = np.mean(ends, axis=0)
        np.testing.assert_allclose(mean / spread, plan.mean / spread, atol=tolerance)
    # Those of the reference's own paths.
    start, added = plan.cov[0, 0], gaussian_case.SIGMA**2 * gaussian_case.T_MAX
    of_reference = np.asarray([[start, start], [start, start + added]])
    assert np.abs((of_reference - plan.cov) / scale).max() > 20 * tolerance


def numbers(state):
    return [
        np.asarray(jax.random.key_data(leaf))
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else np.asarray(leaf)
        for leaf in jax.tree.leaves(state)
    ]


@pytest.mark.parametrize("num_devices", [1, 2])
def test_the_state_resumes_and_what_it_started_from_stays_the_same(num_devices):
    made, _ = algorithm(axis_name=parallel.AXIS)
    trainer = parallel.data_parallel(made, devices=jax.local_devices()[:num_devices])
    key = jax.random.key(0)
    before = jax.device_get(trainer.init(key).models)
    whole, _ = trainer.run(trainer.init(key), 4)
    part, _ = trainer.run(trainer.init(key), 2)
    leaves, structure = jax.tree.flatten(part)
    rest, _ = trainer.run(jax.tree.unflatten(structure, leaves), 2)
    for one, other in zip(numbers(whole), numbers(rest), strict=True):
        np.testing.assert_array_equal(one, other)

    def bases(models, kind):
        return jax.tree.leaves(
            [getattr(model, kind)["drift"][kernels.BASE] for model in models]
        )

    after = jax.device_get(whole.models)
    for old, new in zip(bases(before, "params"), bases(after, "params"), strict=True):
        np.testing.assert_array_equal(old, new)
        # Fitted to the samples of all devices, and the same on each.
        np.testing.assert_array_equal(new, np.broadcast_to(new[:1], new.shape))
    for old, new in zip(bases(before, "average"), bases(after, "average"), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-5)
    for model in after:
        assert gaussian_case.largest(model.params["drift"]["network"]) > 1e-3


@pytest.mark.parametrize("end", [0, 1])
def test_an_end_without_samples_is_refused(end):
    ends = list(CASE.ends)
    ends[end] = restrict(ends[end], "energy")
    with pytest.raises(ValueError, match="offers no samples here"):
        fit(jax.random.key(0), backward=False, num_steps=1, ends=tuple(ends))
