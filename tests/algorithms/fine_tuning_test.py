"""Fine-tuning a Gaussian: every optimum and its bias are known in closed form.

The base is a variance-preserving process at rest in N(0, I), with or without much memory of its
start, the reward a quadratic function of its end.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import kernels, references, rollouts, time_grids
from d2ejax.algorithms import diffusion_model, fine_tuning
from tests import gaussian_case

RATES = {"forgetful": 12.0, "mindful": 0.8}
GRID = time_grids.uniform(10, 1.0)
LINEAR = np.array([0.8, -0.5])
DIM, BOUND = 2, 4.0

every_memory = pytest.mark.parametrize("memory", RATES)


@functools.cache
def setting(memory, variance):
    """The reference, its chain, and a process affine in x, of other numbers at each step."""
    law = references.variance_preserving(RATES[memory], RATES[memory], 1.0)

    def network(params, x, t):
        k = jnp.argmin(jnp.abs(GRID.times[:-1] - t))
        return params["slope"][k] * x + params["offset"][k], params["raw"][k]

    chain = kernels.process(
        network, law, GRID, variance=variance, bound=BOUND, discretisation="exact"
    )
    return law, kernels.reference_process(law, GRID, discretisation="exact"), chain


def zero_params(key=None):
    zeros = jnp.zeros((GRID.num_steps, DIM))
    return {"slope": zeros, "offset": zeros, "raw": zeros}


def make(loss, memory, *, quadratic=0.0, variance="fixed", **options):
    _, base, chain = setting(memory, variance)
    linear = jnp.asarray(LINEAR, jnp.float32)
    return fine_tuning.FineTuning(
        loss=loss,
        process=chain,
        base=base,
        base_params=None,
        start=lambda key, n: jax.random.normal(key, (n, DIM)),
        reward=lambda x: jnp.dot(linear, x) - 0.5 * quadratic * jnp.sum(x**2),
        **options,
    )


def exact_params(memory):
    """For a linear reward: E_Q[e^r | x_t] is the exponential of a linear function."""
    law, _, chain = setting(memory, "fixed")
    pull = np.asarray(law.scale(GRID.times[1:], 1.0) * jnp.exp(chain.steps.log_variance))
    offset = (pull / np.asarray(chain.steps.gain))[:, None] * LINEAR
    drift = zero_params() | {"offset": jnp.asarray(offset, jnp.float32)}
    return {"drift": drift, "log_z": jnp.asarray(0.5 * LINEAR @ LINEAR, jnp.float32)}


@every_memory
def test_log_ratios_are_one_constant_per_start_at_the_optimum(memory, key):
    given = make("log_variance", memory, batch_size=64)
    params = exact_params(memory)
    behaviour = params | {
        "drift": params["drift"] | {"offset": params["drift"]["offset"] + 0.3}
    }
    run = gaussian_case.jit(
        lambda given_params: fine_tuning.objective(given, key, behaviour)(given_params)[0]
    )
    assert run(params) < 1e-5 and run(behaviour) > 1e-3
    # Pooled they are not, unless the start is forgotten: the variance of log h(x_0) is left.
    pooled = make("relative_trajectory_balance", memory, batch_size=20_000)
    left = gaussian_case.jit(
        lambda given_params: fine_tuning.objective(pooled, key, behaviour)(given_params)[0]
    )(params)
    law, _, _ = setting(memory, "fixed")
    memory_left = float(law.scale(0.0, 1.0)) ** 2
    norm = LINEAR @ LINEAR
    expected = memory_left * norm + (0.5 * norm * memory_left) ** 2
    np.testing.assert_allclose(left, expected, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("control", {}),
        ("policy_gradient", {}),
        ("policy_gradient", {"penalty_to_go": False}),
        ("adjoint_matching", {}),
    ],
)
def test_the_gradient_is_zero_at_the_optimum(loss, options, key):
    given = make(loss, "mindful", batch_size=2000, **options)
    params = exact_params("mindful")

    @gaussian_case.jit
    def gradient(key):
        loss_fn = fine_tuning.objective(given, key, params)
        gradients = jax.grad(lambda p: loss_fn(p)[0])(params)["drift"]
        return jnp.stack([gradients["slope"], gradients["offset"]])

    found = np.stack([gradient(k) for k in jax.random.split(key, 12)])
    errors = found.std(axis=0, ddof=1) / 12**0.5
    z_scores = np.abs(found.mean(axis=0)) / np.maximum(errors, 1e-4)
    if options:
        # As published a step does not see where later ones are penalised. A constant penalty
        # would not matter, and at this optimum it is constant: off it the two part.
        moved = params | {"drift": params["drift"] | {"slope": params["drift"]["slope"] + 0.4}}
        whole = given._replace(penalty_to_go=True)

        def of(given):
            loss_fn = fine_tuning.objective(given, key, moved)
            return jax.grad(lambda p: loss_fn(p)[0])(moved)["drift"]["slope"]

        assert jnp.max(jnp.abs(of(given) - of(whole))) > 0.02
    assert z_scores.max() < 5.5


def closed_form(memory, quadratic):
    """Mean and variance of the end: of the tilted base, and of the optimum that keeps p_0."""
    law, _, _ = setting(memory, "fixed")
    return tilts(float(law.scale(0.0, 1.0)), float(law.variance(0.0, 1.0)), quadratic)


def tilts(scale, variance, quadratic):
    """The same for a base whose end is N(scale x_0, variance), started in N(0, I)."""
    tilted = 1 / (1 / (scale**2 + variance) + quadratic)
    given_start = 1 / (1 / variance + quadratic)
    of_start = given_start * scale / variance
    kept = given_start * LINEAR, given_start + of_start**2
    return (tilted * LINEAR, tilted), kept


def trained(given, key):
    """The parameters after a thousand steps."""
    algorithm = fine_tuning.fine_tuning(
        given,
        init_params=zero_params,
        optimiser=optax.adam(optax.cosine_decay_schedule(0.05, 1000)),
        ema_decay=0.98,
    )

    @jax.jit
    def train(key):
        run = jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=1000
        )
        return run[0].model.average["drift"], run[1]["skipped"]

    params, skipped = train(key)
    assert not skipped.any()
    return params


def z_score(ends, mean, variance):
    """The largest of the moments' errors, in standard errors."""
    n = len(ends)
    of_mean = (ends.mean(axis=0) - mean) / (variance / n) ** 0.5
    of_variance = (ends.var(axis=0) / variance - 1) / (2 / n) ** 0.5
    return np.abs(np.concatenate([of_mean, of_variance])).max()


def simulated_ends(given, params, n=20_000):
    @jax.jit
    def ends(key):
        start_key, path_key = jax.random.split(key)
        keys = jax.random.split(path_key, n)
        simulate = jax.vmap(rollouts.simulate, (0, None, None, 0))
        return simulate(keys, given.process, params, given.start(start_key, n))[:, -1]

    return np.asarray(ends(jax.random.key(1)), np.float64)


@pytest.mark.parametrize(
    ("loss", "memory"),
    [
        ("relative_trajectory_balance", "forgetful"),
        ("log_variance", "forgetful"),
        ("log_variance", "mindful"),
        ("control", "forgetful"),
        ("control", "mindful"),
        ("policy_gradient", "forgetful"),
        ("policy_gradient", "mindful"),
    ],
)
def test_training_finds_the_closed_form_and_its_bias(loss, memory, key):
    quadratic = 1.5
    given = make(loss, memory, quadratic=quadratic, variance="bounded", batch_size=256)
    ends = simulated_ends(given, trained(given, key))
    tilted, kept = closed_form(memory, quadratic)
    assert z_score(ends, *kept) < 3
    if memory == "mindful":
        # What a generative model would be tilted to is somewhere else.
        assert z_score(ends, *tilted) > 8
    else:
        assert z_score(ends, *tilted) < 3


def test_a_model_with_less_noise_is_tilted_with_the_bias_of_its_memory(key):
    quadratic = 1.5
    given = make(
        "control", "forgetful", quadratic=quadratic, variance="bounded", batch_size=256
    )
    # The base is a diffusion model of N(0, I), whose start its whole noise forgets.
    process, base = (
        diffusion_model.with_noise(chain, 0.1) for chain in (given.process, given.base)
    )
    given = given._replace(process=process, base=base)
    slopes = rollouts.step_kernels(base, None, jnp.ones((GRID.num_steps, DIM))).mean[:, 0]
    noise = jnp.exp(rollouts.step_kernels(base, None, jnp.zeros((10, DIM))).log_variance[:, 0])
    scale, variance = 1.0, 0.0
    for slope, added in zip(map(float, slopes), map(float, noise), strict=True):
        scale, variance = slope * scale, slope**2 * variance + added
    tilted, kept = tilts(scale, variance, quadratic)
    ends = simulated_ends(given, trained(given, key))
    assert z_score(ends, *kept) < 3
    assert z_score(ends, *tilted) > 8


def test_adjoint_matching_finds_the_tilt_up_to_its_step(key):
    given = make("adjoint_matching", "forgetful", quadratic=0.5, batch_size=512)
    algorithm = fine_tuning.fine_tuning(
        given, init_params=zero_params, optimiser=optax.adam(0.03), ema_decay=0.98
    )
    train = jax.jit(
        lambda key: jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=500
        )[0].model.average["drift"]
    )
    params = train(key)
    (mean, _), _ = closed_form("forgetful", 0.5)
    ends = simulated_ends(given, params)
    np.testing.assert_allclose(ends.mean(axis=0), mean, atol=0.15)


def test_bad_settings_are_refused():
    given = make("log_variance", "mindful")
    wrong = {"init_params": zero_params, "optimiser": optax.sgd(1.0), "ema_decay": 0.0}
    backward = given.process._replace(backward=True)
    for changed, message in (
        ({"loss": "dpok"}, "loss = 'dpok': must be one of"),
        ({"process": backward}, "process: runs backward"),
        ({"base": backward}, "base: runs backward"),
        ({"num_paths": 1}, "num_paths = 1: must be ≥ 2 and a divisor"),
        ({"num_paths": 7}, "num_paths = 7: must be ≥ 2 and a divisor of batch_size = 128"),
    ):
        with pytest.raises(ValueError, match=message):
            fine_tuning.fine_tuning(given._replace(**changed), **wrong)
