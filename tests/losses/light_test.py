"""The loss of a light bridge: by hand, and at the exact potential of a pair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import losses, pairs, references
from d2ejax.light import LightPotential
from tests.gaussian_case import jit, z_scores

N = 8192


def test_value_of_a_case_worked_out_by_hand():
    # The mean of 1, 2, 6 less that of 0.5, 1.5.
    loss = losses.light_loss(jnp.asarray([1.0, 2.0, 6.0]), jnp.asarray([0.5, 1.5]))
    np.testing.assert_allclose(loss, 2.0, rtol=1e-6)


@pytest.mark.parametrize(("starts", "ends"), [((4, 1), (4,)), ((4,), ()), ((2, 2), (2, 2))])
def test_shapes_are_checked(starts, ends):
    with pytest.raises(ValueError, match=r"must be \(num_starts,\) and \(num_ends,\)"):
        losses.light_loss(jnp.zeros(starts), jnp.zeros(ends))


SIGMA, T_MAX = 0.7, 1.0
LAWS = {
    "brownian": references.brownian(SIGMA),
    "ornstein_uhlenbeck": references.ornstein_uhlenbeck(SIGMA, 0.8),
}


@functools.cache
def case(name):
    """A pair, its potential with exact parameters, and samples of both ends."""
    pair = pairs.mixture_pair(LAWS[name], T_MAX, num_components=3)
    potential = LightPotential(LAWS[name], T_MAX)
    psi = (jnp.asarray(part, jnp.float32) for part in pair.bridge.psi)
    keys = jax.random.split(jax.random.key(0))
    samples = pair.source.sample(keys[0], N), pair.target.sample(keys[1], N)
    return pair, potential, potential.from_mixture(*psi), samples


def terms(potential, params, starts, ends):
    """The loss of one start and one end, and its gradient, for each of N pairs of them."""

    def loss(params, start, end):
        at_start = potential.log_value(params, start, 0.0)[None]
        return losses.light_loss(at_start, potential.log_value(params, end, T_MAX)[None])

    values = jit(jax.vmap(jax.value_and_grad(loss), (None, 0, 0)))(params, starts, ends)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), values)


@pytest.mark.parametrize("name", LAWS)
def test_at_the_bridge_it_is_least_and_minus_the_path_kl(name):
    pair, potential, params, samples = case(name)
    values, gradients = terms(potential, params, *samples)
    error = values.std() / np.sqrt(N)
    assert abs(values.mean() + pair.bridge.path_kl) < 4 * error + 1e-3
    assert np.abs(z_scores(gradients)).max() < 4.5


@pytest.mark.parametrize(
    ("leaf", "shift"), [("log_weights", 2.0), ("means", 0.3), ("log_variances", 0.3)]
)
def test_away_from_the_bridge_its_gradient_is_seen(leaf, shift):
    _, potential, params, samples = case("brownian")
    moved = params | {leaf: params[leaf].at[0].add(shift)}
    _, gradients = terms(potential, moved, *samples)
    assert np.abs(z_scores(gradients)).max() > 8


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("bug", ["starts twice", "swapped", "no factor"])
def test_planted_bugs_are_seen(name, bug):
    _, potential, params, (starts, ends) = case(name)
    if bug == "starts twice":
        ends = jnp.roll(starts, 1, axis=0)
    elif bug == "swapped":
        starts, ends = ends, starts
    else:  # Without ε, as if the reference had unit variance.
        potential = LightPotential(references.brownian(1.0), T_MAX)
    _, gradients = terms(potential, params, starts, ends)
    assert np.abs(z_scores(gradients)).max() > 8
