"""An optimiser on gathered arrays takes the steps that it takes leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from d2ejax.algorithms.gathered import REST, gathered


def parameters(key):
    """Matrices of three shapes, two of them more than once, and other leaves between them."""
    shapes = {
        "b": (4, 3),
        "a": {"kernel": (4, 3), "scale": (3,), "offset": ()},
        "c": [(3, 4), (2, 4), (2, 4), (2, 3, 2), (5,)],
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, shape) for k, shape in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def stacked_matrices(params):
    stacked = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return {name: None if name == REST else stacked for name in params}


def muon(**options):
    clip = optax.clip_by_global_norm(1.0)
    return optax.chain(clip, contrib.muon(0.1, adam_weight_decay=0.2, **options))


PAIRS = {
    "muon": (muon(), muon(muon_weight_dimension_numbers=stacked_matrices)),
    "adamw": (optax.adamw(0.1, weight_decay=0.2),) * 2,
    "sgd": (optax.sgd(0.1, momentum=0.9),) * 2,
}


@pytest.mark.parametrize("name", PAIRS)
def test_steps_are_those_of_leaf_by_leaf(name, key):
    plain, inner = PAIRS[name]

    def trained(optimiser):
        @jax.jit
        def step(params, state, gradients):
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimiser.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        params = parameters(key)
        state = optimiser.init(params)
        for n in range(3):
            params, state = step(params, state, parameters(jax.random.fold_in(key, n)))
        return params

    start, expected, found = parameters(key), trained(plain), trained(gathered(inner))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert (
        min(
            float(jnp.max(jnp.abs(a - b)))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True)
        )
        > 0.01
    )


def test_the_optimiser_sees_one_array_of_each_shape(key):
    shapes = jax.tree.map(jnp.shape, gathered(optax.trace(0.9)).init(parameters(key)).trace)
    assert shapes == {"4x3": (2, 4, 3), "3x4": (1, 3, 4), "2x4": (2, 2, 4), REST: (21,)}


def test_parameters_of_one_kind(key):
    for params in ({"w": jnp.ones((2, 3))}, [jnp.ones(3), jnp.ones(())], jnp.ones(4)):
        optimiser = gathered(optax.sgd(0.5))
        updates, _ = optimiser.update(params, optimiser.init(params))
        expected = jax.tree.map(lambda leaf: -0.5 * leaf, params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_more_than_one_dtype_is_refused():
    params = {"a": jnp.ones(3), "b": jnp.ones(3, jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"dtypes \['bfloat16', 'float32'\]: must be of one"):
        gathered(optax.sgd(0.5)).init(params)
