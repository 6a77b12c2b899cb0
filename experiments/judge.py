"""Judging a bridge: paths of the trained processes, the exact bridge, and metrics."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax import metrics, parallel, references, rollouts
from d2ejax.algorithms import ipf
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.exact.base import ExactBridge, HostArray
from d2ejax.exact.gaussian import GaussianBridge, gaussian_bridge
from d2ejax.exact.grid import grid_bridge
from d2ejax.exact.limit import k_step_limit
from d2ejax.metrics import Estimate
from d2ejax.typing import Array, Key
from experiments.build import Experiment
from experiments.errors import one_line

CHUNK = 2000
"""Paths simulated at once: one compiled function serves any number of them."""


_FLOOR_PAIRS = 3
"""The sampling floor of W2² varies several-fold from one pair of sample sets to the next."""


class Paths(NamedTuple):
    """Paths of one of the trained processes, scored; float64 on the host once simulated.

    Attributes:
        paths: `(n, num_steps + 1, dim)`, in the order of time.
        step_kls: KL of each forward step from the reference's, `(n, num_steps)`.
        log_forward: Log-density under the forward process given x_0, `(n,)`.
        log_backward: Log-density under the backward process given x_K, `(n,)`.
        log_reference: Log-density under the reference given x_0, `(n,)`.
    """

    paths: Any
    step_kls: Any
    log_forward: Any
    log_backward: Any
    log_reference: Any


class Judge:
    """Simulates and scores the processes of one experiment, beside the exact bridge.

    What is compiled or solved is so once, when it is first needed.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._forward = jax.jit(lambda state, key: _simulate(experiment, state, key, False))
        self._backward = jax.jit(lambda state, key: _simulate(experiment, state, key, True))

    @functools.cached_property
    def bridge(self) -> ExactBridge | None:
        """The true bridge, None where it is not known or cannot be computed."""
        try:
            return exact_bridge(self.experiment)
        except (ValueError, RuntimeError) as error:
            # A bridge too narrow for the grid, say: training is none the worse for it.
            print(f"no exact bridge to judge by: {one_line(error)}", file=sys.stderr)
            return None

    def probe(self, state: Any) -> dict[str, float]:
        """Path KL and bridge gap of a training state, from one chunk of paths."""
        paths = self.forward(parallel.unreplicate(state), jax.random.key(0), CHUNK)
        found = bridge_metrics(paths, self.bridge)
        return {name: float(e.value) for name, e in found.items() if e is not None}

    def forward(self, state: ipf.State, key: Key, n: int) -> Paths:
        """Paths of the forward process started in true samples of the source."""
        return _in_chunks(self._forward, state, key, n)

    def backward(self, state: ipf.State, key: Key, n: int) -> Paths:
        """Paths of the backward process started in true samples of the target."""
        return _in_chunks(self._backward, state, key, n)


def _simulate(experiment: Experiment, state: ipf.State, key: Key, backward: bool) -> Paths:
    forward_params = experiment.forward_params(state)
    backward_params = experiment.backward_params(state)
    start_key, path_key = jax.random.split(key)
    if backward:
        process, params, end = experiment.backward, backward_params, experiment.target
    else:
        process, params, end = experiment.forward, forward_params, experiment.source
    starts = endpoints.sampler(end)(start_key, CHUNK)

    def one(key: Key, x: Array) -> Paths:
        path = rollouts.simulate(key, process, params, x)
        return Paths(
            paths=path,
            step_kls=rollouts.step_kl_divergences(
                experiment.forward, forward_params, experiment.reference, None, path
            ),
            log_forward=rollouts.log_density(experiment.forward, forward_params, path),
            log_backward=rollouts.log_density(experiment.backward, backward_params, path),
            log_reference=rollouts.log_density(experiment.reference, None, path),
        )

    return jax.vmap(one)(jax.random.split(path_key, CHUNK), starts)


def _in_chunks(simulate: Callable, state: ipf.State, key: Key, n: int) -> Paths:
    keys = jax.random.split(key, -(-n // CHUNK))
    chunks = [jax.tree.map(np.asarray, simulate(state, k)) for k in keys]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n].astype(np.float64), *chunks)


def exact_bridge(experiment: Experiment) -> ExactBridge | None:
    """The true bridge where it is known: between Gaussians, or densities in 1-D and 2-D."""
    source, target = experiment.source, experiment.target
    t_max = float(experiment.grid.t_max)
    if source.moments is not None and target.moments is not None:
        return gaussian_bridge(*source.moments, *target.moments, experiment.law, t_max)
    if source.dim > 2 or source.log_density is None or target.log_density is None:
        return None
    return grid_bridge(
        host_log_density(source),
        host_log_density(target),
        experiment.law,
        t_max,
        dim=source.dim,
        extents=(source.extent, target.extent),
    )


def exact_paths(experiment: Experiment, bridge: ExactBridge, key: Key, n: int) -> HostArray:
    """Paths of the true bridge on the grid: ends from its plan, joined by pinned bridges."""
    plan_key, path_key = jax.random.split(key)
    x_0, x_1 = bridge.sample_plan(_host_generator(plan_key), n)
    keys = jax.random.split(path_key, n)
    draw = jax.jit(jax.vmap(references.pinned_path, (0, None, 0, 0, None)), static_argnums=1)
    paths = draw(keys, experiment.law, *map(_single, (x_0, x_1)), experiment.grid)
    return np.asarray(paths, np.float64)


def host_log_density(end: Endpoint) -> Callable[[HostArray], HostArray]:
    """An end's log-density on batches of host points `(n, dim)`."""
    batched = jax.jit(jax.vmap(endpoints.log_density(end)))

    def log_density(x: HostArray) -> HostArray:
        return np.asarray(batched(_single(x)), np.float64)

    return log_density


def log_weights(experiment: Experiment, paths: Paths) -> HostArray | None:
    """Log-weights of paths: log [R(τ | x_K) p̃_1(x_K)] - log [p_0(x_0) P(τ | x_0)], `(n,)`.

    None where an end has no log-density.
    """
    source, target = experiment.source, experiment.target
    if source.log_density is None or target.log_density is None:
        return None
    return metrics.log_weights(
        log_start=host_log_density(source)(paths.paths[:, 0]),
        log_forward=paths.log_forward,
        log_backward=paths.log_backward,
        log_end=host_log_density(target)(paths.paths[:, -1]),
    )


def bridge_metrics(paths: Paths, bridge: ExactBridge | None) -> dict[str, Estimate | None]:
    """Path KL and bridge gap of forward paths, each with its standard error."""
    gap = None
    if bridge is not None:
        gap = metrics.bridge_gap(
            paths.log_forward - paths.log_reference,
            *bridge.log_potentials(paths.paths[:, 0], paths.paths[:, -1]),
        )
    return {"path_kl": metrics.path_kl(paths.step_kls), "bridge_gap": gap}


def evidence_metrics(experiment: Experiment, forward: Paths, backward: Paths) -> dict[str, Any]:
    """Bounds and estimates of the target's log Z, and the effective sample size."""
    weights, upper = log_weights(experiment, forward), log_weights(experiment, backward)
    if weights is None or upper is None:
        return {}
    return {
        "log_z_lower": metrics.log_z_lower(weights),
        "log_z_upper": metrics.log_z_upper(upper),
        "log_z_importance": metrics.log_z_importance(weights),
        "log_z_true": experiment.target.log_z,
        "ess": metrics.effective_sample_size(weights),
    }


def sample_metrics(
    experiment: Experiment, forward: Paths, key: Key, num_samples: int
) -> dict[str, Any]:
    """Distances of the end of the forward process from true samples of the target."""
    ends = forward.paths[:, -1]
    target = experiment.target
    true_key, floor_key, direction_key = jax.random.split(key, 3)
    true = np.asarray(endpoints.sampler(target)(true_key, num_samples), np.float64)
    found = {
        "w2_squared": metrics.w2_squared(ends[:num_samples], true),
        "w2_squared_floor": np.mean(
            [
                metrics.w2_squared_floor(k, endpoints.sampler(target), num_samples)
                for k in jax.random.split(floor_key, _FLOOR_PAIRS)
            ]
        ),
        "sliced_w2_squared": metrics.sliced_w2_squared(direction_key, ends[:num_samples], true),
        "mmd_squared": metrics.mmd_squared(ends[:num_samples], true),
        "transport_cost": metrics.transport_cost(forward.paths[:, 0], ends),
    }
    if target.log_density is not None:
        energies = (-host_log_density(target)(x) for x in (ends[:num_samples], true))
        found["energy_distance"] = metrics.energy_distance(*energies)
    if target.modes is not None and target.mode_weights is not None:
        weights = metrics.mode_weights(ends, target.modes)
        found["mode_coverage"] = metrics.mode_coverage(weights, target.mode_weights)
        found["mode_weights"] = [round(float(w), 4) for w in weights]
    return found


def gaussian_metrics(experiment: Experiment, forward: Paths, bridge: Any) -> dict[str, float]:
    """The worst moment of the marginals and of the coupling beside a Gaussian bridge.

    In units of what is allowed, see `d2ejax.metrics.moment_error`; empty for other bridges.
    """
    if not isinstance(bridge, GaussianBridge):
        return {}
    times = np.asarray(experiment.grid.times, np.float64)
    marginals = [
        metrics.moment_error(forward.paths[:, k], *bridge.marginal(float(t)))
        for k, t in enumerate(times)
    ]
    ends = np.concatenate([forward.paths[:, 0], forward.paths[:, -1]], axis=1)
    return {
        "marginal_moment_error": max(marginals),
        "coupling_moment_error": metrics.moment_error(ends, *bridge.plan),
    }


def limit(
    experiment: Experiment, bridge: ExactBridge, learn_variance: bool, key: Key, n: int
) -> Estimate:
    """The bridge gap of kernels moment-matched to the true bridge on this grid.

    What a K-step chain can be expected to reach; matching moments minimises the divergence the
    other way round, so that a trained chain may end slightly below.
    """
    start_key, chain_key = jax.random.split(key)
    starts = endpoints.sampler(experiment.source)(start_key, n)
    return Estimate(
        *k_step_limit(
            bridge,
            experiment.law,
            experiment.grid.times,
            np.asarray(starts, np.float64),
            _host_generator(chain_key),
            variance="learned" if learn_variance else "fixed",
        )
    )


def _host_generator(key: Key) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _single(x: HostArray) -> Array:
    return jnp.asarray(x, jnp.float32)
