"""Data-parallel training on eight host devices, with a tiny algorithm of its own."""

import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import parallel
from d2ejax.algorithms.base import Algorithm, device_key, device_mean
from d2ejax.typing import Array, Key

both_backends = pytest.mark.parametrize("backend", parallel.BACKENDS)


class State(NamedTuple):
    params: Array
    buffer: Array
    key: Key
    count: Array


def logistic_loss(params, x):
    """A loss whose gradient is not linear in the data."""
    return jnp.mean(jax.nn.softplus(x @ params)) + 0.05 * jnp.sum(jnp.square(params))


def toy_algorithm(axis_name=parallel.AXIS):
    """Logistic regression on per-device draws; the buffer keeps the last batch."""

    def init(key):
        params = jax.random.normal(key, (3,))
        return State(params, jnp.zeros((4, 3)), device_key(key, axis_name), jnp.int32(0))

    def step(state):
        key, draw = jax.random.split(state.key)
        batch = jax.random.normal(draw, (4, 3)) + 0.5
        loss, gradient = jax.value_and_grad(logistic_loss)(state.params, batch)
        loss, gradient = device_mean((loss, gradient), axis_name)
        count = state.count + 1
        number = count.astype(jnp.float32)
        metrics = {
            "loss": loss,
            "count": number,
            "even": jnp.where(count % 2 == 0, number, jnp.nan),
            "never": jnp.inf * number,
        }
        return State(state.params - 0.3 * gradient, batch, key, count), metrics

    return Algorithm(init, step, own=("buffer", "key"))


def as_arrays(state):
    """Host copies, keys as their words: the state itself is donated to the next run."""
    return State(*map(np.array, state._replace(key=jax.random.key_data(state.key))))


@pytest.fixture(scope="module")
def trainers():
    return {
        backend: parallel.data_parallel(toy_algorithm(), backend=backend)
        for backend in parallel.BACKENDS
    }


def test_there_are_several_devices(trainers):
    assert parallel.num_devices() == trainers["pmap"].num_devices == 8


def test_backends_give_the_same_numbers(trainers, key):
    results = {}
    for backend, trainer in trainers.items():
        start = trainer.init(key)
        before = as_arrays(start)
        state, metrics = trainer.run(start, 5)
        results[backend] = before, as_arrays(state), jax.tree.map(np.array, metrics)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        results["pmap"],
        results["shard_map"],
    )


@both_backends
def test_parameters_agree_and_the_rest_differs_between_devices(trainers, backend, key):
    trainer = trainers[backend]
    start = trainer.init(key)
    first = as_arrays(start)
    state = as_arrays(trainer.run(start, 5)[0])
    assert all(leaf.shape[0] == 8 for leaf in state)
    np.testing.assert_array_equal(state.params, np.broadcast_to(state.params[0], (8, 3)))
    np.testing.assert_array_equal(state.count, np.full(8, 5))
    assert len(np.unique(state.key, axis=0)) == 8
    assert len(np.unique(state.buffer.reshape(8, -1), axis=0)) == 8
    assert np.all(np.abs(state.params[0] - first.params[0]) > 1e-3)


@both_backends
def test_one_step_is_the_full_batch_step(trainers, backend, key):
    trainer = trainers[backend]
    start = trainer.init(key)
    params = as_arrays(start).params[0]
    state, metrics = trainer.run(start, 1)
    state = as_arrays(state)
    # The buffers hold the very batches: 8 devices × 4 rows, joined.
    whole = np.float64(state.buffer.reshape(32, 3))
    logits, w = whole @ np.float64(params), np.float64(params)
    gradient = whole.T @ (1 / (1 + np.exp(-logits))) / 32 + 0.1 * w
    np.testing.assert_allclose((params - state.params[0]) / 0.3, gradient, rtol=1e-4)
    loss = np.log1p(np.exp(logits)).mean() + 0.05 * w @ w
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    # One device's own gradient is another.
    own = whole[:4].T @ (1 / (1 + np.exp(-logits[:4]))) / 4 + 0.1 * w
    assert np.max(np.abs(own - gradient)) > 1e-2


@both_backends
def test_chopping_a_run_keeps_every_bit(trainers, backend, key):
    trainer = trainers[backend]
    whole, metrics = trainer.run(trainer.init(key), 10)
    part, first = trainer.run(trainer.init(key), 3)
    parts, second = trainer.run(part, 7)
    jax.tree.map(np.testing.assert_array_equal, as_arrays(whole), as_arrays(parts))
    # Metrics are means over the steps of a run.
    np.testing.assert_allclose(
        metrics["loss"], 0.3 * first["loss"] + 0.7 * second["loss"], rtol=1e-5
    )
    assert float(metrics["count"]) == 5.5 and float(second["count"]) == 7.0


@both_backends
def test_metrics_are_means_over_the_steps_where_they_apply(trainers, backend, key):
    _, metrics = trainers[backend].run(trainers[backend].init(key), 7)
    assert float(metrics["count"]) == 4.0
    assert float(metrics["even"]) == 4.0  # of 2, 4, 6
    _, metrics = trainers[backend].run(trainers[backend].init(key), 5)
    assert float(metrics["even"]) == 3.0  # of 2, 4
    assert not np.isfinite(metrics["never"])


@both_backends
def test_step_counts_share_one_compilation(backend, key):
    compiled = []

    def listen(event, duration, **details):
        del duration, details
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    traced = []
    algorithm = toy_algorithm()

    def step(state):
        traced.append(state)
        return algorithm.step(state)

    trainer = parallel.data_parallel(algorithm._replace(step=step), backend=backend)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        # Two runs: the state of the first comes from init, that of the second from a run.
        state, _ = trainer.run(trainer.init(key), 2)
        state, _ = trainer.run(state, 2)
        assert compiled and traced
        before = len(compiled), len(traced)
        for num_steps in (1, 3, 7, 50):
            state, metrics = trainer.run(state, num_steps)
        jax.block_until_ready(metrics)
        assert (len(compiled), len(traced)) == before
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert int(state.count[0]) == 65


@both_backends
def test_fewer_devices(backend, key):
    trainer = parallel.data_parallel(
        toy_algorithm(), backend=backend, devices=jax.local_devices()[:1]
    )
    assert trainer.num_devices == 1
    state = as_arrays(trainer.run(trainer.init(key), 3)[0])

    # One device under the axis is the plain algorithm with that device's key.
    alone = toy_algorithm(axis_name=None)
    plain = alone.init(key)._replace(key=jax.random.fold_in(key, 0))
    for _ in range(3):
        plain, _ = alone.step(plain)
    np.testing.assert_allclose(state.params[0], plain.params, rtol=1e-5)
    np.testing.assert_array_equal(state.key[0], jax.random.key_data(plain.key))


def sharded(num_devices, backend="pmap", num_shards=8):
    return parallel.data_parallel(
        toy_algorithm(parallel.axis(num_shards, num_devices)),
        backend=backend,
        devices=jax.local_devices()[:num_devices],
        num_shards=num_shards,
    )


@both_backends
@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_as_many_shards_give_the_same_on_any_devices(trainers, backend, num_devices, key):
    whole = trainers[backend]
    state, metrics = whole.run(whole.init(key), 20)
    trainer = sharded(num_devices, backend)
    assert (trainer.num_devices, trainer.num_shards) == (num_devices, 8)
    found, own = trainer.run(trainer.init(key), 20)
    expected, found = (as_arrays(t.gather(s)) for t, s in ((whole, state), (trainer, found)))
    np.testing.assert_array_equal(found.key, expected.key)
    np.testing.assert_array_equal(found.buffer, expected.buffer)
    np.testing.assert_allclose(found.params, expected.params, rtol=2e-6)
    np.testing.assert_allclose(own["loss"], metrics["loss"], rtol=2e-6)
    assert found.params.shape == (3,) and found.buffer.shape == (8, 4, 3)


def test_what_is_gathered_goes_on_elsewhere(key):
    """From eight devices to two and back: as if it had stayed."""
    eight, two = sharded(8), sharded(2)
    stayed = as_arrays(eight.gather(eight.run(eight.init(key), 6)[0]))
    gathered = eight.gather(eight.run(eight.init(key), 2)[0])
    state, _ = two.run(two.place(gathered, two.init(key)), 2)
    state, _ = eight.run(eight.place(two.gather(state), eight.init(key)), 2)
    moved = as_arrays(eight.gather(state))
    np.testing.assert_array_equal(moved.key, stayed.key)
    np.testing.assert_array_equal(moved.buffer, stayed.buffer)
    np.testing.assert_allclose(moved.params, stayed.params, rtol=2e-6)


def test_what_shards_share_is_computed_once(key):
    """Eight shards of one device: their own fields alone have eight rows."""
    trainer = sharded(1)
    state, _ = trainer.run(trainer.init(key), 1)
    assert state.params.shape == (1, 3) and state.count.shape == (1,)
    assert state.buffer.shape == (1, 8, 4, 3) and state.key.shape == (1, 8)


@pytest.mark.parametrize("num_shards", [3, 4, 12])
def test_shards_that_cannot_be_shared_out_are_refused(num_shards):
    with pytest.raises(
        ValueError, match=rf"num_shards = {num_shards}: must be a multiple of 8"
    ):
        parallel.data_parallel(toy_algorithm(), num_shards=num_shards)


@both_backends
def test_state_is_donated(trainers, backend, key):
    start = trainers[backend].init(key)
    trainers[backend].run(start, 1)
    assert start.params.is_deleted()


def test_unreplicate_takes_the_first_share():
    tree = {"a": jnp.arange(6).reshape(3, 2), "b": jnp.arange(3)}
    share = parallel.unreplicate(tree)
    np.testing.assert_array_equal(share["a"], [0, 1])
    assert int(share["b"]) == 0


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"backend = 'jit': must be one of .*'shard_map'"):
        parallel.data_parallel(toy_algorithm(), backend="jit")


@pytest.mark.parametrize(
    ("flags", "before", "expected"),
    [
        ("", "", 3),
        ("--xla_force_host_platform_device_count=4", "", 4),
        ("", "jax.config.update('jax_num_cpu_devices', 5)", 5),
        # JAX has begun to run.
        ("", "jax.devices()", 1),
    ],
)
def test_the_cpu_is_cut_unless_it_has_been_told(flags, before, expected):
    code = f"""
import jax
from d2ejax import parallel
{before}
parallel.cut_cpu(3)
parallel.cut_cpu(2)
print(parallel.num_devices(), parallel.describe_devices())
"""
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out == f"{expected} {expected} x cpu\n"
