"""Scaling: one quantity is varied at a time, and each cell is the configuration it says."""

import json

import pytest

from benchmarks import scaling


def test_cells_vary_one_quantity_at_a_time_and_none_twice():
    cells = list(scaling.cells(scaling.parse([])))
    # Each method has its defaults once; N means nothing to D2D.
    assert len(cells) == (5 + 3 + 4 + 4) + (5 + 3 + 4 + 4 + 3)
    for cell in cells:
        assert sum(cell[name] != value for name, value in scaling.DEFAULTS.items()) <= 1
    assert {c["num_paths"] for c in cells if c["method"] == "D2D"} == {8}


@pytest.mark.parametrize(("method", "access"), [("D2D", "samples"), ("D2E", "energy")])
def test_a_cell_is_the_configuration_it_says(method, access):
    cell = {"method": method, "dim": 8, "num_steps": 10, "num_paths": 4}
    config = scaling.configuration(cell | {"width": 32, "batch_size": 64})
    assert config.target.access == access
    assert (config.grid.num_steps, config.ipf.paths_per_start) == (10, 4)
    assert (config.target.options.dim, config.network.width, config.batch_size) == (8, 32, 64)


def test_what_is_measured_becomes_a_table_and_a_figure(monkeypatch, tmp_path, capsys):
    measured = []

    def measure_apart(cell, args):
        measured.append(cell)
        fields = cell.fields
        if fields["dim"] == 512:
            return {"failed": "exit status -9"}
        cost = 1.0 * fields["dim"] * fields["num_steps"]
        return {"milliseconds": cost, "peak_megabytes": 2 * cost, "compile_seconds": 3.0}

    monkeypatch.setattr(scaling, "measure_apart", measure_apart)
    for _ in range(2):
        scaling.main([f"--folder={tmp_path}"])
    assert len(measured) == 35
    text = capsys.readouterr().out
    assert "| D2D | 8 | 20 | 128 | 64 | - | 160.00 | 320 | 3.0 |" in text
    assert "| D2E | 512 | 20 | 128 | 64 | 8 | exit status -9 | - | - |" in text
    # In proportion to the steps, and not at all to the batch; what failed is no end of a line.
    assert "| D2D | steps K | 50 | 100 | 1.00 | 1.00 |" in text
    assert "| D2D | batch | 2048 | 8192 | 0.00 | 0.00 |" in text
    assert "| D2E | dimension | 32 | 128 | 1.00 | 1.00 |" in text
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").open()]
    panels = scaling.panels(records)
    assert panels[0].lines["D2E"] == ((2, 8, 32, 128), (40.0, 160.0, 640.0, 2560.0))
    assert "D2D" not in panels[4].lines
    scaling.main([f"--folder={tmp_path}", "--methods=D2E", "--retry-failed"])
    assert [cell.fields["dim"] for cell in measured[35:]] == [512]
