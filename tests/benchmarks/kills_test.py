"""The moments of the kills, and that what a kill must not do is seen; ten kills are among the
tests of the command itself."""

import json
import shutil
import signal

import numpy as np
import pytest

from benchmarks import kills
from experiments import checkpoints, workdir

LASTING = dict(zip(kills.PHASES, (2.0, 4.0, 8.0, 0.5, 6.0, 3.0), strict=True))


def finished(directory, weight=1.0, metrics=(), **summary):
    with checkpoints.manager(directory / workdir.CHECKPOINTS, keep=2) as manager:
        w = np.asarray([weight, np.nan], np.float32)
        state = {"w": w, "step": np.int32(8), "empty": np.zeros((0, 2))}
        checkpoints.save(manager, 8, state, {})
    for step in (4, 8):
        record = {"step": step, "loss": 0.5, "steps_per_second": weight, **dict(metrics)}
        workdir.append_metrics(directory, record)
    found = {"ess": 0.5, "wall_seconds": 3.0, "finished": True}
    workdir.write_json(directory / workdir.SUMMARY, found | summary)
    return directory


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"wall_seconds": 9.0}, []),
        ({"metrics": {"memory_gb": 3.0}}, []),
        ({"weight": 1 + 1.2e-7}, ["leaf w"]),
        ({"weight": -0.0}, ["leaf w"]),
        ({"metrics": {"loss": 0.25}}, [workdir.METRICS]),
        ({"ess": 0.25}, [workdir.SUMMARY]),
    ],
)
def test_runs_differ_in_every_bit_but_not_in_times(tmp_path, changes, expected):
    one = finished(tmp_path / "one", weight=0.0 if changes.get("weight") == 0 else 1.0)
    assert kills.differences(one, finished(tmp_path / "two", **changes)) == expected


def test_phases_take_turns_and_those_after_training_come_last():
    found = list(kills.moments(3, 20, LASTING))
    phases = [moment.phase for moment in found]
    assert all(3 <= phases.count(phase) <= 4 for phase in kills.PHASES)
    assert set(phases[-6:]) == {"evaluating", "plotting"}
    assert all(0 <= moment.seconds <= LASTING[moment.phase] for moment in found)
    assert found == list(kills.moments(3, 20, LASTING))
    assert found != list(kills.moments(4, 20, LASTING))


def test_lengths_are_those_between_the_beginnings():
    begun = dict(zip(kills.PHASES, (0.0, 2.0, 6.0, 6.5, 14.0, 20.0), strict=True))
    life = kills.Life(0, "", "", begun, 23.0, "plotting")
    assert kills.lengths(life, num_saves=16) == LASTING


class Lives:
    """Processes that do to a workdir what is asked, one after the other."""

    def __init__(self, *deeds):
        self.deeds = list(deeds)

    def __call__(self, directory, flags, environment, moment=None):
        out = self.deeds.pop(0)(directory)
        status = -signal.SIGKILL if moment else 0
        return kills.Life(status, out, "", {"starting": 0.0}, 1.0, "training")


def reaches(step, saved, *, says=""):
    def deed(directory):
        shutil.rmtree(directory, ignore_errors=True)
        (directory / workdir.CHECKPOINTS / str(saved)).mkdir(parents=True)
        lines = [json.dumps({"step": s}) + "\n" for s in range(2, step + 1, 2)]
        (directory / workdir.METRICS).write_text("".join(lines))
        return says

    return deed


@pytest.mark.parametrize(
    ("deeds", "complaint"),
    [
        ([reaches(10, 8), reaches(16, 12, says="resumed at step 8/60\n")], None),
        ([reaches(14, 8), reaches(16, 12)], "lost 6 steps, after step 8"),
        ([reaches(10, 8), reaches(8, 4)], "lost the checkpoint of step 8"),
        (
            [reaches(10, 8), reaches(14, 12, says="resumed at step 4/60\n")],
            "did not go on from",
        ),
    ],
)
def test_a_kill_that_loses_too_much_is_seen(tmp_path, monkeypatch, deeds, complaint):
    monkeypatch.setattr(kills, "live", Lives(*deeds, lambda directory: ""))
    given = [kills.Moment("training", 0.0)] * len(deeds)
    deaths = kills.end(tmp_path / "run", [], {}, given)
    if complaint:
        with pytest.raises(kills.Broken, match=complaint):
            list(deaths)
    else:
        found = list(deaths)
        assert [death.lost for death in found] == [2, 4]
        assert "| training | 2 | 4 |" in kills.table(found)


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="must be a new directory"):
        kills.main([f"--folder={tmp_path}"])
