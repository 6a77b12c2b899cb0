"""Where a gap comes from, for chains of which every part is known; plans known in full."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from d2ejax import endpoints, exact, kernels, pairs, references, time_grids
from experiments import build, diagnosis, judge
from experiments.judge import Paths
from tests import gaussian_case
from tests.experiments import small
from tests.experiments.judge_test import initial_state
from tests.metrics import joint_gaussians

PARTS = ("gap_discretisation", "gap_terminal", "gap_path")


@pytest.fixture(autouse=True)
def few_paths(monkeypatch):
    monkeypatch.setattr(judge, "CHUNK", 1000)
    monkeypatch.setattr(judge, "SCORED", 300)


class Chain:
    """An experiment and judge of an affine chain between Gaussians, with its law of paths."""

    def __init__(self, shift, case=None):
        self.case = case = case or gaussian_case.make(1)
        params = gaussian_case.exact_params(case, backward=False)
        backward_params = gaussian_case.exact_params(case, backward=True)
        params = params | {"offset": params["offset"] + np.array(shift, np.float32)[:, None]}
        self.experiment = build.build(small.gaussians())._replace(
            source=case.ends[0],
            target=case.ends[1],
            law=case.law,
            grid=case.grid,
            reference=kernels.reference_process(case.law, case.grid, discretisation="exact"),
            forward=gaussian_case.process(case, backward=False),
            backward=gaussian_case.process(case, backward=True),
            forward_params=lambda state: params,
            backward_params=lambda state: backward_params,
        )
        self.judged, self.bridge = judge.Judge(self.experiment), case.bridge
        # The network's offset counts per root of time.
        self.shifts = np.array(shift) * np.sqrt(np.diff(case.times))

    def split(self, **options):
        forward = self.judged.forward(None, jax.random.key(0), 4000)
        forward = forward._replace(**options.pop("changes", {}))
        options = {"learn_variance": True} | options
        return forward, diagnosis.split(
            self.judged,
            options.pop("bridge", self.bridge),
            None,
            forward,
            jax.random.key(1),
            **options,
        )

    def joint(self, shifts=0.0, variances=None):
        laws = self.bridge.forward_kernels(self.case.times)
        variances = laws.cov[:, 0, 0] if variances is None else variances
        steps = zip(laws.matrix[:, 0, 0], laws.offset[:, 0] + shifts, variances, strict=True)
        (mean, variance), _ = gaussian_case.MOMENTS[1]
        return joint_gaussians.chain(mean[0], variance[0], list(steps))


def marginal(joint):
    return joint_gaussians.Joint(joint.mean[-1:], joint.covariance[-1:, -1:])


# One shift moves the end, the other one mostly the way there.
@pytest.mark.parametrize("shift", [[0.2] * 5, [0.8, -0.2, -0.2, -0.4, -0.4]])
def test_parts_of_a_shifted_chain_are_those_of_its_law(shift):
    chain = Chain(shift)
    forward, found = chain.split()
    laws = [chain.joint(chain.shifts), chain.joint()]
    gap = joint_gaussians.kl_divergence(*laws)
    terminal = joint_gaussians.kl_divergence(*map(marginal, laws))
    for name, known in (("gap_terminal", terminal), ("gap_path", gap - terminal)):
        assert abs(found[name].value - known) < 4 * found[name].standard_error
        assert found[name].standard_error < 0.15 * gap
    assert found["gap_discretisation"].value == pytest.approx(0.0, abs=1e-6)
    total = judge.bridge_metrics(forward, chain.bridge)["bridge_gap"].value
    assert sum(found[name].value for name in PARTS) == pytest.approx(total, abs=1e-9)
    lower, upper = found["terminal_kl_lower"], found["terminal_kl_upper"]
    assert lower.value < upper.value + 3 * upper.standard_error


def narrow_case():
    """Two steps to a narrow Gaussian."""
    case = gaussian_case.make(1)
    mean, variance = gaussian_case.MOMENTS[1][0]
    end = [-0.8], [[0.1]]
    return case._replace(
        ends=(case.ends[0], endpoints.gaussian(mean=end[0], covariance=end[1])),
        grid=time_grids.uniform(2, gaussian_case.T_MAX),
        bridge=exact.gaussian_bridge(
            mean, np.diag(variance), *end, case.law, gaussian_case.T_MAX
        ),
    )


def test_what_no_chain_can_reach_is_taken_off_both_parts():
    # Kernels that keep the reference's variance miss the bridge, in its end and before.
    chain = Chain([0.3, 0.3], narrow_case())
    _, found = chain.split(learn_variance=False)
    reached = chain.joint(variances=gaussian_case.SIGMA**2 * np.diff(chain.case.times))
    gap, limit = (
        joint_gaussians.kl_divergence(law, chain.joint())
        for law in (chain.joint(chain.shifts), reached)
    )
    terminal, terminal_limit = (
        joint_gaussians.kl_divergence(marginal(law), marginal(chain.joint()))
        for law in (chain.joint(chain.shifts), reached)
    )
    for name, known in {
        "bridge_gap_limit": limit,
        "gap_discretisation": limit,
        "terminal_kl": terminal,
        "terminal_kl_limit": terminal_limit,
        "gap_terminal": terminal - terminal_limit,
        "gap_path": gap - limit - (terminal - terminal_limit),
    }.items():
        assert abs(found[name].value - known) < 4 * found[name].standard_error, name
        assert found[name].standard_error < 0.2 * terminal_limit, name


def test_the_exact_chain_has_no_gap_and_no_drift_error():
    chain = Chain([0.0] * 5)
    _, found = chain.split()
    for name in PARTS:
        assert abs(found[name].value) < 1e-3
    error = diagnosis.drift_error(chain.judged, chain.bridge, None, jax.random.key(2))
    assert error["drift_error"].value < 1e-5


def test_drift_error_of_the_reference_is_one():
    experiment = build.build(small.gaussians({"grid.num_steps": 3}))
    judged, state = judge.Judge(experiment), initial_state(experiment)
    error = diagnosis.drift_error(judged, judged.bridge, state, jax.random.key(0))
    np.testing.assert_allclose(error["drift_error"], (1.0, 0.0), atol=1e-6)
    assert diagnosis.plan_metrics(judged, judged.bridge, state, None, jax.random.key(0)) == {}


def refuse(rng, x_1):
    raise ValueError("no starts\nto be had")


@pytest.mark.parametrize("reason", ["unknown starts", "diverged"])
def test_only_the_limit_is_left_where_a_gap_cannot_be_split(reason, capsys):
    chain = Chain([0.1] * 5)
    if reason == "diverged":
        _, found = chain.split(changes={"paths": np.full((4000, 6, 1), np.nan)})
    else:
        bridge = dataclasses.replace(chain.bridge, sample_starts=refuse)
        _, found = chain.split(bridge=bridge)
        assert capsys.readouterr().err == "the bridge gap is not split: no starts to be had\n"
    assert found.keys() == {"bridge_gap_limit"}


# ---- A plan that is known


@pytest.fixture(scope="module")
def pair():
    return build.build(small.shrunk("mixtures"))


def plan_metrics(experiment, shuffled, seed):
    """Of true draws of the plan, or of the same ends in another order."""
    bridge, rng = experiment.bridge, np.random.default_rng(seed)

    def ends(state, key, starts):
        drawn = bridge.conditional_plan(starts).sample(rng)[0]
        return rng.permutation(drawn) if shuffled else drawn

    paths = judge.exact_paths(experiment, bridge, jax.random.key(seed), 2000)
    return diagnosis.plan_metrics(
        types.SimpleNamespace(ends=ends),
        bridge,
        None,
        Paths(paths, None, None, None, None),
        jax.random.key(seed + 1),
    )


def test_true_draws_score_the_floor_and_shuffled_ones_do_not(pair):
    right, wrong = plan_metrics(pair, False, 0), plan_metrics(pair, True, 0)
    floor = right["conditional_bw_uvp_floor"]
    assert 0 < floor.value < 1
    assert right["conditional_bw_uvp"].value < 2 * floor.value
    assert wrong["conditional_bw_uvp"].value > 20 * floor.value
    assert 0 <= right["bw_uvp"] < 1


def test_the_floor_stays_low_in_many_dimensions():
    dim = 64
    bridge = pairs.mixture_pair(references.brownian(1.0), 1.0, dim=dim).bridge
    drawn = []

    def ends(state, key, starts):
        drawn.append(starts)
        return np.zeros_like(starts)

    paths = np.zeros((2, 2, dim))
    paths[1] = 1.0
    found = diagnosis.plan_metrics(
        types.SimpleNamespace(ends=ends),
        bridge,
        None,
        Paths(paths, None, None, None, None),
        jax.random.key(0),
    )
    assert 0 < found["conditional_bw_uvp_floor"].value < 7
    assert len(drawn[0]) == 2**14 and len(np.unique(drawn[0], axis=0)) >= 16


def test_the_trained_process_is_run_from_every_start(pair):
    judged, state = judge.Judge(pair), initial_state(pair)
    starts = np.repeat([[0.0, 0.0], [5.0, -5.0]], [800, 500], axis=0)
    ends = judged.ends(state, jax.random.key(0), starts)
    assert ends.shape == (1300, 2)
    # Untrained, it is Brownian motion of variance 1 per coordinate.
    for drawn, start in ((ends[:800], [0.0, 0.0]), (ends[800:], [5.0, -5.0])):
        assert np.all(np.abs(drawn.mean(axis=0) - start) < 4 / len(drawn) ** 0.5)
        assert np.all(np.abs(drawn.std(axis=0) - 1) < 4 / (2 * len(drawn)) ** 0.5)
    assert len(np.unique(ends[:, 0])) == 1300


def test_given_paths_are_scored_as_simulated_ones(pair):
    judged, state = judge.Judge(pair), initial_state(pair)
    forward = judged.forward(state, jax.random.key(0), 500)
    found = judged.log_ratios(state, forward.paths)
    assert found.shape == (500,)
    np.testing.assert_allclose(found, forward.log_forward - forward.log_reference, atol=1e-5)
    # Untrained, it is Brownian motion, which goes nowhere on average.
    drifts = judged.drifts(state, forward.paths)
    assert drifts.shape == (500, 2, 2)
    np.testing.assert_allclose(drifts, 0.0, atol=1e-5)


def test_the_bridge_of_a_pair_is_its_own(pair):
    assert judge.exact_bridge(pair) is pair.bridge
