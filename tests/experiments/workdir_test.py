"""Whose a workdir is, and files that are whole whatever happens."""

import json

import pytest

from experiments import validation, workdir
from experiments.configs import base
from experiments.errors import InputError, StorageError


def make_config(**changes):
    config = base.get_config()
    for name, value in changes.items():
        section, _, leaf = name.rpartition("__")
        (config[section] if section else config)[leaf] = value
    return validation.check_fields(config)


@pytest.fixture
def directory(tmp_path):
    workdir.create(tmp_path / "run", make_config())
    return tmp_path / "run"


def test_default_is_named_after_the_file():
    assert str(workdir.default("experiments/configs/two_moons.py")) == "runs/two_moons"


def test_its_own_configuration_is_accepted(directory):
    workdir.check(directory, make_config())
    assert workdir.read_config(directory).to_dict() == make_config().to_dict()


def test_checking_a_new_workdir_makes_nothing(tmp_path):
    workdir.check(tmp_path / "a" / "b", make_config())
    assert list(tmp_path.iterdir()) == []


def test_another_configuration_is_refused_naming_what_differs(directory):
    with pytest.raises(InputError) as caught:
        workdir.check(directory, make_config(ipf__iterations=7, target__name="cross"))
    message = str(caught.value)
    assert f"--workdir={directory}" in message
    assert "ipf.iterations = 5 there and 7 here" in message
    assert "target.name = 'ring' there and 'cross' here" in message
    assert "seed" not in message


def test_long_lists_of_differences_are_cut(directory):
    changes = {f"ipf__{k}": 31 for k in ("iterations", "forward_steps", "backward_steps")}
    with pytest.raises(InputError, match="and 1 more"):
        workdir.check(directory, make_config(seed=3, batch_size=64, **changes))


def test_settings_without_influence_on_the_parameters_may_change(directory):
    workdir.check(directory, make_config(loop__keep=9, evaluate__num_samples=17))


def test_options_are_compared(directory):
    config = base.get_config()
    config.target.options.radius = 2.0
    with pytest.raises(InputError, match=r"options = {} there and {'radius': 2\.0} here"):
        workdir.check(directory, validation.check_fields(config))


def test_tuples_in_options_survive_the_file(tmp_path):
    config = base.get_config()
    config.target.options.means = ((0.0, 1.0), (2.0, 3.0))
    workdir.create(tmp_path, validation.check_fields(config))
    workdir.check(tmp_path, validation.check_fields(config))


def test_results_without_a_configuration_are_refused(tmp_path):
    (tmp_path / workdir.METRICS).touch()
    with pytest.raises(InputError, match=r"holds metrics\.jsonl but no config\.json"):
        workdir.check(tmp_path, make_config())


def test_a_log_that_the_user_put_there_first_is_fine(tmp_path):
    (tmp_path / "nohup.out").touch()
    workdir.check(tmp_path, make_config())


@pytest.mark.parametrize("content", ["", '{"seed": ', "[1]"])
def test_broken_configuration_is_refused(directory, content):
    (directory / workdir.CONFIG).write_text(content)
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        workdir.check(directory, make_config())


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_in_the_way_is_refused(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a directory: must be a directory that can"):
        workdir.check(tmp_path / path, make_config())


def test_an_unwritable_place_is_refused(tmp_path, monkeypatch):
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(workdir.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path} is not writable"):
        workdir.check(tmp_path / "run", make_config())


def test_a_place_that_cannot_be_made_is_refused():
    with pytest.raises(InputError, match=r"--workdir=/proc/run: .*: must be a directory"):
        workdir.create(workdir.Path("/proc/run"), make_config())


def test_json_is_replaced_whole_and_without_nan(tmp_path):
    path = tmp_path / "a.json"
    workdir.write_json(path, {"a": float("nan"), "b": [1.5, float("inf")], "c": "x"})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None], "c": "x"}
    with pytest.raises(TypeError):
        workdir.write_json(path, {"a": object()})
    assert json.loads(path.read_text())["c"] == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_records_come_back_in_order(tmp_path):
    assert workdir.read_records(tmp_path, 20) == []
    for step, loss in ((10, 0.5), (20, float("nan"))):
        workdir.append_metrics(tmp_path, {"step": step, "loss": loss})
    expected = [{"step": 10, "loss": 0.5}, {"step": 20, "loss": None}]
    with (tmp_path / workdir.METRICS).open("a") as file:
        file.write('{"step": 20, "lo')  # cut short by a kill
    assert workdir.read_records(tmp_path, 20) == expected
    assert workdir.read_records(tmp_path, 19) == expected[:1]


@pytest.mark.parametrize("tail", ["", '{"step": 30, "lo', '{"step": 20}'])
def test_metrics_past_the_checkpoint_are_dropped(tmp_path, tail):
    for step in (10, 20, 30):
        workdir.append_metrics(tmp_path, {"step": step})
    with (tmp_path / workdir.METRICS).open("a") as file:
        file.write(tail)
    workdir.trim_metrics(tmp_path, 20)
    assert (tmp_path / workdir.METRICS).read_text() == '{"step": 10}\n{"step": 20}\n'


def test_truncated_last_line_is_dropped(tmp_path):
    (tmp_path / workdir.METRICS).write_text('{"step": 10}\n{"step": 2')
    workdir.trim_metrics(tmp_path, 20)
    assert (tmp_path / workdir.METRICS).read_text() == '{"step": 10}\n'


@pytest.mark.parametrize(
    ("content", "finished"),
    [(None, False), ('{"finished": true}', True), ('{"finished": false}', False), ("{", False)],
)
def test_finished_is_what_the_summary_says(tmp_path, content, finished):
    if content is not None:
        (tmp_path / workdir.SUMMARY).write_text(content)
    assert workdir.is_finished(tmp_path) is finished


def test_a_full_disk_is_named_and_leaves_no_trace(tmp_path):
    workdir.write_json(tmp_path / "a.json", {"a": 1})
    (tmp_path / ".a.json.tmp").symlink_to("/dev/full")
    full = "cannot be written: No space left on device: "
    with pytest.raises(StorageError, match=f"{tmp_path}: {full}"):
        workdir.write_json(tmp_path / "a.json", {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    (tmp_path / workdir.METRICS).symlink_to("/dev/full")
    with pytest.raises(StorageError, match=f"{tmp_path}: {full}"):
        workdir.append_metrics(tmp_path, {"step": 10})


def test_other_errors_of_writing_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), workdir.writing(tmp_path):
        raise PermissionError(13, "Permission denied")
