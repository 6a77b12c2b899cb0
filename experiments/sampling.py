"""Judging samples: their distances from true ones, and log Z by resampled paths."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from d2ejax import metrics
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.endpoints.particle_systems import to_positions
from d2ejax.exact.base import HostArray
from d2ejax.metrics import Estimate
from d2ejax.typing import Key
from experiments.build import Experiment
from experiments.judge import Judge, Paths, host_log_density, isotropic_moments, true_ends

RUNS = 8
"""Runs of sequential Monte Carlo, from whose spread comes the standard error of log Z."""

_FLOOR_PAIRS = 3
"""The sampling floor of W2² varies several-fold from one pair of sample sets to the next."""

_MANY_SAMPLES = 5000
"""From here on it varies little, and a pair takes a minute: one will do."""

_CONFIGURATIONS = 1000
"""Configurations of particles that are compared up to symmetries, as in what is published."""

_FEW_PARTICLES = 4
"""Up to here all permutations of particles take seconds."""


def sample_metrics(
    experiment: Experiment, forward: Paths, key: Key, settings: ConfigDict
) -> dict[str, Any]:
    """Distances of the end of the forward process from true samples of the target.

    Args:
        experiment: The experiment.
        forward: Paths of the forward process.
        key: A typed key.
        settings: The section `evaluate`.
    """
    ends = forward.paths[:, -1]
    target, transport = experiment.target, metrics.transport_cost(forward.paths[:, 0], ends)
    if target.sample is None:
        return {"transport_cost": transport}
    true_key, floor_key, direction_key = jax.random.split(key, 3)
    num_samples = settings.num_samples
    found, true = ends[:num_samples], true_ends(experiment, true_key, num_samples)
    floor_keys = jax.random.split(
        floor_key, 1 if num_samples >= _MANY_SAMPLES else _FLOOR_PAIRS
    )
    values = {
        "w2_squared": metrics.w2_squared(found, true),
        "w2_squared_floor": np.mean(
            [
                metrics.w2_squared_floor(k, endpoints.sampler(target), num_samples)
                for k in floor_keys
            ]
        ),
        "sliced_w2_squared": metrics.sliced_w2_squared(direction_key, found, true),
        "mmd_squared": metrics.mmd_squared(found, true),
        "transport_cost": transport,
    }
    if target.modes is not None and target.mode_weights is not None:
        weights = metrics.mode_weights(ends, target.modes)
        values["mode_coverage"] = metrics.mode_coverage(weights, target.mode_weights)
        values["mode_weights"] = [round(float(w), 4) for w in weights]
    # What a perfect sampler would score, beside the distances that mean little alone.
    other = true_ends(experiment, floor_keys[0], num_samples)
    if target.log_density is not None:
        values |= _energy_metrics(target, found, true, other)
    if target.particles is not None:
        values |= _particle_metrics(target.particles, found, true, other)
    if settings.sinkhorn:
        values["sinkhorn"] = metrics.sinkhorn(found, true)
        values["sinkhorn_floor"] = metrics.sinkhorn(other, true)
    return values


def _energy_metrics(
    target: Endpoint, found: HostArray, true: HostArray, other: HostArray
) -> dict[str, float]:
    log_density = host_log_density(target)
    energies, true_energies, other_energies = (-log_density(x) for x in (found, true, other))
    return {
        "energy_distance": metrics.energy_distance(energies, true_energies),
        "energy_w2": metrics.energy_w2(energies, true_energies),
        "energy_w2_floor": metrics.energy_w2(other_energies, true_energies),
    }


def _particle_metrics(
    system: tuple[int, int], found: HostArray, true: HostArray, other: HostArray
) -> dict[str, float]:
    in_space = jax.jit(jax.vmap(lambda x: to_positions(x, *system)))
    found, true, other = (
        np.asarray(in_space(x), np.float64)[:_CONFIGURATIONS] for x in (found, true, other)
    )
    values = {
        "w2_geometric": metrics.w2_particles(found, true),
        "w2_geometric_floor": metrics.w2_particles(other, true),
        "distances_w2": metrics.distances_w2(found, true),
        "distances_w2_floor": metrics.distances_w2(other, true),
    }
    if system[0] <= _FEW_PARTICLES:
        values["w2_geometric_optimal"] = metrics.w2_particles(found, true, optimal=True)
    return values


def flow_metrics(
    judged: Judge, state: Any, forward: Paths, key: Key, num_samples: int
) -> dict[str, float]:
    """W2² of the ends of the probability flow, from the starts of the forward paths.

    To the same true samples as in `sample_metrics` with this key.
    """
    ends = judged.flow_paths(state, forward.paths[:num_samples, 0])[:, -1]
    true_key, _, _ = jax.random.split(key, 3)
    true = true_ends(judged.experiment, true_key, num_samples)
    return {"w2_squared_ode": metrics.w2_squared(ends, true)}


def smc_metrics(judged: Judge, state: Any, key: Key) -> dict[str, Estimate | float | None]:
    """Estimates log Z by independent runs of sequential Monte Carlo along the forward process.

    The densities in between go geometrically from the marginals of the reference, started in
    the source, to the target. Each run's mean weight is an unbiased estimate of Z, and of Z is
    the mean over runs; the effective sample size is that of a run's last weights, the mean over
    runs. See `d2ejax.sequential_monte_carlo`.

    Empty unless the source is a Gaussian with one variance and the target has an energy.

    Args:
        judged: The experiment's judge.
        state: The trained state, of one device.
        key: A typed key.
    """
    experiment = judged.experiment
    if not (experiment.has_noise and experiment.has_reversal):
        return {}
    if isotropic_moments(experiment) is None:
        return {}
    if experiment.target.log_density is None:
        return {}
    runs = [judged.weighted(state, k) for k in jax.random.split(key, RUNS)]
    estimate = metrics.log_z_importance([float(run.log_z) for run in runs])
    true = experiment.target.log_z
    return {
        "log_z_smc": estimate,
        "log_z_error_smc": None if true is None else abs(estimate.value - true),
        "ess_smc": float(np.mean([float(run.effective[-1]) for run in runs])),
    }
