"""Evaluations of an energy, counted from a configuration, against energies that count."""

from unittest import mock

import jax
import pytest

from benchmarks.evaluations import energy_evaluations
from d2ejax import endpoints, parallel
from d2ejax.endpoints import registry
from experiments import build
from tests.experiments import small

_RING = endpoints.ring()
_ON_ONE_DEVICE = {
    "batch_size": 4,
    "ipf.likelihood_batch_size": 6,
    "adjoint.rollout_size": 5,
    "exploration.refresh_every": 3,
}
_FEATURE = {"network.energy_feature": True}


def _counted(counts: list[int]) -> endpoints.Endpoint:
    def log_density(x):
        jax.debug.callback(lambda _: counts.append(1), x[0])
        return endpoints.base.log_density(_RING)(x)

    return _RING._replace(log_density=log_density)


def _found(config) -> int:
    """Evaluations in all gradient steps of a run, on one device."""
    counts: list[int] = []
    with (
        mock.patch.dict(registry.ENDPOINTS, ring=lambda: _counted(counts)),
        mock.patch("d2ejax.parallel.num_devices", lambda: 1),
    ):
        experiment = build.build(config)
        init, step = (
            jax.pmap(function, axis_name=parallel.AXIS, devices=jax.devices()[:1])
            for function in (experiment.algorithm.init, experiment.algorithm.step)
        )
        state = init(jax.random.split(jax.random.key(0), 1))
        jax.block_until_ready(state)
        jax.effects_barrier()
        counts.clear()
        for _ in range(experiment.total_steps):
            state, _ = step(state)
        jax.block_until_ready(state)
        jax.effects_barrier()
    return len(counts)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gaussian_to_ring", _FEATURE | {"exploration.refresh_method": "mala"}),
        pytest.param(
            "sampler",
            {"sampler.loss": "subtrajectory_balance", "exploration.add_ends": True},
            marks=pytest.mark.long,
        ),
        pytest.param("sampler", _FEATURE | {"sampler.loss": "path_kl"}, marks=pytest.mark.long),
        ("asbs", {}),
        ("asbs", {"adjoint.corrector": "semi_discrete", "adjoint.off_policy_ratio": 0.5}),
        pytest.param(
            "asbs",
            _FEATURE | {"method": "bms", "adjoint.damping": 2.0},
            marks=pytest.mark.long,
        ),
    ],
)
def test_counts_are_those_of_a_run(name, changes):
    """Every evaluation of every gradient step, the refreshes of particles included."""
    with mock.patch("d2ejax.parallel.num_devices", lambda: 1):
        config = small.shrunk(name, _ON_ONE_DEVICE | changes)
    assert energy_evaluations(config) == _found(config)


def test_methods_without_an_energy_are_refused():
    """Their count would be nought, and no news."""
    with pytest.raises(ValueError, match=r"method = 'sf2m'"):
        energy_evaluations(small.shrunk("sf2m"))
    with pytest.raises(ValueError, match=r"target\.access = 'samples'"):
        energy_evaluations(small.shrunk("gaussian_to_ring_d2d"))
    changes = _FEATURE | {"network.steps_at_once": 1}
    with pytest.raises(ValueError, match="evaluates more than is counted"):
        energy_evaluations(small.shrunk("sampler", changes))
