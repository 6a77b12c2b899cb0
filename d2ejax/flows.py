"""Flows: the deterministic relatives of a bridge, and processes made of a flow and a score.

A diffusion with marginals p_t, drift F forward in time and B in reversed time has (Nelson 1967)

    current velocity   v = (F - B)/2,                whose ODE dx = v dt has the same marginals,
    osmotic velocity   (F + B)/2 = g²/2 ∇log p_t.

Networks here return residuals on the reference, so that zeros are the reference: `forward` is
F - f, `backward` is B + f, `current` is v - f, and `osmotic` stands as it is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from d2ejax.kernels import Process
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, EmbeddedNetwork, Params

Velocity = Callable[[Array, Array], Array]
"""Maps `(x, t)` to dx/dt, shape `(dim,)`."""

_MAX_STEPS = 16**4


def current_network(forward: EmbeddedNetwork, osmotic: EmbeddedNetwork) -> EmbeddedNetwork:
    """The network of the current velocity, from those of the forward drift and of the score.

    current = forward - osmotic.

    Args:
        forward: Of the parameters "current": it stands in the place of that network.
        osmotic: Of the parameters "osmotic".

    Returns:
        A network of a dict with both.
    """

    def embed(params: Params, t: Array) -> tuple:
        return forward.embed(params["current"], t), osmotic.embed(params["osmotic"], t)

    def apply(params: Params, x: Array, embedding: tuple) -> tuple[Array, Array]:
        drift, _ = forward.apply(params["current"], x, embedding[0])
        push, _ = osmotic.apply(params["osmotic"], x, embedding[1])
        return drift - push, jnp.zeros_like(x)

    return EmbeddedNetwork(embed, apply)


def drift_networks(
    current: EmbeddedNetwork, osmotic: EmbeddedNetwork | None = None, *, of_drift: bool = False
) -> tuple[EmbeddedNetwork, EmbeddedNetwork]:
    """The forward and the backward process's networks, from those of flow and score.

    F - f = current + osmotic and B + f = osmotic - current: with the flow and the score of one
    bridge the two are each other's reversal (Tong et al. 2024, arXiv:2307.03672, where the
    backward drift v - g²/2 ∇log p_t is written forward in time). Log-variances are zero.

    Args:
        current: Of the parameters "current".
        osmotic: Of the parameters "osmotic"; None for zero: both processes follow the flow.
        of_drift: Whether the first of them is that of the forward drift, F - f, in the place of
            "current"; B + f is then twice the osmotic velocity less that.

    Returns:
        Networks of a dict with these parameters, for `kernels.process` with a fixed variance.
    """

    def embed(params: Params, t: Array) -> tuple:
        along = current.embed(params["current"], t)
        return along, None if osmotic is None else osmotic.embed(params["osmotic"], t)

    def network(sign: float, share: float) -> EmbeddedNetwork:
        def apply(params: Params, x: Array, embedding: tuple) -> tuple[Array, Array]:
            along, _ = current.apply(params["current"], x, embedding[0])
            drift = sign * along
            if osmotic is not None and share:
                drift = drift + share * osmotic.apply(params["osmotic"], x, embedding[1])[0]
            return drift, jnp.zeros_like(x)

        return EmbeddedNetwork(embed, apply)

    shares = (0.0, 2.0) if of_drift else (1.0, 1.0)
    return network(1.0, shares[0]), network(-1.0, shares[1])


def network_velocity(
    current: EmbeddedNetwork, params: Params, reference: Reference | None = None
) -> Velocity:
    """The velocity of a network, v = f + current.

    Args:
        current: Its first output is the residual.
        params: Its parameters.
        reference: What f is the drift of; None for f = 0.

    Returns:
        The velocity.
    """

    def velocity(x: Array, t: Array) -> Array:
        residual, _ = current(params, x, t)
        return residual if reference is None else reference.drift(x, t) + residual

    return velocity


def process_velocity(
    processes: tuple[Process, Process], params: tuple[Params, Params], grid: TimeGrid
) -> Velocity:
    """The current velocity v = (F - B)/2 of a forward and a backward process.

    F and B are the mean displacements of their steps per unit of time, at the times of the grid
    where each was trained; between these v is interpolated linearly. At the two ends, where one
    of the two was not, its nearest step stands in. The error that remains is of first order in
    the steps, and whatever the two disagree in: F + B should be g²∇log p_t.

    Args:
        processes: The forward and the backward process.
        params: Parameters of each.
        grid: The time grid of both.

    Returns:
        The velocity.
    """
    last = grid.num_steps - 1
    embedded = [
        process.embedded_steps(own) for process, own in zip(processes, params, strict=True)
    ]

    def drift(which: int, x: Array, index: Array) -> Array:
        step = jax.tree.map(lambda leaf: leaf[index], embedded[which])
        law = processes[which].embedded_kernel(params[which], x, step)
        return (law.mean - x) / step.step.length

    def at_knot(x: Array, knot: Array) -> Array:
        forward = drift(0, x, jnp.minimum(knot, last))
        return 0.5 * (forward - drift(1, x, jnp.maximum(knot - 1, 0)))

    def velocity(x: Array, t: Array) -> Array:
        knot = jnp.clip(jnp.searchsorted(grid.times, t, side="right") - 1, 0, last)
        share = jnp.clip((t - grid.times[knot]) / grid.steps[knot], 0.0, 1.0)
        early, late = at_knot(x, knot), at_knot(x, knot + 1)
        return (1.0 - share) * early + share * late

    return velocity


def probability_flow(
    velocity: Velocity,
    x: Array,
    grid: TimeGrid,
    *,
    reverse: bool = False,
    tolerance: float | None = None,
) -> Array:
    """Integrates dx/dt = v(x, t) from one end to the other, by diffrax.

    Args:
        velocity: v.
        x: Where it starts, shape `(dim,)`: at time 0, or at T in reverse.
        grid: The times that are kept, and those of the steps where there is no tolerance.
        reverse: Whether to go from T to 0.
        tolerance: Relative and absolute, of Tsit5 with steps of its own choice; None for a step
            of Heun's method for each of the grid's.

    Returns:
        The path in the order of time, shape `(num_steps + 1, dim)`.

    Raises:
        ValueError: If the tolerance is not positive.
    """
    # Imported here: it takes seconds, which what knows no flow need not spend.
    import diffrax

    times = grid.times[::-1] if reverse else grid.times
    solver: diffrax.AbstractSolver = diffrax.Heun()
    controller: diffrax.AbstractStepSizeController = diffrax.StepTo(ts=times)
    if tolerance is not None:
        if not tolerance > 0:
            raise ValueError(f"tolerance = {tolerance}: must be > 0")
        solver = diffrax.Tsit5()
        controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: velocity(y, jnp.asarray(t))),
        solver,
        t0=times[0],
        t1=times[-1],
        dt0=None,
        y0=x,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=controller,
        max_steps=_MAX_STEPS,
    )
    return solution.ys[::-1] if reverse else solution.ys
