"""From real images to images moved, on 8 × 8 digits: the whole chain, as a user runs it."""

import json

import jax
import numpy as np
import pytest

import d2ejax
from d2ejax import latents
from experiments import image_models, run, workdir

CONFIG = "experiments/configs/mnist_latent.py"
DIM = 6
SHORT = {
    "source.options.dim": DIM,
    "target.options.dataset": "digits",
    "target.options.latent_dim": DIM,
    "grid.num_steps": 6,
    "network.width": 32,
    "network.depth": 2,
    "network.energy_feature": False,
    "ipf.forward_loss": "log_variance",
    "ipf.iterations": 1,
    "ipf.forward_steps": 200,
    "ipf.backward_steps": 20,
    # Eight of the tests' devices would share a step of milliseconds.
    "parallel.cpu_devices": 1,
    "batch_size": 128,
    "ipf.paths_per_start": 4,
    "ipf.num_anchors": 64,
    "exploration.buffer_size": 64,
    "evaluate.num_paths": 400,
    "evaluate.num_samples": 200,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The networks, trained once."""
    folder = tmp_path_factory.mktemp("models")
    image_models.prepare(folder, dataset="digits", latent_dim=DIM)
    return folder


def train(directory, folder, **changes):
    given = SHORT | {"target.options.folder": str(folder)} | changes
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    return run.main(["run", f"--config={CONFIG}", f"--workdir={directory}", *flags])


@pytest.fixture(scope="module")
def moved(folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "five"
    assert train(directory, folder) == 0
    return directory


def test_networks_are_trained_once(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.*")}
    image_models.prepare(folder, dataset="digits", latent_dim=DIM)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.*")} == before
    for name in (latents.CLASSIFIER, latents.JUDGE):
        found = json.loads((folder / image_models.METRICS / f"{name}.json").read_text())
        assert found["accuracy"] > 0.8
    models = latents.load_models(folder)
    assert models.decode(np.zeros(DIM, np.float32)).shape == (8, 8, 1)


def test_the_judge_sees_more_of_the_class_at_the_ends(moved):
    found = json.loads((moved / workdir.SUMMARY).read_text())
    error = found["judge_accuracy_standard_error"]
    assert found["judge_accuracy"] > found["judge_accuracy_source"] + 4 * error
    # The posterior itself; a classifier and a judge agree on most of its images.
    assert found["judge_accuracy_rejection"] > 0.5
    assert found["log_reward"] <= 0.0 and found["frechet_distance"] > 0.0
    assert {"translations.png", "morphs.png"} <= {p.name for p in moved.glob("plots/*")}


def test_a_finished_bridge_needs_no_networks(moved):
    bridge = d2ejax.load(moved)
    assert bridge.sample(jax.random.key(0), 3).paths.shape == (3, 7, DIM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target.options.classes": "(12,)"}, "classes = (12,): must be below 10"),
        ({"target.options.classes": "(5,5)"}, "classes = (5, 5): must name at least one, each"),
        ({"target.options.classes": "(0,-1)"}, "classes = -1 is not allowed"),
        ({"target.options.generator": "adversary"}, "generator = 'adversary': must be 'auto"),
        ({"target.options.dataset": "digit"}, "unknown dataset 'digit': did you mean 'digits'"),
        ({"target.options.dataset": "mnist_5000"}, "dataset = 'mnist_5000': must be 'digits'"),
        (
            {"source.options.dim": 5, "target.options.latent_dim": 5},
            "latent_dim = 5: must be 6",
        ),
        ({"target.access": "samples"}, "target.access = 'samples': must be 'energy'"),
        (
            {"target.options.each": True, "ipf.forward_loss": "auto"},
            "ipf.forward_loss = 'auto': must be a loss without a potential",
        ),
        (
            {"target.options.each": True, "method": "asbs"},
            "method = 'asbs': must be 'ipf' with",
        ),
    ],
)
def test_other_networks_are_refused_by_name(changes, message, folder, tmp_path, capsys):
    assert train(tmp_path / "run", folder, **changes) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_run_is_judged_by_the_networks_it_was_trained_with(moved, folder, capsys):
    pinned = moved / image_models.NETWORKS
    found = json.loads(pinned.read_text())
    assert found == image_models.digests(folder)
    assert len(set(found.values())) == 3
    pinned.write_text(json.dumps(found | {latents.JUDGE: "0" * 64}))
    arguments = ["run", f"--workdir={moved}", "--mode=sample", "--num_samples=3"]
    assert run.main([*arguments, f"--output={moved / 'samples.npz'}"]) == 2
    assert "holds other networks than" in capsys.readouterr().err
    pinned.write_text(json.dumps(found))
    assert run.main([*arguments, f"--output={moved / 'samples.npz'}"]) == 0


@pytest.mark.long
def test_one_bridge_for_each_class(folder, tmp_path):
    changes = {"target.options.classes": "(0,5,7)", "target.options.each": True}
    assert train(tmp_path / "each", folder, **changes) == 0
    found = json.loads((tmp_path / "each" / workdir.SUMMARY).read_text())
    by_class = found["judge_accuracy_by_class"]
    assert len(by_class) == 3
    assert found["judge_accuracy"] == pytest.approx(np.mean(by_class))
    error = found["judge_accuracy_standard_error"]
    assert found["judge_accuracy"] > found["judge_accuracy_source"] + 4 * error
