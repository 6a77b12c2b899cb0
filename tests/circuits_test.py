"""Gene circuits: the declared graph is that of the drift, attractors and moments known."""

import itertools

import numpy as np
import pytest

from d2ejax import circuits
from tests.endpoints.agreement import assert_mean_in_errors

CIRCUITS = {
    "myeloid": circuits.myeloid(),
    "random": circuits.random_circuit(np.random.default_rng(3), dim=7, in_degree=3),
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_the_declared_graph_is_what_production_depends_on(name):
    circuit = CIRCUITS[name]
    # Levels at which no degree is so near to 0 or 1 that a product hides an edge.
    x, step = np.random.default_rng(0).uniform(0.2, 0.5, size=(50, circuit.dim)), 1e-6
    for i in range(circuit.dim):
        shift = step * np.eye(circuit.dim)[i]
        slopes = (circuit.production(x + shift) - circuit.production(x - shift)) / (2 * step)
        np.testing.assert_array_equal(np.abs(slopes).max(axis=0) > 1e-6, circuit.edges[i])
        drifts = (circuit.drift(x + shift) - circuit.drift(x - shift)) / (2 * step)
        np.testing.assert_allclose(slopes - drifts, np.eye(circuit.dim)[[i] * 50], atol=1e-8)


def test_production_is_a_share():
    x = np.random.default_rng(1).normal(size=(4, 30, 11))
    found = CIRCUITS["myeloid"].production(x)
    assert found.shape == x.shape and found.min() >= 0.0 and found.max() <= 1.0


def test_what_comes_to_rest_with_gata1_or_cebpa_are_the_four_published_lineages():
    # With steep functions levels of 0 and 1 are a Boolean network.
    circuit = circuits.myeloid(hill=60.0)
    states = np.asarray(list(itertools.product([0.0, 1.0], repeat=circuit.dim)))
    at_rest = states[np.abs(circuit.drift(states)).max(axis=1) < 1e-6]
    found = {frozenset(np.asarray(circuit.genes)[x > 0].tolist()) for x in at_rest}
    # Krumsiek et al. 2011; nothing brings either of the two back, and without them there are
    # no genes at all or those that Pu1 keeps alive.
    assert {state for state in found if state & {"Gata1", "Cebpa"}} == {
        frozenset({"Gata1", "Fog1", "Eklf", "Scl"}),  # erythrocytes
        frozenset({"Gata1", "Fog1", "Fli1", "Scl"}),  # megakaryocytes
        frozenset({"Cebpa", "Pu1", "cJun", "EgrNab"}),  # monocytes
        frozenset({"Cebpa", "Pu1", "Gfi1"}),  # granulocytes
    }


def test_a_random_circuit_has_as_many_regulators_as_asked_for_and_none_is_its_own():
    circuit = CIRCUITS["random"]
    np.testing.assert_array_equal(circuit.edges.sum(axis=0), [3] * 7)
    assert not np.diag(circuit.edges).any() and circuit.start.shape == (7,)
    again = circuits.random_circuit(np.random.default_rng(3), dim=7, in_degree=3)
    np.testing.assert_array_equal(circuit.edges, again.edges)
    with pytest.raises(ValueError, match="in_degree = 7: must be from 1 to dim - 1 = 6"):
        circuits.random_circuit(np.random.default_rng(3), dim=7, in_degree=7)


def test_cells_without_production_decay_as_an_ornstein_uhlenbeck_process():
    start = np.asarray([1.0, -2.0])
    idle = circuits.Circuit(("a", "b"), np.zeros((2, 2), bool), np.zeros_like, start)
    times, noise, spread = (0.0, 0.5, 1.5), 0.7, 0.3
    cells = circuits.simulate(
        np.random.default_rng(0), idle, times, 20000, noise=noise, spread=spread, step=0.005
    )
    assert cells.shape == (3, 20000, 2)
    for x, t in zip(cells, times, strict=True):
        mean = start * np.exp(-t)
        variance = spread**2 * np.exp(-2 * t) + noise**2 / 2 * (1 - np.exp(-2 * t))
        # Steps of 1/200 make it off by 1/400 of what is left, below an error.
        assert_mean_in_errors(x, mean, errors=5.0)
        assert_mean_in_errors((x - mean) ** 2, [variance] * 2, errors=5.0)
    # Nobody is seen twice.
    for x, y in itertools.combinations(cells, 2):
        correlation = np.corrcoef(x.T, y.T)[:2, 2:]
        assert np.abs(correlation).max() < 5.0 / 20000**0.5
