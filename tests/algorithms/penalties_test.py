"""A penalty on parameters is added to the loss, and nothing else changes."""

import jax
import jax.numpy as jnp

from d2ejax.algorithms import penalties


def test_it_is_added_with_its_weight_and_noted_without(key):
    seen = []

    def objective(key, x_0, x_1):
        seen.append((key, x_0, x_1))
        return lambda params: (jnp.sum(params * x_0), {"own": jnp.sum(x_1)})

    found = penalties.penalised(objective, lambda params: jnp.sum(params**2), 0.5)
    x_0, x_1 = jnp.asarray([3.0, 4.0]), jnp.asarray([5.0, 6.0])
    (loss, metrics), gradient = jax.value_and_grad(found(key, x_0, x_1), has_aux=True)(
        jnp.asarray([1.0, 2.0])
    )
    assert loss == 11.0 + 0.5 * 5.0 and metrics == {"own": 11.0, "penalty": 5.0}
    assert gradient.tolist() == [4.0, 6.0]
    assert seen[0][0] is key and seen[0][1] is x_0 and seen[0][2] is x_1
