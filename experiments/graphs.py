"""Judging what a drift says of who regulates whom, where the true circuit is known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax import graph_networks, metrics, plotting
from d2ejax.endpoints import base as endpoints
from d2ejax.exact.base import HostArray
from d2ejax.typing import Array, Key
from experiments import judge
from experiments.build import Experiment

_CELLS = 500
"""Of each snapshot."""


def graph_metrics(experiment: Experiment, state: Any, key: Key) -> dict[str, Any]:
    """How well the true graph is told from what was learned, and from the data alone.

    "edge_auroc" and "edge_average_precision" are of the first layer's strengths where a drift
    has a graph; with "_sensitivity" of the root mean square of ∂drift_j/∂x_i of the forward
    process over the cells, which any network has; with "_correlation" and
    "_partial_correlation" of these between the levels of all cells, without training.

    Args:
        experiment: What was trained.
        state: Its state, of one device.
        key: A typed key.

    Returns:
        Nothing without a known circuit. Else these, "edge_average_precision_chance",
        "circuit_drift_error", E‖F - F*‖²/E‖F*‖² over the cells with the circuit's drift F*, and
        the matrix "edge_strengths", `(dim, dim)`, which the figure shows.
    """
    observed = experiment.observed
    circuit = None if observed is None else observed.snapshots.circuit
    if observed is None or circuit is None:
        return {}
    cells = _cells(experiment, key)
    drifts, slopes = _at_knots(experiment, state, observed.knots[:-1], cells[:-1])
    sensitivities = np.sqrt(np.mean(slopes**2, axis=(0, 1))).T
    levels = cells.reshape(-1, circuit.dim)
    scores = {
        "_sensitivity": sensitivities,
        "_correlation": np.abs(np.corrcoef(levels.T)),
        "_partial_correlation": np.abs(_partial_correlations(levels)),
    }
    strengths = sensitivities
    if experiment.graph is not None:
        strengths = np.asarray(graph_networks.edge_strengths(experiment.graph(state)))
        scores = {"": strengths, **scores}
    found: dict[str, Any] = {}
    for name, values in scores.items():
        found[f"edge_auroc{name}"] = metrics.edge_auroc(values, circuit.edges)
        precision = metrics.edge_average_precision(values, circuit.edges)
        found[f"edge_average_precision{name}"] = precision
    others = ~np.eye(circuit.dim, dtype=bool)
    found["edge_average_precision_chance"] = float(np.mean(circuit.edges[others]))
    true = circuit.drift(cells[:-1])
    found["circuit_drift_error"] = float(np.sum((drifts - true) ** 2) / np.sum(true**2))
    found["edge_strengths"] = [[round(float(s), 5) for s in row] for row in strengths]
    return found


def _cells(experiment: Experiment, key: Key) -> HostArray:
    """Cells of every snapshot, `(num_snapshots, n, dim)`."""
    assert experiment.observed is not None
    marginals = experiment.observed.snapshots.marginals
    keys = jax.random.split(key, len(marginals))
    drawn = [endpoints.sampler(end)(k, _CELLS) for end, k in zip(marginals, keys, strict=True)]
    return np.asarray(drawn, np.float64)


def _at_knots(
    experiment: Experiment, state: Any, knots: tuple[int, ...], cells: HostArray
) -> tuple[HostArray, HostArray]:
    """The forward process's drift and its derivatives, `(num, n, dim)` and `(num, n, j, i)`."""

    @jax.jit
    def evaluate(state: Any, cells: Array) -> tuple[Array, Array]:
        steps = jax.tree.map(lambda leaf: leaf[jnp.asarray(knots)], experiment.forward.steps)
        drift = functools.partial(judge.kernel_drift, experiment, state)

        def both(step: Any, x: Array) -> tuple[Array, Array]:
            return drift(step, x), jax.jacfwd(drift, argnums=1)(step, x)

        return jax.vmap(jax.vmap(both, (None, 0)))(steps, cells)

    drifts, slopes = evaluate(state, jnp.asarray(cells, jnp.float32))
    return np.asarray(drifts, np.float64), np.asarray(slopes, np.float64)


def _partial_correlations(levels: HostArray) -> HostArray:
    """Of each pair given all others, `(dim, dim)`, from the inverse covariance."""
    precision = np.linalg.inv(np.cov(levels.T))
    scale = np.sqrt(np.diag(precision))
    return -precision / np.outer(scale, scale)


def figure(experiment: Experiment, fields: dict[str, Any]) -> Any:
    """The true graph beside the learned strengths; None where it is not known."""
    strengths = fields.get("edge_strengths")
    if strengths is None or experiment.observed is None:
        return None
    circuit = experiment.observed.snapshots.circuit
    assert circuit is not None
    kind = "" if experiment.graph is not None else "_sensitivity"
    note = (
        f"AUROC {fields[f'edge_auroc{kind}']:.2f} (correlation "
        f"{fields['edge_auroc_correlation']:.2f}, chance 0.50)   frames: true edges   "
        "grey: not counted"
    )
    return plotting.graph(circuit.genes, circuit.edges, strengths, note=note)
