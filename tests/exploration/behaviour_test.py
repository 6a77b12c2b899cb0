"""Groups of paths: who shares a start with whom, and which of them are whose."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax.exploration import behaviour
from tests import gaussian_case

NUM_STARTS, NUM_PATHS, NUM_STEPS, DIM = 6, 3, 4, 2
DIRECTIONS = pytest.mark.parametrize("backward", [False, True])


def simulate(key, start, *, backward):
    """A random walk from its start; backward it starts at the path's end."""
    walk = jnp.cumsum(jax.random.normal(key, (NUM_STEPS, DIM)), axis=0)
    path = jnp.concatenate([start[None], start[None] + walk])
    return path[::-1] if backward else path


@functools.partial(
    gaussian_case.jit, static_argnames=("reuse_path", "backward", "num_starts", "num_paths")
)
def mixed(
    key, ratio, *, reuse_path=True, backward=False, num_starts=NUM_STARTS, num_paths=NUM_PATHS
):
    start_key, path_key, mix_key = jax.random.split(key, 3)
    starts = jax.random.normal(start_key, (num_starts, DIM))
    off_policy = 50.0 + jax.random.normal(path_key, (num_starts, NUM_STEPS + 1, DIM))
    paths = behaviour.mixed_paths(
        mix_key,
        starts,
        off_policy,
        functools.partial(simulate, backward=backward),
        off_policy_ratio=ratio,
        num_paths=num_paths,
        reuse_path=reuse_path,
        backward=backward,
    )
    return starts, off_policy, paths


def start_end(backward):
    return -1 if backward else 0


@DIRECTIONS
@pytest.mark.parametrize("reuse_path", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_all_paths_of_a_group_share_their_start_exactly(key, ratio, reuse_path, backward):
    starts, off_policy, paths = mixed(key, ratio, reuse_path=reuse_path, backward=backward)
    assert paths.shape == (NUM_STARTS, NUM_PATHS, NUM_STEPS + 1, DIM)
    first = np.asarray(paths[:, :, start_end(backward)])
    np.testing.assert_array_equal(first, np.broadcast_to(first[:, :1], first.shape))
    arrived = np.asarray(off_policy[:, start_end(backward)])
    of_policy = np.all(first[:, 0] == np.asarray(starts), axis=1)
    of_goal = np.all(first[:, 0] == arrived, axis=1)
    assert np.all(of_policy ^ of_goal)
    expected = {0.0: [0], 1.0: [NUM_STARTS], 0.5: range(1, NUM_STARTS)}[ratio]
    assert of_goal.sum() in expected
    # The rest of each group are paths of their own.
    assert len(np.unique(np.asarray(paths[:, :, 2, 0]))) == NUM_STARTS * NUM_PATHS


@DIRECTIONS
def test_the_path_that_found_a_start_joins_its_group_and_no_other(key, backward):
    _, off_policy, paths = mixed(key, 0.5, backward=backward)
    _, _, others = mixed(key, 0.5, backward=backward, reuse_path=False)
    end = start_end(backward)
    found = np.all(np.asarray(paths[:, 0, end] == off_policy[:, end]), axis=1)
    assert 0 < found.sum() < NUM_STARTS
    np.testing.assert_array_equal(paths[found, 0], off_policy[found])
    np.testing.assert_array_equal(paths[~found, 0], others[~found, 0])
    np.testing.assert_array_equal(paths[:, 1:], others[:, 1:])
    # Without reuse not one of them is the path that found the start.
    assert not np.any(np.asarray(others[:, :, 2] == off_policy[:, None, 2]))


def test_the_ratio_is_the_share_of_groups(key):
    count, ratio = 4000, 0.3
    starts, _, paths = mixed(key, ratio, num_starts=count, num_paths=1, reuse_path=False)
    share = np.mean(np.any(np.asarray(paths[:, 0, 0] != starts), axis=1))
    assert abs(share - ratio) < 4 * np.sqrt(ratio * (1 - ratio) / count)


def test_a_single_path_per_group_may_be_the_reused_one(key):
    _, off_policy, paths = mixed(key, 1.0, num_paths=1)
    np.testing.assert_array_equal(paths[:, 0], off_policy)


def test_the_same_key_gives_the_same_paths_and_another_key_others(key):
    first, again = mixed(key, 0.5)[2], mixed(key, 0.5)[2]
    np.testing.assert_array_equal(first, again)
    assert not np.any(np.asarray(first == mixed(jax.random.key(1), 0.5)[2]))
