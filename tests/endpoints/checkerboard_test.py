import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax.endpoints import checkerboard
from tests.endpoints.agreement import assert_mean_in_errors


@pytest.mark.parametrize(("num_squares", "half_width"), [(4, 2.0), (3, 1.5), (2, 5.0)])
def test_samples_fill_every_second_square_evenly(num_squares, half_width, key):
    endpoint = checkerboard(num_squares=num_squares, half_width=half_width)
    x = endpoint.sample(key, 40_000)
    assert x.shape == (40_000, 2) and x.dtype == jnp.float32
    assert endpoint.extent == (-half_width, half_width)
    edges = np.linspace(-half_width, half_width, num_squares + 1)
    counts = np.histogram2d(*np.asarray(x).T, bins=(edges, edges))[0]
    assert counts.sum() == 40_000
    i, j = np.indices(counts.shape)
    empty = (i + j) % 2 == 1
    assert (counts[empty] == 0).all()
    share = 1.0 / (~empty).sum()
    errors = (counts[~empty] / 40_000 - share) / np.sqrt(share * (1 - share) / 40_000)
    assert np.abs(errors).max() < 4.5
    # Uniform within a square: mean 1/2 and variance 1/12 of the offset in units of its side.
    offset = (np.asarray(x, np.float64) + half_width) * num_squares / (2 * half_width) % 1.0
    assert_mean_in_errors(offset, 0.5)
    assert_mean_in_errors((offset - 0.5) ** 2, 1.0 / 12.0)


def test_there_is_no_density():
    endpoint = checkerboard()
    assert endpoint.log_density is None and endpoint.log_z is None
