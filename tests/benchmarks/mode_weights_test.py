"""Mode weights are held against the true ones of the run's own target; failures are lost."""

import pytest

from benchmarks import mode_weights, results, runs


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner: every seed ends in its own way."""

    def train(config, overrides, directory, *, cache):
        seed = overrides["seed"]
        if seed == 2:
            raise runs.RunFailed("error: diverged")
        first = 0.05 if seed else 0.1
        return {
            "mode_weights": [first, 0.25 - first, *[0.125] * 6] if seed != 3 else None,
            "bridge_gap": 0.1 * (seed + 1) if seed != 4 else None,
            "gradient_steps": 100,
            "steps_per_second": 10.0,
        }

    monkeypatch.setattr(runs, "train", train)


def test_weights_stand_over_the_true_ones_and_lost_modes_are_counted(
    monkeypatch, trained, tmp_path, capsys
):
    mode_weights.main([f"--folder={tmp_path}", "--configs=two_moons", "--seeds=5"])
    out = capsys.readouterr().out
    assert "| `two_moons` | 0 | 0.80 | 1.20 | 0.100 | 0.100 0.150" in out
    assert "| `two_moons` | 1 | 0.40 | 1.60 | 0.200 |" in out
    assert "| `two_moons` | 2 | failed: error: diverged | - | - | - |" in out
    assert "| `two_moons` | 3 | failed: the mode weights are not finite | - | - | - |" in out
    assert "| `two_moons` | 4 | failed: the bridge gap is not finite | - | - | - |" in out
    lost = ", ".join(f"two_moons seed {seed}" for seed in (1, 2, 3, 4))
    assert out.rstrip().endswith(f"4 of 5 runs lost a mode: {lost}")
    assert (tmp_path / "mode_weights.md").read_text() == out
    # Fewer of them, from the records alone.
    monkeypatch.setattr(runs, "train", None)
    mode_weights.main([f"--folder={tmp_path}", "--configs=two_moons", "--seeds=1"])
    assert capsys.readouterr().out.rstrip().endswith("0 of 1 runs lost a mode: none")


def test_a_run_without_modes_keeps_none():
    record = {"config": "gaussian_to_gaussian", "overrides": {}, "seed": 0, "bridge_gap": 0.1}
    assert (
        mode_weights.verdict([record]) == "1 of 1 runs lost a mode: gaussian_to_gaussian seed 0"
    )


def test_the_table_of_results_counts_what_failed(monkeypatch, trained, tmp_path, capsys):
    rows = {
        "moons": results.Row("two_moons", {}),
        "no modes": results.Row("gaussian_to_gaussian", {}, marked=False),
    }
    monkeypatch.setattr(results, "ROWS", rows)
    results.main([f"--folder={tmp_path}", "--seeds=3"])
    out = capsys.readouterr().out
    text = (tmp_path / "results.md").read_text()
    assert out == text
    first, second = ([part.strip() for part in li.split("|")] for li in text.splitlines()[2:])
    assert first[1:5] == ["moons", "2, 1 failed", "0.150", "0.100 to 0.200"]
    assert first[8] == "0.40 to 1.60"
    assert second[1:5] == ["no modes", "1", "0.100", "-"]
    assert second[8] == "-"
    monkeypatch.setattr(results, "ROWS", {"moons": results.Row("two_moons", {})})
    monkeypatch.setattr(runs, "train", lambda *_, **__: {"bridge_gap": None})
    results.main([f"--folder={tmp_path / 'other'}", "--seeds=2"])
    assert "| moons | 0, 2 failed | - | - |" in capsys.readouterr().out
