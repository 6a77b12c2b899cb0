"""The saddle point of entropic neural optimal transport is the bridge, with its potential."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import losses
from d2ejax.algorithms import base, enot
from tests import gaussian_case


def make(dim, **options):
    case = gaussian_case.make(dim)
    half = gaussian_case.half_step(case, "likelihood", backward=True)
    defaults = {
        "forward": gaussian_case.process(case, backward=False),
        "backward": gaussian_case.process(case, backward=True),
        "reference": half.reference,
        "law": case.law,
        "grid": case.grid,
        "source": case.ends[0],
        "target": case.ends[1],
        "potential": gaussian_case.quadratic,
        "num_steps": 4,
        "backward_steps": 2,
        "inner_steps": 1,
        "batch_size": 256,
    }
    return enot.Enot(**(defaults | options))


@functools.cache
def exact(dim):
    """The exact process and log ψ_T, each as a model."""
    case = gaussian_case.make(dim)
    log_psi = gaussian_case.as_quadratic(lambda x: case.bridge.log_potentials(x, x)[1], dim)
    params = (
        gaussian_case.exact_params(case, backward=False),
        log_psi,
        gaussian_case.exact_params(case, backward=True),
    )
    return tuple(base.init_model(p, optax.sgd(0.1)) for p in params)


@functools.partial(gaussian_case.jit, static_argnames=("dim", "which"))
def gradient(key, models, *, dim, which):
    loss = enot.objective(make(dim), which, key, models)
    return jax.grad(lambda params: loss(params)[0])(models[which].params)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("which", [enot.FORWARD, enot.POTENTIAL, enot.BACKWARD])
def test_at_the_bridge_nobody_wants_to_move(dim, which, key):
    models = exact(dim)
    grads = [gradient(k, models, dim=dim, which=which) for k in jax.random.split(key, 40)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    if which == enot.POTENTIAL:
        stacked = {name: stacked[name] for name in ("square", "linear")}
        assert np.abs(np.asarray(grads[0]["constant"])).max() < 1e-6
    assert np.abs(gaussian_case.z_scores(stacked)).max() < 4.5
    # Nor would they stay anywhere else.
    moved = list(models)
    other = enot.POTENTIAL if which == enot.FORWARD else enot.FORWARD
    shifted = dict(models[other].params)
    name = "linear" if other == enot.POTENTIAL else "offset"
    shifted[name] = shifted[name] + 0.3
    moved[other] = base.init_model(shifted, optax.sgd(0.1))
    off = [gradient(k, tuple(moved), dim=dim, which=which) for k in jax.random.split(key, 40)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *off)
    stacked.pop("constant", None)
    assert np.abs(gaussian_case.z_scores(stacked)).max() > 8


def test_turns_are_taken_as_the_settings_say(key):
    given = make(1, num_steps=7, inner_steps=2, backward_steps=3)
    # Not the reference itself: unpaid, that stays where it is.
    params = gaussian_case.perturbed(gaussian_case.zero_params(gaussian_case.make(1)))
    flat = {"square": jnp.zeros(1), "linear": jnp.zeros(1), "constant": jnp.zeros(())}
    algorithm = enot.enot(
        given,
        init_params=lambda key: (params, flat, params),
        optimisers=(optax.sgd(0.1),) * 3,
        ema_decay=0.5,
    )
    state, moved = algorithm.init(key), []
    step = gaussian_case.jit(algorithm.step)
    for _ in range(given.total):
        after, metrics = step(state)
        assert metrics["skipped"] == 0
        moved.append(
            [
                which
                for which in range(3)
                if gaussian_case.largest(
                    jax.tree.map(
                        jnp.subtract, after.models[which].params, state.models[which].params
                    )
                )
            ]
        )
        state = after
    assert moved == [[0], [0], [1], [0], [0], [1], [0], [2], [2], [2]]


def test_bad_arguments_are_refused():
    given = make(1)
    rest = {"init_params": None, "optimisers": (), "ema_decay": 0.0}
    with pytest.raises(ValueError, match="inner_steps = 0: must be ≥ 1"):
        enot.enot(given._replace(inner_steps=0), **rest)
    with pytest.raises(ValueError, match="no samples"):
        enot.enot(given._replace(target=given.target._replace(sample=None)), **rest)
    with pytest.raises(ValueError, match=r"on_ends has shape \(2, 1\)"):
        losses.discriminator_loss(jnp.zeros((2, 1)), jnp.zeros(2))
