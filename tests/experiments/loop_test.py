"""The loop: how steps are cut must not matter, nor how often the process dies."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from experiments import checkpoints, loop, workdir
from experiments.errors import NonFiniteError, Stopped, StorageError
from experiments.progress import Progress
from tests.experiments import toy


class Killed(Exception):
    pass


def die():
    raise Killed


class At(Progress):
    """Does something once, after the dispatch that reaches a step, and says nothing."""

    def __init__(self, step, do):
        super().__init__(0)
        self.at, self.do = step, do

    def update(self, step, phase, metrics, steps_per_second):
        if self.do and step >= self.at:
            do, self.do = self.do, None
            do()


def train(directory, trainer=None, plan=None, progress=None, keep=2, probe=None, **options):
    saved_in = directory / workdir.CHECKPOINTS
    saved = checkpoints.read(saved_in, fall_back=True) if workdir.steps(saved_in) else None
    plan = plan or toy.plan()
    return loop.train(
        trainer or toy.trainer(),
        plan,
        key=jax.random.key(0),
        saved=saved,
        directory=directory,
        keep=keep,
        progress=progress or Progress(plan.total_steps),
        probe=probe or (lambda state: {}),
        process_start=time.perf_counter(),
        **options,
    )


def kept(directory):
    return sorted(workdir.steps(directory / workdir.CHECKPOINTS))


def bits(state):
    words = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(words)]


def records(directory):
    lines = (directory / workdir.METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in loop.MEASURED} for x in lines]


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
        train(two, progress=At(kill_at, die))
    got = train(two)
    assert bits(got.state) == bits(expected.state)
    assert records(two) == records(one)
    assert [r["step"] for r in records(two)][-1] == 60
    assert {r["phase"] for r in records(two)} == {"phase 0", "phase 1", "phase 2"}


def test_records_are_never_more_than_an_interval_past_what_is_saved(tmp_path):
    past = []

    def listen(record):
        past.append(record["step"] - (workdir.latest_step(tmp_path / workdir.CHECKPOINTS) or 0))

    # Dispatches of a millisecond, where a save takes many.
    plan = toy.plan(steps_per_dispatch=1, checkpoint_every=10)
    train(tmp_path, plan=plan, listener=listen)
    assert len(past) == 60
    assert max(past) == 10


def test_finished_training_takes_no_more_steps(tmp_path):
    expected = train(tmp_path)
    before = (tmp_path / workdir.METRICS).read_text()
    again = train(tmp_path)
    assert again.step == 60
    assert bits(again.state) == bits(expected.state)
    assert (tmp_path / workdir.METRICS).read_text() == before


def test_times_add_up_over_processes(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, progress=At(45, die))
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
    np.testing.assert_array_equal(saved.arrays["params.w"], good.params["w"][0])
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


# ---- The best one


def test_the_best_is_kept_beside_the_newest_by_the_gap_at_the_ends_of_phases(tmp_path):
    gaps = iter([0.3, 0.1, 0.2])
    plan = toy.plan(60, checkpoint_every=10)
    train(tmp_path, plan=plan, keep_best=True, probe=lambda state: {"bridge_gap": next(gaps)})
    # Phases end at 25, 50 and 60.
    assert kept(tmp_path) == [50, 60]
    assert checkpoints.read(tmp_path / workdir.CHECKPOINTS, which="best").step == 50
    other = tmp_path / "other"
    other.mkdir()
    gaps = iter([0.1, 0.3, float("nan")])
    train(other, plan=plan, keep_best=True, probe=lambda state: {"bridge_gap": next(gaps)})
    assert kept(other) == [25, 50, 60]
    assert checkpoints.read(other / workdir.CHECKPOINTS, which="best").step == 25


def test_without_a_gap_the_best_has_the_lowest_loss_of_the_latest_phase(tmp_path):
    train(tmp_path, toy.trainer(bad_from=53, bad_until=60), toy.plan(), keep_best=True, keep=1)
    losses = {r["step"]: r["loss"] for r in records(tmp_path)}
    assert losses[60] is None and losses[50] < losses[32] < losses[20]
    # Of the last phase none has a score; the one before was saved at 40 and 50.
    assert kept(tmp_path) == [50, 60]
    assert checkpoints.read(tmp_path / workdir.CHECKPOINTS, which="best").step == 50


def test_keeping_the_best_changes_nothing_that_is_trained(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    expected = train(one)
    with pytest.raises(Killed):
        train(two, progress=At(33, die), keep_best=True)
    assert bits(train(two, keep_best=True).state) == bits(expected.state)
    assert records(two) == records(one)


# ---- Damage


def test_a_damaged_newest_checkpoint_is_replaced_by_the_one_before(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    expected = train(one)
    train(two)
    newest = two / workdir.CHECKPOINTS / "60"
    (newest / "state" / "_METADATA").write_text("{")
    capsys.readouterr()
    got = train(two)
    out, err = capsys.readouterr()
    assert err == (f"{newest.parent}: step 60: damaged or truncated: going on from step 40\n")
    assert "resumed at step 40/60" in out
    assert bits(got.state) == bits(expected.state)
    assert records(two) == records(one)
    assert checkpoints.read(newest.parent).step == 60
    # What was damaged has been set aside, once and for all.
    assert (newest.parent / "60.damaged").is_dir()
    train(two)
    assert capsys.readouterr().err == ""


# ---- Signals


def asks(number):
    def ask():
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # Another thread notes it.

    return ask


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGINT, 14), (signal.SIGTERM, 20), (signal.SIGTERM, 60)]
)
def test_a_signal_saves_the_dispatch_under_way_and_stops(tmp_path, capfd, number, step):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    expected = train(one)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"{number.name} at step {step}/60") as caught:
        train(two, progress=At(step, asks(number)))
    assert signal.getsignal(number) == before
    assert caught.value.signum == number
    assert kept(two)[-1] == step
    assert [r["step"] for r in records(two)][-1] == step
    assert bits(train(two).state) == bits(expected.state)
    assert records(two) == records(one)


def test_processes_agree_to_stop(tmp_path):
    asked, step = [], iter(range(100))

    def agree(wish):
        asked.append(wish)
        return next(step) == 3

    with pytest.raises(Stopped, match="SIGTERM at step 25/60"):
        train(tmp_path, agree=agree)
    assert asked == [False] * 5  # Of the last wish as well, once all is saved.
    assert kept(tmp_path)[-1] == 25


def test_what_all_agree_on_decides(tmp_path, capfd):
    train(tmp_path, agree=lambda wish: False, progress=At(20, asks(signal.SIGINT)))
    assert kept(tmp_path) == [40, 60]


# ---- A full disk


def fill(directory, step):
    """Takes all that is free, to the last byte, once that checkpoint is there."""
    while step not in kept(directory):
        time.sleep(0.001)
    with (directory / "filler").open("wb", buffering=0) as file, pytest.raises(OSError):
        while file.write(bytes(512)):
            pass


def test_a_disk_that_fills_up_is_one_line_and_the_checkpoint_before_is_intact(
    small_disk, tmp_path, capfd
):
    expected = train(tmp_path)
    capfd.readouterr()
    with pytest.raises(StorageError) as caught:
        train(small_disk, progress=At(21, lambda: fill(small_disk, 20)))
    assert "No space left on device: once it can, the same command" in str(caught.value)
    assert str(small_disk) in str(caught.value)
    assert capfd.readouterr().err == ""
    assert checkpoints.read(small_disk / workdir.CHECKPOINTS).step == 20
    # A disk as full as before: the same once more, and no worse.
    with pytest.raises(StorageError):
        train(small_disk)
    (small_disk / "filler").unlink()
    assert bits(train(small_disk).state) == bits(expected.state)
    assert records(small_disk) == records(tmp_path)
