"""When a gap first fell under a threshold, and that both sides start alike and learn."""

import contextlib
import itertools
import json

import jax
import numpy as np
import pytest

from benchmarks import time_to_quality
from benchmarks.time_to_quality import Clock, Point
from d2ejax.metrics import Estimate
from tests.conftest import QUICK_TO_COMPILE

CURVE = [Point(10.0, 100, 2.0, 0.1), Point(20.0, 200, 0.2, 0.1), Point(30.0, 300, 0.3, 0.1)]


class Steps:
    """A clock of which a gradient step takes a second, and an evaluation none."""

    def __init__(self):
        self.now, self.stops = 0.0, 0

    def seconds(self):
        return self.now

    def stopped(self):
        self.stops += 1
        return contextlib.nullcontext()

    def train(self, total):
        yield 0, 4.0
        for step in range(1, total + 1):
            self.now += 1.0
            yield step, 4.0 / (1 + step)


def watched(total, **given):
    clock = Steps()
    settings = {"every": 3.0, "limit": 100.0, "until": 0.0} | given
    curve = time_to_quality.watch(
        clock.train(total), lambda gap: Estimate(gap, 0.1), clock, **settings
    )
    assert clock.stops == len(curve)
    assert all(point.gap == 4.0 / (1 + point.steps) for point in curve)
    return [point.steps for point in curve]


def test_the_gap_is_evaluated_now_and_then_and_at_the_end():
    assert watched(8) == [0, 3, 6, 8]
    assert watched(6) == [0, 3, 6]
    assert watched(8, every=0.0) == list(range(9))
    assert watched(50, limit=8.0) == [0, 3, 6, 8]
    assert watched(50, until=0.5) == [0, 3, 6, 9]


def test_a_stopped_clock_stands_still(monkeypatch):
    times = itertools.count(100.0)
    monkeypatch.setattr(time_to_quality.time, "time", lambda: 50.0)
    monkeypatch.setattr(time_to_quality.time, "perf_counter", lambda: next(times))
    clock = Clock(started=43.0)
    assert clock.seconds() == 7.0 + 1.0
    with clock.stopped():
        next(times)
    assert clock.seconds() == 9.0 + 1.0


def test_the_first_time_under_a_threshold_counts():
    first = [time_to_quality.first_under(CURVE, gap) for gap in (3.0, 2.0, 0.25, 0.1)]
    assert first == [10.0, 20.0, 20.0, None]
    assert time_to_quality.first_under([Point(1.0, 1, float("nan"), 0.1)], 1.0) is None


def side(name, times):
    return {"side": name, "first_under": times, "curve": [point._asdict() for point in CURVE]}


def test_the_table_says_what_was_not_reached():
    ours = side("d2ejax", {"0.25": 2.0, "0.1": 4.0, "0.05": None})
    theirs = side("PyTorch", {"0.25": 20.0, "0.1": None, "0.05": None})
    lines = time_to_quality.table([ours, theirs], [0.25, 0.1, 0.05]).splitlines()
    assert lines[0] == "| gap under | d2ejax [s] | PyTorch [s] | ratio |"
    missed = "> 30 (gap reached: 0.200)"
    assert lines[2:] == [
        "| 0.25 | 2.0 | 20.0 | 10.0 |",
        f"| 0.1 | 4.0 | {missed} | > 7.5 |",
        f"| 0.05 | {missed} | {missed} | - |",
    ]
    alone = time_to_quality.table([ours], [0.25])
    assert alone.splitlines()[::2] == ["| gap under | d2ejax [s] |", "| 0.25 | 2.0 |"]


def test_the_command_line(capsys):
    args = time_to_quality.parse(["--thresholds=0.5,0.2", "--sides=PyTorch"])
    assert (args.thresholds, args.sides) == ([0.5, 0.2], ["PyTorch"])
    with pytest.raises(SystemExit):
        time_to_quality.parse(["--sides=jax"])
    assert "must be among" in capsys.readouterr().err


def test_a_side_that_fails_is_an_error(capfd):
    with pytest.raises(SystemExit, match="error: d2ejax: exit status 2"):
        time_to_quality.run_apart("d2ejax", ["--seed=x"], cold=False)
    assert "--seed" in capfd.readouterr().err


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """The record of our side in small, which ran in a process of its own."""
    file = tmp_path_factory.mktemp("ours") / "out.jsonl"
    flags = ["--quick", "--cold", "--ours_every=0", "--thresholds=24,0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", QUICK_TO_COMPILE)
        time_to_quality.main([*flags, "--sides=d2ejax", f"--json={file}"])
    (record,) = (json.loads(line) for line in file.open())
    return record


@pytest.mark.slow
def test_our_side_runs_apart_and_leaves_a_record(ours):
    # What is found is what this very process has compiled before.
    assert 10 * ours["cache"]["hits"] < ours["cache"]["misses"]
    curve = [Point(**point) for point in ours["curve"]]
    assert [point.steps for point in curve] == [0, 10, 20, 30, 40, 50, 60]
    assert sorted(curve) == curve and curve[0].seconds > 1.0
    assert curve[0].gap > curve[4].gap
    # The last twenty steps are of the backward process, and the numbers drawn the same.
    assert curve[4].gap == curve[5].gap == curve[6].gap
    assert ours["first_under"] == {"24": time_to_quality.first_under(curve, 24.0), "0": None}


class TestPyTorch:
    """Skipped without PyTorch."""

    @pytest.fixture(scope="class")
    def torch(self):
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        torch.manual_seed(0)
        return torch

    @pytest.fixture(scope="class")
    def paper(self, torch):
        from benchmarks import eager_paper

        return eager_paper

    @pytest.fixture(scope="class")
    def trained(self, paper):
        """The opponent's gap in small, untrained and trained."""
        from experiments import build

        config = paper.configuration(quick=True)
        experiment = build.build(config)
        gap = paper.bridge_gap(experiment, 4000, seed=1)
        training = paper.train(config, experiment, paper.source_points(experiment, 0))
        curve = [gap(next(training)[1])]
        *_, (steps, forward) = training
        assert steps == 60
        return [*curve, gap(forward)]

    def test_the_opponent_learns(self, trained):
        first, last = trained
        # The same starts and noise for both: their difference has a small error.
        assert last.value < first.value - 1.0

    @pytest.mark.slow
    def test_untrained_both_sides_have_the_same_gap(self, ours, trained):
        mine, theirs = Point(**ours["curve"][0]), trained[0]
        error = np.hypot(mine.standard_error, theirs.standard_error)
        assert abs(mine.gap - theirs.value) < 4 * error

    def test_energies_are_those_of_the_ends(self, torch, paper, key):
        from benchmarks import eager_ends
        from experiments import ends

        config = paper.configuration()
        target = ends.build_end(config.target)
        assert target.log_density is not None
        x = np.asarray(jax.random.normal(key, (50, 2)))
        ring = eager_ends.mixture(target.modes, config.target.options.std)
        theirs = ring.log_density(torch.tensor(x)).numpy()
        ours = np.asarray(jax.vmap(target.log_density)(x))
        np.testing.assert_allclose(ours - theirs, (ours - theirs)[0], rtol=1e-3)

    @pytest.mark.parametrize("method", ["mala", "averaged_ula"])
    def test_particles_find_a_gaussian(self, torch, paper, method):
        from benchmarks import eager_ends

        config = paper.configuration().copy_and_resolve_references()
        with config.unlocked():
            config.exploration.update(refresh_method=method, restart_fraction=0.0)
            config.exploration.update(buffer_size=2000, refresh_steps=200)
        end = eager_ends.gaussian(0.3, 2)
        particles = eager_ends.Particles(end.log_density, 2, config)
        assert abs(float(particles.points.std()) - 1.0) < 0.05
        assert abs(float(particles.draw(2000).std()) - 0.3) < 0.02
