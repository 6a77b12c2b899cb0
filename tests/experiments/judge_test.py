"""What a bridge is judged by: exact where it is known, and right for processes that are."""

import jax
import numpy as np
import pytest
from scipy import stats

from d2ejax import metrics, parallel
from d2ejax.exact.gaussian import GaussianBridge
from experiments import build, judge
from tests.experiments import small

SIGMA_SQUARED, T_MAX = 2.0, 0.2
# Gaussians that do not say they are.
MIXTURES = ({"means": ((-0.3,),), "stds": 0.5}, {"means": ((0.8,),), "stds": 0.3})


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(judge, "CHUNK", 512)


def initial_state(experiment):
    """Networks that are zero: both processes are the reference."""
    init = jax.jit(jax.vmap(experiment.algorithm.init, axis_name=parallel.AXIS))
    return parallel.unreplicate(init(jax.random.split(jax.random.key(0), 1)))


@pytest.fixture(scope="module")
def start():
    """An experiment between Gaussians with its judge and untrained state."""
    experiment = build.build(small.gaussians({"grid.num_steps": 4}))
    return experiment, judge.Judge(experiment), initial_state(experiment)


# ---- The exact bridge


def test_gaussians_have_a_closed_form_in_any_dimension():
    for dim in (1, 3):
        experiment = build.build(small.gaussians(dim=dim))
        assert isinstance(judge.exact_bridge(experiment), GaussianBridge)


@pytest.mark.parametrize("reference", ["brownian", "ornstein_uhlenbeck"])
def test_densities_in_the_plane_get_a_grid_that_agrees_with_the_closed_form(reference):
    changes = {
        "reference.name": reference,
        "source.name": "gaussian",
        "source.options": {"mean": (-0.3,), "std": 0.5},
        "target.name": "gaussian",
        "target.options": {"mean": (0.8,), "std": 0.3},
    }
    exact = judge.exact_bridge(build.build(small.shrunk("smoke", changes)))
    changes |= {"source.name": "gaussian_mixture", "target.name": "gaussian_mixture"}
    changes |= {"source.options": MIXTURES[0], "target.options": MIXTURES[1]}
    grid = judge.exact_bridge(build.build(small.shrunk("smoke", changes)))
    assert isinstance(exact, GaussianBridge) and not isinstance(grid, GaussianBridge)
    assert grid.path_kl == pytest.approx(exact.path_kl, rel=1e-3)
    assert grid.transport_cost == pytest.approx(exact.transport_cost, rel=1e-3)
    x = np.linspace(-0.8, 0.8, 9)[:, None]
    for a, b in zip(grid.log_potentials(x, x), exact.log_potentials(x, x), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"target.name": "checkerboard", "target.access": "samples"},
        {
            "source.name": "gaussian",
            "source.options": {"dim": 3},
            "target.name": "gaussian_mixture",
            "target.options": {"means": ((0.0,) * 3, (1.0,) * 3), "stds": 0.5},
        },
    ],
)
def test_there_is_none_without_a_density_or_beyond_the_plane(changes):
    assert judge.exact_bridge(build.build(small.shrunk("smoke", changes))) is None


def test_exact_paths_have_the_marginals_of_the_bridge(start):
    experiment, judged, _ = start
    paths = judge.exact_paths(experiment, judged.bridge, jax.random.key(3), 4000)
    assert paths.shape == (4000, 5, 1)
    for k, t in enumerate(np.asarray(experiment.grid.times, np.float64)):
        mean, covariance = judged.bridge.marginal(float(t))
        # In units of three standard errors.
        assert metrics.moment_error(paths[:, k], mean, covariance, tolerance=0.0) < 1.4


# ---- Processes that are the reference


def gaussian_kl(mean_0, cov_0, mean_1, cov_1):
    """KL(N(mean_0, cov_0) || N(mean_1, cov_1))."""
    shift = mean_1 - mean_0
    solved = np.linalg.solve(cov_1, cov_0)
    quadratic = shift @ np.linalg.solve(cov_1, shift)
    return 0.5 * (np.trace(solved) - len(shift) + quadratic - np.linalg.slogdet(solved)[1])


def test_the_untrained_forward_process_is_the_reference(start, key):
    _, judged, state = start
    paths = judged.forward(state, key, 3000)
    # Zero but for the rounding of a sum over dimensions.
    np.testing.assert_allclose(paths.step_kls, 0.0, atol=1e-6)
    np.testing.assert_allclose(paths.log_forward, paths.log_reference, atol=1e-4)
    found = judge.bridge_metrics(paths, judged.bridge)
    assert found["path_kl"].value == pytest.approx(0.0, abs=1e-6)
    # Given the ends the reference and the bridge are the same, so the gap is that of the ends.
    variance = SIGMA_SQUARED * T_MAX
    joint = np.array([[1.0, 1.0], [1.0, 1.0 + variance]])
    plan = judged.bridge.plan
    expected = gaussian_kl(np.zeros(2), joint, plan.mean, plan.cov)
    assert expected > 0.1
    gap = found["bridge_gap"]
    assert abs(gap.value - expected) < 4 * gap.standard_error
    assert gap.standard_error < 0.1 * expected


def test_the_probe_is_of_one_device_and_of_numbers(start):
    _, judged, state = start
    found = judged.probe(jax.tree.map(lambda leaf: leaf[None], state))
    assert found.keys() == {"path_kl", "bridge_gap", "w2_squared"}
    assert found["path_kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["bridge_gap"] > 0.1
    # From N(0, 1) the reference reaches N(0, 1.4), and the target has deviation 0.6.
    assert found["w2_squared"] == pytest.approx(
        (np.sqrt(1.0 + SIGMA_SQUARED * T_MAX) - 0.6) ** 2, rel=0.3
    )
    assert {type(value) for value in found.values()} == {float}


def test_the_untrained_backward_process_is_the_reversed_reference(start, key):
    experiment, judged, state = start
    found = judged.backward(state, key, 2000)
    x = found.paths
    # It starts in the target, whose standard deviation is 0.6, at the end of the path.
    assert abs(x[:, -1].std() - 0.6) < 4 * 0.6 / np.sqrt(2 * len(x))
    spread = np.sqrt(0.36 + SIGMA_SQUARED * T_MAX)
    assert abs(x[:, 0].std() - spread) < 4 * spread / np.sqrt(2 * len(x))
    std = np.sqrt(SIGMA_SQUARED * np.diff(np.asarray(experiment.grid.times, np.float64)))
    expected = stats.norm.logpdf(x[:, :-1, 0], x[:, 1:, 0], std).sum(axis=1)
    np.testing.assert_allclose(found.log_backward, expected, atol=1e-3)


def test_evidence_of_the_law_that_the_reference_reaches(key):
    log_z = 3.0
    # From N(0, 1) the reference reaches N(0, 1.4): the weights average to Z exactly.
    std = float(np.sqrt(1.0 + SIGMA_SQUARED * T_MAX))
    experiment = build.build(small.gaussians({"target.options.std": std}))
    energy = experiment.target.log_density
    target = experiment.target._replace(log_density=lambda x: energy(x) + log_z, log_z=log_z)
    experiment = experiment._replace(target=target)
    judged, state = judge.Judge(experiment), initial_state(experiment)
    forward, backward = judged.forward(state, key, 2000), judged.backward(state, key, 2000)
    found = judge.evidence_metrics(experiment, forward, backward)
    estimate = found["log_z_importance"]
    assert abs(estimate.value - log_z) < 4 * estimate.standard_error
    assert found["log_z_lower"].value < log_z < found["log_z_upper"].value
    assert found["log_z_true"] == log_z
    assert 0 < found["ess"] < 1


# ---- Chunks and samples


@pytest.mark.parametrize("n", [1, 512, 513, 1100])
def test_any_number_of_paths(start, key, n):
    _, judged, state = start
    found = judged.forward(state, key, n)
    assert found.paths.shape == (n, 5, 1)
    assert found.step_kls.shape == (n, 4)
    assert found.log_forward.shape == found.log_backward.shape == (n,)
    assert {leaf.dtype for leaf in found} == {np.dtype(np.float64)}
    # No chunk repeats another.
    assert len(np.unique(found.paths[:, 0, 0])) == n


def test_an_end_without_samples_is_named(start, key):
    experiment, _, state = start
    blind = experiment._replace(source=experiment.source._replace(sample=None))
    with pytest.raises(ValueError, match=r"'gaussian'.* sample"):
        judge.Judge(blind).forward(state, key, 3)
