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
    found = ablation.overrides(a_cell("iterations", "2", *given, "learn_variance=False"))
    names = ("ipf.iterations", "ipf.forward_steps", "ipf.backward_steps")
    assert [found[name] for name in names] == [2, 60, 20]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ipf.iterations", "--set ipf.iterations: must be KEY=VALUE"),
        ("seed=1", "--set seed=1: must be another key: see --seeds"),
        ("ipf.iteratoins=4", "ipf.iteratoins: unknown key: did you mean ipf.iterations?"),
        ("ipf.forward_loss=likelihood", "ipf.forward_loss = 'likelihood': must be"),
    ],
)
def test_what_cannot_be_set_is_refused_before_anything_trains(
    monkeypatch, tmp_path, capsys, given, message
):
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(SystemExit) as refused:
        ablation.main([f"--folder={tmp_path}", "--levers=refresh", f"--set={given}"])
    assert message in f"{refused.value} {capsys.readouterr().err}"


@pytest.fixture
def trained(monkeypatch):
    """Stands in for the runner; notes the overrides."""
    calls = []

    def train(config, overrides, directory, *, cache):
        calls.append(overrides)
        seed, method = overrides["seed"], overrides.get("exploration.refresh_method")
        if method == "hmc" and seed == 2:
            raise runs.RunFailed("diverged")
        return {
            "bridge_gap": None if method == "none" and seed == 0 else 0.1 + 0.1 * seed**2,
            "bridge_gap_limit": 0.05,
            # Of eight modes with an eighth each.
            "mode_weights": [0.05 * (seed + 1), *[0.125] * 7],
            "gradient_steps": 100,
            "steps_per_second": 10.0,
        }

    monkeypatch.setattr(runs, "train", train)
    return calls


def test_the_table_takes_medians_over_seeds(trained, tmp_path, capsys):
    ablation.main([f"--folder={tmp_path}", "--levers=refresh"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "`two_moons`"
    assert lines[4] == "| defaults |  | 0.200 (0.050) | 0.100 to 0.500 | - | - | 0.40 | 10 |"
    assert "0.100 to 0.200, 1 failed" in next(line for line in lines if "hmc" in line)
    # The seed without a finite gap has failed too.
    assert "0.200 to 0.500, 1 failed" in next(line for line in lines if "none" in line)


def test_a_table_has_all_records_of_its_config_and_set_alone(trained, tmp_path, capsys):
    flags = [f"--folder={tmp_path}", "--seeds=0"]
    ablation.main([*flags, "--levers=warm_start"])
    ablation.main([*flags, "--levers=reuse_path"])
    ablation.main([*flags, "--levers=reuse_path", "--set=learn_variance=False"])
    plain = (tmp_path / "two_moons.md").read_text()
    changed = (tmp_path / "two_moons_learn_variance=False.md").read_text()
    assert changed.startswith("`two_moons` with `learn_variance=False`\n")
    levers = ("defaults", "reuse_path", "warm_start")
    assert [f"| {lever} |" in plain for lever in levers] == [True, True, True]
    assert [f"| {lever} |" in changed for lever in levers] == [True, True, False]
    # The defaults first, the rest in the order of the levers.
    assert plain.index("defaults") < plain.index("reuse_path") < plain.index("warm_start")
    assert len(trained) == 5
    assert [call.get("learn_variance") for call in trained] == [None] * 3 + ["False"] * 2
