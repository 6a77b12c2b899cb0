"""What a run leaves behind: metrics for its summary, plots, samples."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2ejax import plotting
from d2ejax.exact.base import ExactBridge, HostArray
from d2ejax.metrics import Estimate
from d2ejax.typing import Key
from experiments import diagnosis, ends, graphs, interpolation, judge, sampling, workdir
from experiments.build import Experiment
from experiments.errors import InputError
from experiments.judge import Judge, Paths

_PLOTTED = 2000
_DRIFT_POINTS = 24


def evaluate(config: ConfigDict, judged: Judge, state: Any, directory: Path) -> dict[str, Any]:
    """Judges a trained bridge and, unless told not to, draws its plots.

    Args:
        config: The run's config.
        judged: The experiment's judge.
        state: The trained state, of one device.
        directory: The workdir; plots go to its folder of that name.

    Returns:
        Fields of the summary; an estimate's standard error stands beside it.
    """
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 8)
    experiment, bridge, settings = judged.experiment, judged.bridge, config.evaluate
    forward = judged.forward(state, keys[0], max(settings.num_paths, settings.num_samples))
    backward = None
    if experiment.target.sample is not None and experiment.has_reversal:
        backward = judged.backward(state, keys[1], settings.num_paths)
    # Without noise paths have no densities, and null stands for all that is made of these.
    noisy = experiment.has_noise
    found: dict[str, Any] = {
        **(judge.bridge_metrics(forward, bridge) if noisy else {}),
        **judge.evidence_metrics(experiment, forward, backward),
        **sampling.sample_metrics(experiment, forward, keys[2], settings),
        **judge.gaussian_metrics(experiment, forward, bridge),
    }
    if experiment.observed is not None:
        found |= interpolation.snapshot_metrics(
            experiment, state, forward, keys[3], settings.num_samples
        )
        found |= graphs.graph_metrics(experiment, state, keys[5])
    if settings.smc:
        found |= sampling.smc_metrics(judged, state, keys[7])
    has_flow = experiment.target.sample is not None and experiment.has_reversal
    if settings.flow and has_flow:
        found |= sampling.flow_metrics(judged, state, forward, keys[2], settings.num_samples)
    if experiment.measure is not None:
        found |= experiment.measure(jax.random.fold_in(keys[6], 1), state, forward.paths)
    if bridge is not None:
        found["path_kl_optimal"] = bridge.path_kl
        found["transport_cost_optimal"] = bridge.transport_cost
        if noisy:
            found |= diagnosis.split(
                judged, bridge, state, forward, keys[3], learn_variance=config.learn_variance
            )
            found |= diagnosis.drift_error(judged, bridge, state, keys[5])
        found |= diagnosis.plan_metrics(judged, bridge, state, forward, keys[6])
    fields = _flat(found)
    fields["skipped_steps"] = int(state.skipped)
    fields["effective_anchors"] = _last(directory, int(state.step), "anchors")
    fields["closed_form"] = _last(directory, int(state.step), "closed_form")
    if settings.plots:
        _draw(config, experiment, state, keys[4], bridge, forward, fields, directory)
    return fields


def write_samples(
    config: ConfigDict,
    judged: Judge,
    state: Any,
    num_samples: int,
    output: Path,
    *,
    along: str = "forward",
) -> None:
    """Writes paths of the forward process, started in the source, to an .npz file.

    Or of the backward process, started in the target, or of the probability flow. Arrays, in
    the order of time: times (K+1,), paths (N, K+1, dim), x0 and x1 (N, dim), log_forward,
    log_backward, log_reference (N,) and log_weights (N,): the last NaN where an end has no
    log-density, that and log_backward where no reversal is known, and all of them for a flow,
    whose paths have none.

    Args:
        config: The run's config.
        judged: The experiment's judge.
        state: The trained state, of one device.
        num_samples: N.
        output: The file.
        along: "forward", "backward" or "flow".

    Raises:
        InputError: If the paths would start in a target that has no samples, or a reversal is
            asked for that is not known.
    """
    key, experiment = jax.random.fold_in(jax.random.key(config.seed), 2), judged.experiment
    if along == "backward" and experiment.target.sample is None:
        raise InputError(
            "--along=backward: must be forward or flow: the target "
            f"{experiment.target.name!r} has no samples to start from"
        )
    if along != "forward" and not experiment.has_reversal:
        raise InputError(
            f"--along={along}: must be forward: of what is fine-tuned from a bridge, or with "
            "fine_tuning.noise < 1, the reversal is not known"
        )
    found = (judged.backward if along == "backward" else judged.forward)(
        state, key, num_samples
    )
    undefined = np.full(num_samples, np.nan)
    if along == "flow":
        # From the starts of the forward paths; their densities are of no use to it.
        paths = judged.flow_paths(state, found.paths[:, 0])
        found = judge.Paths(paths, None, undefined, undefined, undefined)
    weights = None if along == "flow" else judge.log_weights(experiment, found)
    noisy = experiment.has_noise
    known = {
        "log_forward": noisy,
        "log_backward": noisy and experiment.has_reversal,
        "log_reference": noisy,
    }
    arrays = {
        "times": experiment.grid.times,
        "paths": found.paths,
        "x0": found.paths[:, 0],
        "x1": found.paths[:, -1],
        **{name: getattr(found, name) if is_ else undefined for name, is_ in known.items()},
        "log_weights": undefined if weights is None else weights,
    }
    single: dict[str, Any] = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
    np.savez(output, **single)


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    """JSON numbers; an estimate becomes its value and `<name>_standard_error`."""
    fields: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Estimate):
            fields[name] = float(value.value)
            fields[f"{name}_standard_error"] = float(value.standard_error)
        else:
            fields[name] = float(value) if isinstance(value, np.floating) else value
    return fields


def _draw(
    config: ConfigDict,
    experiment: Experiment,
    state: Any,
    key: Key,
    bridge: ExactBridge | None,
    forward: Paths,
    fields: dict[str, Any],
    directory: Path,
) -> None:
    times, learned = np.asarray(experiment.grid.times, np.float64), forward.paths[:_PLOTTED]
    exact = None
    if bridge is not None:
        exact = judge.exact_paths(experiment, bridge, key, _PLOTTED)
    exact_ends = (None, None) if exact is None else (exact[:, 0], exact[:, -1])
    optimal = {
        "path_kl": fields.get("path_kl_optimal"),
        "bridge_gap": fields.get("bridge_gap_limit"),
    }
    records = [
        {**record, "gradient_steps": record["step"], "phase": record["phase"].split()[0]}
        for record in workdir.read_records(directory, int(state.step))
    ]
    names = (experiment.source.name, experiment.target.name)
    figures = {
        "marginals": plotting.marginals(times, learned, exact),
        "paths": plotting.sample_paths(times, learned, exact),
        "coupling": plotting.coupling(learned[:, 0], learned[:, -1], *exact_ends),
        "drift": _drift_figure(experiment, state, bridge, forward),
        "training": _training_figure(records, optimal),
        "snapshots": interpolation.figure(
            experiment, forward, key, fields.get("snapshots", [])
        ),
        "graph": graphs.figure(experiment, fields),
        "overview": plotting.overview(
            times,
            learned,
            exact,
            numbers=_headline_numbers(fields),
            title=f"{names[0]} to {names[1]}".replace("_", " "),
            source=names[0].replace("_", " "),
            target=names[1].replace("_", " "),
        ),
    }
    if config.target.name == ends.IMAGE_CLASS:
        from experiments import translations

        figures |= translations.figures(config, times, learned)
    folder = directory / workdir.PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        if figure is not None:
            plotting.save(figure, folder / f"{name}.png")
    plotting.animation(times, learned, path=folder / "transport.gif")


def _last(directory: Path, step: int, name: str) -> float | None:
    """The newest recorded value of a metric, None if it has none."""
    values = [record.get(name) for record in workdir.read_records(directory, step)]
    return next((value for value in reversed(values) if value is not None), None)


def _training_figure(records: list[dict[str, Any]], optimal: dict[str, float | None]) -> Any:
    """None for a run without a single finite value to draw."""
    tracked = ("loss", *optimal)
    if all(record.get(name) is None for record in records for name in tracked):
        return None
    return plotting.training_curves(records, optimal)


def _headline_numbers(fields: dict[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    pairs = {
        "path KL": ("path_kl", "path_kl_optimal"),
        "W2²": ("w2_squared", "w2_squared_floor"),
        "transport cost": ("transport_cost", "transport_cost_optimal"),
    }
    first: tuple[str, float | None, float | None] = (
        "bridge gap [nats]",
        fields.get("bridge_gap"),
        0.0,
    )
    if fields.get("reward") is not None:
        first = "mean reward [nats]", fields["reward"], fields.get("reward_exact")
    elif fields.get("bridge_gap") is None and fields.get("log_z_error") is not None:
        first = "log Z error [nats]", fields["log_z_error"], 0.0
    if "w1_left_out_floor" in fields:
        found = fields.get("w1_left_out", fields["w1_left_out_ode"])
        first = "W1, left out", found, fields["w1_left_out_floor"]
    return {first[0]: first[1:]} | {
        label: (fields.get(a), fields.get(b)) for label, (a, b) in pairs.items()
    }


def _drift_figure(
    experiment: Experiment, state: Any, bridge: ExactBridge | None, forward: Paths
) -> Any:
    """Learned and exact drift on a lattice at a few times of the grid; 2-D only."""
    if experiment.source.dim != 2:
        return None
    times = np.asarray(experiment.grid.times, np.float64)
    chosen = np.unique(np.linspace(0, len(times) - 2, 4).round().astype(int))
    low, high = np.quantile(forward.paths.reshape(-1, 2), [0.002, 0.998], axis=0)
    axes = [np.linspace(a, b, _DRIFT_POINTS) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    steps = jax.tree.map(lambda leaf: leaf[chosen], experiment.forward.steps)
    drift = functools.partial(judge.kernel_drift, experiment, state)
    over_points = jax.vmap(drift, in_axes=(None, 0))
    learned = jax.jit(jax.vmap(over_points, in_axes=(0, None)))(
        steps, jnp.asarray(points, jnp.float32)
    )
    exact = None
    if bridge is not None:
        exact = np.stack([bridge.drift(points, float(times[k])) for k in chosen])
    weights = np.stack([_mass(forward.paths[:, k], axes) for k in chosen])
    return plotting.drift_field(
        times[chosen], points, np.asarray(learned), exact, weights=weights
    )


def _mass(points: HostArray, axes: list[HostArray]) -> HostArray:
    """How many points lie nearest to each lattice point, smoothed over its neighbours."""
    from scipy.ndimage import gaussian_filter

    middles = [np.concatenate([[-np.inf], (a[1:] + a[:-1]) / 2, [np.inf]]) for a in axes]
    counts, _ = np.histogramdd(points, bins=middles)
    return gaussian_filter(counts, 1.0).reshape(-1)
