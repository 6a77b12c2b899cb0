"""Records, tables and what becomes of a run that fails; nothing here trains."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import runs


@pytest.fixture
def runner(monkeypatch):
    """A runner that notes its commands and ends as it is told to."""
    calls = []

    def run(command, env, **_):
        calls.append((command, env))
        return SimpleNamespace(returncode=run.status, stderr=run.stderr)

    run.status, run.stderr, run.calls = 0, "", calls
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return run


def test_a_run_is_the_runners_command_and_gives_its_summary(runner, tmp_path):
    (tmp_path / "summary.json").write_text('{"bridge_gap": 0.1}')
    found = runs.train("a.py", {"seed": 3, "learn_variance": False}, tmp_path, cache=tmp_path)
    assert found == {"bridge_gap": 0.1}
    ((command, environment),) = runner.calls
    assert command[1:] == [
        "-m",
        "experiments.run",
        "--config=a.py",
        "--config.seed=3",
        "--config.learn_variance=False",
        f"--workdir={tmp_path}",
    ]
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    runs.train("a.py", {}, tmp_path)
    assert "JAX_COMPILATION_CACHE_DIR" not in runner.calls[1][1]


@pytest.mark.parametrize(
    ("status", "raised", "message"),
    [
        (1, runs.RunFailed, "the end"),
        (2, ValueError, "the end"),
        (1, runs.RunFailed, "exit status 1"),
        (-9, runs.RunKilled, "signal 9"),
        (143, runs.RunKilled, "the end"),
        (3, runs.RunKilled, "the end"),
        (130, KeyboardInterrupt, None),
    ],
)
def test_a_run_that_does_not_end_well_raises(runner, tmp_path, status, raised, message):
    runner.status = status
    runner.stderr = "a trace\nthe end\n" if message == "the end" else ""
    with pytest.raises(raised, match=message):
        runs.train("a.py", {}, tmp_path)


def planned(*cells, config_hash="new"):
    return [runs.Cell(fields, config_hash) for fields in cells]


def test_cells_are_measured_once_and_kept_at_once(tmp_path):
    path, measured = tmp_path / "new" / "results.jsonl", []

    def measure(cell):
        if cell.fields["dim"] == 3 and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(cell.fields["dim"])
        return {"gap": cell.fields["dim"] / 10}

    cells = planned(*({"dim": dim, "method": "a"} for dim in (2, 3, 4)))
    with pytest.raises(KeyboardInterrupt):
        runs.complete(path, cells, measure)
    measured.append(None)
    runs.complete(path, cells, measure)
    assert measured == [2, None, 3, 4]
    assert runs.read_records(path) == [
        {"dim": d, "method": "a", "config_hash": "new", "gap": d / 10} for d in (2, 3, 4)
    ]
    # Another value of one field is another cell, and what was recorded stays.
    runs.complete(path, planned({"dim": 2, "method": "b"}), measure)
    assert len(runs.read_records(path)) == 4


@pytest.mark.parametrize(
    ("record", "flags", "again"),
    [
        ({"config_hash": "new"}, {"fresh": True}, False),
        ({"config_hash": "old"}, {}, True),
        ({}, {}, False),
        ({}, {"fresh": True}, True),
        ({"config_hash": "new", "failed": "x"}, {}, False),
        ({"config_hash": "new", "failed": "x"}, {"retry_failed": True}, True),
        ({"config_hash": "new", "gap": 1}, {"retry_failed": True}, False),
    ],
)
def test_which_records_count(tmp_path, record, flags, again):
    path, fields, measured = tmp_path / "results.jsonl", {"dim": 2}, []
    runs.append_record(path, fields | record)
    for _ in range(2):  # What has just been measured counts.
        runs.complete(path, planned(fields), lambda c: measured.append(c) or {}, **flags)
    assert len(measured) == again
    (newest,) = runs.newest(runs.read_records(path), ["dim"])
    assert newest == (fields | ({"config_hash": "new"} if again else record))


def test_the_newest_record_of_each_cell():
    records = [{"a": 1, "x": 1}, {"a": 2, "x": 2}, {"b": 1}, {"a": 1, "x": 3}]
    assert runs.newest(records, ["a"]) == [{"a": 1, "x": 3}, {"a": 2, "x": 2}]


def test_a_line_cut_short_by_a_kill_is_measured_again(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"dim": 2, "gap": 1}\n{"dim": 3, "ga')
    runs.complete(path, planned({"dim": 2}, {"dim": 3}), lambda cell: {"gap": 7})
    assert [record["gap"] for record in runs.read_records(path)] == [1, 7]


SMOKE = "experiments/configs/smoke.py"


def test_a_hash_tells_what_is_trained_and_nothing_else():
    def hash_of(overrides):
        return runs.config_hash(runs.checked(SMOKE, overrides))

    plain = hash_of({})
    assert len(plain) == 8
    assert plain == hash_of({"loop.keep": 5, "evaluate.plots": "False"})
    others = [{"seed": 7}, {"learn_variance": "False"}, {"optimiser.learning_rate": "3e-3"}]
    assert len({plain, *map(hash_of, others)}) == 4
    assert hash_of({"seed": 7}) == hash_of({"seed": "7"})


def test_cells_are_checked_before_any_is_measured():
    cells = [{"batch_size": 32}, {"batch_size": 0}]
    found = runs.identified(cells[:1], lambda fields: runs.checked(SMOKE, fields))
    assert found == [runs.Cell(cells[0], runs.config_hash(runs.checked(SMOKE, cells[0])))]
    with pytest.raises(SystemExit, match=r"error: batch_size=0: batch_size = 0: must be"):
        runs.identified(cells, lambda fields: runs.checked(SMOKE, fields))


def test_a_folder_has_one_benchmark_at_a_time(tmp_path):
    folder = tmp_path / "new"
    with runs.locked(folder):
        refused = pytest.raises(SystemExit, match=r"new: another benchmark is at work")
        with refused, runs.locked(folder):
            pass
    with runs.locked(folder):
        pass


def test_tables():
    assert runs.markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert runs.markdown("a", [["x|y"]]).endswith("| x\\|y |")
    assert runs.beside(0.1234, 0.05) == "0.123 (0.050)"
    assert runs.beside(0.1234, None) == "0.123"
    assert runs.number(None) == runs.number(float("nan")) == "-"


def test_seconds_of_training_leave_compilation_out():
    summary = {"gradient_steps": 300, "steps_per_second": 150.0, "wall_seconds": 40.0}
    assert runs.train_seconds(summary) == 2.0


@pytest.mark.parametrize("name", ["results", "throughput", "mode_weights"])
def test_commands_explain_themselves(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--" in done.stdout
