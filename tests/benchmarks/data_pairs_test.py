"""The table of data-to-data methods: its cells, settings and lines, without training."""

import pytest

from benchmarks import data_pairs, runs


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner; notes the settings."""
    calls = []

    def train(config, overrides, directory, *, cache):
        calls.append(overrides)
        if overrides["seed"] == 2:
            raise runs.RunFailed("error: diverged")
        found = 0.01 * (1 + overrides["seed"])
        return {"bridge_gap": None, "w2_squared": found, "w2_squared_floor": 0.03}

    monkeypatch.setattr(runs, "train", train)
    return calls


@pytest.mark.parametrize(
    ("pair", "method"),
    [(pair, "ipf D2D") for pair in data_pairs.PAIRS]
    + [("moons-8gaussians", method) for method in data_pairs.FROM_DATA],
)
def test_every_cell_is_a_valid_configuration_of_samples(pair, method):
    config = data_pairs.configure({"pair": pair, "method": method, "seed": 3, "steps": 600})
    assert config.source.access == config.target.access == "samples"
    assert (config.seed, config.evaluate.num_samples) == (3, data_pairs.PAIRS[pair].num_samples)
    assert config.method == data_pairs.METHODS[method].overrides.get("method", "ipf")


def test_a_line_has_means_of_seeds_and_says_what_failed(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--pairs=moons-ring", "--methods=ipf D2D", "--seeds=3"]
    data_pairs.main(flags)
    text = capsys.readouterr().out
    assert text == (tmp_path / "results.md").read_text()
    # The mean of .01 and .02 with its standard error; no gap where there is no oracle.
    assert (
        "| ipf D2D | 2, 1 failed | - | - | 0.015 ± 0.005 (0.030) | 0.121 ± 0.021 (0.173) | "
        "0.023 |" in text
    )
    assert len(trained) == 3
    data_pairs.main(flags)
    assert len(trained) == 3
