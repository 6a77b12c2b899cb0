"""The bridge that a run leaves: the paths of --mode=sample, and what is not known of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import d2ejax
from d2ejax import saved_bridges
from experiments import build, export, judge, report, workdir
from tests.experiments import small
from tests.experiments.judge_test import initial_state

N = 70


@pytest.fixture(scope="module")
def trained():
    """As if trained: networks that are not zero."""
    experiment = build.build(small.gaussians({"grid.num_steps": 4}, dim=2))
    keys = iter(jax.random.split(jax.random.key(5), 200))

    def moved(leaf):
        return leaf + 0.1 * jax.random.normal(next(keys), leaf.shape)

    state = initial_state(experiment)
    models = tuple(
        model._replace(average=jax.tree.map(moved, model.average)) for model in state.models
    )
    return experiment, state._replace(models=models)


def test_its_paths_are_those_that_are_written_from_the_checkpoint(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(judge, "CHUNK", 64)
    experiment, state = trained
    config, judged = small.gaussians(dim=2), judge.Judge(experiment)
    written = export.write(experiment, state, tmp_path)
    assert written["left_out"] == {} and written["draws"] == 64
    bridge = d2ejax.load(tmp_path)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    for along, sample in (("forward", bridge.sample), ("backward", bridge.sample_backward)):
        report.write_samples(config, judged, state, N, tmp_path / "a.npz", along=along)
        found = sample(key, N)
        with np.load(tmp_path / "a.npz") as arrays:
            for name in ("paths", "log_forward", "log_backward", "log_weights"):
                np.testing.assert_allclose(
                    getattr(found, name), arrays[name], rtol=1e-4, atol=1e-4, err_msg=name
                )
            # The networks are not zero: neither process is the reference.
            distance = np.abs(arrays["log_forward"] - arrays["log_reference"])
            assert distance.mean() > 0.1
            assert np.abs(arrays["log_weights"]).mean() > 0.1


def test_what_has_no_reversal_has_no_backward_process(trained, tmp_path):
    experiment, state = trained
    alone = experiment._replace(
        has_reversal=False, source=experiment.source._replace(sample=None)
    )
    written = export.write(alone, state, tmp_path)
    assert "backward_kernel" not in written["programs"]
    bridge = d2ejax.load(tmp_path)
    assert bridge.backward is None and bridge.sample is None
    found = bridge.forward(jax.random.key(0), jnp.zeros((3, 2)))
    assert np.isfinite(found.log_forward).all()
    assert found.log_backward is None and found.log_weights is None


def test_a_bridge_that_cannot_be_written_is_said_and_no_more(trained, tmp_path, capsys):
    (tmp_path / workdir.BRIDGE).touch()

    def fail(*args, **options):
        raise NotImplementedError("no lowering\nfor this platform")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_bridges, "save", fail)
        assert export.write(*trained, tmp_path) is None
    assert capsys.readouterr().err == (
        f"{tmp_path / workdir.BRIDGE}: not written: no lowering for this platform\n"
    )


def test_the_library_and_the_runner_call_the_folder_the_same():
    assert workdir.BRIDGE == saved_bridges.FOLDER
