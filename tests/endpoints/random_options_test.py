"""Every endpoint with random options: a density without NaN, sound samples, refusals by name.

One or two of each; `python -m pytest --hypothesis-profile=long` tries several hundred.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from d2ejax.endpoints import ENDPOINTS, make_endpoint
from tests.endpoints import strategies
from tests.profiles import examples

FAR = (1.0, 30.0, 1e4)
"""Half sides of the extent from the origin, up to which points are tried."""


OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
"""As everything but the tests is compiled. Else XLA computes the exponents of a mixture twice,
with different roundings, and far away log-sum-exp makes infinities of these."""


@st.composite
def options(draw, name):
    """Options of an endpoint; not the plainest of all, which other tests know."""
    assume(draw(st.integers(0, 9)))
    dim = draw(st.sampled_from(strategies.dims(name)))
    found = draw(strategies.options(name, dim))
    assert make_endpoint(name, **found).dim == dim
    return found


def points(key, endpoint, n=16):
    """The origin and its neighbour, corners of the extent, and random ones, near and far."""
    half = max(map(abs, endpoint.extent))
    random = [far * half * jax.random.normal(key, (n, endpoint.dim)) for far in FAR]
    corners = jnp.asarray(endpoint.extent)[:, None] * jnp.ones((2, endpoint.dim))
    origin = jnp.zeros((1, endpoint.dim))
    return jnp.concatenate([origin, origin + 1e-20, corners, *random])


@pytest.mark.parametrize("name", ENDPOINTS)
@examples(quick=1, long=25)
@given(data=st.data())
def test_the_density_is_never_nan_and_samples_are_sound(name, data):
    endpoint = make_endpoint(name, **data.draw(options(name)))
    low, high = endpoint.extent
    assert math.isfinite(low) and math.isfinite(high) and low < high
    key = jax.random.key(data.draw(strategies.seeds))
    x = points(key, endpoint)
    if endpoint.sample is not None:
        drawn = endpoint.sample(key, 7)
        assert drawn.shape == (7, endpoint.dim) and drawn.dtype == jnp.float32
        assert np.isfinite(drawn).all()
        x = jnp.concatenate([x, drawn])
    if endpoint.log_density is not None:
        of_points = jax.jit(jax.vmap(jax.value_and_grad(endpoint.log_density)))
        values, gradients = of_points.lower(x).compile(compiler_options=OPTIMISED)(x)
        finite = np.isfinite(values)
        assert (finite | np.isneginf(values)).all(), x[~finite]
        assert np.isfinite(gradients)[finite].all(), x[~np.isfinite(gradients).all(axis=1)]
        # The origin, of which none is out of reach, or what it draws itself.
        assert finite[-7:].all() if endpoint.sample is not None else finite[:4].any()


WRONG = ("many", math.nan, math.inf, [], {"a": 1})
"""What no option may be."""


@pytest.mark.parametrize("name", ENDPOINTS)
@examples(quick=5, long=25)
@given(data=st.data())
def test_wrong_options_are_refused_by_name(name, data):
    given_ = data.draw(options(name))
    option = data.draw(st.sampled_from(strategies.names(name)))
    wrong = data.draw(st.sampled_from(WRONG))
    with pytest.raises(ValueError) as caught:
        make_endpoint(name, **(given_ | {option: wrong}))
    assert option in str(caught.value) and repr(wrong) in str(caught.value)
    with pytest.raises(ValueError, match=f"unknown option .*{option}x.*did you mean"):
        make_endpoint(name, **(given_ | {f"{option}x": wrong}))
