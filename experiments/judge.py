"""Judging a bridge: paths of the trained processes, the exact bridge, and metrics."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax import flows, kernels, metrics, parallel, references, rollouts
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.exact.base import ExactBridge, HostArray
from d2ejax.exact.gaussian import GaussianBridge, gaussian_bridge
from d2ejax.exact.grid import grid_bridge
from d2ejax.metrics import Estimate
from d2ejax.sequential_monte_carlo import Weighted, geometric_path, sequential_monte_carlo
from d2ejax.typing import Array, Key
from experiments import memory
from experiments.build import Experiment
from experiments.errors import one_line

CHUNK = 2000
"""Paths simulated at once: one compiled function serves any number of them."""

SCORED = 512
"""Given paths scored at once."""

PROBED = 512
"""Ends that W2² is between while training goes on."""

WEIGHTED = 2000
"""Particles of one run of sequential Monte Carlo."""


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
        self._weigh = jax.jit(functools.partial(_weigh, experiment))
        self._log_ratios = jax.jit(functools.partial(_log_ratios, experiment))
        self._drifts = jax.jit(functools.partial(_drifts, experiment))
        self._continue = jax.jit(functools.partial(_continue, experiment))
        self._follow = jax.jit(functools.partial(_follow, experiment))

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
        """Path KL, bridge gap and W2² of a training state, from one chunk of paths."""
        # Paths take room beside the training program, not beside what it left behind as well.
        memory.trim()
        path_key, end_key = jax.random.split(jax.random.key(0))
        paths, found = self.forward(parallel.unreplicate(state), path_key, CHUNK), {}
        if self.experiment.has_noise:
            estimates = bridge_metrics(paths, self.bridge)
            found = {name: float(e.value) for name, e in estimates.items() if e is not None}
        if self.experiment.target.sample is not None:
            true = true_ends(self.experiment, end_key, PROBED)
            found["w2_squared"] = metrics.w2_squared(paths.paths[:PROBED, -1], true)
        return found

    def forward(self, state: Any, key: Key, n: int) -> Paths:
        """Paths of the forward process started in true samples of the source."""
        return _in_chunks(self._forward, state, key, n)

    def backward(self, state: Any, key: Key, n: int) -> Paths:
        """Paths of the backward process started in true samples of the target."""
        return _in_chunks(self._backward, state, key, n)

    def weighted(self, state: Any, key: Key) -> Weighted:
        """Resampled paths of the forward process with their weights; see `sampling`."""
        return self._weigh(state, key)

    def log_ratios(self, state: Any, paths: HostArray) -> HostArray:
        """Log-densities of given paths, less those of the reference, `(n,)`."""
        return _in_pieces(lambda piece: self._log_ratios(state, piece), paths, SCORED)

    def drifts(self, state: Any, paths: HostArray) -> HostArray:
        """`kernel_drift` at every point of given paths but the last, `(n, num_steps, dim)`."""
        return _in_pieces(lambda piece: self._drifts(state, piece), paths, SCORED)

    def ends(self, state: Any, key: Key, starts: HostArray) -> HostArray:
        """Runs the forward process from each of `(n, dim)` starts to its end."""
        keys = iter(jax.random.split(key, -(-len(starts) // CHUNK)))
        return _in_pieces(lambda piece: self._continue(state, next(keys), piece), starts, CHUNK)

    def flow_paths(self, state: Any, starts: HostArray) -> HostArray:
        """Runs the probability flow from each of `(n, dim)` starts, `(n, K + 1, dim)`."""
        return _in_pieces(lambda piece: self._follow(state, piece), starts, CHUNK)


def _simulate(experiment: Experiment, state: Any, key: Key, backward: bool) -> Paths:
    forward_params = experiment.forward_params(state)
    backward_params = experiment.backward_params(state)
    start_key, path_key = jax.random.split(key)
    if backward:
        process, params, end = experiment.backward, backward_params, experiment.target
    else:
        process, params, end = experiment.forward, forward_params, experiment.source
    starts = endpoints.sampler(end)(start_key, CHUNK)

    keys = jax.random.split(path_key, CHUNK)
    paths = jax.vmap(rollouts.simulate, (0, None, None, 0))(keys, process, params, starts)
    forward, reference = (experiment.forward, forward_params), (experiment.reference, None)
    return Paths(
        paths=paths,
        step_kls=rollouts.step_kl_divergences(*forward, *reference, paths),
        log_forward=rollouts.log_density(*forward, paths),
        log_backward=rollouts.log_density(experiment.backward, backward_params, paths),
        log_reference=rollouts.log_density(*reference, paths),
    )


def _weigh(experiment: Experiment, state: Any, key: Key) -> Weighted:
    """Sequential Monte Carlo from the reference's marginals to the target, geometrically."""
    source, grid, moments = experiment.source, experiment.grid, isotropic_moments(experiment)
    if moments is None:
        raise ValueError(f"source {source.name!r}: must be a Gaussian of one variance")
    along = references.gaussian_marginals(
        experiment.law, grid, mean=jnp.asarray(moments[0], jnp.float32), variance=moments[1]
    )

    def log_marginals(k: Array, x: Array) -> Array:
        return along(jnp.broadcast_to(x, (grid.num_steps + 1, *x.shape)))[k]

    log_target = endpoints.log_density(experiment.target)
    log_densities = geometric_path(log_marginals, log_target, grid.times / grid.t_max)
    start_key, path_key = jax.random.split(key)
    return sequential_monte_carlo(
        path_key,
        (experiment.forward, experiment.backward),
        (experiment.forward_params(state), experiment.backward_params(state)),
        endpoints.sampler(source)(start_key, WEIGHTED),
        log_densities,
    )


def isotropic_moments(experiment: Experiment) -> tuple[HostArray, float] | None:
    """Mean and variance of the source; None unless it is a Gaussian of one variance."""
    if experiment.source.moments is None:
        return None
    mean, covariance = experiment.source.moments
    variance = float(covariance[0, 0])
    one = np.allclose(covariance, variance * np.eye(len(mean)), atol=1e-6 * variance)
    return (mean, variance) if one else None


def kernel_drift(experiment: Experiment, state: Any, step: kernels.Step, x: Array) -> Array:
    """(E[x_{k+1} | x_k] - x_k) / Δ_k of the forward process at one point, `(dim,)`."""
    law = experiment.forward.kernel(experiment.forward_params(state), x, step)
    return (law.mean - x) / step.length


def _log_ratios(experiment: Experiment, state: Any, paths: Array) -> Array:
    log_forward = rollouts.log_density(
        experiment.forward, experiment.forward_params(state), paths
    )
    return log_forward - rollouts.log_density(experiment.reference, None, paths)


def _drifts(experiment: Experiment, state: Any, paths: Array) -> Array:
    at_steps = jax.vmap(functools.partial(kernel_drift, experiment, state))
    return jax.vmap(lambda path: at_steps(experiment.forward.steps, path[:-1]))(paths)


def _continue(experiment: Experiment, state: Any, key: Key, starts: Array) -> Array:
    params = experiment.forward_params(state)

    def one(key: Key, x: Array) -> Array:
        return rollouts.simulate(key, experiment.forward, params, x)[-1]

    return jax.vmap(one)(jax.random.split(key, len(starts)), starts)


def _follow(experiment: Experiment, state: Any, starts: Array) -> Array:
    """Paths of the probability flow, by a step of Heun's method for each of the grid's."""
    run = functools.partial(
        flows.probability_flow, velocity(experiment, state), grid=experiment.grid
    )
    return jax.vmap(run)(starts)


def velocity(experiment: Experiment, state: Any) -> flows.Velocity:
    """That of the probability flow: what is learned, or what both processes give together."""
    if experiment.flow is not None:
        return experiment.flow(state)
    return flows.process_velocity(
        (experiment.forward, experiment.backward),
        (experiment.forward_params(state), experiment.backward_params(state)),
        experiment.grid,
    )


def _in_pieces(function: Callable, rows: HostArray, size: int) -> Any:
    """A function of `size` rows, applied to any number of them; float64 on the host."""
    padded = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % size, axis=0)])
    pieces = [function(_single(piece)) for piece in padded.reshape(-1, size, *rows.shape[1:])]
    return jax.tree.map(
        lambda *leaves: np.concatenate(leaves)[: len(rows)].astype(np.float64), *pieces
    )


def _in_chunks(simulate: Callable, state: Any, key: Key, n: int) -> Paths:
    keys = jax.random.split(key, -(-n // CHUNK))
    chunks = [jax.tree.map(np.asarray, simulate(state, k)) for k in keys]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n].astype(np.float64), *chunks)


def exact_bridge(experiment: Experiment) -> ExactBridge | None:
    """The true bridge where it is known: a pair's, of Gaussians, of densities in 1-D or 2-D."""
    if experiment.bridge is not None:
        return experiment.bridge
    if experiment.observed is not None or not experiment.has_bridge:
        return None  # What is sought joins more than the two ends, or not at the least cost.
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
    return pinned_paths(experiment, path_key, *bridge.sample_plan(host_generator(plan_key), n))


def pinned_paths(experiment: Experiment, key: Key, x_0: HostArray, x_1: HostArray) -> HostArray:
    """Paths of the reference pinned at both ends, `(n, num_steps + 1, dim)`."""
    keys = jax.random.split(key, len(x_0))
    paths = _draw_pinned(keys, experiment.law, *map(_single, (x_0, x_1)), experiment.grid)
    return np.asarray(paths, np.float64)


_draw_pinned = jax.jit(
    jax.vmap(references.pinned_path, (0, None, 0, 0, None)), static_argnums=1
)


def host_log_density(end: Endpoint) -> Callable[[HostArray], HostArray]:
    """An end's log-density on batches of host points `(n, dim)`."""
    batched = jax.jit(jax.vmap(endpoints.log_density(end)))

    def log_density(x: HostArray) -> HostArray:
        return np.asarray(batched(_single(x)), np.float64)

    return log_density


def log_weights(experiment: Experiment, paths: Paths) -> HostArray | None:
    """Log-weights of paths: log [R(τ | x_K) p̃_1(x_K)] - log [p_0(x_0) P(τ | x_0)], `(n,)`.

    None where an end has no log-density, paths have no density worth the name, or what runs
    backward is no reversal.
    """
    source, target = experiment.source, experiment.target
    if source.log_density is None or target.log_density is None:
        return None
    if not experiment.has_noise or not experiment.has_reversal:
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


def evidence_metrics(
    experiment: Experiment, forward: Paths, backward: Paths | None
) -> dict[str, Any]:
    """Bounds and estimates of the target's log Z, and the effective sample size.

    The upper bound needs paths of the backward process, and so samples of the target.
    """
    weights = log_weights(experiment, forward)
    if weights is None:
        return {}
    upper = None if backward is None else log_weights(experiment, backward)
    true, importance = experiment.target.log_z, metrics.log_z_importance(weights)
    return {
        "log_z_lower": metrics.log_z_lower(weights),
        "log_z_upper": None if upper is None else metrics.log_z_upper(upper),
        "log_z_importance": importance,
        "log_z_true": true,
        "log_z_error": None if true is None else abs(importance.value - true),
        "ess": metrics.effective_sample_size(weights),
    }


def true_ends(experiment: Experiment, key: Key, n: int) -> HostArray:
    """True samples of the target, for metrics alone, `(n, dim)`."""
    return np.asarray(endpoints.sampler(experiment.target)(key, n), np.float64)


def gaussian_metrics(experiment: Experiment, forward: Paths, bridge: Any) -> dict[str, float]:
    """How far the forward paths' moments are from those of a Gaussian bridge.

    The worst moment of the marginals and of the coupling in units of what is allowed, see
    `d2ejax.metrics.moment_error`, and the KL of Gaussian fits to the marginals, the mean over
    the times of the grid, see `d2ejax.metrics.fitted_kl`. Empty for other bridges.
    """
    if not isinstance(bridge, GaussianBridge):
        return {}
    paths = forward.paths
    exact = [bridge.marginal(float(t)) for t in np.asarray(experiment.grid.times, np.float64)]
    errors = [metrics.moment_error(paths[:, k], *law) for k, law in enumerate(exact)]
    ends = np.concatenate([paths[:, 0], paths[:, -1]], axis=1)
    found = {
        "marginal_moment_error": max(errors),
        "coupling_moment_error": metrics.moment_error(ends, *bridge.plan),
    }
    if len(paths) > paths.shape[-1]:
        fits = [metrics.fitted_kl(paths[:, k], *law) for k, law in enumerate(exact)]
        found["marginal_kl"] = float(np.mean([fit.value for fit in fits]))
        # The marginals are of the same paths: at most as certain as one of them.
        found["marginal_kl_standard_error"] = float(fits[-1].standard_error)
    return found


def host_generator(key: Key) -> np.random.Generator:
    """A generator of the host's, seeded by a key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _single(x: HostArray) -> Array:
    return jnp.asarray(x, jnp.float32)
