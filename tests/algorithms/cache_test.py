"""Cached paths: simulated when said, drawn from, and each half-step's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d2ejax import rollouts
from d2ejax.algorithms import from_samples, ipf
from tests import gaussian_case
from tests.algorithms.ipf_test import same

BACKWARD, FORWARD = ipf.BACKWARD, ipf.FORWARD
BATCHES, BATCH_SIZE, EVERY = 3, 4, 2
PLAN = ipf.Schedule(((BACKWARD, 4), (FORWARD, 2)), 2)
LOSSES = ("likelihood", "bridge_matching")


@functools.cache
def algorithm(losses=LOSSES, cached_batches=BATCHES):
    case = gaussian_case.make(1)
    halves = [
        gaussian_case.half_step(
            case,
            loss,
            backward=backward,
            particles=(None, None),
            batch_size=BATCH_SIZE,
            cached_batches=cached_batches,
            cache_every=EVERY,
        )
        for loss, backward in zip(losses, (True, False), strict=True)
    ]
    model = {"drift": gaussian_case.zero_params(case)}
    adam = optax.adam(0.01)
    return ipf.ipf(
        *halves,
        PLAN,
        init_params=lambda key: (model, model),
        optimisers=(adam, adam),
        ema_decay=0.9,
    )


@functools.cache
def states(num_steps=PLAN.total):
    """The first state and that after each gradient step."""
    step = gaussian_case.jit(algorithm().step)
    found = [algorithm().init(jax.random.key(0))]
    for _ in range(num_steps):
        found.append(step(found[-1])[0])
    return found


def test_paths_are_simulated_anew_when_said_and_by_their_own_half_step_alone():
    # Of six steps four are backward; a half-step's first and every second after it refresh.
    changed = [
        [d for d in (BACKWARD, FORWARD) if not same(old.caches[d], new.caches[d])]
        for old, new in zip(states()[:-1], states()[1:], strict=True)
    ]
    assert changed == [[BACKWARD], [], [BACKWARD], [], [FORWARD], []] * 2


def test_a_cache_holds_what_its_loss_asks_for():
    # Bridges of the reference need the ends alone.
    shapes = [cache.shape for cache in states()[-1].caches]
    num_paths = BATCHES * BATCH_SIZE
    assert shapes == [(num_paths, gaussian_case.NUM_STEPS + 1, 1), (num_paths, 2, 1)]
    for cache in states()[-1].caches:
        assert len(np.unique(np.asarray(cache)[:, 0])) == num_paths


def test_a_resumed_run_goes_on_bit_for_bit_in_the_middle_of_a_cache():
    middle = states()[3]
    leaves, structure = jax.tree.flatten(middle)
    copied = jax.tree.unflatten(structure, [jnp.copy(leaf) for leaf in leaves])
    step = gaussian_case.jit(lambda state: algorithm().step(state)[0])
    for expected in states()[4:]:
        copied = step(copied)
        assert same(copied, expected)


def test_a_half_step_that_would_begin_with_old_paths_is_refused():
    case = gaussian_case.make(1)
    halves = [
        gaussian_case.half_step(case, "likelihood", backward=b, cached_batches=2, cache_every=4)
        for b in (True, False)
    ]
    with pytest.raises(ValueError, match="cache_every = 4: must be a divisor of 2"):
        ipf.ipf(
            *halves,
            PLAN,
            init_params=lambda key: ({}, {}),
            optimisers=(optax.adam(0.01),) * 2,
            ema_decay=0.9,
        )


def test_nothing_is_kept_without_being_asked_for_or_without_samples():
    assert algorithm(cached_batches=0).init(jax.random.key(0)).caches == (None, None)
    half = gaussian_case.half_step(
        gaussian_case.make(1), "log_variance", backward=True, cached_batches=2
    )
    assert from_samples.init_cache(half) is None


@pytest.fixture
def half_and_inputs():
    case = gaussian_case.make(1)
    half = gaussian_case.half_step(
        case,
        "likelihood",
        backward=True,
        batch_size=256,
        cached_batches=4,
        cache_every=EVERY,
    )
    params = {"drift": gaussian_case.zero_params(case)}
    opposite = {"drift": gaussian_case.exact_params(case, backward=False)}
    return half, gaussian_case.inputs(params, opposite, (None, None))


def test_each_batch_is_drawn_from_the_cache(half_and_inputs, monkeypatch):
    half, inputs = half_and_inputs
    seen = []
    original = rollouts.step_log_densities
    monkeypatch.setattr(
        rollouts,
        "step_log_densities",
        lambda process, params, paths: (
            seen.append(np.asarray(paths)),
            original(process, params, paths),
        )[1],
    )
    cache = np.arange(4.0 * 256 * 6).reshape(4 * 256, 6, 1)
    inputs = inputs._replace(cache=jnp.asarray(cache, jnp.float32))
    for seed in range(3):
        ipf.objective(half, jax.random.key(seed), inputs)[0](inputs.params)
    rows = [paths[:, 0, 0] / 6 for paths in seen]
    for paths, indices in zip(seen, rows, strict=True):
        np.testing.assert_array_equal(paths, cache[indices.astype(int)])
    assert not np.array_equal(rows[0], rows[1])
    # All over the cache: of 768 uniform draws of 1024 paths 1 - exp(-3/4) are expected.
    share = len(np.unique(rows)) / 1024
    assert abs(share - (1 - np.exp(-0.75))) < 0.06
    assert max(map(np.max, rows)) > 1000 and min(map(np.min, rows)) < 24


@pytest.mark.parametrize("first_coupling", ["reference", "independent"])
def test_a_refreshed_cache_has_the_law_of_the_opposite_process(half_and_inputs, first_coupling):
    half, inputs = half_and_inputs
    if first_coupling == "independent":
        half = half._replace(loss="bridge_matching", first_coupling=first_coupling)
    empty = from_samples.init_cache(half)
    refresh = gaussian_case.jit(
        lambda inputs: from_samples.refresh_cache(half, jax.random.key(1), inputs, empty)
    )
    ends = np.asarray(refresh(inputs), np.float64)[:, [0, -1], 0]
    cov = gaussian_case.make(1).bridge.plan.cov
    expected = cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])
    if first_coupling == "independent":
        expected = 0.0
    assert abs(np.corrcoef(ends.T)[0, 1] - expected) < 4 / np.sqrt(1024)
    for end in (0, 1):
        (mean,), (variance,) = gaussian_case.MOMENTS[1][end]
        assert abs(ends[:, end].mean() - mean) < 4 * np.sqrt(variance / 1024)
    # In between nothing is simulated.
    later = inputs._replace(step=jnp.int32(EVERY - 1))
    np.testing.assert_array_equal(refresh(later), empty)
