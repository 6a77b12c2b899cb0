"""The real command on the smoke configuration: what it leaves behind, and what it refuses."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import d2ejax
from benchmarks import kills
from d2ejax import parallel
from d2ejax.endpoints import registry
from experiments import build, checkpoints, loop, report, run, workdir
from tests.experiments import small
from tests.experiments.conftest import CONFIG, LOOP, ROOT

pytestmark = pytest.mark.slow

TOTAL_STEPS = 2 * (20 + 10)
SUMMARY_KEYS = {
    "wall_seconds",
    "compile_seconds",
    "gradient_steps",
    "steps_per_second",
    "path_kl",
    "path_kl_optimal",
    "bridge_gap",
    "w2_squared",
    "w2_squared_floor",
    "log_z_lower",
    "log_z_upper",
    "log_z_true",
    "transport_cost",
    "transport_cost_optimal",
    "mode_coverage",
    "ess",
}
TIMES = ("wall_seconds", "compile_seconds", "steps_per_second")
PLOTS = {"marginals", "paths", "coupling", "drift", "training", "overview"}
NUM_SAMPLES = 2003  # more than are simulated at once


def snapshot(directory):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in directory.rglob("*")
    }


def summary_of(directory):
    return json.loads((directory / workdir.SUMMARY).read_text())


def records(directory):
    lines = (directory / workdir.METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in loop.MEASURED} for x in lines]


def assert_pictures(directory):
    names = {path.name for path in (directory / workdir.PLOTS).iterdir()}
    assert names == {f"{name}.png" for name in PLOTS} | {"transport.gif"}
    for name in PLOTS:
        with Image.open(directory / workdir.PLOTS / f"{name}.png") as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) >= 200
            # Drawn on, not blank.
            assert len(image.convert("L").getcolors()) > 10
    with Image.open(directory / workdir.PLOTS / "transport.gif") as animation:
        assert animation.n_frames > 5


# ---- What a run leaves behind


def test_a_run_ends_well_and_says_what_it_found(finished):
    assert (finished.status, finished.err) == (0, "")
    lines = finished.out.splitlines()
    assert f"step {TOTAL_STEPS}/{TOTAL_STEPS}" in finished.out
    assert ["metric", "value", "ideal"] in [line.split() for line in lines]
    assert lines[-1] == f"plots: {finished.directory / workdir.PLOTS}"


def test_the_workdir_holds_what_the_contract_says(finished):
    directory = finished.directory
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "plots",
        "checkpoints",
        "bridge",
        "report.md",
    }
    config = json.loads((directory / "config.json").read_text())
    loop = {"loop.steps_per_dispatch": 2, "loop.checkpoint_every": 4}
    assert config == small.change(small.load("smoke"), loop).to_dict()
    assert_pictures(directory)


def test_metrics_have_one_object_for_each_dispatch(finished):
    found = records(finished.directory)
    steps = [record["step"] for record in found]
    assert steps == list(range(2, TOTAL_STEPS + 1, 2))
    assert all(np.isfinite(record["loss"]) for record in found)
    assert sum(record["skipped"] for record in found) == 0
    # Data to energy: two semi-discrete forward half-steps, then the backward process once.
    phases = list(dict.fromkeys(record["phase"] for record in found))
    assert phases == ["forward 1", "forward 2", "backward 3"]
    probed = [record["step"] for record in found if "bridge_gap" in record]
    assert probed == [20, 40, 60]


def test_the_summary_has_every_key_of_the_contract(finished):
    found = summary_of(finished.directory)
    assert found.keys() >= SUMMARY_KEYS
    assert all(np.isfinite(found[key]) for key in SUMMARY_KEYS)
    assert found["finished"] is True
    assert found["gradient_steps"] == TOTAL_STEPS
    assert found["wall_seconds"] > found["compile_seconds"] > 0
    assert found["log_z_true"] == 0
    assert found["log_z_lower"] < found["log_z_upper"]
    assert 0 < found["ess"] <= 1
    assert 0 <= found["mode_coverage"] <= 1
    # This much training is far from the bridge, and the floor is one.
    assert found["bridge_gap"] > found["bridge_gap_limit"]
    assert found["w2_squared"] > found["w2_squared_floor"]


def test_the_same_command_again_says_finished_and_changes_nothing(command, finished):
    before = snapshot(finished.directory)
    status, out, err = command(finished.directory, *LOOP)
    assert (status, err) == (0, "")
    assert "this run is finished" in out
    assert snapshot(finished.directory) == before


@pytest.mark.long
def test_evaluate_repeats_the_evaluation(command, finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished.directory, directory)
    shutil.rmtree(directory / workdir.PLOTS)
    (directory / workdir.SUMMARY).unlink()
    before = snapshot(directory / workdir.CHECKPOINTS)
    status, out, err = command(directory, *LOOP, "--mode=evaluate")
    assert (status, err) == (0, "")
    assert "bridge_gap" in out
    expected, got = summary_of(finished.directory), summary_of(directory)
    for name in TIMES:
        assert got.pop(name) is not None
        expected.pop(name)
    assert got == expected
    assert_pictures(directory)
    assert snapshot(directory / workdir.CHECKPOINTS) == before


# ---- Samples


@pytest.fixture(scope="module")
def written(command, finished, tmp_path_factory):
    output = tmp_path_factory.mktemp("samples") / "paths.npz"
    args = ("--mode=sample", f"--num_samples={NUM_SAMPLES}", f"--output={output}")
    before = snapshot(finished.directory)
    status, out, err = command(finished.directory, *LOOP, *args)
    assert (status, err) == (0, "")
    assert str(output) in out
    assert snapshot(finished.directory) == before
    with np.load(output) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def restored(finished):
    """The experiment, and the state of the last checkpoint, of the first of its devices."""
    with jax.numpy_dtype_promotion("standard"):
        experiment = build.build(small.load("smoke"))
        devices = jax.local_devices()[: small.load("smoke").parallel.cpu_devices]
        trainer = parallel.data_parallel(experiment.algorithm, devices=devices)
        saved = checkpoints.read(finished.directory / workdir.CHECKPOINTS)
        return experiment, parallel.unreplicate(checkpoints.to_judge(saved, trainer, 0))


def log_density(process, params, given, drawn):
    """Σ_k log N(drawn_k; mean_k, variance_k) in float64, of a batch of paths."""
    kernel = jax.vmap(process.kernel, (None, 0, 0))
    kernels = jax.jit(jax.vmap(kernel, (None, 0, None)))(params, given, process.steps)
    mean, log_variance = (np.asarray(a, np.float64) for a in kernels)
    return stats.norm.logpdf(drawn, mean, np.exp(log_variance / 2)).sum(axis=(1, 2))


def test_arrays_have_the_shapes_of_the_contract(written):
    n, k, dim = NUM_SAMPLES, 5, 2
    shapes = {
        "times": (k + 1,),
        "paths": (n, k + 1, dim),
        "x0": (n, dim),
        "x1": (n, dim),
        "log_forward": (n,),
        "log_backward": (n,),
        "log_reference": (n,),
        "log_weights": (n,),
    }
    assert {name: array.shape for name, array in written.items()} == shapes
    assert {array.dtype for array in written.values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in written.values())
    # Time runs from the source to the target, on the end-refined grid.
    np.testing.assert_allclose(written["times"], 0.2 * (1 - (1 - np.arange(6) / 5) ** 2), 1e-5)
    np.testing.assert_array_equal(written["x0"], written["paths"][:, 0])
    np.testing.assert_array_equal(written["x1"], written["paths"][:, -1])
    assert len(np.unique(written["x0"], axis=0)) == n


def test_log_densities_are_those_of_the_paths(written, restored):
    experiment, state = restored
    tolerance = 5e-3
    x = written["paths"]
    given, drawn = x[:, :-1], x[:, 1:]
    forward = log_density(experiment.forward, experiment.forward_params(state), given, drawn)
    backward = log_density(experiment.backward, experiment.backward_params(state), drawn, given)
    variance = 2.0 * np.diff(written["times"].astype(np.float64))[:, None]
    reference = stats.norm.logpdf(drawn, given, np.sqrt(variance)).sum(axis=(1, 2))
    for name, expected in (
        ("log_forward", forward),
        ("log_backward", backward),
        ("log_reference", reference),
    ):
        np.testing.assert_allclose(
            written[name], expected, rtol=2e-4, atol=tolerance, err_msg=name
        )
    # Else the comparison would not tell the processes apart.
    assert np.abs(forward - reference).mean() > 10 * tolerance
    assert np.abs(forward - backward).mean() > 10 * tolerance


def test_log_weights_are_those_of_the_contract(written):
    moons = registry.make_endpoint("two_moons").log_density
    log_p0 = np.asarray(jax.jit(jax.vmap(moons))(written["x0"]), np.float64)
    angles = 2 * np.pi * np.arange(8) / 8
    modes = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    normal = stats.norm.logpdf(written["x1"][:, None], modes[None], 0.1).sum(axis=2)
    log_p1 = np.logaddexp.reduce(normal, axis=1) - np.log(8)
    expected = written["log_backward"] + log_p1 - log_p0 - written["log_forward"]
    np.testing.assert_allclose(written["log_weights"], expected, rtol=1e-4, atol=5e-3)


def test_paths_start_in_the_source(written):
    moons = registry.make_endpoint("two_moons")
    true = np.asarray(moons.sample(jax.random.key(9), 4000), np.float64)
    for moment in (lambda x: x, np.square):
        a, b = moment(written["x0"].astype(np.float64)), moment(true)
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert np.all(np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * error)


def test_the_saved_bridge_has_the_same_paths(written, finished):
    key = jax.random.fold_in(jax.random.key(small.load("smoke").seed), 2)
    found = d2ejax.load(finished.directory).sample(key, NUM_SAMPLES)
    # Compiled with other flags, and scored step by step.
    for name in ("paths", "log_forward", "log_backward", "log_weights"):
        np.testing.assert_allclose(
            getattr(found, name), written[name], rtol=1e-4, atol=5e-3, err_msg=name
        )


def test_the_page_has_what_a_stranger_needs(finished):
    page = (finished.directory / "report.md").read_text()
    assert page.startswith("# From two moons to ring\n")
    assert f"{TOTAL_STEPS} gradient steps with seed 0; the run is finished." in page
    shown = re.findall(r"!\[\w+\]\((.*)\)", page)
    names = {str(p.relative_to(finished.directory)) for p in finished.directory.glob("plots/*")}
    assert set(shown) == names
    assert "| `grid.num_steps` | `5` | `20` |" in page
    assert f"--workdir={finished.directory} --mode=sample" in page
    assert f"d2ejax.load('{finished.directory}')" in page


# ---- SIGKILL


def test_ten_kills_at_any_moment_change_nothing(command, finished, tmp_path):
    lasting = kills.lengths(finished.life, TOTAL_STEPS // kills.INTERVAL)
    # That life compiled what the others find compiled: they are as far in a third of the time.
    third = {phase: seconds / 3 for phase, seconds in lasting.items()}
    given = list(kills.moments(0, 10, third))
    directory = tmp_path / "run"
    # What is drawn after the last of them is not compared.
    last = ["--config.evaluate.plots=False"]
    deaths = list(kills.end(directory, kills.FLAGS, command.environment, given, last))
    # A life may have ended before its moment.
    assert len(deaths) >= 8
    assert len({death.hit for death in deaths}) >= 4
    assert kills.differences(finished.directory, directory) == []


# ---- Refusals, with nothing in place of the real modules


@pytest.fixture
def compilations():
    """The programs compiled in a test."""
    found = []

    def listen(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ["--config.ipf.paths_per_start=1"],
            "ipf.paths_per_start = 1: must be an integer ≥ 2 with the loss 'semi_discrete'",
        ),
        (
            ["--config.target.name=checkerboard"],
            "target.access = 'energy': endpoint 'checkerboard' offers samples only",
        ),
        (
            ["--config.source.name=checkerboard", "--config.source.access=energy"],
            "source.access = 'energy': endpoint 'checkerboard' offers samples only",
        ),
        (
            ["--config.source.name=gaussian", "--config.source.options.dim=3"],
            "target.name = 'ring': has dimension 2: must be 3, the dimension of the source",
        ),
        (
            ["--config.ipf.backward_loss=log_variance"],
            "ipf.backward_loss = 'log_variance': must be 'auto' or one of ('likelihood', ",
        ),
        (["--config.batch_size=72"], "batch_size = 72: must be a multiple of 64: "),
        (["--config.target.options.std=-1.0"], "std"),
    ],
)
def test_bad_input_is_one_line_and_compiles_nothing(tmp_path, capsys, compilations, args, text):
    directory = tmp_path / "new"
    status = run.main(["run", f"--config={ROOT / CONFIG}", f"--workdir={directory}", *args])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.endswith("\n")
    assert err.count("\n") == 1
    assert text in err
    assert not directory.exists()
    assert compilations == []


def test_a_buffer_smaller_than_a_batch_is_bad_input(tmp_path, capsys):
    directory = tmp_path / "new"
    argv = ["run", f"--config={ROOT / CONFIG}", f"--workdir={directory}"]
    # Eight groups on each device, of which each leaves one particle.
    argv += ["--config.batch_size=128", "--config.ipf.paths_per_start=2"]
    with jax.numpy_dtype_promotion("standard"):
        assert run.main([*argv, "--config.exploration.buffer_size=4"]) == 2
    assert "exploration.buffer_size = 4: must be" in capsys.readouterr().err
    assert not directory.exists()


def test_the_process_says_one_line_and_exits_with_a_status(command, tmp_path):
    directory = tmp_path / "file"
    directory.touch()
    args = ("--config.ipf.forward_steps=-20",)
    field = "error: ipf.forward_steps = -20: must be an integer ≥ 1\n"
    assert command(tmp_path / "new", *args) == (2, "", field)
    status, out, err = command(directory / "below")
    assert (status, out) == (2, "")
    assert err == (
        f"error: --workdir={directory / 'below'}: {directory} is not a directory: "
        "must be a directory that can be written\n"
    )
    assert sorted(tmp_path.iterdir()) == [directory]


# The tests have eight devices, the run had two.


@pytest.mark.long
def test_a_run_is_evaluated_on_another_number_of_devices(finished, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "_draw", lambda *_: None)
    directory = tmp_path / "run"
    shutil.copytree(finished.directory, directory)
    argv = ["run", f"--workdir={directory}", "--mode=evaluate"]
    with jax.numpy_dtype_promotion("standard"):
        assert run.main(argv) == 0
    expected, got = summary_of(finished.directory), summary_of(directory)
    assert (expected["devices"], got["devices"]) == ("2 x cpu", "8 x cpu")
    for name in ("bridge_gap", "path_kl", "w2_squared"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4)
