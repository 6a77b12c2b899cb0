"""Scores of edges: small graphs by hand, ties, the diagonal, and chance."""

import itertools

import numpy as np
import pytest

from d2ejax import metrics

EDGES = np.asarray([[1, 1, 0], [0, 0, 1], [0, 0, 1]], bool)
"""Two edges between different nodes, 0 → 1 and 1 → 2, of six pairs."""
SCORES = np.asarray([[9.0, 5.0, 4.0], [0.0, 9.0, 3.0], [1.0, 2.0, -9.0]])


def test_by_hand():
    # The edges score 5 and 3, the others 4, 2, 1, 0.
    assert metrics.edge_auroc(SCORES, EDGES) == 7 / 8
    assert metrics.edge_average_precision(SCORES, EDGES) == (1 / 1 + 2 / 3) / 2


def test_direction_counts_and_the_diagonal_does_not():
    # The edges score 0 and 2, the others 1, 5, 4, 3.
    assert metrics.edge_auroc(SCORES.T, EDGES) == 1 / 8
    changed = SCORES + np.diag([-100.0, 7.0, 100.0])
    for metric in (metrics.edge_auroc, metrics.edge_average_precision):
        assert metric(changed, EDGES) == metric(SCORES, EDGES)
        assert metric(changed, EDGES ^ np.eye(3, dtype=bool)) == metric(SCORES, EDGES)


def test_ties_count_half_and_are_all_found_at_once():
    scores = np.asarray([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    # Both edges tie with two of four others, and beat two.
    assert metrics.edge_auroc(scores, EDGES) == 6 / 8
    assert metrics.edge_average_precision(scores, EDGES) == 0.5
    nothing = np.zeros((3, 3))
    assert metrics.edge_auroc(nothing, EDGES) == 0.5
    assert metrics.edge_average_precision(nothing, EDGES) == 2 / 6


def test_as_pairs_and_thresholds_define_them():
    generator = np.random.default_rng(0)
    scores, edges = generator.integers(0, 8, (7, 7)), generator.uniform(size=(7, 7)) < 0.3
    pairs = [(i, j) for i, j in itertools.product(range(7), repeat=2) if i != j]
    true = [scores[pair] for pair in pairs if edges[pair]]
    false = [scores[pair] for pair in pairs if not edges[pair]]
    wins = np.mean([(a > b) + 0.5 * (a == b) for a in true for b in false])
    np.testing.assert_allclose(metrics.edge_auroc(scores, edges), wins, rtol=1e-12)
    area, recall = 0.0, 0.0
    for threshold in range(8, -1, -1):
        hits, taken = (sum(s >= threshold for s in group) for group in (true, true + false))
        if taken:
            area += (hits / len(true) - recall) * hits / taken
            recall = hits / len(true)
    found = metrics.edge_average_precision(scores, edges)
    np.testing.assert_allclose(found, area, rtol=1e-12)


def test_what_is_no_graph_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\) and edges \(3, 3\): must be \(dim, dim\)"):
        metrics.edge_auroc(SCORES[:, :2], EDGES)
    for edges in (np.eye(3), np.ones((3, 3))):
        with pytest.raises(ValueError, match="must be some of either"):
            metrics.edge_average_precision(SCORES, edges)
