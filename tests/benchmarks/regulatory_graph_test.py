"""The table of learned graphs: cells, settings and lines, without training."""

import pytest

from benchmarks import regulatory_graph, runs


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner; notes the settings."""
    calls = []

    def train(config, overrides, directory, *, cache):
        calls.append(overrides)
        if overrides.get("method") == "eot":
            raise runs.RunFailed("error: diverged")
        seed = overrides["snapshots.options.seed"]
        found = {
            "edge_auroc_sensitivity": 0.7 + 0.1 * seed,
            "edge_average_precision_sensitivity": 0.4,
            "edge_auroc_correlation": 0.55,
            "edge_average_precision_correlation": 0.3,
            "edge_average_precision_chance": 0.236,
        }
        if overrides["graph.of"] != "none":
            found |= {"edge_auroc": 0.8 + 0.1 * seed, "edge_average_precision": 0.5}
        return found

    monkeypatch.setattr(runs, "train", train)
    return calls


@pytest.mark.parametrize("learned", regulatory_graph.LEARNED)
def test_every_cell_is_a_valid_configuration(learned):
    fields = {"circuit": "random", "learned": learned, "seed": 2, "steps": 600}
    config = regulatory_graph.configure(fields)
    assert config.snapshots.options.to_dict()["circuit"] == "random"
    assert config.seed == config.snapshots.options.seed == 2
    assert config.matching.num_steps == 600


def test_lines_are_medians_and_cells_alone_count_once(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--circuits=myeloid", "--learned=forward drift,no graph"]
    regulatory_graph.main(flags)
    text = capsys.readouterr().out
    assert text == (tmp_path / "results.md").read_text() and len(trained) == 6
    start = "| myeloid | forward drift |"
    assert f"{start} first layer | 0.900 | 0.800, 0.900, 1.000 | 0.500 |" in text
    assert f"{start} sensitivity | 0.800 | 0.700, 0.800, 0.900 | 0.400 |" in text
    assert "| myeloid | no graph | sensitivity |" in text
    assert "no graph | first layer" not in text and "random" not in text
    assert "| myeloid | - | correlation | 0.550 | 0.550, 0.550, 0.550 | 0.300 |" in text
    assert "| myeloid | - | chance | 0.500 | - | 0.236 |" in text and "failed" not in text
    regulatory_graph.main(flags)
    assert len(trained) == 6


def test_what_failed_is_said(trained, tmp_path, capsys, monkeypatch):
    settings = {"graph.of": "forward", "method": "eot"}
    monkeypatch.setitem(regulatory_graph.LEARNED, "broken", settings)
    flags = [f"--folder={tmp_path}", "--circuits=random", "--seeds=1", "--learned=broken"]
    regulatory_graph.main(flags)
    assert "1 runs failed." in capsys.readouterr().out
