"""Time grids: end points, order, refinement and refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import time_grids

GRIDS = {
    "uniform": time_grids.uniform,
    "end_refined": time_grids.end_refined,
    "power 3": lambda num_steps, t_max: time_grids.end_refined(num_steps, t_max, power=3.0),
    "cosine": time_grids.cosine,
}


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("num_steps", [1, 2, 20])
@pytest.mark.parametrize("t_max", [1.0, 0.3, 7.0])
def test_grid_runs_from_zero_to_t_max(make, num_steps, t_max):
    grid = make(num_steps, t_max)
    assert grid.num_steps == num_steps
    assert grid.times.shape == (num_steps + 1,) and grid.times.dtype == jnp.float32
    assert grid.times[0] == 0.0
    assert grid.times[-1] == grid.t_max == np.float32(t_max)
    assert bool(jnp.all(grid.steps > 0))
    np.testing.assert_allclose(np.cumsum(grid.steps), grid.times[1:], rtol=1e-5)


def test_hand_computed_grids():
    np.testing.assert_allclose(time_grids.uniform(4, 2.0).times, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(
        time_grids.end_refined(4, 16.0).times, [0, 7, 12, 15, 16], rtol=1e-6
    )
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        time_grids.cosine(4, 2.0).times, [0, 1 - half, 1, 1 + half, 2], rtol=1e-6
    )


def test_power_one_is_uniform():
    np.testing.assert_array_equal(
        time_grids.end_refined(20, 1.5, power=1.0).times, time_grids.uniform(20, 1.5).times
    )


@pytest.mark.parametrize("num_steps", [5, 20, 100])
def test_last_step_of_power_two(num_steps):
    t_max = 3.0
    steps = time_grids.end_refined(num_steps, t_max, power=2.0).steps
    resolution = 2 * np.spacing(np.float32(t_max))
    np.testing.assert_allclose(steps[-1], t_max / num_steps**2, atol=resolution, rtol=0)
    assert bool(jnp.all(jnp.diff(steps) < 0))


def test_cosine_is_symmetric():
    steps = np.asarray(time_grids.cosine(21, 1.0).steps)
    np.testing.assert_allclose(steps, steps[::-1], atol=2e-7)
    assert steps.argmax() == 10


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(
    ("num_steps", "t_max", "message"),
    [
        (0, 1.0, r"num_steps = 0: must be a whole number ≥ 1"),
        (-3, 1.0, r"num_steps = -3: must be a whole number ≥ 1"),
        (4, 0.0, r"t_max = 0\.0: must be > 0"),
        (4, -1.0, r"t_max = -1\.0: must be > 0"),
        (4, float("nan"), r"t_max = nan: must be > 0"),
    ],
)
def test_bad_values_are_refused(make, num_steps, t_max, message):
    with pytest.raises(ValueError, match=message):
        make(num_steps, t_max)


def test_bad_power_is_refused():
    with pytest.raises(ValueError, match=r"power = 0\.5: must be ≥ 1"):
        time_grids.end_refined(4, 1.0, power=0.5)


@pytest.mark.parametrize(("num_steps", "power"), [(10_000, 2.0), (50, 6.0)])
def test_steps_that_vanish_in_float32_are_refused(num_steps, power):
    with pytest.raises(ValueError, match=rf"num_steps = {num_steps}: .* vanish in float32"):
        time_grids.end_refined(num_steps, 1.0, power=power)


def test_a_grid_goes_through_its_stops():
    grid = time_grids.through((0.0, 0.3, 2.0), lambda length: time_grids.end_refined(2, length))
    np.testing.assert_allclose(grid.times, [0, 0.225, 0.3, 1.575, 2.0], rtol=1e-6)
    # Exactly, so that a marginal there is one of the chain.
    assert grid.times[2] == np.float32(0.3) and grid.t_max == 2.0
    alone = time_grids.through((0.0, 0.7), lambda length: time_grids.cosine(5, length))
    np.testing.assert_array_equal(alone.times, time_grids.cosine(5, 0.7).times)


def test_a_grid_is_cut_at_its_knots():
    grid = time_grids.uniform(5, 1.0)
    pieces = time_grids.cut(grid, (1, 3))
    assert [piece.num_steps for piece in pieces] == [1, 2, 2]
    for piece, points in zip(pieces, ((0, 1), (1, 3), (3, 5)), strict=True):
        np.testing.assert_array_equal(piece.times, grid.times[points[0] : points[1] + 1])
    (whole,) = time_grids.cut(grid, ())
    np.testing.assert_array_equal(whole.times, grid.times)


@pytest.mark.parametrize("stops", [(0.0,), (0.1, 1.0), (0.0, 1.0, 1.0), (0.0, 2.0, 1.0)])
def test_bad_stops_are_refused(stops):
    with pytest.raises(ValueError, match=r"stops = .*: must begin at 0 and increase"):
        time_grids.through(stops, lambda length: time_grids.uniform(2, length))


@pytest.mark.parametrize("knots", [(0,), (5,), (3, 2), (2, 2), (-1,)])
def test_bad_knots_are_refused(knots):
    with pytest.raises(ValueError, match=r"knots = .*: must increase, from 1 to 4 at most"):
        time_grids.cut(time_grids.uniform(5, 1.0), knots)
