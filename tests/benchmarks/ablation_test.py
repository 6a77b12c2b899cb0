"""The ablation: every lever is a valid change, and its table holds what was found."""

import pytest

from benchmarks import ablation, runs
from experiments import validation
from tests.experiments import small

SETTINGS = [(lever, label) for lever, found in ablation.LEVERS.items() for label in found]


def a_cell(lever, setting, *given):
    return {
        "config": "two_moons",
        "set": list(given),
        "lever": lever,
        "setting": setting,
        "seed": 0,
    }


def test_the_defaults_come_first_and_each_setting_once_per_seed():
    args = ablation.parse(["--levers=refresh,iterations", "--seeds=0,1"])
    cells = list(ablation.cells(args))
    assert [cell["lever"] for cell in cells[:2]] == ["defaults"] * 2
    assert len(cells) == 2 * (1 + 3 + 4) == len({str(cell) for cell in cells})
    assert ablation.overrides(cells[1]) == {"seed": 1, "evaluate.plots": False}
    with pytest.raises(SystemExit):
        ablation.parse(["--levers=refersh"])


@pytest.mark.parametrize(("lever", "setting"), SETTINGS)
def test_every_setting_is_valid_and_off_the_defaults(lever, setting):
    cell = a_cell(lever, setting)
    default = validation.validate(small.load("two_moons")).to_dict()
    changes = ablation.overrides(cell)
    changed = validation.validate(small.change(small.load("two_moons"), changes))
    changed = changed.copy_and_resolve_references().unlock()
    changed.evaluate.plots = default["evaluate"]["plots"]
    assert changed.to_dict() != default


def test_iterations_and_shares_keep_the_number_of_steps():
    given = small.load("two_moons").ipf
    whole = given.iterations * (given.forward_steps + given.backward_steps)
    for lever in ("iterations", "forward_share"):
        for setting in ablation.LEVERS[lever]:
            cell = a_cell(lever, setting)
            config = small.change(small.load("two_moons"), ablation.overrides(cell)).ipf
            steps = config.iterations * (config.forward_steps + config.backward_steps)
            assert steps == pytest.approx(whole, rel=0.01)


def test_what_is_set_for_every_run_is_set_and_what_follows_from_it_follows():
    given = ("ipf.forward_steps=30", "ipf.backward_steps=10", "ipf.iterations=4")
    found = ablation.overrides(a_cell("refresh", "none", *given))
    assert found["ipf.forward_steps"] == "30"
    assert found["exploration.refresh_method"] == "none"
    found = ablation.overrides(a_cell("iterations", "2", *given))
    names = ("ipf.iterations", "ipf.forward_steps", "ipf.backward_steps")
    assert [found[name] for name in names] == [2, 60, 20]


def test_the_table_takes_medians_over_seeds(monkeypatch, tmp_path, capsys):
    def train(config, overrides, directory, *, cache):
        seed = overrides["seed"]
        if overrides.get("exploration.refresh_method") == "hmc" and seed == 2:
            raise runs.RunFailed("diverged")
        return {
            "bridge_gap": 0.1 + 0.1 * seed**2,
            "bridge_gap_limit": 0.05,
            "mode_weights": [0.1 * (seed + 1), 0.6],
            "gradient_steps": 100,
            "steps_per_second": 10.0,
        }

    monkeypatch.setattr(runs, "train", train)
    ablation.main([f"--folder={tmp_path}", "--levers=refresh"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == ("| defaults |  | 0.200 (0.050) | 0.100 to 0.500 | - | - | 0.100 | 10 |")
    assert "0.100 to 0.200, 1 failed" in next(line for line in lines if "hmc" in line)
