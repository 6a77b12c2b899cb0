"""Random configurations: valid ones train and stay finite, wrong ones are refused by name.

A few of each; `python -m pytest --hypothesis-profile=long` tries several hundred.
"""

import contextlib
import inspect
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, event, given, note
from hypothesis import strategies as st
from ml_collections import ConfigDict

from d2ejax import pairs, parallel, snapshots
from d2ejax.algorithms.base import Model
from d2ejax.endpoints import ENDPOINTS
from experiments import arguments, bases, fields, report, run, validation
from experiments.configs import base
from experiments.errors import InputError
from experiments.judge import Judge
from experiments.relations import RELATIONS
from experiments.relations_of_methods import RELATIONS_OF_METHODS
from tests.experiments import finished, small, strategies
from tests.profiles import LONG, examples

METHODS = fields.FIELDS["method"].names
TRIED = METHODS if LONG else ("ipf",)

KEYS = tuple(fields.FIELDS)
DRAWN = (*filter(strategies.is_drawn, KEYS), "method", "source.access", "target.access")
RELATED = sorted(
    {r.field for r in (*RELATIONS, *RELATIONS_OF_METHODS)}.intersection(DRAWN)
    | {"method", "source.access", "target.access", "ipf.paths_per_start", "grid.num_steps"}
)
"""Keys on which others depend."""
TYPED = tuple(
    name
    for name in KEYS
    if fields.FIELDS[name].names or fields.FIELDS[name].kind in (int, float)
)
"""Of which a value that is wrong is so as text as well."""
OF_ANY_BASE = tuple(method for method in METHODS if method != "fine_tuning")
CONFIG_FILE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({!r})
"""

_COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def flags(config):
    """What a configuration says beside the defaults, as on a command line."""
    usual = dict(validation.flatten(base.get_config()))
    return " ".join(
        f"--config.{name}={value}"
        for name, value in validation.flatten(config)
        if value != usual[name]
    )


# ---- Valid ones


def on_a_base(config, directory):
    """A fine-tuning, its base a run of no steps that shares what it has to."""
    given = small.change(base.get_config(), small.SHRINK)
    for name, value in validation.flatten(config):
        if bases._is_shared(name):
            small.change(given, {name: value})
    given.method = config.fine_tuning.base
    if given.method == "other":
        given.method = "ipf" if config.target.access == "energy" else "eot"
    finished.run(directory, validation.validate(given), num_steps=0)
    return bases.pinned(
        small.change(config.copy_and_resolve_references(), {"fine_tuning.base": str(directory)})
    )


def trained(config, directory, most=8):
    """The experiment and its state of one device after two steps, and after a few more.

    None for a configuration that is refused while it is wired, by the name of a key.
    """
    if LONG:
        # A system lets a process map so many programs, which hundreds of configurations exceed.
        jax.clear_caches()
    if config.method == "fine_tuning":
        config = on_a_base(config, directory)
    try:
        experiment, trainer = run.build_trainer(SimpleNamespace(config=config))
    except InputError as error:
        note(str(error))
        assert strategies.named(str(error)) in fields.FIELDS
        event("refused while wired")
        return None
    state = trainer.init(jax.random.key(config.seed))
    for steps in (2, max(0, min(experiment.total_steps, most) - 2)):
        state, metrics = trainer.run(state, steps)
        if steps:
            sampled = config.source.access == config.target.access == "samples"
            may_skip = not sampled or config.method == "fine_tuning"
            assert_sound(state, metrics, steps, may_skip=may_skip)
    return experiment, parallel.unreplicate(state)


def assert_sound(state, metrics, steps, *, may_skip):
    """Nothing is NaN, the parameters are finite, and what was not has been skipped."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert not np.isnan(leaf).any(), jax.tree_util.keystr(path)
    models = [m for m in jax.tree.leaves(state, is_leaf=is_model) if is_model(m)]
    assert models
    for model in models:
        for path, leaf in jax.tree_util.tree_leaves_with_path(model):
            assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    skipped = int(state.skipped[0])
    event(f"skipped: {min(skipped, 1)}")
    assert np.isfinite(metrics["loss"]) or (skipped >= steps and may_skip)


def is_model(node):
    return isinstance(node, Model)


@pytest.mark.parametrize("method", TRIED)
@examples(quick=1, long=20)
@given(data=st.data())
def test_valid_ones_train_and_stay_finite(method, data, tmp_path_factory):
    assume(data.draw(st.integers(0, 9)))  # The plainest of all says little.
    config = data.draw(strategies.configs((method,)))
    note(flags(config))
    trained(config, tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("method", METHODS if LONG else ())  # Minutes each.
@examples(quick=1, long=2)
@given(data=st.data())
def test_valid_ones_are_judged(method, data, tmp_path_factory):
    config = data.draw(strategies.configs((method,)))
    config = small.change(
        config.copy_and_resolve_references(),
        {"evaluate.num_samples": 40, "evaluate.num_paths": 60, "evaluate.plots": False},
    )
    note(flags(config))
    directory = tmp_path_factory.mktemp("judged")
    if found := trained(config, directory / "base"):
        experiment, state = found
        summary = report.evaluate(config, Judge(experiment), state, directory)
        assert summary.get("path_kl") is None or summary["path_kl"] >= 0


# ---- Wrong ones


@contextlib.contextmanager
def nothing_compiled():
    found = []

    def listen(event, duration, **_):
        if event == _COMPILED:
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not found


def refusal(config):
    with nothing_compiled(), pytest.raises(InputError) as caught:
        validation.validate(config)
    text = str(caught.value)
    assert "\n" not in text
    return text


@examples(quick=5, long=50)
@given(data=st.data())
def test_a_key_that_holds_what_it_may_not_is_refused(data):
    config = data.draw(strategies.configs())
    for name in data.draw(st.lists(st.sampled_from(KEYS), min_size=10, max_size=10)):
        value = data.draw(strategies.broken_values(name), label=name)
        text = refusal(strategies.broken(config, name, value))
        assert text == f"{name} = {value!r}: must be {fields.FIELDS[name].allowed}"


@examples(quick=5, long=50)
@given(data=st.data())
def test_a_key_that_is_missing_or_misspelt_is_refused(data):
    config = data.draw(strategies.configs())
    for name in data.draw(st.lists(st.sampled_from(KEYS), min_size=5, max_size=5)):
        section, _, leaf = name.rpartition(".")
        lacking = ConfigDict(config.to_dict())
        del (validation.get(lacking, section) if section else lacking)[leaf]
        assert refusal(lacking).startswith(f"{name}: missing: must be ")
        others = {*(config[section] if section else config)} - {leaf}
        slip = data.draw(strategies.misspelt((leaf,)))
        slip += "x" * (slip in others)
        wrong = f"{section}.{slip}" if section else slip
        text = refusal(strategies.broken(config, wrong, 1))
        assert text.startswith(f"{wrong}: unknown key: ")


@examples(quick=5, long=50)
@given(data=st.data())
def test_a_key_that_does_not_go_with_the_others_is_refused(data):
    config = data.draw(strategies.configs())
    for _ in range(20):
        name = data.draw(st.sampled_from(RELATED), label="key")
        value = data.draw(strategies.values(name), label="value")
        changed = strategies.broken(config, name, value)
        with nothing_compiled():
            text = strategies.refused(changed)
        event(f"refused: {text is not None}")
        if text is not None:
            found = strategies.named(text)
            note(text)
            assert found in fields.FIELDS
            shown = validation.get(changed, found)
            shown = shown.to_dict() if isinstance(shown, ConfigDict) else shown
            assert text.startswith(f"{found} = {shown!r}: ")
            assert "must be " in text or "allowed: " in text
            # The key that was changed, or what it was changed to, "auto" being no loss. With
            # another method other keys come into force, as those of caches do.
            known = name in text or repr(value) in text or "the loss '" in text
            assert known or name == "method"


MAKERS = {"source": ENDPOINTS, "pair": pairs.PAIRS, "snapshots": snapshots.SNAPSHOTS}


@examples(quick=5, long=50)
@given(data=st.data())
def test_wrong_options_of_the_ends_are_refused(data):
    section = data.draw(st.sampled_from(tuple(MAKERS)))
    name = data.draw(st.sampled_from(tuple(MAKERS[section])))
    config = base.get_config()
    config[section].name = name
    if section != "source":
        config.source.name = config.target.name = section
    options = [
        option.name
        for option in inspect.signature(MAKERS[section][name]).parameters.values()
        if option.kind is option.KEYWORD_ONLY
    ]
    for option in options:
        wrong = data.draw(st.sampled_from(("many", math.nan, math.inf, [])))
        config[section].options = ConfigDict({option: wrong})
        text = refusal(config)
        start = (
            f"{section}.name = {name!r} with {section}.options = {{{option!r}: {wrong!r}}}: "
        )
        assert text.startswith(start)
        assert option in text.removeprefix(start)
        config[section].options = ConfigDict({f"{option}x": 1})
        assert f"{option}x" in refusal(config).removeprefix(start)


@examples(quick=2, long=20)
@given(data=st.data())
def test_the_command_line_refuses_the_same(data, tmp_path_factory):
    config = data.draw(strategies.configs(OF_ANY_BASE))
    file = tmp_path_factory.mktemp("given") / "given.py"
    file.write_text(CONFIG_FILE.format(config.to_dict()))
    parsed = arguments.parse(["run", f"--config={file}"]).config
    assert parsed.to_dict() == config.to_dict()
    for name in data.draw(st.lists(st.sampled_from(TYPED), min_size=10, max_size=10)):
        value = data.draw(strategies.broken_values(name, as_text=True), label=name)
        with nothing_compiled(), pytest.raises(InputError) as caught:
            arguments.parse(["run", f"--config={file}", f"--config.{name}={value}"])
        text = str(caught.value)
        assert re.match(rf"{re.escape(name)} = .*: must be ", text), text
