"""Mode weights are held against the true ones of the run's own target."""

import json

from benchmarks import mode_weights, runs
from experiments import validation
from tests.experiments import small


def test_weights_stand_over_the_true_ones_and_lost_modes_are_counted(
    monkeypatch, tmp_path, capsys
):
    def train(config, overrides, directory, *, cache):
        directory.mkdir(parents=True)
        values = validation.validate(small.load("two_moons")).to_dict()
        (directory / "config.json").write_text(json.dumps(values))
        first = 0.05 if overrides["seed"] else 0.1
        return {"mode_weights": [first, 0.25 - first, *[0.125] * 6]}

    monkeypatch.setattr(runs, "train", train)
    mode_weights.main([f"--folder={tmp_path}", "--configs=two_moons", "--seeds=2"])
    out = capsys.readouterr().out
    assert "| `two_moons` | 0 | 0.80 | 1.20 | - | 0.100 0.150" in out
    assert "| `two_moons` | 1 | 0.40 | 1.60 | - |" in out
    assert out.rstrip().endswith("1 of 2 runs lost a mode: two_moons seed 1")
