"""The curves of alternating: its cells, tables and panels, without training."""

import pytest

from benchmarks import iterations, runs


def record(variant, **measures):
    curves = {"bridge_gap": [0.4, 0.6], "path_kl": [2.5, 3.0], "w2_squared": [0.1, 0.02]}
    ideals = {"bridge_gap_limit": 0.08, "path_kl_optimal": 2.4, "w2_squared_floor": 0.03}
    fields = {"variant": variant, "seed": 0, "iterations": 2, "steps": 400}
    return {**fields, **ideals, "curves": {**curves, **measures}}


@pytest.mark.parametrize("variant", iterations.VARIANTS)
def test_every_cell_is_a_valid_configuration_of_samples(variant):
    args = iterations.parse([f"--variants={variant}"])
    (cell,) = iterations.cells(args)
    config = iterations.configure(cell)
    assert config.source.access == config.target.access == "samples"
    assert config.ipf.forward_steps == config.ipf.backward_steps == 400
    assert (config.ipf.reanchor == "none") == (variant == "plain likelihood")


def test_curves_are_of_the_ends_of_forward_half_steps():
    def line(phase, **found):
        return {"phase": phase, **found}

    measured = {"path_kl": 1.0, "w2_squared": 0.1}
    found = iterations.curves(
        [
            line("backward 1", bridge_gap=9.0, **measured),
            line("forward 1"),
            line("forward 1", bridge_gap=0.5, **measured),
            line("forward 2", bridge_gap=0.7, **measured),
        ]
    )
    assert found == {"bridge_gap": [0.5, 0.7], "path_kl": [1.0, 1.0], "w2_squared": [0.1, 0.1]}


def test_tables_and_panels_are_medians_beside_their_ideals():
    seeds = [record("plain likelihood", bridge_gap=[0.2 * n, 0.6]) for n in (1, 2, 3)]
    records = [*seeds, record("bridge matching"), {"variant": "bridge matching", "failed": "x"}]
    text = iterations.table(records)
    assert "bridge gap [nats], ideal 0.080" in text
    assert "| variant | 1 | 2 |" in text
    assert "| plain likelihood | 0.400 | 0.600 |" in text
    gap = iterations.panels(records)[0]
    assert gap.lines["plain likelihood"][1] == pytest.approx([0.4, 0.6])
    assert gap.limit == ([1, 2], [0.08, 0.08])


def test_a_run_that_failed_is_recorded_and_leaves_no_curve(monkeypatch, tmp_path, capsys):
    def train(config, overrides, directory, *, cache):
        raise runs.RunFailed("error: diverged")

    monkeypatch.setattr(runs, "train", train)
    iterations.main([f"--folder={tmp_path}", "--variants=bridge matching"])
    (found,) = runs.read_records(tmp_path / runs.RECORDS)
    assert found["failed"] == "error: diverged"
    assert not (tmp_path / "iterations.png").exists()
