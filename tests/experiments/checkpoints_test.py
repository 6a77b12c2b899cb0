"""Checkpoints: every bit comes back, and what is damaged is never taken for a state."""

import resource
import shutil
from contextlib import contextmanager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import checkpoints, scores, workdir
from experiments.errors import InputError, StorageError
from tests.experiments import toy


class State(NamedTuple):
    key: jax.Array
    params: dict
    optimiser: optax.OptState
    odd: tuple


def make_state(seed=0):
    # Larger than all that orbax writes beside it: see `largest_file`.
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(seed), (40, 30))}}
    odd = (
        jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
        jnp.asarray([1.5, -2.25], jnp.bfloat16),
        jnp.asarray([True, False]),
        jnp.asarray([0, 2**32 - 1], jnp.uint32),
        jnp.int32(-7),
        jnp.zeros((0, 2)),
    )
    optimiser = optax.adamw(1e-3).init(params)
    return State(jax.random.split(jax.random.key(seed), 2), params, optimiser, odd)


def save(directory, *steps, keep=10, state=None):
    with checkpoints.manager(directory, keep=keep) as manager:
        for step in steps:
            checkpoints.save(manager, step, state or make_state(step), {"wall": step + 0.1})


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_every_leaf_comes_back_in_every_bit(tmp_path):
    state = make_state(5)
    save(tmp_path / "c", 5, state=state)
    saved = checkpoints.read(tmp_path / "c")
    assert saved.step == 5
    assert saved.metadata == {"wall": 5.1}
    got = checkpoints.place(saved, make_state(6))
    assert jax.tree.structure(got) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert a.shape == b.shape


def test_devices_are_those_of_the_template(tmp_path):
    trainer = toy.trainer()
    state, _ = trainer.run(trainer.init(jax.random.key(0)), 3)
    save(tmp_path / "c", 3, state=state)
    like = trainer.init(jax.random.key(1))
    got = checkpoints.place(checkpoints.read(tmp_path / "c"), like)
    assert got.params["w"].sharding == like.params["w"].sharding
    assert len(got.params["w"].sharding.device_set) == 2
    # The restored state can be donated.
    assert int(trainer.run(got, 2)[0].step[1]) == 5


def as_arrays(state):
    words = state._replace(key=jax.random.key_data(state.key))
    return jax.tree.map(np.array, words)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_a_run_is_judged_on_any_number_of_devices(tmp_path, num_devices):
    state, _ = toy.trainer().run(toy.trainer().init(jax.random.key(0)), 3)
    expected = as_arrays(state)
    save(tmp_path / "c", 3, state=toy.trainer().gather(state))
    trainer = toy.trainer(num_devices)
    got = as_arrays(checkpoints.to_judge(checkpoints.read(tmp_path / "c"), trainer, seed=1))
    for name in ("step", "params"):
        leaves = jax.tree.leaves(getattr(got, name)), jax.tree.leaves(getattr(expected, name))
        for a, b in zip(*leaves, strict=True):
            np.testing.assert_array_equal(a, np.repeat(b[:1], num_devices, axis=0))


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_a_run_goes_on_on_any_number_of_devices(tmp_path, num_devices):
    state, _ = toy.trainer().run(toy.trainer().init(jax.random.key(0)), 3)
    expected = as_arrays(state)
    save(tmp_path / "c", 3, state=toy.trainer().gather(state))
    trainer, saved = toy.trainer(num_devices), checkpoints.read(tmp_path / "c")
    like = trainer.init(jax.random.key(1))
    gathered = checkpoints.place(saved, trainer.gather(like), trainer.own)
    placed = trainer.place(gathered, like)
    got = as_arrays(placed)
    np.testing.assert_array_equal(got.params["w"], expected.params["w"][[0] * num_devices])
    # No two of them draw the same; as many as before draw what they would have drawn.
    assert len(np.unique(got.key, axis=0)) == num_devices
    assert (num_devices == 2) == np.array_equal(got.key, expected.key)
    assert int(trainer.run(placed, 2)[0].step[0]) == 5
    with pytest.raises(InputError, match=r"key.* is uint32\[2, 2\] there: must be uint32\[3"):
        checkpoints.place(saved, toy.trainer(3).gather(toy.trainer(3).init(jax.random.key(1))))


class WithCaches(NamedTuple):
    params: jax.Array
    caches: tuple[jax.Array | None, jax.Array | None]
    buffer: jax.Array


def test_what_was_cut_up_is_cut_up_anew_and_what_each_had_is_dealt_out(tmp_path):
    # A cache has as many rows on two shards as on one, a buffer has as many on each.
    def state(num_shards, rows, buffers):
        cache = jnp.reshape(rows, (num_shards, 8 // num_shards, 1))
        return WithCaches(jnp.ones(4), (None, cache), jnp.reshape(buffers, (num_shards, 3)))

    save(tmp_path / "c", 3, state=state(2, jnp.arange(8.0), jnp.arange(6.0)))
    saved = checkpoints.read(tmp_path / "c")
    for count in (1, 4):
        like = state(count, jnp.zeros(8), jnp.zeros(3 * count))
        got = checkpoints.place(saved, like, ("caches", "buffer"))
        np.testing.assert_array_equal(got.caches[1].ravel(), np.arange(8.0))
        dealt = np.arange(6.0).reshape(2, 3)[np.arange(count) % 2]
        np.testing.assert_array_equal(got.buffer, dealt)


def test_the_newest_are_kept_and_the_newest_is_read(tmp_path):
    save(tmp_path / "c", 1, 20, 3 + 90, keep=2)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["20", "93"]
    assert checkpoints.read(tmp_path / "c").step == 93


def test_a_step_is_saved_once(tmp_path):
    save(tmp_path / "c", 4, state=make_state(4))
    save(tmp_path / "c", 4, state=make_state(9))
    got = checkpoints.read(tmp_path / "c").arrays["params.dense.kernel"]
    np.testing.assert_array_equal(got, make_state(4).params["dense"]["kernel"])


def test_what_is_saved_is_the_state_at_that_time_whatever_becomes_of_it(tmp_path):
    host = {"w": np.arange(1000.0)}
    trainer = toy.trainer()
    state, _ = trainer.run(trainer.init(jax.random.key(0)), 3)
    expected = np.array(state.params["w"])
    with checkpoints.manager(tmp_path / "c", keep=2) as manager:
        checkpoints.save(manager, 1, host, {})
        host["w"][:] = -1.0
        checkpoints.save(manager, 2, state, {})
        trainer.run(state, 5)  # Donates it.
    np.testing.assert_array_equal(checkpoints.read(tmp_path / "c").arrays["params.w"], expected)
    shutil.rmtree(tmp_path / "c" / "2")
    np.testing.assert_array_equal(checkpoints.read(tmp_path / "c").arrays["w"], np.arange(1e3))


def test_a_save_is_on_disk_after_a_wait_and_after_the_next(tmp_path):
    with checkpoints.manager(tmp_path / "c", keep=5) as manager:
        checkpoints.save(manager, 1, make_state(), {})
        checkpoints.save(manager, 2, make_state(), {})
        assert 1 in workdir.steps(tmp_path / "c")
        checkpoints.wait(manager)
        assert workdir.steps(tmp_path / "c") == [2, 1]


def save_scored(directory, found, keep):
    with checkpoints.manager(directory, keep=keep, keep_best=True) as manager:
        for step, score in found.items():
            checkpoints.save(manager, step, {"w": np.ones(2)}, {}, score)


def test_the_best_stays_and_is_known_to_the_next_process(tmp_path):
    gap = {step: {"bridge_gap": value} for step, value in ((1, 0.5), (2, 0.1), (3, 0.3))}
    save_scored(tmp_path, gap, keep=1)
    assert workdir.steps(tmp_path) == [3, 2]
    save_scored(tmp_path, {4: None, 5: scores.score(1e-9, 10, {})}, keep=1)
    assert workdir.steps(tmp_path) == [5, 2]
    assert checkpoints.read(tmp_path, which="best").step == 2
    assert checkpoints.read(tmp_path).step == 5
    save_scored(tmp_path, {6: {"bridge_gap": 0.1}}, keep=1)
    assert workdir.steps(tmp_path) == [6]


def test_a_later_phase_outranks_and_within_one_the_loss_decides():
    found = [
        {"bridge_gap": 0.1},
        {"bridge_gap": 2.0},
        scores.score(9.0, 50, {"path_kl": 1.0}),
        scores.score(9.1, 50, {"bridge_gap": float("nan")}),
        scores.score(0.1, 20, {}),
    ]
    assert sorted(reversed(found), key=scores.rank) == found
    assert scores.score(float("nan"), 20, {}) is None
    assert scores.score(float("nan"), 20, {"bridge_gap": 0.5}) == {"bridge_gap": 0.5}


def test_no_best(tmp_path):
    save(tmp_path / "c", 2)
    with pytest.raises(InputError, match=r"--checkpoint=best: .*loop.keep_best=True"):
        checkpoints.read(tmp_path / "c", which="best")


@contextmanager
def files_at_most(size):
    """Files larger than so many bytes cannot be written: a full disk that needs no mount."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("found_by", ["the next save", "waiting", "leaving"])
def test_what_goes_wrong_in_the_background_is_raised(tmp_path, capfd, found_by):
    noise = {"w": np.random.default_rng(0).normal(size=20000)}
    with (
        files_at_most(50_000),
        pytest.raises(StorageError) as caught,
        checkpoints.manager(tmp_path / "c", keep=3) as manager,
    ):
        checkpoints.save(manager, 1, make_state(), {})
        checkpoints.save(manager, 2, noise, {})
        if found_by == "the next save":
            checkpoints.save(manager, 3, make_state(), {})
        elif found_by == "waiting":
            checkpoints.wait(manager)
    assert str(caught.value) == (
        f"{tmp_path / 'c'}: cannot be written: File too large: once it can, the same command "
        "goes on from the last checkpoint"
    )
    assert checkpoints.read(tmp_path / "c").step == 1
    # What was half-written is in nobody's way.
    save(tmp_path / "c", 2)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2"]
    assert capfd.readouterr().err == ""


def test_half_written_checkpoint_is_no_checkpoint_and_is_cleaned_up(tmp_path):
    save(tmp_path / "c", 1)
    left = tmp_path / "c" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "c" / "1", left)
    assert checkpoints.read(tmp_path / "c").step == 1
    save(tmp_path / "c", 3)
    assert not left.exists()


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint(tmp_path, exists):
    if exists:
        (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.read(tmp_path / "c")


@pytest.mark.parametrize("size", [0, 10, "half"])
@pytest.mark.parametrize("item", ["state", "record"])
def test_truncated_checkpoint(tmp_path, size, item):
    save(tmp_path / "c", 1, 2)
    file = largest_file(tmp_path / "c" / "2" / item)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 if size == "half" else size])
    with pytest.raises(InputError) as caught:
        checkpoints.read(tmp_path / "c")
    message = str(caught.value)
    assert str(tmp_path / "c" / "2") in message
    assert "damaged" in message
    assert "from step 1" in message
    # The advice given works.
    shutil.rmtree(tmp_path / "c" / "2")
    assert checkpoints.read(tmp_path / "c").step == 1


def test_missing_part_of_the_only_checkpoint(tmp_path):
    save(tmp_path / "c", 2)
    shutil.rmtree(tmp_path / "c" / "2" / "state")
    with pytest.raises(InputError, match="to go on from the start"):
        checkpoints.read(tmp_path / "c")


def test_the_newest_sound_one_is_fallen_back_on(tmp_path, capsys):
    save(tmp_path / "c", 1, 2, 3)
    for step, item in ((2, "record"), (3, "state")):
        largest_file(tmp_path / "c" / str(step) / item).write_bytes(b"")
    assert checkpoints.read(tmp_path / "c", fall_back=True).step == 1
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "step 3, step 2: damaged or truncated: going on from step 1" in err
    shutil.rmtree(tmp_path / "c" / "1")
    with pytest.raises(InputError, match=r"every checkpoint .*\(steps 3, 2\): delete that"):
        checkpoints.read(tmp_path / "c", fall_back=True)


def test_what_is_damaged_does_not_break_the_next_save_of_that_step(tmp_path):
    save_scored(tmp_path, {step: {"bridge_gap": 1.0 / step} for step in (1, 2, 3)}, keep=3)
    (tmp_path / "2" / "metrics" / "metrics").write_text('{"brid')
    with checkpoints.manager(tmp_path, keep=3, keep_best=True, after=1) as manager:
        for step in (2, 3):
            checkpoints.save(manager, step, {"w": np.zeros(2)}, {}, {"bridge_gap": float(step)})
    assert workdir.steps(tmp_path) == [3, 2, 1]
    np.testing.assert_array_equal(checkpoints.read(tmp_path).arrays["w"], np.zeros(2))
    assert checkpoints.read(tmp_path, which="best").step == 1


def test_wrong_bits_are_found_by_the_checksum(tmp_path):
    save(tmp_path / "c", 2)
    other = tmp_path / "other"
    save(other, 2, state=make_state(8))
    shutil.rmtree(tmp_path / "c" / "2" / "state")
    shutil.copytree(other / "2" / "state", tmp_path / "c" / "2" / "state")
    with pytest.raises(InputError, match="damaged"):
        checkpoints.read(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        (
            lambda s: s._replace(params={"dense": {"kernel": jnp.zeros((2, 4))}}),
            "float32[2, 4]",
        ),
        (lambda s: s._replace(params={"dense": {"bias": jnp.zeros(3)}}), "params.dense.bias"),
        (lambda s: s._replace(key=jax.random.split(jax.random.key(0, impl="rbg"), 2)), "rbg"),
        (lambda s: s._replace(odd=(*s.odd[:4], jnp.float32(1), s.odd[5])), "odd.4"),
    ],
)
def test_another_kind_of_state_is_refused(tmp_path, change, leaf):
    save(tmp_path / "c", 2)
    saved = checkpoints.read(tmp_path / "c")
    with pytest.raises(InputError) as caught:
        checkpoints.place(saved, change(make_state()))
    assert leaf in str(caught.value)


def test_reading_changes_nothing(tmp_path):
    save(tmp_path / "c", 2)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    checkpoints.read(tmp_path / "c")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_latest_step_reads_numbers_not_text(tmp_path):
    for name in ("9", "10", "100.orbax-checkpoint-tmp", "note.txt"):
        (tmp_path / name).mkdir()
    assert workdir.latest_step(tmp_path) == 10
