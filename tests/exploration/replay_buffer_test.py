import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from d2ejax.exploration import replay_buffer

SIZE = 65536
add = jax.jit(replay_buffer.add)


def rows(*values):
    return jnp.asarray(values, jnp.float32)[:, None]


def filled_at(slots, log_weights, size=SIZE):
    """A buffer with only these slots filled; positions are the slot numbers."""
    log_weights = jnp.full((size,), -jnp.inf).at[slots].set(log_weights)
    positions = jnp.arange(size, dtype=jnp.float32)[:, None]
    return replay_buffer.ReplayBuffer(positions, log_weights, jnp.asarray(0, jnp.int32))


def force_draws(monkeypatch, make_draws):
    """Replaces the integers that `sample` draws by `make_draws(total)`."""

    def randint(key, shape, minval, maxval, dtype):
        draws = make_draws(int(maxval))
        assert draws.min() >= int(minval) and draws.max() < int(maxval)
        return jnp.asarray(draws.astype(np.uint32))

    monkeypatch.setattr(jax.random, "randint", randint)


def test_add_fills_in_order_and_counts():
    buffer = replay_buffer.init(4, 1)
    assert int(buffer.num_filled) == 0
    buffer = replay_buffer.add(buffer, rows(5.0, 6.0, 7.0), jnp.asarray([0.5, -1.0, 2.0]))
    np.testing.assert_array_equal(buffer.positions[:, 0], [5.0, 6.0, 7.0, 0.0])
    np.testing.assert_array_equal(buffer.log_weights, [0.5, -1.0, 2.0, -np.inf])
    assert (int(buffer.num_filled), int(buffer.next_slot)) == (3, 3)


@pytest.mark.parametrize("size", [1, 5, 8])
def test_add_is_first_in_first_out(size):
    buffer, queue = replay_buffer.init(size, 1), collections.deque(maxlen=size)
    rng, value = np.random.default_rng(0), 0
    for _ in range(15):
        batch = [float(value + i) for i in range(rng.integers(1, size + 1))]
        value += len(batch)
        buffer = add(buffer, rows(*batch))
        queue.extend(batch)
        held = np.asarray(buffer.positions[:, 0])[np.isfinite(buffer.log_weights)]
        assert sorted(held) == sorted(queue)
        if len(queue) == size:
            assert float(buffer.positions[buffer.next_slot, 0]) == queue[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_displace_nothing_and_are_never_sampled(key, bad):
    held = jnp.asarray([[6.0, 6.0], [7.0, 7.0], [8.0, 8.0], [9.0, 9.0]])
    buffer = replay_buffer.add(replay_buffer.init(4, 2), held)
    positions = jnp.asarray([[1.0, bad], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]])
    buffer = replay_buffer.add(buffer, positions, jnp.asarray([0.0, 0.0, bad, 0.0]))
    assert int(buffer.num_filled) == 4 and int(buffer.next_slot) == 2
    np.testing.assert_array_equal(buffer.positions[:, 0], [2.0, 4.0, 8.0, 9.0])
    _, drawn = replay_buffer.sample(key, buffer, 1000)
    assert set(np.asarray(drawn[:, 0]).tolist()) == {2.0, 4.0, 8.0, 9.0}
    # An empty slot stays empty.
    buffer = replay_buffer.add(replay_buffer.init(4, 2), positions[:2])
    assert int(buffer.num_filled) == 1 and int(buffer.next_slot) == 1
    assert set(np.asarray(replay_buffer.sample(key, buffer, 99)[0]).tolist()) == {0}


def test_sample_follows_the_weights(key):
    # An offset of 1000 nats overflows an exp that is not shifted by its maximum.
    log_weights = np.log(np.arange(1.0, 11.0)) + 1000.0
    slots = jnp.arange(10) * 7 + 3
    buffer = filled_at(slots, jnp.asarray(log_weights, jnp.float32), size=100)
    indices, drawn = replay_buffer.sample(key, buffer, 100_000)
    np.testing.assert_array_equal(drawn[:, 0], indices.astype(jnp.float32))
    counts = np.bincount(np.asarray(indices), minlength=100)
    assert counts.sum() == counts[np.asarray(slots)].sum()
    expected = 100_000 * np.arange(1.0, 11.0) / 55.0
    assert scipy.stats.chisquare(counts[np.asarray(slots)], expected).pvalue > 1e-3


def test_equal_priorities_are_drawn_equally(key):
    buffer = replay_buffer.add(replay_buffer.init(64, 1), jnp.zeros((48, 1)))
    indices, _ = replay_buffer.sample(key, buffer, 48_000)
    counts = np.bincount(np.asarray(indices), minlength=64)
    assert not counts[48:].any()
    assert scipy.stats.chisquare(counts[:48]).pvalue > 1e-3


def test_every_edge_of_the_cumulative_distribution_hits_a_full_slot(monkeypatch):
    # Half of 65536 slots at equal weight hold 65536 quanta each, so all edges are known.
    filled = np.sort(np.random.default_rng(1).permutation(SIZE)[: SIZE // 2])
    buffer = filled_at(filled, 0.0)
    first = np.arange(SIZE // 2, dtype=np.int64) * 65536
    force_draws(monkeypatch, lambda _: np.concatenate([first, first + 65535]))
    indices, _ = replay_buffer.sample(jax.random.key(0), buffer, SIZE)
    np.testing.assert_array_equal(indices, np.concatenate([filled, filled]))


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_no_draw_at_all_hits_an_empty_slot(monkeypatch, scale, fraction):
    rng = np.random.default_rng(2)
    mask = rng.random(SIZE) < fraction
    mask[[0, -1]] = False  # the slots that u = 0 and u -> 1 would fall on
    slots = np.flatnonzero(mask)
    buffer = filled_at(slots, jnp.asarray(scale * rng.normal(size=slots.size), jnp.float32))
    draws = 2_000_000
    force_draws(monkeypatch, lambda total: np.linspace(0, total - 1, draws).astype(np.int64))
    indices, _ = replay_buffer.sample(jax.random.key(0), buffer, draws)
    assert mask[np.asarray(indices)].all()
    if scale < 1.0:  # weights within a factor of about e: 30 draws or more for each slot
        assert len(np.unique(indices)) == slots.size


@pytest.mark.parametrize("slot", [0, 40_000, SIZE - 1])
def test_a_single_full_slot_is_always_found(monkeypatch, slot):
    buffer = filled_at(jnp.asarray([slot]), -1e30)
    force_draws(monkeypatch, lambda total: np.asarray([0, 1, total // 2, total - 1]))
    indices, _ = replay_buffer.sample(jax.random.key(0), buffer, 4)
    np.testing.assert_array_equal(indices, [slot] * 4)


def test_an_empty_buffer_gives_zeros_that_update_ignores(key):
    buffer = replay_buffer.init(8, 2)
    indices, positions = replay_buffer.sample(key, buffer, 5)
    assert int(buffer.num_filled) == 0
    np.testing.assert_array_equal(indices, [7] * 5)
    np.testing.assert_array_equal(positions, np.zeros((5, 2)))
    buffer = replay_buffer.update(buffer, indices, positions + 1.0, jnp.zeros(5))
    assert int(buffer.num_filled) == 0 and not buffer.positions.any()


def test_update_writes_only_what_is_finite():
    buffer = replay_buffer.add(replay_buffer.init(5, 1), rows(0.0, 1.0, 2.0, 3.0))
    new = replay_buffer.update(
        buffer,
        jnp.asarray([3, 1, 0]),
        rows(30.0, np.nan, 10.0),
        jnp.asarray([0.5, 0.5, np.nan]),
    )
    np.testing.assert_array_equal(new.positions[:, 0], [0.0, 1.0, 2.0, 30.0, 0.0])
    np.testing.assert_array_equal(new.log_weights, [0.0, 0.0, 0.0, 0.5, -np.inf])
    assert int(new.next_slot) == int(buffer.next_slot)
    kept = replay_buffer.update(new, jnp.asarray([3]), rows(4.0))
    assert (float(kept.positions[3, 0]), float(kept.log_weights[3])) == (4.0, 0.5)


def test_update_of_a_repeated_slot_takes_the_last_finite_row_whole():
    buffer = replay_buffer.add(replay_buffer.init(3, 2), jnp.zeros((3, 2)))
    positions = jnp.asarray([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, np.inf]])
    new = replay_buffer.update(
        buffer, jnp.asarray([1, 0, 1, 1]), positions, jnp.asarray([0.1, 0.2, 0.3, 0.4])
    )
    np.testing.assert_array_equal(new.positions, [[2.0, 2.0], [3.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(new.log_weights, [0.2, 0.3, 0.0])


def cycle(buffer, key):
    key_new, key_sample = jax.random.split(key)
    buffer = replay_buffer.add(buffer, jax.random.normal(key_new, (3, 2)))
    indices, positions = replay_buffer.sample(key_sample, buffer, 6)
    return replay_buffer.update(buffer, indices, positions * 0.5), positions


def test_scan_gives_what_a_resumed_python_loop_gives(key):
    keys = jax.random.split(key, 6)
    scanned, outputs = jax.jit(lambda b: jax.lax.scan(cycle, b, keys))(replay_buffer.init(7, 2))
    buffer, expected = replay_buffer.init(7, 2), []
    for i in range(6):
        leaves, tree = jax.tree.flatten(buffer)  # a checkpoint between any two steps
        buffer = jax.tree.unflatten(tree, [jnp.asarray(np.asarray(leaf)) for leaf in leaves])
        buffer, positions = jax.jit(cycle)(buffer, keys[i])
        expected.append(positions)
    jax.tree.map(np.testing.assert_array_equal, scanned, buffer)
    np.testing.assert_array_equal(outputs, jnp.stack(expected))


def test_vmap_over_buffers(key):
    buffers = jax.vmap(lambda _: replay_buffer.init(7, 2))(jnp.arange(3))
    keys = jax.random.split(key, 3)
    batched, _ = jax.jit(jax.vmap(cycle))(buffers, keys)
    single, _ = jax.jit(cycle)(replay_buffer.init(7, 2), keys[2])
    jax.tree.map(lambda b, s: np.testing.assert_array_equal(b[2], s), batched, single)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: replay_buffer.init(0, 2), "size must be at least 1, got 0"),
        (lambda b: replay_buffer.init(2, 0), "dim must be at least 1, got 0"),
        (lambda b: replay_buffer.add(b, jnp.zeros((5, 2))), "5 rows.* only 4 slots"),
        (lambda b: replay_buffer.add(b, jnp.zeros((2, 3))), r"positions must have .*\(2, 3\)"),
        (lambda b: replay_buffer.add(b, jnp.zeros((2, 2)), jnp.zeros(3)), "log_weights must"),
        (
            lambda b: replay_buffer.update(b, jnp.zeros(3, jnp.int32), jnp.zeros((2, 2))),
            "indices must",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(replay_buffer.init(4, 2))
