"""The table of fine-tuning: bases, cells, settings and lines, without training."""

import pytest

from benchmarks import fine_tuning, runs
from d2ejax.algorithms.fine_tuning import LOSSES
from experiments import bases


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner and for the bases that it leaves; notes the settings."""
    calls = []

    def train(config, overrides, directory, *, cache):
        calls.append((config, overrides))
        if overrides.get("fine_tuning.loss") == "control":
            raise runs.RunFailed("error: diverged")
        return {
            "reward": -1.5,
            "reward_exact": -1.25,
            "reward_base": -4.0,
            "w2_squared": 0.0123,
            "w2_squared_floor": 0.004,
            "kl_to_base": 0.5,
            "kl_to_base_exact": 0.75,
            "steps_per_second": 4.0,
            "gradient_steps": 100,
        }

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(bases, "pinned", lambda config: config)
    return calls


def test_every_loss_of_the_library_is_run():
    assert set(fine_tuning.NOISES) == set(LOSSES)


@pytest.mark.parametrize("base", fine_tuning.BASES)
@pytest.mark.parametrize("loss", fine_tuning.NOISES)
def test_every_cell_is_a_valid_configuration(base, loss, trained, tmp_path):
    noise = fine_tuning.NOISES[loss][-1]
    fields = {
        "base": base,
        "loss": loss,
        "noise": noise,
        "seed": 3,
        "steps": 50,
        "base_steps": 70,
    }
    config = fine_tuning.configure(tmp_path, fields)
    given = config.fine_tuning
    assert (config.seed, config.method) == (3, "fine_tuning")
    assert (given.loss, given.noise, given.num_steps) == (loss, noise, 50)
    reference = {"vp_base": "variance_preserving", "ve_base": "variance_exploding"}[base]
    assert config.reference.name == reference
    # Bases of other numbers of steps are other bases.
    base_of = fine_tuning.settings(tmp_path, fields)["fine_tuning.base"]
    assert base_of == str(fine_tuning.base_directory(tmp_path, base, 70))
    assert base_of != str(fine_tuning.base_directory(tmp_path, base, 71))
    # A run is told by what its base holds, not by where that lies.
    elsewhere = fine_tuning.configure(tmp_path / "other", fields)
    assert runs.config_hash(elsewhere) == runs.config_hash(config)
    elsewhere.fine_tuning.base_digest = "another"
    assert runs.config_hash(elsewhere) != runs.config_hash(config)


def test_lines_have_what_was_found_beside_what_is_exact(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--quick", "--losses=control,adjoint_matching"]
    fine_tuning.main(flags)
    text = capsys.readouterr().out
    assert text == (tmp_path / "results.md").read_text()
    assert "## vp_base" in text and "ve_base" not in text
    assert "| none | 1 | - | -4.000 (-1.250) | - | 0 | - |" in text
    line = "| 1 | -1.500 (-1.250) | 0.0123 (0.0040) | 0.500 (0.750) | 25 |"
    assert f"| adjoint matching | 1 {line}" in text
    assert f"| adjoint matching | 0.3 {line}" in text
    assert "| control | 0.3 | 0, 1 failed | - | - | - | - |" in text
    # The base first, and once for all that start from it.
    configs = [config for config, _ in trained]
    assert configs == [
        "experiments/configs/vp_base.py",
        *["experiments/configs/fine_tuning.py:vp_base"] * 4,
    ]
    fine_tuning.main(flags)
    assert len(trained) == 6
