"""Judging a bridge through snapshots: by each of them, and by the one left out above all."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax import flows, metrics, plotting, rollouts
from d2ejax.endpoints import base as endpoints
from d2ejax.exact.base import HostArray
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Key
from experiments import judge
from experiments.build import Experiment
from experiments.judge import Paths
from experiments.wiring import Observed

Move = Callable[[Key | None, HostArray, tuple[int, int]], HostArray]
"""Maps a key, or None for the probability flow, starts `(n, dim)` and two points of the grid to
the way from one to the other, `(n, steps + 1, dim)`."""

_DRAWN = 1500


def snapshot_metrics(
    experiment: Experiment, state: Any, forward: Paths, key: Key, num_samples: int
) -> dict[str, Any]:
    """W₁ of the learned marginals to true samples, at the time of each snapshot but the first.

    "w1" is of the process started in true samples of the trained snapshot before, as is
    published of snapshots that were left out; "w1_from_start" is of paths from the source. With
    "_ode" both are of the probability flow, which is all that there is without noise. The floor
    is the distance of two sets of true samples.

    Args:
        experiment: What was trained.
        state: Its state, of one device.
        forward: Paths of its forward process.
        key: A typed key.
        num_samples: Points in each set.

    Returns:
        Nothing without snapshots. Else "snapshots", a dict for each, and what `_left_out` has.
    """
    observed = experiment.observed
    if observed is None:
        return {}
    *sample_keys, path_key = jax.random.split(key, 3)
    starts, true = (_draw(observed, k, num_samples) for k in sample_keys)
    move, rows = _mover(experiment, state), []
    whole = move(None, starts[0], (0, observed.knots[-1]))
    for i, label in enumerate(observed.snapshots.labels[1:], start=1):
        before = observed.before(i)
        leg = observed.knots[before], observed.knots[i]
        ends = {
            "w1_ode": move(None, starts[before], leg)[:, -1],
            "w1_from_start_ode": whole[:, leg[1]],
            "w1_floor": starts[i],
        }
        if experiment.has_noise:
            ends["w1"] = move(jax.random.fold_in(path_key, i), starts[before], leg)[:, -1]
            ends["w1_from_start"] = forward.paths[:num_samples, leg[1]]
        found = {name: metrics.w1(x, true[i]) for name, x in ends.items()}
        rows.append({"label": label, "left_out": i == observed.left_out, **found})
    return {"snapshots": rows} | _left_out(observed, rows, starts, true, move)


def _left_out(
    observed: Observed,
    rows: list[dict[str, Any]],
    starts: list[HostArray],
    true: list[HostArray],
    move: Move,
) -> dict[str, float]:
    """What holds of the snapshot left out, by name.

    Beside its distances those of the "previous" and the "next" trained snapshot, and of points
    on the "straight" lines between these, optimally assigned: what there is without training.
    Of individuals that were followed the root mean square distance by which the flow misses
    them, "track_error", and that of "staying" and of "straight" lines.
    """
    i = observed.left_out
    if i is None:
        return {}
    found = {
        f"w1_left_out{name.removeprefix('w1')}": value
        for name, value in rows[i - 1].items()
        if name.startswith("w1")
    }
    before, after, times = observed.before(i), observed.after(i), observed.snapshots.times
    share = (times[i] - times[before]) / (times[after] - times[before])
    between = functools.partial(metrics.displacement_interpolation, share=share)
    for name, points in (
        ("previous", starts[before]),
        ("next", starts[after]),
        ("straight", between(starts[before], starts[after])),
    ):
        found[f"w1_left_out_{name}"] = metrics.w1(points, true[i])
    tracks = observed.snapshots.tracks
    if tracks is not None:
        leg = observed.knots[before], observed.knots[i]
        for name, points in (
            ("", move(None, tracks[:, before], leg)[:, -1]),
            ("_staying", tracks[:, before]),
            ("_straight", between(tracks[:, before], tracks[:, after])),
        ):
            squares = np.sum((points - tracks[:, i]) ** 2, axis=1)
            found[f"track_error{name}"] = float(np.mean(squares) ** 0.5)
    return found


def _draw(observed: Observed, key: Key, n: int) -> list[HostArray]:
    """True samples of every snapshot, `(n, dim)` each."""
    marginals = observed.snapshots.marginals
    return [
        np.asarray(endpoints.sampler(end)(k, n), np.float64)
        for end, k in zip(marginals, jax.random.split(key, len(marginals)), strict=True)
    ]


def _mover(experiment: Experiment, state: Any) -> Move:
    """Runs the forward process or the probability flow over a part of the grid.

    Compiled once for each number of steps, wherever they begin.
    """

    @functools.partial(jax.jit, static_argnums=3)
    def simulate(state: Any, keys: Key, starts: Array, length: int, first: Array) -> Array:
        process, params = experiment.forward, experiment.forward_params(state)
        steps = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, length), process.steps
        )
        part = process._replace(steps=steps)
        return jax.vmap(rollouts.simulate, (0, None, None, 0))(keys, part, params, starts)

    @functools.partial(jax.jit, static_argnums=2)
    def follow(state: Any, starts: Array, length: int, first: Array) -> Array:
        times = jax.lax.dynamic_slice_in_dim(experiment.grid.times, first, length + 1)
        velocity = judge.velocity(experiment, state)
        run = functools.partial(flows.probability_flow, velocity, grid=TimeGrid(times))
        return jax.vmap(run)(starts)

    def move(key: Key | None, starts: HostArray, leg: tuple[int, int]) -> HostArray:
        x, first, length = jnp.asarray(starts, jnp.float32), leg[0], leg[1] - leg[0]
        if key is None:
            return np.asarray(follow(state, x, length, first), np.float64)
        keys = jax.random.split(key, len(starts))
        return np.asarray(simulate(state, keys, x, length, first), np.float64)

    return move


def figure(experiment: Experiment, forward: Paths, key: Key, rows: list[dict[str, Any]]) -> Any:
    """The snapshots above the learned marginals, each with its W₁; None without snapshots."""
    observed = experiment.observed
    if observed is None:
        return None
    notes = [""]
    for row in rows:
        name = "w1_from_start" if experiment.has_noise else "w1_from_start_ode"
        notes.append(f"W₁ {row[name]:.3f} (floor {row['w1_floor']:.3f})")
    return plotting.snapshots(
        np.asarray(experiment.grid.times, np.float64),
        forward.paths[:_DRAWN],
        _draw(observed, key, _DRAWN),
        observed.knots,
        labels=observed.snapshots.labels,
        left_out=observed.left_out,
        notes=notes,
    )
