"""Drifts with a graph: which methods have one, and how they are judged by the true circuit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, parallel, references
from d2ejax.circuits import Circuit
from d2ejax.endpoints import registry
from experiments import build, graphs, summary, validation
from experiments.errors import InputError
from tests.experiments import small

TINY = {
    "grid.num_steps": 4,
    "snapshots.options.num_snapshots": 3,
    "snapshots.options.num_cells": 40,
    "matching.coupling": "independent",
    "graph.width": 3,
}
POSSIBLE = [("sf2m", "forward"), ("sf2m", "current"), ("cfm", "current"), ("eot", "forward")]


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def shrunk(changes=None):
    return small.shrunk("regulatory", TINY | (changes or {}))


@pytest.mark.parametrize(("method", "of"), POSSIBLE)
def test_training_a_drift_with_a_graph_penalises_it_and_hands_it_out(method, of):
    experiment = build.build(shrunk({"method": method, "graph.of": of}))
    mapped = functools.partial(
        jax.pmap, axis_name=parallel.AXIS, devices=jax.local_devices()[:1]
    )
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.eval_shape(mapped(experiment.algorithm.init), keys)
    _, metrics = jax.eval_shape(mapped(experiment.algorithm.step), state)
    assert "penalty" in metrics
    assert experiment.graph(state)["edges"].shape == (1, 11, 11, 3)


def test_without_a_graph_there_is_none_and_no_penalty():
    assert build.build(shrunk({"graph.of": "none"})).graph is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "cfm"}, r"graph.of = 'forward': must be one of \('none', 'current'\) with"),
        (
            {"method": "eot", "graph.of": "current"},
            r"must be one of \('none', 'forward'\) with",
        ),
        (
            {"method": "eot", "learn_variance": True, "variance.family": "bounded"},
            "learn_variance = True: must be false with graph.of = 'forward'",
        ),
    ],
)
def test_what_can_have_no_graph_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        shrunk(changes)


def test_ipf_has_no_graph():
    with pytest.raises(InputError, match=r"graph.of = 'forward': must be one of \('none',\)"):
        small.gaussians({"graph.of": "forward"})


# ---- Judging by the true circuit

SLOPES = np.asarray([[-1.0, 0.8, 0.0], [0.0, -1.0, -0.5], [0.0, 0.0, -1.0]])
"""Row i, column j: how gene i drives gene j."""


@pytest.fixture(scope="module")
def experiment():
    """A process that is the circuit, a linear one."""

    def drift(params, x, t):
        return params["scale"] * (x @ jnp.asarray(SLOPES, jnp.float32)), jnp.zeros_like(x)

    found = build.build(shrunk())
    circuit = Circuit(("a", "b", "c"), SLOPES != 0, lambda x: x @ SLOPES + x, np.zeros(3))
    marginals = tuple(registry.make_endpoint("gaussian", mean=[1.0, i, 0.0]) for i in range(3))
    snapshots = found.observed.snapshots._replace(marginals=marginals, circuit=circuit)
    return found._replace(
        forward=kernels.process(drift, references.brownian(1.0), found.grid),
        forward_params=lambda state: state,
        observed=found.observed._replace(snapshots=snapshots),
        graph=lambda state: {"edges": state["edges"]},
    )


EDGES = np.zeros((3, 3, 2))
EDGES[0, 1], EDGES[1, 2], EDGES[0, 2], EDGES[2, 0] = [3, 4], [0, 2], [0, -6], [0.1, 0]
"""The two true edges have the strengths 5 and 2; of the four others one has 6."""


def judged(experiment, scale):
    state = {"scale": jnp.float32(scale), "edges": jnp.asarray(EDGES, jnp.float32)}
    return graphs.graph_metrics(experiment, state, jax.random.key(0))


def test_a_learned_circuit_is_judged_by_the_true_one(experiment):
    found = judged(experiment, 1.0)
    np.testing.assert_allclose(found["circuit_drift_error"], 0.0, atol=1e-9)
    assert found["edge_auroc_sensitivity"] == 1.0
    assert found["edge_average_precision_sensitivity"] == 1.0
    # 5 beats three others and 2 three as well.
    assert found["edge_auroc"] == 6 / 8
    assert found["edge_average_precision"] == (1 / 2 + 2 / 3) / 2
    assert found["edge_average_precision_chance"] == pytest.approx(1 / 3)
    assert found["edge_strengths"][0] == [0.0, 5.0, 6.0]
    for name in ("correlation", "partial_correlation"):
        assert 0.0 <= found[f"edge_auroc_{name}"] <= 1.0
    np.testing.assert_allclose(judged(experiment, 1.5)["circuit_drift_error"], 0.25, rtol=1e-4)


def test_without_a_graph_the_sensitivities_are_shown(experiment):
    found = judged(experiment._replace(graph=None), 2.0)
    assert "edge_auroc" not in found
    np.testing.assert_allclose(found["edge_strengths"], 2 * np.abs(SLOPES), atol=1e-4)


def test_partial_correlations_are_those_of_what_others_leave():
    x = np.random.default_rng(0).normal(size=(200, 4)) @ np.random.default_rng(1).normal(
        size=(4, 4)
    )
    others = np.column_stack([np.ones(200), x[:, [1, 3]]])
    left = [x[:, i] - others @ np.linalg.lstsq(others, x[:, i])[0] for i in (0, 2)]
    expected = np.corrcoef(*left)[0, 1]
    np.testing.assert_allclose(graphs._partial_correlations(x)[0, 2], expected, rtol=1e-9)


def test_the_figure_and_the_summary_say_it(experiment):
    found = judged(experiment, 1.0)
    figure = graphs.figure(experiment, found)
    assert "AUROC 0.75" in figure.get_supxlabel()
    assert graphs.figure(experiment, {}) is None
    table = summary.table(
        found | {"gradient_steps": 1, "wall_seconds": 1.0, "compile_seconds": 1.0}
    )
    assert "edge_auroc  " in table and "edge_auroc without training: correlation" in table


def test_without_a_known_circuit_nothing_is_said():
    experiment = build.build(small.shrunk("branching", {"grid.num_steps": 8}))
    assert graphs.graph_metrics(experiment, None, jax.random.key(0)) == {}
    assert validation.get(shrunk(), "graph.sparsity") > 0
