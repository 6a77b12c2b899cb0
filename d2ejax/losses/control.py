"""Path-wise control: a cost differentiated through the simulation of the paths it is of."""

import jax.numpy as jnp

from d2ejax.non_finite import masked, mean_where
from d2ejax.typing import Array


def control_loss(
    step_costs: Array, terminal_costs: Array, *, where: Array | None = None
) -> Array:
    """Mean cost of controlled paths, E[Σ_k c_k(x_k) + g(x_K)].

    With c_k the KL divergence of a step of the process from that of its reference (½‖u‖²Δ/g²
    with a fixed variance) and g = log q_T - log p̃_1, q_T the density that the reference started
    in p_0 has at the end, it is the KL divergence of the process from the target's reversal,
    less log Z: the path integral sampler (Zhang & Chen 2022, arXiv:2111.15141) for a fixed
    start, and for a stationary Gaussian one the denoising diffusion samplers (Vargas et al.
    2023, arXiv:2302.13834; Berner et al. 2024, arXiv:2211.01364).

    The paths must carry their gradient, all of it or that of their last steps alone: see
    `d2ejax.rollouts.simulate`.

    Args:
        step_costs: Shape `(..., num_steps)`, in nats.
        terminal_costs: Shape `(...)`, in nats.
        where: Which paths count, shape `(...)`; None for all. The others may be NaN or
            infinite.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If the shapes do not match.
    """
    if step_costs.shape[:-1] != terminal_costs.shape:
        raise ValueError(
            f"step_costs has shape {step_costs.shape} and terminal_costs "
            f"{terminal_costs.shape}: must be (..., num_steps) and (...)"
        )
    costs = jnp.sum(masked(step_costs, where), axis=-1) + masked(terminal_costs, where)
    return mean_where(costs, where)
