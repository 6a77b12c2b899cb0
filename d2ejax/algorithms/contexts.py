"""One set of parameters for many problems of a kind, told apart by a context.

A bridge for each of ten classes costs ten trainings. Amortised over the class it is one: every
gradient step is that of one context, drawn anew, on parameters that all of them share, while
each keeps what it has found, as the particles of its own target, to itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.algorithms.base import Algorithm, device_key
from d2ejax.typing import Array, AxisName, Key


class State(NamedTuple):
    """The state of an amortised algorithm.

    Attributes:
        shared: The algorithm's state without what each context has of its own.
        own: That, the fields of `Algorithm.own` in order, with a leading axis of contexts.
        step: Gradient steps so far, those left out included.
        skipped: Steps left out because their loss or gradient was not finite.
        consecutive_skipped: The length of the current run of such steps.
        key: A typed key; differs between devices.
    """

    shared: Any
    own: tuple[Any, ...]
    step: Array
    skipped: Array
    consecutive_skipped: Array
    key: Key


def amortised(
    make: Callable[[Array], Algorithm], num_contexts: int, *, axis_name: AxisName | None = None
) -> Algorithm:
    """One algorithm that trains the same parameters for every context.

    What the algorithm does every so many gradient steps, as the refresh of particles, is done
    for the one context that is drawn there: each has its share of these. So whatever must have
    been done before a step can be taken, as the filling of a cache, has no place here, and
    whatever depends on the context has to see it, as a learned log Z would.

    Args:
        make: Maps the index of a context, a traced integer, to the algorithm for it. The
            algorithms may differ in functions alone, as an energy and a network that see the
            context, and not in the structure of their states.
        num_contexts: How many there are.
        axis_name: The mapped axis of devices that they were made for. Each device draws a
            context for itself.

    Returns:
        The algorithm; its state is a `State`.

    Raises:
        ValueError: If there is no context.
    """
    if num_contexts < 1:
        raise ValueError(f"num_contexts = {num_contexts}: must be at least 1")
    names = make(np.int32(0)).own  # type: ignore[arg-type]  # Which no call of it computes with.

    def own_of(inner: Any) -> tuple[Any, ...]:
        return tuple(getattr(inner, name) for name in names)

    def with_own(inner: Any, own: tuple[Any, ...]) -> Any:
        return inner._replace(**dict(zip(names, own, strict=True)))

    def wrap(inner: Any, own: tuple[Any, ...], key: Key) -> State:
        counts = inner.step, inner.skipped, inner.consecutive_skipped
        return State(with_own(inner, (None,) * len(names)), own, *counts, key)

    def init(key: Key) -> State:
        # The parameters are those of the first: the key is the same on all devices.
        params_key, own_key, draw_key = jax.random.split(key, 3)
        contexts = jnp.arange(num_contexts)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own_key, contexts)
        own = jax.vmap(lambda context, key: own_of(make(context).init(key)))(contexts, keys)
        inner = make(contexts[0]).init(params_key)
        return wrap(inner, own, device_key(draw_key, axis_name))

    def step(state: State) -> tuple[State, dict[str, Array]]:
        key, draw_key = jax.random.split(state.key)
        context = jax.random.randint(draw_key, (), 0, num_contexts)
        own = jax.tree.map(lambda leaf: leaf[context], state.own)
        inner, metrics = make(context).step(with_own(state.shared, own))
        own = jax.tree.map(
            lambda leaf, new: leaf.at[context].set(new), state.own, own_of(inner)
        )
        return wrap(inner, own, key), metrics

    return Algorithm(init, step, own=("own", "key"))
