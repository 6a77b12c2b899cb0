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
        (-9, runs.RunFailed, "exit status -9"),
        (130, KeyboardInterrupt, None),
    ],
)
def test_a_run_that_does_not_end_well_raises(runner, tmp_path, status, raised, message):
    runner.status, runner.stderr = status, "a trace\nthe end\n" if status != -9 else ""
    with pytest.raises(raised, match=message):
        runs.train("a.py", {}, tmp_path)


def test_cells_are_measured_once_and_kept_at_once(tmp_path):
    path, measured = tmp_path / "new" / "results.jsonl", []

    def measure(cell):
        if cell["dim"] == 3 and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(cell["dim"])
        return {"gap": cell["dim"] / 10}

    cells = [{"dim": dim, "method": "a"} for dim in (2, 3, 4)]
    with pytest.raises(KeyboardInterrupt):
        runs.complete(path, cells, measure)
    measured.append(None)
    found = runs.complete(path, cells, measure)
    assert measured == [2, None, 3, 4]
    assert found == [{"dim": d, "method": "a", "gap": d / 10} for d in (2, 3, 4)]
    assert runs.read_records(path) == found
    # Another value of one field is another cell, and what was recorded stays.
    runs.complete(path, [{"dim": 2, "method": "b"}], measure)
    assert len(runs.read_records(path)) == 4


def test_a_line_cut_short_by_a_kill_is_measured_again(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"dim": 2, "gap": 1}\n{"dim": 3, "ga')
    found = runs.complete(path, [{"dim": 2}, {"dim": 3}], lambda cell: {"gap": 7})
    assert [record["gap"] for record in found] == [1, 7]
    assert runs.read_records(path) == found


def test_tables():
    assert runs.markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
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
