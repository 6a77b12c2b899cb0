"""Every configuration that is shipped can be run, and means what its name says."""

from pathlib import Path

import pytest

from experiments import build, fields, relations, validation
from tests.experiments import finished, small
from tests.experiments.conftest import ROOT

NAMES = sorted(
    path.stem
    for path in (ROOT / "experiments" / "configs").glob("*.py")
    if path.stem != "__init__"
)
CONTRACT = (
    "seed",
    "method",
    "source.name",
    "source.access",
    "target.name",
    "target.access",
    "reference.name",
    "reference.sigma",
    "grid.num_steps",
    "grid.t_max",
    "learn_variance",
    "batch_size",
    "ipf.iterations",
    "ipf.forward_steps",
    "ipf.backward_steps",
)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_has_the_keys_of_the_contract_and_builds(name, monkeypatch, tmp_path):
    config = validation.validate(small.load(name))
    for key in CONTRACT:
        validation.get(config, key)
    if config.method == "fine_tuning":
        monkeypatch.chdir(tmp_path)
        base = validation.validate(small.load("vp_base"))
        finished.run(Path(config.fine_tuning.base), base, num_steps=0)
    experiment = build.build(config)
    phases, step = [], 0
    while step < experiment.total_steps:
        label, step = experiment.phase_of(step)
        phases.append(label)
    assert step == experiment.total_steps
    assert len(set(phases)) == len(phases)
    directions = {label.split()[0] for label in phases}
    names = {
        "sampler": "sampling",
        "diffusion": "denoising",
        "fine_tuning": "fine-tuning",
        **dict.fromkeys(fields.COUPLING_OF_METHOD, "matching"),
    }
    named = names.get(config.method)
    expected = {"backward", "forward"} if named is None else {named}
    # A learned corrector has stages of its own.
    assert directions - {"corrector"} == expected
    assert ("corrector" in directions) == (config.method == "asbs")


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("two_moons", ("two_moons", "samples"), ("ring", "energy")),
        ("gaussian_to_ring", ("gaussian", "samples"), ("ring", "energy")),
        ("gaussian_to_ring_d2d", ("gaussian", "samples"), ("ring", "samples")),
        ("moons_to_ring_d2d", ("two_moons", "samples"), ("ring", "samples")),
        ("sf2m", ("gaussian", "samples"), ("eight_gaussians", "samples")),
        ("cfm", ("gaussian", "samples"), ("eight_gaussians", "samples")),
        ("eot", ("gaussian", "samples"), ("eight_gaussians", "samples")),
        ("lightsb", ("two_moons", "samples"), ("ring", "samples")),
        ("cross_to_ring", ("cross", "energy"), ("ring", "energy")),
        ("gaussian_to_gaussian", ("gaussian", "samples"), ("gaussian", "energy")),
        ("mixtures", ("pair", "samples"), ("pair", "energy")),
        ("branching", ("snapshots", "samples"), ("snapshots", "samples")),
        ("gapminder", ("snapshots", "samples"), ("snapshots", "samples")),
        ("regulatory", ("snapshots", "samples"), ("snapshots", "samples")),
        ("enot", ("gaussian", "samples"), ("ring", "samples")),
        ("sampler", ("gaussian", "samples"), ("ring", "energy")),
        ("sampler_at_rest", ("gaussian", "samples"), ("ring", "energy")),
        ("vp_base", ("gaussian", "samples"), ("two_moons", "samples")),
        ("ve_base", ("gaussian", "samples"), ("two_moons", "samples")),
        ("fine_tuning", ("gaussian", "samples"), ("two_moons", "samples")),
        ("asbs", ("two_moons", "samples"), ("ring", "energy")),
        ("smoke", ("two_moons", "samples"), ("ring", "energy")),
        ("paper_gaussian_to_ring", ("gaussian", "samples"), ("ring", "energy")),
        ("dsb", ("gaussian", "samples"), ("ring", "samples")),
        ("sde_likelihood", ("gaussian", "samples"), ("ring", "samples")),
        ("dsbm", ("gaussian", "samples"), ("ring", "samples")),
    ],
)
def test_ends_and_access(name, source, target):
    config = small.load(name)
    assert (config.source.name, config.source.access) == source
    assert (config.target.name, config.target.access) == target


def test_the_paper_has_its_own_settings_and_not_the_defaults():
    config = validation.validate(small.load("paper_gaussian_to_ring"))
    assert relations.resolve_losses(config) == ("likelihood", "log_variance")
    assert (config.grid.spacing, config.ipf.paths_per_start) == ("uniform", 2)
    assert config.ipf.reanchor == "none" and not config.exploration.reuse_path
    assert (config.optimiser.name, config.network.depth) == ("adamw", 3)
    assert not (config.ipf.use_ema_opposite or config.network.energy_feature)
    # Its parameters are judged as they are: a moving average of decay 0 is no average.
    assert config.optimiser.ema_decay == 0


@pytest.mark.parametrize(
    ("name", "loss", "reanchor", "first_coupling"),
    [
        ("dsb", "mean_matching", "none", "reference"),
        ("sde_likelihood", "sde_likelihood", "none", "reference"),
        ("dsbm", "bridge_matching", "both", "independent"),
    ],
)
def test_published_methods_between_samples_are_as_published(
    name, loss, reanchor, first_coupling
):
    config = validation.validate(small.load(name))
    assert relations.resolve_losses(config) == (loss, loss)
    assert (config.ipf.reanchor, config.ipf.first_coupling) == (reanchor, first_coupling)
    assert (config.grid.spacing, config.grid.num_steps) == ("uniform", 20)
    assert not config.learn_variance and config.optimiser.name == "adamw"
    assert config.ipf.cached_batches and config.reference.name == "brownian"


@pytest.mark.parametrize("name", NAMES)
def test_changing_one_configuration_does_not_change_the_next(name):
    config = small.load(name)
    config.ipf.iterations = 77
    config.target.options.radius = 3.0
    again = small.load(name)
    assert again.ipf.iterations != 77
    assert "radius" not in again.target.options
