"""The loop: how steps are cut must not matter, nor how often the process dies."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import checkpoints, loop, workdir
from experiments.errors import NonFiniteError
from experiments.progress import Progress
from tests.conftest import QUICK_TO_COMPILE
from tests.experiments import toy, toy_run


class Killed(Exception):
    pass


class KillAt(Progress):
    """Dies after the dispatch that reaches a step."""

    def __init__(self, step):
        super().__init__(0)
        self.at = step

    def update(self, step, phase, metrics, steps_per_second):
        if step >= self.at:
            raise Killed


def train(directory, trainer=None, plan=None, progress=None, keep=2):
    saved_in = directory / workdir.CHECKPOINTS
    saved = None if workdir.latest_step(saved_in) is None else checkpoints.read(saved_in)
    plan = plan or toy.plan()
    return loop.train(
        trainer or toy.trainer(),
        plan,
        key=jax.random.key(0),
        saved=saved,
        directory=directory,
        keep=keep,
        progress=progress or Progress(plan.total_steps),
        probe=lambda state: {},
        process_start=time.perf_counter(),
    )


def bits(state):
    words = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(words)]


def records(directory):
    lines = (directory / workdir.METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "steps_per_second"} for x in lines]


def test_dispatches_end_at_phases_checkpoints_and_the_total():
    plan = toy.plan(60, phase_length=25, steps_per_dispatch=7, checkpoint_every=20)
    stops, step = [], 0
    while step < plan.total_steps:
        step = loop.next_stop(plan, step)
        stops.append(step)
    assert stops == [7, 14, 20, 25, 32, 39, 40, 47, 50, 57, 60]


def test_phase_that_does_not_advance_is_refused():
    plan = toy.plan()._replace(phase_of=lambda step: ("stuck", 10))
    with pytest.raises(ValueError, match=r"phase_of\(10\) ends at 10"):
        loop.next_stop(plan, 10)


@pytest.mark.parametrize(("steps_per_dispatch", "checkpoint_every"), [(1, 60), (60, 13)])
def test_result_does_not_depend_on_the_dispatch_size(
    tmp_path, steps_per_dispatch, checkpoint_every
):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    expected = train(one)
    pieces = {"steps_per_dispatch": steps_per_dispatch, "checkpoint_every": checkpoint_every}
    got = train(two, plan=toy.plan(**pieces))
    assert got.step == expected.step == 60
    assert int(got.state.step[0]) == 60
    assert bits(got.state) == bits(expected.state)


@pytest.mark.parametrize("kill_at", [5, 20, 33, 60])
def test_killed_run_ends_as_the_uninterrupted_one(tmp_path, kill_at):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    expected = train(one)
    with pytest.raises(Killed):
        train(two, progress=KillAt(kill_at))
    got = train(two)
    assert bits(got.state) == bits(expected.state)
    assert records(two) == records(one)
    assert [r["step"] for r in records(two)][-1] == 60
    assert {r["phase"] for r in records(two)} == {"phase 0", "phase 1", "phase 2"}


def test_finished_training_takes_no_more_steps(tmp_path):
    expected = train(tmp_path)
    before = (tmp_path / workdir.METRICS).read_text()
    again = train(tmp_path)
    assert again.step == 60
    assert bits(again.state) == bits(expected.state)
    assert (tmp_path / workdir.METRICS).read_text() == before


def test_times_add_up_over_processes(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, progress=KillAt(45))
    first = checkpoints.read(tmp_path / workdir.CHECKPOINTS).metadata["times"]
    last = train(tmp_path).times
    saved = checkpoints.read(tmp_path / workdir.CHECKPOINTS).metadata["times"]
    assert first["wall"] > first["compile"] > 0
    assert last.compile > first["compile"]
    assert last.train > first["train"] > 0
    assert last.wall == first["wall"]
    assert saved["wall"] > first["wall"] + last.compile - first["compile"]


def test_too_many_bad_steps_stop_the_run_and_save_the_last_good_state(tmp_path):
    plan = toy.plan(max_consecutive_skipped=10)
    trainer = toy.trainer(bad_from=30)
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, trainer, plan)
    assert "loop.max_consecutive_skipped = 10" in str(caught.value)
    assert "at step 40" in str(caught.value)
    assert "last 10 gradient steps" in str(caught.value)
    assert workdir.latest_step(tmp_path / workdir.CHECKPOINTS) == 40
    # What is saved is what 30 good steps give.
    saved = checkpoints.read(tmp_path / workdir.CHECKPOINTS)
    good, _ = toy.trainer().run(toy.trainer().init(jax.random.key(0)), 30)
    np.testing.assert_array_equal(saved.arrays["params.w"], good.params["w"])
    assert records(tmp_path)[-1]["loss"] is None
    with pytest.raises(NonFiniteError, match="at step 47"):
        train(tmp_path, trainer, plan)


def test_few_bad_steps_are_skipped(tmp_path):
    result = train(tmp_path, toy.trainer(bad_from=30, bad_until=39), toy.plan())
    assert result.step == 60
    skipped = sum(
        (r["step"] - before["step"]) * r["skipped"]
        for before, r in zip([{"step": 0}, *records(tmp_path)], records(tmp_path), strict=False)
    )
    assert skipped == pytest.approx(9, abs=1e-4)


def test_plain_progress_is_about_twenty_lines(tmp_path, capsys):
    train(tmp_path, plan=toy.plan(200, steps_per_dispatch=1, checkpoint_every=200))
    lines = capsys.readouterr().out.splitlines()
    assert 15 <= len(lines) <= 21
    assert "step 200/200" in lines[-1]
    assert "phase 7" in lines[-1]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    train(tmp_path, plan=toy.plan(60, checkpoint_every=10), keep=2)
    names = {path.name for path in (tmp_path / workdir.CHECKPOINTS).iterdir()}
    assert names == {"50", "60"}


def _run_toy(directory, kill_after=None):
    """Runs the stand-in in a process of its own, killed some seconds after its first record."""
    environment = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE}
    command = [sys.executable, "-m", "tests.experiments.toy_run", str(directory)]
    metrics = directory / workdir.METRICS
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if kill_after is not None:
        # Start-up is long and has nothing to break.
        while process.poll() is None and (
            not metrics.exists() or metrics.stat().st_mtime_ns == before
        ):
            time.sleep(0.002)
        time.sleep(kill_after)
        process.kill()
    _, errors = process.communicate()
    return process.returncode, errors.decode()


@pytest.mark.slow
def test_sigkill_at_random_moments_leaves_the_same_parameters(tmp_path):
    moments = random.Random(1)
    for _ in range(3):
        status, errors = _run_toy(tmp_path, kill_after=moments.uniform(0.0, 0.4))
        assert status == -signal.SIGKILL, errors
    status, errors = _run_toy(tmp_path)
    assert status == 0, errors

    last = checkpoints.read(tmp_path / workdir.CHECKPOINTS)
    assert last.step == toy_run.PLAN.total_steps
    trainer = toy.trainer(1)
    expected, _ = trainer.run(trainer.init(jax.random.key(3)), last.step)
    got = checkpoints.place(last, expected)
    assert bits(got) == bits(expected)
    steps = [r["step"] for r in records(tmp_path)]
    uninterrupted, step = [], 0
    while step < last.step:
        step = loop.next_stop(toy_run.PLAN, step)
        uninterrupted.append(step)
    assert steps == uninterrupted
