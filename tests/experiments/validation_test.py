"""Every key has a rule, and every refusal names field, value and what is allowed."""

import re

import pytest

from d2ejax.algorithms import half_steps
from d2ejax.endpoints import registry
from experiments import fields, relations, validation
from experiments.configs import base
from experiments.errors import InputError


def changed(**changes):
    """The defaults with some dotted keys set, dots written as two underscores."""
    config = base.get_config()
    for name, value in changes.items():
        section, _, leaf = name.rpartition("__")
        holder = config
        for part in section.split("__") if section else ():
            holder = holder[part]
        with holder.ignore_type():
            holder[leaf] = value
    return config


def message(**changes):
    with pytest.raises(InputError) as caught:
        validation.validate(changed(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_valid_and_every_key_has_a_rule():
    config = base.get_config()
    assert {name for name, _ in validation.flatten(config)} == set(fields.FIELDS)
    assert validation.validate(config).to_dict() == config.to_dict()


def test_the_checked_copy_is_locked_and_typed():
    checked = validation.validate(changed(reference__sigma=2, optimiser__clip_norm=1))
    assert type(checked.reference.sigma) is float
    assert checked.is_locked
    with pytest.raises(AttributeError):
        checked.ipf.iteratons = 3


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("seed", -1, "an integer ≥ 0"),
        ("method", "ifp", "'ipf'"),
        ("ipf.iterations", -3, "an integer ≥ 1"),
        ("ipf.iterations", 2.0, "an integer ≥ 1"),
        ("ipf.iterations", True, "an integer ≥ 1"),
        ("ipf.iterations", "3", "an integer ≥ 1"),
        ("ipf.iterations", None, "an integer ≥ 1"),
        ("ipf.forward_steps", 0, "an integer ≥ 1"),
        ("ipf.backward_steps", -1, "an integer ≥ 1"),
        ("ipf.forward_loss", "logvar", "one of 'auto', 'likelihood'"),
        ("light.num_components", 0, "an integer ≥ 1"),
        ("light.init_share", 0.0, "a number > 0"),
        ("grid.num_steps", 0, "an integer ≥ 1"),
        ("grid.t_max", 0.0, "a number > 0"),
        ("grid.power", 0.5, "a number ≥ 1"),
        ("grid.spacing", "linear", "one of 'uniform'"),
        ("reference.sigma", -1.0, "a number > 0"),
        ("reference.sigma", float("nan"), "a number > 0"),
        ("reference.sigma", float("inf"), "a number > 0"),
        ("reference.name", "brown", "one of 'brownian'"),
        ("variance.family", "free", "one of 'bounded'"),
        ("learn_variance", 1, "true or false"),
        ("optimiser.ema_decay", 1.0, "a number ≥ 0 and < 1"),
        ("optimiser.schedule", "linear", "one of 'constant'"),
        ("exploration.off_policy_ratio", 1.1, "a number ≥ 0 and ≤ 1"),
        ("exploration.refresh_method", "nuts", "one of 'none'"),
        ("parallel.backend", "jit", "one of 'pmap'"),
        ("source.access", "both", "one of 'samples', 'energy'"),
        ("source.name", 3, "a name in quotes"),
        ("source.options", 3, "a ConfigDict"),
        ("batch_size", 100, "a multiple of ipf.paths_per_start = 8"),
        ("batch_size", 4, "a multiple of ipf.paths_per_start = 8"),
        ("ipf.paths_per_start", 1, "an integer ≥ 2"),
        ("optimiser.warmup_steps", 5000, "fewer than"),
    ],
)
def test_bad_value(field, value, allowed):
    text = message(**{field.replace(".", "__"): value})
    assert text.startswith(f"{field} = {value!r}: must be ")
    assert allowed in text


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("batch_size", 2**31, "at most 2147483647"),
        ("ipf.iterations", 10**400, "at most 2147483647"),
        ("reference.sigma", 1e-30, "from 1e-18 to 1e+18 in size"),
        ("reference.sigma", 3e18, "from 1e-18 to 1e+18 in size"),
        ("grid.num_steps", 10_000, "fewer with grid.spacing = 'end_refined', grid.power = 2 "),
    ],
)
def test_numbers_that_the_device_cannot_bear(field, value, allowed):
    text = message(**{field.replace(".", "__"): value})
    assert text.startswith(f"{field} = {value!r}: must be {allowed}")


def test_what_the_device_bears():
    validation.validate(changed(optimiser__weight_decay=0, reference__sigma=1e-17))
    validation.validate(changed(seed=2**32 - 1, batch_size=2**31 - 8))


@pytest.mark.parametrize(
    ("unknown", "right"),
    [
        ("ipf.iteratons", "ipf.iterations"),
        ("bach_size", "batch_size"),
        ("iterations", "ipf.iterations"),
        ("loop.t_max", "grid.t_max"),
    ],
)
def test_unknown_key_gets_the_nearest_right_name(unknown, right):
    text = message(**{unknown.replace(".", "__"): 3})
    assert text == f"{unknown}: unknown key: did you mean {right}?"


def test_missing_key():
    config = base.get_config()
    del config.grid.t_max
    with pytest.raises(InputError, match=r"grid.t_max: missing: must be a number > 0"):
        validation.validate(config)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"target__access": "energy"}, "ipf.first_coupling = 'independent': must be 'refer"),
        ({"ipf__backward_loss": "likelihood"}, "ipf.first_coupling = 'independent'"),
        ({"method": "dsb", "learn_variance": False, "ipf__reanchor": "none"}, "ipf.first_coup"),
        (
            {"method": "sf2m", "learn_variance": False, "network__steps_at_once": 2},
            "network.st",
        ),
        ({"method": "eot", "optimiser__backward_ratio": 2.0}, "optimiser.backward_ratio = 2.0"),
        ({"method": "lightsb", "reference__discretisation": "euler"}, "reference.discretisa"),
    ],
)
def test_what_would_have_no_effect_or_no_samples_is_refused(changes, refused):
    samples = {"source__access": "samples", "target__access": "samples"}
    first = {} if "eot" in changes.values() else {"ipf__first_coupling": "independent"}
    text = message(**{**samples, **first, **changes})
    assert text.startswith(refused)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        (
            {"target__access": "energy"},
            "target.access = 'energy': must be 'samples' with ipf.sta",
        ),
        (
            {"source__access": "energy"},
            "source.access = 'energy': must be 'samples' with ipf.sta",
        ),
        ({"ipf__first_coupling": "independent"}, "ipf.first_coupling = 'independent': must be"),
        ({"ipf__warm_start": False}, "ipf.warm_start = False: must be true with"),
        ({"reference__discretisation": "euler"}, "reference.discretisation = 'euler': must be"),
    ],
)
def test_a_start_from_a_light_bridge_needs_samples_and_its_steps(changes, refused):
    light = {"target__access": "samples", "ipf__start_from": "lightsb"}
    assert message(**(light | changes)).startswith(refused)
    # What has no half-steps has no start either.
    text = message(**(light | {"method": "eot"}))
    assert text.startswith(
        "ipf.start_from = 'lightsb': must be 'reference' with method = 'eot'"
    )


def test_bridge_matching_is_of_bridges_of_the_reference():
    samples = {"source__access": "samples", "target__access": "samples"}
    text = message(ipf__forward_loss="bridge_matching", ipf__reanchor="backward", **samples)
    assert text.startswith("ipf.reanchor = 'backward': must be 'both'")
    config = changed(ipf__reanchor="backward", **samples)
    assert relations.resolve_losses(config) == ("bridge_matching", "likelihood")


@pytest.mark.parametrize(
    ("source", "target", "forward", "backward", "refused"),
    [
        ("samples", "samples", "auto", "auto", None),
        ("samples", "energy", "auto", "auto", None),
        ("energy", "samples", "auto", "auto", None),
        ("energy", "energy", "auto", "auto", None),
        ("samples", "energy", "trajectory_balance", "likelihood", None),
        ("samples", "samples", "bridge_matching", "likelihood", None),
        ("samples", "energy", "bridge_matching", "auto", "ipf.forward_loss"),
        ("samples", "energy", "mean_matching", "auto", "ipf.forward_loss"),
        ("energy", "samples", "auto", "sde_likelihood", "ipf.backward_loss"),
        ("energy", "samples", "auto", "bridge_matching", "ipf.backward_loss"),
        ("samples", "energy", "semi_discrete", "auto", None),
        ("energy", "samples", "auto", "semi_discrete", None),
        ("energy", "energy", "hybrid", "auto", None),
        ("energy", "energy", "auto", "hybrid", None),
        ("samples", "energy", "likelihood", "auto", "ipf.forward_loss"),
        ("samples", "samples", "log_variance", "auto", "ipf.forward_loss"),
        ("samples", "samples", "trajectory_balance", "auto", "ipf.forward_loss"),
        ("energy", "energy", "auto", "likelihood", "ipf.backward_loss"),
        ("samples", "energy", "auto", "log_variance", "ipf.backward_loss"),
        ("energy", "samples", "semi_discrete", "auto", "ipf.forward_loss"),
        ("samples", "samples", "auto", "semi_discrete", "ipf.backward_loss"),
        ("energy", "energy", "semi_discrete", "semi_discrete", "ipf.backward_loss"),
        ("energy", "energy", "semi_discrete", "hybrid", "ipf.backward_loss"),
        ("samples", "samples", "hybrid", "auto", "ipf.forward_loss"),
    ],
)
def test_each_loss_needs_what_its_ends_offer(source, target, forward, backward, refused):
    changes = {
        "source__access": source,
        "target__access": target,
        "ipf__forward_loss": forward,
        "ipf__backward_loss": backward,
    }
    if refused is None:
        validation.validate(changed(**changes))
        return
    text = message(**changes)
    assert text.startswith(f"{refused} = ")
    assert "must be 'auto'" in text or "must be another loss" in text


PLAIN = {
    "source__access": "samples",
    "target__access": "samples",
    "ipf__reanchor": "none",
    "learn_variance": False,
}
"""What every loss between sampled ends allows."""


@pytest.mark.parametrize("loss", fields.FIXED_VARIANCE_LOSSES)
def test_losses_of_a_fixed_variance_refuse_a_learned_one_and_rejoined_ends(loss):
    for direction, other in (("forward", "backward"), ("backward", "forward")):
        given = PLAIN | {f"ipf__{direction}_loss": loss}
        validation.validate(changed(**given))
        # The half-step of another loss may.
        validation.validate(changed(**given | {"ipf__reanchor": other}))
        for reanchor in ("both", direction):
            text = message(**given | {"ipf__reanchor": reanchor})
            assert text.startswith(f"ipf.reanchor = {reanchor!r}: must be 'none', or")
            assert f"{loss!r} is of paths as they were drawn" in text
        text = message(**given | {"learn_variance": True})
        assert text.startswith(f"learn_variance = True: must be false with the loss {loss!r}")
        assert text.endswith("right for a fixed diffusion coefficient alone")


@pytest.mark.parametrize(("method", "loss"), fields.LOSS_OF_METHOD.items())
def test_a_method_between_samples_needs_them_and_has_its_own_loss(method, loss):
    reanchor = "both" if method == "dsbm" else "none"
    given = PLAIN | {"method": method, "ipf__reanchor": reanchor}
    config = validation.validate(changed(**given))
    assert relations.resolve_losses(config) == (loss, loss)
    config = validation.validate(changed(**given | {"ipf__forward_loss": "likelihood"}))
    assert relations.resolve_losses(config) == (loss, "likelihood")
    for end, name in (("source", "gaussian"), ("target", "ring")):
        energy = {f"{end}__name": name, f"{end}__access": "energy"}
        assert message(**given | energy) == (
            f"{end}.access = 'energy': must be 'samples' with method = {method!r}"
        )


def test_bridge_matching_by_its_name_does_not_turn_into_the_likelihood():
    text = message(**PLAIN | {"method": "dsbm"})
    assert text.startswith("ipf.reanchor = 'none': must be 'both', or the half-step of")


def test_a_half_step_begins_with_a_fresh_cache():
    steps = {"ipf__forward_steps": 60, "ipf__backward_steps": 40, "ipf__cache_every": 15}
    validation.validate(changed(**steps))
    text = message(**steps, ipf__cached_batches=1)
    assert text.startswith(
        "ipf.cache_every = 15: must be a divisor of ipf.forward_steps = 60 and of "
        "ipf.backward_steps = 40"
    )
    validation.validate(changed(**steps | {"ipf__cache_every": 20}, ipf__cached_batches=1))


def test_losses_are_listed_as_the_library_knows_them():
    assert set(half_steps.FROM_SAMPLES) == set(fields.SAMPLE_LOSSES)
    assert set(half_steps.WITH_FIXED_VARIANCE) == set(fields.FIXED_VARIANCE_LOSSES)
    assert set(half_steps.LOSSES) == {*fields.SAMPLE_LOSSES, *fields.ENERGY_LOSSES}


def test_auto_follows_the_pinned_end():
    config = validation.validate(changed(source__access="samples", target__access="energy"))
    assert relations.resolve_losses(config) == ("bridge_matching", "semi_discrete")
    config = validation.validate(changed(source__access="energy", target__access="samples"))
    assert relations.resolve_losses(config) == ("semi_discrete", "bridge_matching")


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_light_bridge_has_no_form_for_an_energy(end):
    samples = {"method": "lightsb", "source__access": "samples", "target__access": "samples"}
    validation.validate(changed(**samples))
    energy = {f"{end}__access": "energy", "source__name": "gaussian"}
    assert message(**samples | energy) == (
        f"{end}.access = 'energy': must be 'samples' with method = 'lightsb'"
    )
    text = message(**samples, light__backward_steps=10, optimiser__warmup_steps=10)
    assert text.startswith("optimiser.warmup_steps = 10: must be fewer than the 10 gradient")


def test_paths_per_start_matters_to_losses_of_groups_only():
    validation.validate(changed(target__access="samples", ipf__paths_per_start=1))
    validation.validate(changed(target__access="samples", batch_size=100))
    alone = {"ipf__forward_loss": "trajectory_balance", "ipf__paths_per_start": 1}
    validation.validate(changed(**alone, exploration__reuse_path=False))
    with pytest.raises(InputError, match=r"exploration.reuse_path = True: must be false with"):
        validation.validate(changed(**alone))
    with pytest.raises(InputError, match="paths_per_start"):
        validation.validate(changed(ipf__forward_loss="semi_discrete", ipf__paths_per_start=1))


def test_unknown_endpoint_and_option():
    assert re.match(
        r"source.name = 'two_mons': .*did you mean 'two_moons'",
        message(source__name="two_mons"),
    )
    text = message(target__options__radus=1.0)
    assert text.startswith("target.name = 'ring' with target.options = {'radus': 1.0}: ")
    assert "radius" in text


PAIR = {"pair__name": "mixtures", "source__name": "pair", "target__name": "pair"}


def test_a_pair_is_both_ends_or_neither():
    validation.validate(changed(**PAIR))
    assert message(**PAIR | {"target__name": "ring"}) == (
        "target.name = 'ring': must be 'pair' with pair.name = 'mixtures'"
    )
    assert message(source__name="pair") == (
        "source.name = 'pair': must be the name of an endpoint with pair.name = 'none'"
    )
    assert message(pair__name="mixture").startswith("pair.name = 'mixture': must be one of 'no")


def test_options_stand_where_they_count():
    assert message(**PAIR, target__options__radius=1.0) == (
        "target.options = {'radius': 1.0}: must be empty with target.name = 'pair': see "
        "pair.options"
    )
    assert message(pair__options__dim=3).startswith("pair.options = {'dim': 3}: must be empty")
    text = message(**PAIR, pair__options__separatoin=1.0)
    assert text.startswith("pair.name = 'mixtures' with pair.options = {'separatoin': 1.0}: ")
    assert "did you mean 'separation'" in text


def test_access_that_a_pair_does_not_offer():
    text = message(**PAIR | {"pair__name": "gaussian_plan"}, target__access="energy")
    assert text.startswith("target.access = 'energy': ")
    assert "allowed: 'samples'" in text


def test_access_that_the_endpoint_does_not_offer(monkeypatch):
    blind = registry.make_endpoint("ring")._replace(log_density=None)
    build = registry.make_endpoint
    monkeypatch.setattr(
        registry, "make_endpoint", lambda n, **o: blind if n == "blind" else build(n, **o)
    )
    text = message(target__name="blind")
    assert text.startswith("target.access = 'energy': ")
    assert "allowed: 'samples'" in text


def test_ends_of_different_dimension():
    config = changed(target__name="gaussian")
    config.target.options.dim = 3
    with pytest.raises(InputError) as caught:
        validation.validate(config)
    assert "target.name = 'gaussian': has dimension 3: must be 2" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("variance_exploding", "sigma_min", "sigma_max"),
        ("variance_preserving", "beta_min", "beta_max"),
    ],
)
def test_limits_of_a_reference_are_ordered_where_they_are_used(name, low, high):
    limits = {f"reference__{low}": 5.0, f"reference__{high}": 2.0}
    validation.validate(changed(**limits))
    assert message(reference__name=name, **limits).startswith(
        f"reference.{high} = 2.0: must be"
    )


def test_a_window_of_a_sampler_is_drawn_where_some_steps_are_tracked_alone():
    given = {
        "method": "sampler",
        "source__name": "gaussian",
        "sampler__loss": "path_kl",
        "sampler__tracked_steps": 2,
        "sampler__window": "random",
    }
    validation.validate(changed(**given))
    for change in (
        {"sampler__loss": "log_variance"},
        {"sampler__tracked_steps": 0},
        {"sampler__tracked_steps": 20},
    ):
        assert message(**given | change).startswith(
            "sampler.window = 'random': must be 'last' unless sampler.loss = 'path_kl'"
        )
    # Of no concern to other methods.
    validation.validate(changed(sampler__window="random"))


def test_steps_of_a_sampler_are_tracked_where_they_are_differentiated_through():
    given = {"method": "sampler", "source__name": "gaussian", "sampler__tracked_steps": 2}
    assert message(**given).startswith(
        "sampler.tracked_steps = 2: must be 0 with sampler.loss = 'log_variance'"
    )
    validation.validate(changed(**given, sampler__loss="path_kl"))
    validation.validate(changed(sampler__tracked_steps=2))
