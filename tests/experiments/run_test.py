"""The command line, with a stand-in for the algorithm and its evaluation."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from typing import NamedTuple

import jax
import numpy as np
import pytest

import experiments
from experiments import arguments, checkpoints, run, workdir
from tests.experiments import toy

CONFIG = """
from experiments.configs import base

def get_config():
    config = base.get_config()
    config.loop.steps_per_dispatch = 7
    config.loop.checkpoint_every = 20
    {line}
    return config
"""


class Experiment(NamedTuple):
    algorithm: object
    total_steps: int
    phase_of: object


class Judge(NamedTuple):
    experiment: Experiment

    def probe(self, state):
        return {}


def evaluate(config, judged, state, directory):
    assert state.params["w"].shape == (3,)
    (directory / workdir.PLOTS).mkdir(exist_ok=True)
    return {
        "bridge_gap": 0.123,
        "path_kl": float("nan"),
        "w2_squared": float(state.params["b"]),
    }


def write_samples(config, judged, state, num_samples, output, *, along):
    np.savez(output, x0=np.zeros((num_samples, 2)), b=state.params["b"])


@pytest.fixture
def build(monkeypatch):
    """The module `experiments.build`, with what its algorithm does wrong."""
    # First: importing judge imports the real build, and makes it an attribute of the package.
    monkeypatch.setattr("experiments.judge.Judge", Judge)
    plan = toy.plan(60)
    module = types.SimpleNamespace(bad={}, calls=0)

    def build(config):
        module.calls += 1
        return Experiment(toy.algorithm(**module.bad), plan.total_steps, plan.phase_of)

    module.build = build
    report = types.SimpleNamespace(evaluate=evaluate, write_samples=write_samples)
    monkeypatch.setattr(experiments, "build", module, raising=False)
    monkeypatch.setattr(experiments, "report", report, raising=False)
    export = types.SimpleNamespace(write=lambda experiment, state, directory: None)
    monkeypatch.setattr(experiments, "export", export, raising=False)
    return module


@pytest.fixture
def call(tmp_path, build, capsys):
    """Runs a command line; returns status, stdout and stderr."""
    config = write_config(tmp_path / "toy.py")

    def call(*args, config=config, directory=tmp_path / "run"):
        argv = ["run", f"--config={config}", f"--workdir={directory}", *args]
        status = run.main(argv)
        out, err = capsys.readouterr()
        return status, out, err

    return call


def write_config(path, line="pass"):
    path.write_text(CONFIG.format(line=line))
    return path


def snapshot(directory):
    # Python compiles the configuration file where it lies, unless it is told not to.
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in directory.rglob("*")
        if "__pycache__" not in path.parts
    }


def assert_refused(result, text, status=2):
    got, out, err = result
    assert got == status
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err


def test_a_run_from_start_to_summary(tmp_path, call):
    status, out, err = call()
    assert (status, err) == (0, "")
    directory = tmp_path / "run"
    assert sorted(p.name for p in directory.iterdir()) == sorted(
        [
            workdir.CONFIG,
            workdir.METRICS,
            workdir.SUMMARY,
            workdir.CHECKPOINTS,
            workdir.PLOTS,
            workdir.REPORT,
        ]
    )
    summary = json.loads((directory / workdir.SUMMARY).read_text())
    assert summary["gradient_steps"] == 60
    assert summary["path_kl"] is None
    assert summary["ess"] is None
    assert summary["wall_seconds"] > summary["compile_seconds"] > 0
    assert summary["steps_per_second"] > 0
    assert (
        json.loads((directory / workdir.CONFIG).read_text())["loop"]["checkpoint_every"] == 20
    )
    assert ["bridge_gap", "0.1230", "0.0000"] in [line.split() for line in out.splitlines()]
    assert f"plots: {directory / workdir.PLOTS}" in out


def test_a_run_that_has_begun_goes_on_without_its_configuration_file(tmp_path, call, capsys):
    call()
    (tmp_path / "run" / workdir.SUMMARY).unlink()
    assert run.main(["run", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "resumed at step 60/60" in capsys.readouterr().out
    assert workdir.is_finished(tmp_path / "run")
    assert run.main(["run", f"--workdir={tmp_path / 'new'}"]) == 2
    assert "--config: missing" in capsys.readouterr().err


def test_tensorboard_without_its_package_is_refused_first(tmp_path, call, build, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    before = build.calls
    assert_refused(call("--config.loop.tensorboard=True"), 'pip install ".[tensorboard]"')
    assert build.calls == before and not (tmp_path / "run").exists()


def test_a_finished_run_says_so_and_does_nothing(tmp_path, call, build):
    call()
    before, calls = snapshot(tmp_path / "run"), build.calls
    status, out, err = call()
    assert (status, err) == (0, "")
    assert "this run is finished" in out
    assert snapshot(tmp_path / "run") == before
    assert build.calls == calls


def test_evaluate_repeats_the_summary_and_sample_writes_paths(tmp_path, call):
    call()
    summary = json.loads((tmp_path / "run" / workdir.SUMMARY).read_text())
    (tmp_path / "run" / workdir.SUMMARY).unlink()
    status, out, _ = call("--mode=evaluate", "--config.evaluate.num_paths=100")
    assert status == 0
    assert "bridge_gap" in out
    again = json.loads((tmp_path / "run" / workdir.SUMMARY).read_text())
    assert again["w2_squared"] == summary["w2_squared"]
    assert again["finished"]
    assert "plots:" not in call("--mode=evaluate", "--config.evaluate.plots=False")[1]
    output = tmp_path / "paths.npz"
    status, out, _ = call("--mode=sample", "--num_samples=5", f"--output={output}")
    assert status == 0
    assert str(output) in out
    assert np.load(output)["x0"].shape == (5, 2)


def test_evaluate_and_sample_take_the_configuration_of_the_workdir(tmp_path, call, capsys):
    call()
    assert run.main(["run", f"--workdir={tmp_path / 'run'}", "--mode=sample"]) == 0
    assert (tmp_path / "run" / "samples.npz").exists()


def test_evaluating_an_unfinished_run_does_not_finish_it(tmp_path, call, build):
    build.bad = {"bad_from": 30}
    assert call("--config.loop.max_consecutive_skipped=5")[0] == 1
    assert call("--mode=evaluate")[0] == 0
    assert not workdir.is_finished(tmp_path / "run")


def test_non_finite_steps_end_in_one_line_and_a_checkpoint(tmp_path, call, build):
    build.bad = {"bad_from": 30}
    status, _, err = call("--config.loop.max_consecutive_skipped=5")
    assert status == 1
    assert err.count("\n") == 1
    assert "loop.max_consecutive_skipped = 5" in err
    assert workdir.latest_step(tmp_path / "run" / workdir.CHECKPOINTS) == 39
    assert not (tmp_path / "run" / workdir.SUMMARY).exists()


def test_loop_settings_may_change_on_resume(tmp_path, call, build):
    build.bad = {"bad_from": 30, "bad_until": 45}
    assert call("--config.loop.max_consecutive_skipped=5")[0] == 1
    status, out, _ = call("--config.loop.max_consecutive_skipped=50")
    assert status == 0
    assert "resumed at step 39/60" in out


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ["--config.ipf.iteratons=3"],
            "ipf.iteratons: unknown key: did you mean ipf.iterations",
        ),
        (["--config.ipff.iterations=3"], "did you mean ipf.iterations"),
        (["--config.ipf.iterations=-3"], "ipf.iterations = -3: must be an integer ≥ 1"),
        (["--config.ipf.iterations=x"], "ipf.iterations = 'x': must be an integer ≥ 1"),
        (["--config.ipf.iterations", "2.5"], "ipf.iterations = '2.5': must be an integer ≥ 1"),
        (["--config.learn_variance=maybe"], "learn_variance = 'maybe': must be true or false"),
        (["--config.ipf=3"], "ipf: is a section"),
        (["--config.target.name=rign"], "did you mean 'ring'"),
        (["--config.target.options.radus=3"], "radus"),
        (["--mode=foo"], "<train|evaluate|sample>"),
        (["--mode=sample", "--num_samples=-1"], "--num_samples=-1"),
        (["--mode=sample", "--num_samples=ten"], "--num_samples=ten"),
        (["--mode=sample", "--output=a.txt"], "must end in .npz"),
        (["--mode=sample", "--output=/nowhere/a.npz"], "a directory that can be written"),
        (["--num_samples=3"], "only with --mode=sample"),
        (["--along=flow"], "only with --mode=sample"),
        (["--checkpoint=best"], "only with --mode=evaluate or --mode=sample"),
        (["--mode=sample", "--checkpoint=oldest"], "<newest|best>"),
        (["--mode=sample", "--checkpoint=best"], "holds no checkpoint"),
        (["--mode=sample", "--along=back"], "forward|backward|flow"),
        (["--wrkdir=x"], "Did you mean: workdir"),
        (["stray"], "stray: unexpected argument"),
        (["--mode=evaluate"], "holds no checkpoint"),
        (["--mode=sample"], "holds no checkpoint"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_built(tmp_path, call, build, args, text):
    before = snapshot(tmp_path)
    assert_refused(call(*args), text)
    assert snapshot(tmp_path) == before
    assert build.calls == 0


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("config.ipf.iterations = 2.5", "ipf.iterations = 2.5: must be an integer ≥ 1 ("),
        ("config.ipf.iteratons = 2", "did you mean ipf.iterations"),
        ("config.ipff.iterations = 2", "line 8: config.ipff.iterations = 2: AttributeError"),
        ("config.seed = undefined", "NameError"),
        ("config.seed = 1 +", "SyntaxError"),
        ("return None", "must return a ConfigDict"),
        ("config.reference.sigma = 'x'", "reference.sigma = 'x': must be a number > 0"),
    ],
)
def test_a_bad_configuration_file_is_refused(tmp_path, call, line, text):
    config = write_config(tmp_path / "bad.py", line)
    assert_refused(call(config=config), text)


def test_a_missing_configuration_file(tmp_path, call):
    result = call("--config.seed=1", config=tmp_path / "tyo.py")
    assert_refused(result, f"did you mean {tmp_path / 'toy.py'}?")
    assert_refused(call(config=tmp_path), "no such file")


def test_no_configuration(capsys):
    assert run.main(["run"]) == 2
    assert "--config: missing" in capsys.readouterr().err


def test_a_workdir_of_another_configuration_is_left_alone(tmp_path, call):
    call()
    before = snapshot(tmp_path / "run")
    assert_refused(call("--config.ipf.iterations=9"), "ipf.iterations = 5 there and 9 here")
    assert_refused(call("--config.seed=2", "--mode=sample"), "seed = 0 there and 2 here")
    assert snapshot(tmp_path / "run") == before


def truncate(checkpoint):
    for path in (checkpoint / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])


def test_training_goes_on_from_before_a_truncated_checkpoint(tmp_path, call):
    call()
    expected = json.loads((tmp_path / "run" / workdir.SUMMARY).read_text())["w2_squared"]
    (tmp_path / "run" / workdir.SUMMARY).unlink()
    truncate(tmp_path / "run" / workdir.CHECKPOINTS / "60")
    status, out, err = call()
    assert status == 0
    assert err.count("\n") == 1
    assert "step 60: damaged or truncated: going on from step 40" in err
    assert "resumed at step 40/60" in out
    got = json.loads((tmp_path / "run" / workdir.SUMMARY).read_text())
    assert got["w2_squared"] == expected


def test_where_no_checkpoint_is_sound_nothing_is_touched(tmp_path, call, build):
    call()
    (tmp_path / "run" / workdir.SUMMARY).unlink()
    for step in ("40", "60"):
        truncate(tmp_path / "run" / workdir.CHECKPOINTS / step)
    before, calls = snapshot(tmp_path / "run"), build.calls
    assert_refused(call(), "(steps 60, 40): delete that directory to begin anew")
    assert snapshot(tmp_path / "run") == before
    assert build.calls == calls


@pytest.mark.parametrize("mode", ["evaluate", "sample"])
def test_a_truncated_checkpoint_is_refused_and_left_alone(tmp_path, call, build, mode):
    call()
    (tmp_path / "run" / workdir.SUMMARY).unlink()
    truncate(tmp_path / "run" / workdir.CHECKPOINTS / "60")
    before, calls = snapshot(tmp_path / "run"), build.calls
    result = call(f"--mode={mode}")
    assert_refused(result, "delete that directory to go on from step 40")
    assert snapshot(tmp_path / "run") == before
    assert build.calls == calls


def test_the_best_checkpoint_can_be_evaluated_and_sampled(tmp_path, call, build):
    build.bad = {"bad_from": 30}
    options = ("--config.loop.keep_best=True", "--config.loop.max_consecutive_skipped=100")
    assert call(*options)[0] == 0
    # Nothing finite was seen after step 30; the phase of it ends at 50.
    assert call(*options, "--mode=evaluate", "--checkpoint=best")[0] == 0
    summary = json.loads((tmp_path / "run" / workdir.SUMMARY).read_text())
    assert summary["gradient_steps"] == 25
    assert summary["finished"]
    _, out, _ = call(*options, "--mode=sample", "--checkpoint=best", "--num_samples=3")
    assert out.startswith("3 paths after 25 gradient steps")
    _, out, _ = call(*options, "--mode=sample", "--checkpoint=newest", "--num_samples=3")
    assert out.startswith("3 paths after 60 gradient steps")


def test_a_best_checkpoint_that_was_not_kept_is_refused(call, build):
    call()
    calls = build.calls
    assert_refused(call("--mode=evaluate", "--checkpoint=best"), "loop.keep_best=True")
    assert build.calls == calls


def test_a_signal_has_a_status_and_the_same_command_goes_on(tmp_path, call, monkeypatch):
    append, asked = workdir.append_metrics, []

    def ask(directory, record):
        append(directory, record)
        if record["step"] == 25 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
            time.sleep(0.2)  # Another thread notes it.

    monkeypatch.setattr(workdir, "append_metrics", ask)
    got, out, err = call()
    assert (got, err) == (
        143,
        "stopped by SIGTERM at step 25/60, which is saved: the same command goes on from it\n",
    )
    assert "evaluating" not in out
    got, out, _ = call()
    assert got == 0
    assert "resumed at step 25/60" in out


FULL = "No space left on device: once it can, the same command goes on from the last checkpoint"


@pytest.mark.parametrize("name", [workdir.CONFIG, workdir.SUMMARY])
def test_a_full_disk_is_one_line_with_a_status(tmp_path, call, name):
    (tmp_path / "run").mkdir()
    # What is written first, to be renamed.
    (tmp_path / "run" / f".{name}.tmp").symlink_to("/dev/full")
    status, _, err = call()
    assert (status, err) == (3, f"error: {tmp_path / 'run'}: cannot be written: {FULL}\n")
    assert call()[0] == 0


def test_a_disk_that_fills_up_while_plots_are_drawn(tmp_path, call, monkeypatch):
    def full(config, judged, state, directory):
        with open("/dev/full", "w") as file:
            file.write("a plot")

    with monkeypatch.context() as patched:
        patched.setattr(experiments.report, "evaluate", full)
        status, _, err = call()
    assert (status, err) == (3, f"error: {tmp_path / 'run'}: cannot be written: {FULL}\n")
    assert call()[0] == 0


def test_an_unwritable_workdir_is_refused(tmp_path, call):
    (tmp_path / "file").touch()
    assert_refused(call(directory=tmp_path / "file"), "is not a directory")
    assert_refused(call(directory="/proc/run"), "--workdir=/proc/run")


def test_debug_shows_the_traceback(call):
    status, _, err = call("--debug", "--config.ipf.iterations=-3")
    assert status == 2
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: ipf.iterations = -3: must be an integer ≥ 1"


def test_errors_of_the_build_are_one_line(call, build):
    def fail(config):
        raise ValueError("batch_size = 256: must be a multiple of 3")

    build.build = fail
    assert_refused(call(), "batch_size = 256: must be a multiple of 3")


def test_options_may_be_set_on_the_command_line(tmp_path):
    config = write_config(tmp_path / "toy.py")
    parsed = arguments.parse(
        ["run", f"--config={config}", "--config.target.options.radius=2.0"]
    )
    assert parsed.config.target.options.to_dict() == {"radius": 2.0}
    assert parsed.workdir == workdir.Path("runs/toy")


def test_resumed_parameters_are_those_of_an_uninterrupted_run(tmp_path, call, build):
    build.bad = {"bad_from": 30, "bad_until": 39}
    assert call("--config.loop.max_consecutive_skipped=5")[0] == 1
    assert call("--config.loop.max_consecutive_skipped=50")[0] == 0
    other = tmp_path / "other"
    assert call("--config.loop.max_consecutive_skipped=50", directory=other)[0] == 0
    one, two = (checkpoints.read(d / workdir.CHECKPOINTS) for d in (tmp_path / "run", other))
    assert one.leaves == two.leaves


def test_help_and_refusals_need_no_jax():
    code = (
        "import sys\n"
        "from experiments import run\n"
        "assert run.main(['run', '--help']) == 0\n"
        "assert run.main(['run', '--config=nowhere.py']) == 2\n"
        "assert 'jax' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--config.KEY=VALUE" in done.stdout


@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_compiled_programs_are_kept_where_jax_was_told_or_in_the_users_cache(
    given, call, monkeypatch, tmp_path
):
    given = given and str(tmp_path / given)
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    kept = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", given)
    try:
        assert call()[0] == 0
        found = jax.config.jax_compilation_cache_dir
    finally:
        for name, value in kept.items():
            jax.config.update(name, value)
    assert found == (given or str(tmp_path / "d2ejax"))
