"""Checkpoints: every bit comes back, and what is damaged is never taken for a state."""

import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import checkpoints, workdir
from experiments.errors import InputError
from tests.experiments import toy


class State(NamedTuple):
    key: jax.Array
    params: dict
    optimiser: optax.OptState
    odd: tuple


def make_state(seed=0):
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(seed), (2, 3))}}
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


@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_first_device_can_be_judged_on_any_number_of_them(tmp_path, num_devices):
    state, _ = toy.trainer().run(toy.trainer().init(jax.random.key(0)), 3)
    expected = jax.tree.map(np.array, state._replace(key=jax.random.key_data(state.key)))
    save(tmp_path / "c", 3, state=state)
    like = toy.trainer(num_devices).init(jax.random.key(1))
    saved = checkpoints.read(tmp_path / "c")
    with pytest.raises(InputError, match=r"first axis counts devices.*parallel.cpu_devices"):
        checkpoints.place(saved, like)
    got = checkpoints.place(checkpoints.of_first_device(saved, like), like)
    got = got._replace(key=jax.random.key_data(got.key))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape[0] == num_devices
        np.testing.assert_array_equal(a, np.repeat(b[:1], num_devices, axis=0))


class WithCaches(NamedTuple):
    params: jax.Array
    caches: tuple[jax.Array | None, jax.Array | None]


def test_caches_whose_size_depends_on_the_devices_are_left_behind(tmp_path):
    # As much on two devices as on one: what each of them holds is half of it.
    def state(num_devices, fill):
        cache = jnp.full((num_devices, 8 // num_devices, 3), fill)
        return WithCaches(jnp.full((num_devices, 4), fill), (None, cache))

    save(tmp_path / "c", 3, state=state(2, 1.0))
    saved, like = checkpoints.read(tmp_path / "c"), state(1, 2.0)
    got = checkpoints.place(checkpoints.of_first_device(saved, like), like)
    np.testing.assert_array_equal(got.params, np.ones((1, 4)))
    np.testing.assert_array_equal(got.caches[1], like.caches[1])


def test_the_newest_are_kept_and_the_newest_is_read(tmp_path):
    save(tmp_path / "c", 1, 20, 3 + 90, keep=2)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["20", "93"]
    assert checkpoints.read(tmp_path / "c").step == 93


def test_a_step_is_saved_once(tmp_path):
    save(tmp_path / "c", 4, state=make_state(4))
    save(tmp_path / "c", 4, state=make_state(9))
    got = checkpoints.read(tmp_path / "c").arrays["params.dense.kernel"]
    np.testing.assert_array_equal(got, make_state(4).params["dense"]["kernel"])


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
