"""Penalties on parameters, added to what is regressed."""

from collections.abc import Callable

from d2ejax.algorithms.matching import Objective
from d2ejax.typing import Array, Key, Params


def penalised(
    objective: Objective, penalty: Callable[[Params], Array], weight: float
) -> Objective:
    """An objective with a penalty that no data enter.

    Args:
        objective: The objective.
        penalty: Maps its parameters to a scalar.
        weight: Of the penalty, in units of the loss.

    Returns:
        The objective, with the further metric "penalty", unweighted.
    """

    def with_penalty(key: Key, x_0: Array, x_1: Array):
        plain = objective(key, x_0, x_1)

        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            value, metrics = plain(params)
            extra = penalty(params)
            return value + weight * extra, metrics | {"penalty": extra}

        return loss

    return with_penalty
