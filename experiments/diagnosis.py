"""What an exact bridge tells beyond the gap: where it comes from, drifts, conditional plans."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from d2ejax import metrics
from d2ejax.endpoints import base as endpoints
from d2ejax.exact import ExactBridge, MatchedChain, PlanBridge
from d2ejax.exact.base import HostArray
from d2ejax.metrics import Estimate, TerminalKL
from d2ejax.typing import Key
from experiments import judge
from experiments.build import Experiment
from experiments.errors import one_line
from experiments.judge import Judge, Paths

_ENDS, _OTHERS = 512, 16
"""Ends of each process, and exact paths to each, behind its terminal divergence."""

_MOST_NUMBERS = 2**25
"""In all of these paths together; in many dimensions there are fewer ends."""

_DRIFT_PATHS = judge.SCORED
_ALL_DRAWS, _FEWEST_STARTS = 2**14, 16
"""Ends behind the conditional plan's moments, in few dimensions, and starts in many."""

_FEWEST_DRAWS, _DRAWS_PER_AXIS = 256, 8
"""Ends from each start: so many per axis, or true draws would score tens of per cent."""


def split(
    judged: Judge,
    bridge: ExactBridge,
    state: Any,
    forward: Paths,
    key: Key,
    *,
    learn_variance: bool,
) -> dict[str, Estimate]:
    """The bridge gap as a sum of three parts, and the limit of the grid.

    - gap_discretisation, also bridge_gap_limit: the gap of K Gaussian kernels matched to the
      true bridge's moments, what such a chain can be expected to reach. (Matching moments
      minimises the divergence the other way round: a trained chain may end slightly below.)
    - gap_terminal: KL(P_T || p_1) of the trained process, less that of the matched one.
    - gap_path: the rest, a wrong plan or wrong kernels given the end.

    Any of the last two may be negative. terminal_kl and its bounds are of the trained process
    alone, terminal_kl_limit of the matched one. Only the limit is left where the exact bridge
    cannot be sampled given its end, or the trained process diverged.

    Args:
        judged: The experiment's judge.
        bridge: The exact bridge.
        state: The trained state, of one device.
        forward: Paths of the trained forward process.
        key: A typed key.
        learn_variance: Whether kernels learn their variance, and the limit's may.

    Returns:
        Estimates by name.
    """
    matched_key, *keys = jax.random.split(key, 3)
    experiment = judged.experiment
    chain = MatchedChain(
        bridge,
        experiment.law,
        experiment.grid.times,
        variance="learned" if learn_variance else "fixed",
    )
    limit, paths, log_ratios = _run(chain, experiment, matched_key, len(forward.paths))
    found = {"bridge_gap_limit": limit}

    trained_ratios = forward.log_forward - forward.log_reference
    gap = metrics.bridge_gap(trained_ratios, *_potentials(bridge, forward.paths))
    terminal_kl = functools.partial(_terminal, experiment, bridge)
    score = functools.partial(judged.log_ratios, state)
    trained = terminal_kl(forward.paths, trained_ratios, gap, score, keys[0])
    if trained is None:
        return found
    matched = terminal_kl(paths, log_ratios, limit, chain.log_ratios, keys[1])
    if matched is None:
        return found
    terminal = _difference(trained.middle, matched.middle)
    return found | {
        "gap_discretisation": limit,
        "gap_terminal": terminal,
        "gap_path": _difference(_difference(gap, limit), terminal),
        "terminal_kl": trained.middle,
        "terminal_kl_lower": trained.lower,
        "terminal_kl_upper": trained.upper,
        "terminal_kl_limit": matched.middle,
    }


def drift_error(
    judged: Judge, bridge: ExactBridge, state: Any, key: Key
) -> dict[str, Estimate]:
    """The relative squared error of the kernels' drifts along paths of the true bridge.

    Held against the mean of the true bridge's own step, not against its instantaneous drift.
    """
    paths = judge.exact_paths(judged.experiment, bridge, key, _DRIFT_PATHS)
    times = np.asarray(judged.experiment.grid.times, np.float64)
    steps = np.diff(times)
    exact = [
        (bridge.step_moments(paths[:, k], times[k], times[k + 1])[0] - paths[:, k]) / step
        for k, step in enumerate(steps)
    ]
    learned = np.swapaxes(judged.drifts(state, paths), 0, 1)
    return {"drift_error": metrics.drift_error(learned, np.stack(exact), steps)}


def plan_metrics(
    judged: Judge, bridge: ExactBridge, state: Any, forward: Paths, key: Key
) -> dict[str, Any]:
    """BW²-UVP of the ends and of the conditional plan; empty where that plan is not known.

    conditional_bw_uvp_floor is what true draws score in the same numbers. Draws from each start
    grow in number with the dimension, so that it stays below about 7 per cent.
    """
    if not isinstance(bridge, PlanBridge):
        return {}
    plan_key, end_key = jax.random.split(key)
    num_draws = max(_FEWEST_DRAWS, _DRAWS_PER_AXIS * bridge.source.dim)
    num_starts = max(_FEWEST_STARTS, _ALL_DRAWS // num_draws)
    rng = judge.host_generator(plan_key)
    starts = bridge.sample_plan(rng, num_starts)[0]
    # Float32, as the trained process will see them.
    starts = starts.astype(np.float32).astype(np.float64)
    means, covariances = bridge.conditional_moments(starts)
    mean, covariance = bridge.target_moments()
    plan = bridge.conditional_plan(starts)
    draws = {
        "conditional_bw_uvp": judged.ends(
            state, end_key, np.repeat(starts, num_draws, axis=0)
        ).reshape(num_starts, num_draws, -1),
        "conditional_bw_uvp_floor": np.stack(
            [plan.sample(rng)[0] for _ in range(num_draws)], axis=1
        ),
    }
    found: dict[str, Any] = {
        name: metrics.conditional_bw_uvp(ends, means, covariances, float(np.trace(covariance)))
        for name, ends in draws.items()
    }
    return found | {"bw_uvp": metrics.bw_uvp(forward.paths[:, -1], mean, covariance)}


def _run(
    chain: MatchedChain, experiment: Experiment, key: Key, n: int
) -> tuple[Estimate, HostArray, HostArray]:
    """The bridge gap of n paths of the matched chain; the first of them, their log-ratios."""
    start_key, chain_key = jax.random.split(key)
    rng = judge.host_generator(chain_key)
    starts = np.asarray(endpoints.sampler(experiment.source)(start_key, n), np.float64)
    first, summands = None, []
    # In pieces: in many dimensions all paths together would not fit.
    for piece in np.array_split(starts, -(-n // judge.CHUNK)):
        paths, log_ratios = chain.simulate(rng, piece)
        first = (paths, log_ratios) if first is None else first
        summands.append((log_ratios, *_potentials(chain.bridge, paths)))
    assert first is not None
    return metrics.bridge_gap(*map(np.concatenate, zip(*summands, strict=True))), *first


def _terminal(
    experiment: Experiment,
    bridge: ExactBridge,
    paths: HostArray,
    log_ratios: HostArray,
    gap: Estimate,
    score: Callable[[HostArray], HostArray],
    key: Key,
) -> TerminalKL | None:
    """The terminal divergence of a process, from its paths and its score of others.

    Args:
        experiment: The experiment.
        bridge: The exact bridge.
        paths: Of the process, `(n, num_steps + 1, dim)`.
        log_ratios: Their log-densities less the reference's, `(n,)`.
        gap: Their bridge gap.
        score: Gives the same of other paths.
        key: A typed key.

    Returns:
        The bounds; None if exact paths to the ends cannot be had.
    """
    most = max(2, min(_ENDS, _MOST_NUMBERS // (_OTHERS * paths[0].size)))
    paths, log_ratios = paths[:most], log_ratios[:most]
    if not np.isfinite(paths).all():
        return None
    start_key, path_key = jax.random.split(key)
    ends = np.repeat(paths[:, -1], _OTHERS, axis=0)
    try:
        starts = bridge.sample_starts(judge.host_generator(start_key), ends)
    except (ValueError, RuntimeError) as error:
        print(f"the bridge gap is not split: {one_line(error)}", file=sys.stderr)
        return None
    others = judge.pinned_paths(experiment, path_key, starts, ends)
    own = log_ratios - sum(_potentials(bridge, paths))
    weights = score(others) - sum(_potentials(bridge, others))
    return metrics.terminal_kl(own, weights.reshape(len(paths), _OTHERS), gap=gap)


def _potentials(bridge: ExactBridge, paths: HostArray) -> tuple[HostArray, HostArray]:
    return bridge.log_potentials(paths[:, 0], paths[:, -1])


def _difference(a: Estimate, b: Estimate) -> Estimate:
    """Of independent estimates; for positively correlated ones the error errs upwards."""
    return Estimate(a.value - b.value, float(np.hypot(a.standard_error, b.standard_error)))
