"""The wiring of adjoint methods: what is trained, by what, and what it is judged by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import parallel, rollouts
from d2ejax.algorithms import adjoint
from experiments import build
from experiments.errors import InputError
from tests.experiments import small


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


@functools.cache
def trained(corrector):
    """An experiment, its first state and its last one, on one device."""
    changes = {
        "method": "asbs",
        "adjoint.corrector": corrector,
        "adjoint.off_policy_ratio": 0.5,
        "adjoint.forward_steps": 6,
        "adjoint.backward_steps": 4,
        # Adamw compiles sooner.
        "optimiser.name": "adamw",
        "optimiser.schedule": "constant",
        "exploration.refresh_method": "ula",
    }
    experiment = build.build(small.gaussians(changes))
    trainer = parallel.data_parallel(experiment.algorithm, devices=jax.local_devices()[:1])
    before = trainer.init(jax.random.key(0))
    first = jax.tree.map(np.asarray, parallel.unreplicate(before).models)
    after, metrics = trainer.run(before, experiment.total_steps)
    return experiment, first, parallel.unreplicate(after), metrics


@pytest.mark.parametrize("corrector", ["learned", "semi_discrete"])
def test_a_run_of_twenty_steps_trains_all_that_it_has(corrector):
    experiment, first, state, metrics = trained(corrector)
    learned = corrector == "learned"
    assert int(state.step) == experiment.total_steps == (20 if learned else 16)
    assert int(state.skipped) == 0 and np.isfinite(metrics["loss"])
    for old, new in zip(first, state.models, strict=True):
        parts = {
            name: new.params[name] for name in ("drift", "potential") if name in new.params
        }
        for name, params in (parts or {"": new.params}).items():
            was = old.params[name] if name else old.params
            moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), was, params)
            assert any(jax.tree.leaves(moved)) == bool(jax.tree.leaves(was)), name
    assert bool(jax.tree.leaves(state.models[adjoint.CORRECTOR].params)) == learned
    assert ("potential" in state.models[adjoint.FORWARD].params) != learned
    assert (state.buffer is None) == learned
    assert np.isnan(metrics["anchors"]) == learned
    assert experiment.forward_params(state) is state.models[adjoint.FORWARD].average["drift"]
    assert experiment.backward_params(state) is state.models[adjoint.BACKWARD].average
    assert not experiment.forward.backward and experiment.backward.backward


@pytest.mark.parametrize("method", ["adjoint_sampling", "bms"])
def test_others_have_neither_a_corrector_nor_particles(method):
    experiment = build.build(small.gaussians({"method": method, "adjoint.damping": 1.0}))
    on_one = functools.partial(
        jax.pmap, axis_name=parallel.AXIS, devices=jax.local_devices()[:1]
    )
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.eval_shape(on_one(experiment.algorithm.init), keys)
    found, _ = jax.eval_shape(on_one(experiment.algorithm.step), state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert not jax.tree.leaves(state.models[adjoint.CORRECTOR].params)
    assert set(state.models[adjoint.FORWARD].params) == {"drift"}
    # The previous iterate, of which damping holds on to a share.
    assert jax.tree.leaves(state.previous) and state.buffer is None


def test_before_training_it_is_the_reference_with_no_corrector():
    experiment, first, _, _ = trained("learned")
    x = jnp.asarray([[[-1.0], [1.0]]])
    found = rollouts.step_drifts(experiment.forward, first[0].params["drift"], x)
    np.testing.assert_array_equal(found, jnp.zeros_like(x))


def test_phases_cover_the_run():
    for changes, expected in (
        ({}, ["forward 1", "corrector 1", "forward 2", "corrector 2", "backward 1"]),
        ({"adjoint.corrector": "semi_discrete"}, ["forward 1", "forward 2", "backward 1"]),
    ):
        experiment = build.build(small.gaussians({"method": "asbs"} | changes))
        labels, step, stages = [], 0, []
        while step < experiment.total_steps:
            label, step = experiment.phase_of(step)
            labels.append(label)
            stages.append(step)
        assert labels == expected and step == experiment.total_steps
        assert experiment.phase_of(step) == ("done", step)
        lengths = np.diff([0, *stages])
        assert set(lengths[[label.startswith("forward") for label in labels]]) == {3}


def test_bad_settings_are_refused():
    for changes, message in (
        ({"adjoint.corrector": "reference"}, r"^adjoint.corrector = 'reference': must be one"),
        ({"target.access": "samples"}, r"^target.access = 'samples': must be 'energy' with"),
        ({"source.access": "energy"}, r"^source.access = 'energy': must be 'samples' with"),
        ({"optimiser.warmup_steps": 3}, r"^optimiser.warmup_steps = 3: must be fewer than"),
        ({"adjoint.damping": -1.0}, r"^adjoint.damping = -1.0: must be"),
    ):
        with pytest.raises(InputError, match=message):
            small.gaussians({"method": "asbs"} | changes)
    for changes, message in (
        ({"adjoint.rollout_size": 20}, r"^adjoint.rollout_size = 20: must be a multiple of 8"),
        ({"adjoint.rollout_size": 128}, r"^adjoint.replay_size = 8: must be ≥ 16"),
        (
            {
                "adjoint.rollout_size": 128,
                "adjoint.replay_size": 64,
                "adjoint.off_policy_ratio": 0.5,
                "adjoint.corrector": "semi_discrete",
            },
            r"^exploration.buffer_size = 8: must be ≥ 16",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build.build(small.gaussians({"method": "asbs"} | changes))
