"""The benchmark on exact bridges: its cells, budgets, table and figures, without training."""

import pytest

from benchmarks import exact_bridges, runs
from experiments import validation
from experiments.configs import mixtures
from tests.experiments import small

FOUND = {
    "bridge_gap": 0.3,
    "bridge_gap_limit": 0.1,
    "drift_error": 0.04,
    "conditional_bw_uvp": 1.5,
    "conditional_bw_uvp_floor": 0.5,
    "mode_weights": [0.5, 0.4, 0.1, 0.0],
    "mode_coverage": 0.5,
    "log_z_error": None,
    "gradient_steps": 1000,
    "steps_per_second": 50.0,
}


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner; notes the overrides and workdirs."""
    calls = []

    def train(config, overrides, directory, *, cache):
        calls.append((overrides, directory.name))
        if overrides["target.access"] == "energy" and overrides["pair.options.dim"] == 16:
            raise runs.RunFailed("error: diverged")
        return FOUND

    monkeypatch.setattr(runs, "train", train)
    return calls


def cells(*flags):
    return list(exact_bridges.cells(exact_bridges.parse(flags)))


def test_the_full_grid_leaves_out_what_a_pair_does_not_offer():
    full = cells()
    assert len(full) == (6 + 2) * 4 * 3 * 2
    energies = {
        c["pair"] for c in full if exact_bridges.METHODS[c["method"]].target == "energy"
    }
    assert energies == {"mixtures"}
    assert len({str(cell) for cell in full}) == len(full)


def test_flags_select_and_quick_is_small():
    quick = cells("--quick")
    assert {(c["dim"], c["epsilon"], c["budget"]) for c in quick} == {
        (2, 1.0, "steps"),
        (16, 1.0, "steps"),
    }
    assert {c["dim"] for c in cells("--quick", "--dims=64")} == {64}
    (cell,) = cells("--quick", "--methods=ipf D2E", "--dims=2", "--seeds=3", "--steps=50")
    assert (cell["seed"], cell["amount"]) == (3, 50.0)
    with pytest.raises(SystemExit):
        cells("--methods=unknown")


@pytest.mark.parametrize("method", exact_bridges.METHODS)
@pytest.mark.parametrize("dim", [2, 16])
def test_every_method_is_a_valid_configuration_of_its_budget(method, dim):
    (cell,) = cells("--quick", f"--methods={method}", f"--dims={dim}", "--epsilons=0.25")
    changes = exact_bridges.overrides(cell, steps=900)
    # A keyword option may be new to the section; the command line adds it likewise.
    config = small.change(mixtures.get_config(), changes)
    checked = validation.validate(config)
    assert checked.ipf.iterations * (
        checked.ipf.forward_steps + checked.ipf.backward_steps
    ) == (pytest.approx(900, abs=5))
    assert checked.reference.sigma**2 * checked.grid.t_max == pytest.approx(0.25)
    assert checked.pair.options.dim == dim


def test_cells_are_trained_once_and_seconds_follow_the_rate(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--pairs=mixtures", "--dims=2,16", "--epsilons=1"]
    flags += ["--methods=ipf D2D,ipf D2E", "--steps=1000", "--seconds=30"]
    budgets = [*flags, "--budgets=steps"]
    exact_bridges.main(budgets)
    assert len(trained) == 4
    exact_bridges.main(budgets)
    assert len(trained) == 4
    exact_bridges.main([*flags, "--methods=ipf D2D"])
    steps = [
        o["ipf.iterations"] * (o["ipf.forward_steps"] + o["ipf.backward_steps"])
        for o, _ in trained
    ]
    # 30 seconds at 50 steps a second.
    assert [round(n, -1) for n in steps] == [1000] * 4 + [1500] * 2
    assert len({name for _, name in trained}) == 6
    text = (tmp_path / "results.md").read_text()
    assert capsys.readouterr().out.endswith(text)
    line = next(line for line in text.splitlines() if "30 seconds" in line)
    cell = [part.strip() for part in line.split("|")]
    assert cell[6:] == [
        "0.300 (0.100)",
        "0.040",
        "1.50 (0.50)",
        "-",
        "2 of 4",
        "-",
        "-",
        "1000",
        "20",
        "",
    ]
    assert (tmp_path / "gap_mixtures_seconds.png").exists()


def test_a_failed_cell_is_a_line_and_a_hole(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--quick", "--methods=ipf D2E"]
    exact_bridges.main(flags)
    assert "failed: error: diverged" in capsys.readouterr().out
    records = runs.read_records(tmp_path / "results.jsonl")
    (panel,) = exact_bridges.panels(records)
    assert panel.lines["ipf D2E"] == ([2.0], [0.3])
    with pytest.raises(ValueError, match=r"no rate of .*'dim': 16"):
        exact_bridges.main([*flags, "--budgets=seconds", "--dims=16"])
