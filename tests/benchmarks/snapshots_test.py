"""The tables of snapshots left out: cells, settings and lines, without training."""

import pytest

from benchmarks import runs, snapshots


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner; notes the settings."""
    calls = []

    def train(config, overrides, directory, *, cache):
        calls.append((config, overrides))
        if overrides["method"] == "eot":
            raise runs.RunFailed("error: diverged")
        left_out = overrides["snapshots.left_out"]
        found = {"w1_left_out_ode": 0.1 * left_out, "w1_left_out_straight": 0.5}
        if overrides["method"] == "sf2m":
            found |= {"w1_left_out": 0.2 * left_out}
        return found | ({"track_error": 0.25} if "gapminder" in config else {})

    monkeypatch.setattr(runs, "train", train)
    return calls


@pytest.mark.parametrize("process", snapshots.PROCESSES)
@pytest.mark.parametrize("method", snapshots.METHODS)
def test_every_cell_is_a_valid_configuration(process, method):
    fields = {"process": process, "left_out": 1, "method": method, "seed": 3, "steps": 600}
    config = snapshots.configure(fields)
    assert (config.snapshots.name, config.snapshots.left_out) == (process, 1)
    assert (config.seed, config.method, config.matching.num_steps) == (3, method, 600)


def test_lines_have_every_snapshot_left_out_and_their_mean(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--processes=branching"]
    snapshots.main(flags)
    text = capsys.readouterr().out
    assert text == (tmp_path / "results.md").read_text()
    assert "| learned | t = 0.25 | t = 0.5 | t = 0.75 | mean |" in text
    assert "| sf2m, process | 0.200 | 0.400 | 0.600 | 0.400 |" in text
    assert "| cfm, flow | 0.100 | 0.200 | 0.300 | 0.200 |" in text
    # A flow has no noise to be run with, and what failed is said.
    assert "cfm, process" not in text and "eot" not in text and "3 runs failed." in text
    assert "straight lines between the neighbours | 0.500 |" in text
    assert "individual" not in text
    assert len(trained) == 9
    snapshots.main([*flags, "--methods=sf2m"])
    assert len(trained) == 9


def test_individuals_that_were_followed_have_a_table(trained, tmp_path, capsys):
    snapshots.main([f"--folder={tmp_path}", "--processes=gapminder", "--methods=sf2m"])
    text = capsys.readouterr().out
    assert "| root mean square error of an individual | 1967 |" in text
    assert "| sf2m, flow | 0.250 | 0.250 | 0.250 | 0.250 | 0.250 |" in text
