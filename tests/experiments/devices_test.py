"""Devices share the steps: one set of parameters, each its own draws, on any number of them."""

import jax
import numpy as np
import pytest

from d2ejax import parallel
from experiments import build
from tests.experiments import small

METHODS = {
    "sampler": ("energy", {"sampler.num_steps": 3}),
    "asbs": ("energy", {"adjoint.corrector": "semi_discrete"}),
    "enot": ("samples", {}),
}


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def models(state):
    found = state.models if hasattr(state, "models") else (state.model,)
    return [jax.tree.map(np.array, model) for model in found]


@pytest.mark.parametrize("name", METHODS)
def test_devices_share_the_steps(name, key):
    access, settings = METHODS[name]
    given = {"method": name, "optimiser.name": "adamw"} | settings
    experiment = build.build(small.gaussians(given, access=("samples", access)))
    trainer = parallel.data_parallel(experiment.algorithm, devices=jax.local_devices()[:2])
    state = trainer.init(key)
    before = models(state)
    state, metrics = trainer.run(state, experiment.total_steps)
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
    for old, new in zip(before, models(state), strict=True):
        # Of the gradient's mean over devices, else these would part.
        for leaf in jax.tree.leaves(new):
            assert leaf.shape[0] == 2 and np.isfinite(leaf).all()
            np.testing.assert_array_equal(leaf[0], leaf[1])
        pairs = zip(jax.tree.leaves(old.params), jax.tree.leaves(new.params), strict=True)
        assert any(np.any(a != b) for a, b in pairs) or not jax.tree.leaves(new.params)
    # Else the devices would train on the same draws.
    assert len(np.unique(jax.random.key_data(state.key), axis=0)) == 2


CURVES = {
    "data to energy": ("energy", {"ipf.forward_steps": 160, "ipf.backward_steps": 40}),
    "data to data": ("samples", {"ipf.forward_steps": 120, "ipf.backward_steps": 80}),
    # Coupled over the batch of all devices.
    "minibatch coupling": (
        "samples",
        {"method": "sf2m", "learn_variance": False, "matching.num_steps": 200},
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * name.startswith("data")) for name in CURVES],
)
def test_one_device_follows_the_curve_of_eight(name, key, monkeypatch):
    """200 steps with as many shards: refreshed buffers, reused paths and couplings included."""
    access, settings = CURVES[name]
    settings = {"parallel.shards": 8, "optimiser.name": "adamw"} | settings
    curves = []
    for count in (8, 1):
        monkeypatch.setattr(parallel, "num_devices", lambda count=count: count)
        experiment = build.build(small.gaussians(settings, access=("samples", access)))
        trainer = parallel.data_parallel(
            experiment.algorithm, devices=jax.local_devices()[:count], num_shards=8
        )
        state, losses = trainer.init(key), []
        for _ in range(experiment.total_steps // 4):
            state, metrics = trainer.run(state, 4)
            losses.append(float(metrics["loss"]))
        curves.append(np.asarray(losses))
    assert len(curves[0]) == 50 and np.ptp(curves[0]) > 1e-2
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4, atol=1e-5)
