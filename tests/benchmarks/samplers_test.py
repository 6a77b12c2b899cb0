"""The tables of methods that learn from an energy: cells, budgets, lines, without training."""

import pytest

from benchmarks import runs, sampler_methods, samplers
from benchmarks.evaluations import energy_evaluations


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner; notes the settings."""
    calls = []

    def train(config, overrides, directory, *, cache):
        calls.append((config, overrides))
        if overrides.get("sampler.loss") == "path_kl":
            raise runs.RunFailed("error: diverged")
        rate = {"gradient_steps": 100, "steps_per_second": 50.0, "devices": "1 x cpu"}
        if overrides.get("method") == "sampler":
            bounds = {"log_z_lower": -0.75, "log_z_true": -0.5, "log_z_error": 0.01}
            return rate | bounds | {"log_z_error_smc": 0.02, "ess": 0.5, "sinkhorn": 0.125}
        return rate | {"bridge_gap": 0.07 + overrides["seed"], "bridge_gap_limit": 0.05}

    monkeypatch.setattr(runs, "train", train)
    return calls


def _fields(problem, method, budget="steps", amount=3000.0):
    return {
        "problem": problem,
        "method": method,
        "seed": 3,
        "budget": budget,
        "amount": amount,
    }


@pytest.mark.parametrize("problem", sampler_methods.PROBLEMS)
def test_every_cell_is_a_valid_configuration(problem):
    for method in sampler_methods.methods(problem):
        config = samplers.configure(_fields(problem, method))
        assert config.target.access == "energy"
        assert config.seed == 3


@pytest.mark.parametrize("problem", ["MW-5", "mixtures-16"])
def test_a_budget_of_evaluations_is_kept(problem):
    amount = samplers.parse([]).amount
    for method in sampler_methods.methods(problem):
        fields = _fields(problem, method, "evaluations", amount)
        steps = samplers.within_evaluations(fields)
        config = runs.checked(samplers._config(fields), samplers.settings(fields, steps))
        spent = energy_evaluations(config, config.parallel.cpu_devices)
        assert 0.97 * amount < spent <= amount


def test_tables_have_each_kind_of_problem_and_say_what_failed(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--problems=MW-5,Gauss-ring", "--seeds=0,1"]
    flags += ["--methods=TB,path KL,ipf", "--budget=seconds", "--amount=10"]
    samplers.main(flags)
    text = capsys.readouterr().out
    assert text == (tmp_path / "results.md").read_text()
    assert "## MW-5, 10 seconds" in text and "## Gauss-ring, 10 seconds" in text
    assert (
        "| TB | 2 | 0.250 | 0.010 | 0.020 | 0.500 | - | Sinkhorn 0.125 | - | 100 (2) |" in text
    )
    assert "| path KL | 0, 2 failed | failed: error: diverged |" in text
    assert "| ipf | 2 | 0.570 (0.050) |" in text
    steps = [o["sampler.num_steps"] for _, o in trained if o.get("sampler.loss", "") != ""]
    assert 500 in steps  # ten seconds at fifty a second
    assert (tmp_path / "samplers.png").exists()
    before = len(trained)
    samplers.main([*flags, "--methods=TB,ipf"])
    assert len(trained) == before


def test_draws_of_long_chains_are_used_where_they_are(tmp_path):
    (tmp_path / "double_well_particles.npz").touch()
    found = samplers._reference(_fields("DW-4", "TB"), tmp_path)
    assert found == {"evaluate.reference": str(tmp_path / "double_well_particles.npz")}
    assert samplers._reference(_fields("MW-5", "TB"), tmp_path) == {}
    assert "DW-4" not in samplers.parse([]).problems
    assert samplers.parse([f"--references={tmp_path}", "--problems=DW-4"]).problems == ["DW-4"]
    with pytest.raises(SystemExit):
        samplers.parse([f"--references={tmp_path}", "--problems=LJ-13"])


def test_the_quick_form_has_both_kinds_of_problems():
    args = samplers.parse(["--quick"])
    found = {(c["problem"], c["method"]) for c in samplers.cells(args)}
    assert ("mixture-25", "path KL") in found and ("Gauss-ring", "ipf") in found
    assert len(found) == 3
    assert (args.budget, args.amount) == ("steps", 300.0)
