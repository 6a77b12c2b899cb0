"""Bridges through snapshots: what training sees of them, and what they are judged by."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import kernels, metrics, parallel, references
from d2ejax.endpoints import registry
from d2ejax.snapshots import SNAPSHOTS
from experiments import build, interpolation, judge, loop, report, summary, workdir
from experiments.errors import InputError
from tests.experiments import small

METHODS = ("sf2m", "cfm", "eot")
# Two steps from each of five snapshots to the next.
TINY = {"grid.num_steps": 8, "matching.coupling": "independent"}


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def shrunk(changes=None):
    return small.shrunk("branching", TINY | (changes or {}))


# ---- What training sees


def trace(experiment):
    """A step on one device, without compiling it."""
    mapped = functools.partial(
        jax.pmap, axis_name=parallel.AXIS, devices=jax.local_devices()[:1]
    )
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.eval_shape(mapped(experiment.algorithm.init), keys)
    jax.eval_shape(mapped(experiment.algorithm.step), state)


@pytest.mark.parametrize("method", METHODS)
def test_training_sees_every_snapshot_but_the_one_left_out(monkeypatch, method):
    original, seen = SNAPSHOTS["branching"], []

    def noted(index, end):
        def sample(key, n):
            seen.append(index)
            return end.sample(key, n)

        return end._replace(sample=sample)

    @functools.wraps(original)
    def watched(*args, **options):
        found = original(*args, **options)
        return found._replace(
            marginals=tuple(noted(i, end) for i, end in enumerate(found.marginals))
        )

    monkeypatch.setitem(SNAPSHOTS, "branching", watched)
    for left_out, expected in ((2, [0, 1, 3, 4]), (-1, [0, 1, 2, 3, 4])):
        seen.clear()
        trace(build.build(shrunk({"method": method, "snapshots.left_out": left_out})))
        assert sorted(seen) == expected


def test_the_grid_has_the_snapshots_among_its_points_and_legs_end_at_those_trained_on():
    experiment = build.build(shrunk({"grid.spacing": "end_refined", "snapshots.left_out": 3}))
    observed = experiment.observed
    assert observed.knots == (0, 2, 4, 6, 8) and observed.kept == (0, 1, 2, 4)
    assert (observed.before(3), observed.after(3)) == (2, 4)
    times = experiment.grid.times[np.asarray(observed.knots)]
    np.testing.assert_array_equal(times, np.float32([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert (experiment.source.name, experiment.target.name) == (
        "branching at 0",
        "branching at 1",
    )
    assert judge.Judge(experiment).bridge is None


# ---- What they are judged by


def moving():
    """An experiment in which all move by 2t a unit of time along the first axis."""

    def drift(params, x, t):
        return jnp.stack([2.0 * t, 0.0 * t]), jnp.zeros_like(x)

    experiment = build.build(shrunk())
    return experiment._replace(
        forward=kernels.process(drift, references.brownian(1e-6), experiment.grid),
        forward_params=lambda state: None,
        flow=lambda state: lambda x, t: drift(None, x, t)[0],
    )


N, KEY = 40, jax.random.key(4)
PATHS = np.random.default_rng(0).normal(size=(N, 9, 2))
TRACKS = np.random.default_rng(1).normal(size=(12, 5, 2))


@pytest.fixture(scope="module")
def judged():
    experiment = moving()
    # Any will do, and these need no simulation.
    marginals = tuple(registry.make_endpoint("gaussian", mean=[i, 0.0]) for i in range(5))
    snapshots = experiment.observed.snapshots._replace(marginals=marginals, tracks=TRACKS)
    experiment = experiment._replace(observed=experiment.observed._replace(snapshots=snapshots))
    forward = judge.Paths(PATHS, *4 * (None,))
    found = interpolation.snapshot_metrics(experiment, None, forward, KEY, N)
    starts, true = (
        interpolation._draw(experiment.observed, k, N) for k in jax.random.split(KEY, 3)[:2]
    )
    return found, starts, true


def shifted(x, by):
    return np.asarray(x) + np.asarray([by, 0.0])


def test_snapshots_are_reached_from_the_trained_one_before_and_from_the_source(judged):
    found, starts, true = judged
    rows = found["snapshots"]
    assert [row["label"] for row in rows] == ["t = 0.25", "t = 0.5", "t = 0.75", "t = 1"]
    assert [row["left_out"] for row in rows] == [False, True, False, False]
    for row, i, before in zip(rows, (1, 2, 3, 4), (0, 1, 1, 3), strict=True):
        t, s = i / 4, before / 4
        # Heun is exact for what is linear in time; Euler on steps of 1/8 falls short by 1/8 a
        # unit of time.
        expected = {
            "w1_ode": shifted(starts[before], t**2 - s**2),
            "w1_from_start_ode": shifted(starts[0], t**2),
            "w1": shifted(starts[before], t**2 - s**2 - (t - s) / 8),
            "w1_from_start": PATHS[:, 2 * i],
            "w1_floor": starts[i],
        }
        for name, points in expected.items():
            np.testing.assert_allclose(row[name], metrics.w1(points, true[i]), atol=2e-5)
        assert set(row) == {"label", "left_out", *expected}


def test_the_one_left_out_stands_beside_what_there_is_without_training(judged):
    found, starts, true = judged
    row = found["snapshots"][1]
    for name in ("", "_ode", "_from_start", "_from_start_ode", "_floor"):
        assert found[f"w1_left_out{name}"] == row[f"w1{name}"]
    straight = metrics.displacement_interpolation(starts[1], starts[3], 0.5)
    for name, points in (("previous", starts[1]), ("next", starts[3]), ("straight", straight)):
        assert found[f"w1_left_out_{name}"] == metrics.w1(points, true[2])


def test_individuals_that_were_followed_are_found_again_or_not(judged):
    found, _, _ = judged

    def miss(points):
        return np.sqrt(np.mean(np.sum((points - TRACKS[:, 2]) ** 2, axis=1)))

    straight = metrics.displacement_interpolation(TRACKS[:, 1], TRACKS[:, 3], 0.5)
    np.testing.assert_allclose(
        found["track_error"], miss(shifted(TRACKS[:, 1], 0.25 - 0.0625)), rtol=1e-5
    )
    np.testing.assert_allclose(found["track_error_staying"], miss(TRACKS[:, 1]))
    np.testing.assert_allclose(found["track_error_straight"], miss(straight))


def test_without_noise_there_is_the_flow_alone_and_without_snapshots_nothing(monkeypatch):
    def stay(key, starts, leg):
        assert key is None
        return np.repeat(starts[:, None], leg[1] - leg[0] + 1, axis=1)

    monkeypatch.setattr(interpolation, "_mover", lambda experiment, state: stay)
    experiment = moving()._replace(has_noise=False)
    everything = experiment.observed._replace(left_out=None)
    found = interpolation.snapshot_metrics(
        experiment._replace(observed=everything), None, None, KEY, N
    )
    assert set(found) == {"snapshots"}
    names = {"label", "left_out", "w1_ode", "w1_from_start_ode", "w1_floor"}
    assert all(set(row) == names for row in found["snapshots"])
    nothing = experiment._replace(observed=None)
    assert interpolation.snapshot_metrics(nothing, None, None, KEY, N) == {}
    assert interpolation.figure(nothing, None, KEY, []) is None


def test_a_run_trains_writes_its_summary_and_draws(monkeypatch, tmp_path):
    monkeypatch.setattr(judge, "CHUNK", 64)
    monkeypatch.setattr(judge, "SCORED", 64)
    # Tested elsewhere, and slow.
    for name in ("marginals", "sample_paths", "coupling", "overview", "animation"):
        monkeypatch.setattr(report.plotting, name, lambda *_, **__: None)
    monkeypatch.setattr(report, "_drift_figure", lambda *_: None)
    fewest = {"snapshots.options.num_snapshots": 3, "snapshots.left_out": 1}
    config = shrunk({**fewest, "grid.num_steps": 2})
    experiment = build.build(config)
    trainer = parallel.data_parallel(experiment.algorithm, devices=jax.local_devices()[:1])
    after, trained = trainer.run(trainer.init(jax.random.key(0)), experiment.total_steps)
    assert int(after.step[0]) == 3 and int(after.skipped[0]) == 0
    assert np.isfinite(trained["flow_loss"]) and np.isfinite(trained["score_loss"])
    workdir.create(tmp_path, config)
    workdir.append_metrics(tmp_path, {"step": 3, "phase": "matching 1", "loss": 0.5})
    state = parallel.unreplicate(after)
    found = report.evaluate(config, judge.Judge(experiment), state, tmp_path)
    whole = summary.compose(found, step=3, times=loop.Times(), devices="", finished=True)
    workdir.write_json(tmp_path / workdir.SUMMARY, whole)
    written = json.loads((tmp_path / workdir.SUMMARY).read_text())
    assert written["bridge_gap"] is None and np.isfinite(written["path_kl"])
    assert [row["left_out"] for row in written["snapshots"]] == [True, False]
    table = summary.table(written)
    assert "w1_left_out_from_start_ode" in table
    assert "W1 to the snapshot left out, without training: the snapshot before" in table
    assert (tmp_path / workdir.PLOTS / "snapshots.png").stat().st_size > 10_000


# ---- What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snapshots.left_out": 4}, "snapshots.left_out = 4: must be -1 or from 1 to 3"),
        ({"snapshots.left_out": 0}, "snapshots.left_out = 0: must be -1 or from 1 to 3"),
        ({"grid.num_steps": 10}, "grid.num_steps = 10: must be a multiple of 4"),
        ({"source.name": "ring"}, "source.name = 'ring': must be 'snapshots' with snapshots"),
        ({"target.options.dim": 3}, "target.options = {'dim': 3}: must be empty with target."),
        ({"pair.name": "mixtures"}, "pair.name = 'mixtures': must be 'none' with snapshots."),
        ({"method": "dsbm"}, "method = 'dsbm': must be one of ('sf2m', 'eot', 'cfm') with"),
        ({"method": "lightsb"}, "method = 'lightsb': must be one of"),
        (
            {"method": "eot", "learn_variance": True, "variance.family": "bridge"},
            "variance.family = 'bridge': must be 'bounded' with snapshots.name = 'branching'",
        ),
        ({"network.prediction": "endpoint"}, "network.prediction = 'endpoint': must be 'dr"),
        ({"snapshots.options.dims": 3}, "snapshots.name = 'branching' with snapshots.options"),
        (
            {"snapshots.name": "none", "source.name": "ring", "target.name": "ring"},
            "snapshots.left_out = 2: must be -1 with snapshots.name = 'none'",
        ),
        (
            {"snapshots.name": "none", "snapshots.left_out": -1},
            "source.name = 'snapshots': must be the name of an endpoint with snapshots.name",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(changes, message):
    with pytest.raises(InputError) as caught:
        shrunk(changes)
    assert str(caught.value).startswith(message)


def test_a_learned_variance_is_for_bridge_regression():
    config = shrunk({"method": "eot", "learn_variance": True})
    assert config.variance.family == "bounded"
    with pytest.raises(InputError, match=r"^learn_variance = True: must be false"):
        shrunk({"learn_variance": True})
