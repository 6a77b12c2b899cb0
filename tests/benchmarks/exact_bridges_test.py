"""The benchmark on exact bridges: its cells, budgets, table and figures, without training."""

import json

import pytest

from benchmarks import exact_bridges, runs
from experiments import build, validation
from experiments.configs import mixtures
from tests.experiments import small

FOUND = {
    "bridge_gap": 0.3,
    "bridge_gap_standard_error": 0.02,
    "bridge_gap_limit": 0.1,
    "drift_error": 0.04,
    "conditional_bw_uvp": 1.5,
    "conditional_bw_uvp_floor": 0.5,
    "mode_weights": [0.5, 0.4, 0.1, 0.0],
    "mode_coverage": 0.5,
    "log_z_error": None,
    "gradient_steps": 1000,
    "steps_per_second": 50.0,
    "effective_anchors": 77.9,
}


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner; notes the overrides and workdirs."""
    calls = []

    def train(config, overrides, directory, *, cache):
        calls.append((overrides, directory.name))
        if overrides["target.access"] == "energy" and overrides["pair.options.dim"] == 3:
            raise runs.RunFailed("error: diverged")
        return FOUND | {"bridge_gap": 0.3 + overrides["seed"]}

    monkeypatch.setattr(runs, "train", train)
    return calls


def cells(*flags):
    return list(exact_bridges.cells(exact_bridges.parse(flags)))


def test_the_full_grid_leaves_out_what_a_pair_does_not_offer():
    full = cells()
    sampled = [m for m in exact_bridges.METHODS.values() if m.target == "samples"]
    assert len(full) == (len(exact_bridges.METHODS) + len(sampled)) * 4 * 3 * 2
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
    total = build.build(checked).total_steps
    assert total == pytest.approx(900, abs=5)
    assert checked.reference.sigma**2 * checked.grid.t_max == pytest.approx(0.25)
    assert checked.pair.options.dim == dim


def test_cells_are_trained_once_and_seconds_follow_the_rate(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--pairs=mixtures", "--dims=2,3", "--epsilons=1"]
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
    # A pilot per dimension, then 30 seconds at 50 steps a second.
    assert [round(n, -1) for n in steps] == [1000] * 4 + [300, 1500] * 2
    assert len({name for _, name in trained}) == 8
    text = (tmp_path / "results.md").read_text()
    assert capsys.readouterr().out.endswith(text)
    _, timed = text.split("## mixtures, 30 seconds")
    assert line_of(timed, "2")[4:] == [
        "1",
        "0.300 ± 0.020 (0.100)",
        "0.0400",
        "1.50 (0.50)",
        "-",
        "2 of 4",
        "-",
        "-",
        "78",
        "1000 (20)",
    ]
    assert (tmp_path / "gap_mixtures_30_seconds.png").exists()


def line_of(text, dim):
    """The cells of the first line of a table with this dimension, an empty one before them."""
    lines = ([part.strip() for part in line.split("|")] for line in text.splitlines())
    return next(line for line in lines if line[1:2] == [dim])[:-1]


def test_seeds_are_one_line_and_a_call_keeps_what_others_recorded(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--quick", "--methods=ipf D2D", "--dims=2"]
    exact_bridges.main([*flags, "--seeds=0,1,2"])
    exact_bridges.main([*flags, "--seeds=0", "--pairs=gaussian_plan"])
    text = (tmp_path / "results.md").read_text()
    plan, mixtures = text.split("## mixtures, 900 steps")
    assert "## gaussian plan, 900 steps" in plan
    assert line_of(plan, "2")[4:6] == ["1", "0.300 ± 0.020 (0.100)"]
    # The gaps are 0.3, 1.3 and 2.3.
    assert line_of(mixtures, "2")[4:6] == ["3", "1.300 (0.100)"]
    assert line_of(mixtures, "2")[9] == "6 of 12"


def test_a_failed_cell_is_a_line_and_a_hole(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--quick", "--methods=ipf D2E", "--dims=2,3"]
    exact_bridges.main([*flags, "--budgets=steps,seconds"])
    text = capsys.readouterr().out
    records = runs.read_records(tmp_path / "results.jsonl")
    assert [r.get("failed") for r in records] == [None, None, *["error: diverged"] * 2]
    for section in text.split("## mixtures, 30 seconds"):
        assert "| 0, 1 failed | failed: error: diverged |" in section
    panels = exact_bridges.panels([r for r in records if r["budget"] == "steps"])
    assert panels[0].lines["ipf D2E"] == ([2.0], [0.3])
    # The rate fails as the run itself.
    assert len(trained) == 5
    # Nothing is tried twice unless asked for.
    exact_bridges.main(flags)
    assert len(trained) == 5
    exact_bridges.main([*flags, "--retry-failed"])
    assert len(trained) == 6


def test_a_rate_is_of_the_method_and_the_dimension(trained, tmp_path):
    flags = [f"--folder={tmp_path}", "--methods=ipf D2D", "--budgets=seconds"]
    exact_bridges.main([*flags, "--pairs=mixtures", "--dims=2,4", "--epsilons=0.1,10"])
    exact_bridges.main([*flags, "--pairs=gaussian_plan", "--dims=2", "--epsilons=10"])
    timed = [o["pair.name"] for o, name in trained if not name.startswith("rate_")]
    assert timed == ["mixtures"] * 4 + ["gaussian_plan"]
    pilots = {name: o for o, name in trained if name.startswith("rate_")}
    # The runner does not repeat a run of the same name that is finished.
    assert sorted(name[:15] for name in pilots) == ["rate_2_ipf-D2D_", "rate_4_ipf-D2D_"]
    assert {o["pair.options.dim"] for o in pilots.values()} == {2, 4}
    assert {o["reference.sigma"] for o in pilots.values()} == {1.0}


def test_an_interrupted_call_leaves_its_table(monkeypatch, trained, tmp_path):
    train = runs.train

    def interrupted(config, overrides, directory, *, cache):
        if overrides["pair.options.dim"] == 3:
            raise KeyboardInterrupt
        return train(config, overrides, directory, cache=cache)

    monkeypatch.setattr(runs, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exact_bridges.main(
            [f"--folder={tmp_path}", "--quick", "--methods=ipf D2D", "--dims=2,3"]
        )
    assert line_of((tmp_path / "results.md").read_text(), "2")[4] == "1"
    assert (tmp_path / "gap_mixtures_900_steps.png").exists()


def test_records_of_other_defaults_do_not_count(trained, tmp_path):
    flags = [f"--folder={tmp_path}", "--quick", "--methods=ipf D2D", "--dims=2"]
    (cell,) = cells(*flags)
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({**cell, **FOUND}) + "\n")
    exact_bridges.main(flags)
    assert not trained  # It is from before there were hashes, and trusted.
    exact_bridges.main([*flags, "--fresh"])
    exact_bridges.main([*flags, "--fresh"])
    assert len(trained) == 1
    _, record = runs.read_records(path)
    assert trained[0][1].endswith(record["config_hash"])
    runs.append_record(path, record | {"config_hash": "01234567"})
    exact_bridges.main(flags)
    assert len(trained) == 2
