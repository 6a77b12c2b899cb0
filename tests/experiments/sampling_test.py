"""How samples are judged: log Z by resampled paths, particles up to their symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from d2ejax.endpoints.particle_systems import from_positions, to_positions
from experiments import build, judge, sampling
from experiments.errors import InputError
from experiments.judge import Paths
from tests.experiments import small
from tests.experiments.judge_test import initial_state

MIXTURE = {"means": ((0.9, 0.0), (-0.6, 0.5)), "stds": 0.5, "weights": (0.3, 0.7)}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(judge, "CHUNK", 256)
    monkeypatch.setattr(judge, "WEIGHTED", 500)


def shifted(experiment, log_z):
    """The same experiment with another constant in its energy."""
    energy = experiment.target.log_density
    target = experiment.target._replace(log_density=lambda x: energy(x) + log_z, log_z=log_z)
    return experiment._replace(target=target)


def test_log_z_of_a_mixture_by_the_paths_of_an_untrained_sampler(key):
    changes = {"target.name": "gaussian_mixture", "target.options": ConfigDict(MIXTURE)}
    config = small.shrunk("sampler", changes | {"grid.num_steps": 8})
    experiment = shifted(build.build(config), log_z=-2.5)
    judged, state = judge.Judge(experiment), initial_state(experiment)
    found = sampling.smc_metrics(judged, state, key)
    estimate = found["log_z_smc"]
    assert abs(estimate.value + 2.5) < 3 * estimate.standard_error < 0.3
    assert found["log_z_error_smc"] == pytest.approx(abs(estimate.value + 2.5))
    # An untrained process is far from the target, and resampled on the way to it.
    weights = judge.log_weights(experiment, judged.forward(state, key, 1000))
    whole = judge.metrics.effective_sample_size(weights)
    assert whole < found["ess_smc"] <= 1.0


WIDE = {"covariance": ((1.0, 0.0), (0.0, 2.0))}


def test_there_is_none_from_a_source_without_one_variance(key):
    wide = {"source.name": "gaussian", "source.options": ConfigDict(WIDE)}
    for changes in ({}, wide):  # Two moons first.
        experiment = build.build(small.shrunk("two_moons", changes))
        assert sampling.smc_metrics(judge.Judge(experiment), None, key) == {}


SILENT = {"target.name": "two_moons", "target.options": ConfigDict({"noise": 0.0})}


@pytest.mark.parametrize(
    ("access", "changes", "allowed"),
    [
        ("energy", {"source.name": "two_moons", "source.options": ConfigDict()}, "false but"),
        ("energy", {"source.options": ConfigDict(WIDE)}, "false but from"),
        ("samples", {"method": "cfm", "learn_variance": False}, "false with method = 'cfm'"),
        ("samples", SILENT, "false with target.name = 'two_moons': no energy"),
    ],
)
def test_where_there_is_none_it_is_refused(access, changes, allowed):
    accesses = ("samples", access)
    asked = changes | {"evaluate.smc": True}
    with pytest.raises(InputError) as caught:
        small.gaussians(asked, dim=2, access=accesses)
    assert str(caught.value).startswith(f"evaluate.smc = True: must be {allowed}")


def test_particles_are_judged_up_to_their_symmetries(key):
    config = small.shrunk("dw4", {"evaluate.num_samples": 30})
    experiment = build.build(config)

    def sample(key, n):
        return 2.0 * jax.random.normal(key, (n, 6))

    experiment = experiment._replace(target=experiment.target._replace(sample=sample))
    true = judge.true_ends(experiment, jax.random.split(key, 3)[0], 30)
    angle = 2.0
    turn = jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def copy(x):
        return from_positions(to_positions(x, 4, 2)[jnp.array([2, 0, 3, 1])] @ turn)

    ends = np.asarray(jax.vmap(copy)(jnp.asarray(true, jnp.float32)), np.float64)
    paths = Paths(np.stack([ends, ends], axis=1), None, None, None, None)
    found = sampling.sample_metrics(experiment, paths, key, config.evaluate)
    for name in ("w2_geometric_optimal", "distances_w2", "energy_w2"):
        assert found[name] < 1e-3, name
    for name in ("w2_geometric", "w2_geometric_floor", "distances_w2_floor", "energy_w2_floor"):
        assert found[name] > 0.05, name
    assert found["w2_squared"] > 0.05
    assert "sinkhorn" not in found


def test_sinkhorn_has_its_floor_beside_it(key):
    config = small.gaussians({"evaluate.num_samples": 30, "evaluate.sinkhorn": True}, dim=3)
    experiment = build.build(config)
    true = judge.true_ends(experiment, jax.random.split(key, 3)[0], 30)
    paths = Paths(np.stack([true, true + 2.0], axis=1), None, None, None, None)
    found = sampling.sample_metrics(experiment, paths, key, config.evaluate)
    # Of a shift by m it is |m|² and at most ε log n, or less where the iterations stop.
    assert 11.0 < found["sinkhorn"] < 12.0 + 1e-3 * np.log(30) + 1e-3
    assert 0.0 < found["sinkhorn_floor"] < 1.0
