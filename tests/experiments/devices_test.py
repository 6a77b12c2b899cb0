"""Methods that came after IPF, over two devices: one set of parameters, each its own draws."""

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
