"""Matching of coupled minibatches: flow and score, a flow alone, or kernels of both ways."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from d2ejax import couplings, flows, graph_networks, references
from d2ejax.algorithms import matching, penalties
from d2ejax.algorithms.base import State
from d2ejax.kernels import Process
from d2ejax.networks import NetworkPair
from d2ejax.typing import Array, Key, Params
from experiments import fields, shards, wiring
from experiments.wiring import Method, Room

_STILL = 1e-4
"""The noise of a process that follows a flow, in units of the reference's: float32 bears it,
and no metric can see what it moves."""


class _Wired(NamedTuple):
    """What is trained, and by what.

    Attributes:
        objective: The loss and what it is evaluated on.
        inits: Maps a key to the parameters, by the name of each network.
        forward: The forward process.
        backward: The backward process.
        params: The names whose parameters each of the two processes has; None for all of them.
        flow: Maps the parameters to the velocity of the flow, where it is learned.
        first: The name of the network that may have a graph.
    """

    objective: matching.Objective
    inits: dict[str, Callable[[Key], Params]]
    forward: Process
    backward: Process
    params: tuple[str, str] | None = None
    flow: Callable[[Params], flows.Velocity] | None = None
    first: str = "current"


def check(config: ConfigDict) -> None:
    """Raises ValueError if the batch does not divide over the devices."""
    shards.share(config, "batch_size", config.batch_size)


def build(config: ConfigDict, room: Room) -> Method:
    """Wires "sf2m", "cfm" or "eot".

    Args:
        config: A validated config.
        room: What to join.
    """
    settings = config.matching
    wired = {"sf2m": _flow_and_score, "cfm": _flow, "eot": _bridges}[config.method](
        config, room
    )

    def init_params(key: Key) -> Params:
        keys = jax.random.split(key, len(wired.inits))
        return {
            name: init(k) for k, (name, init) in zip(keys, wired.inits.items(), strict=True)
        }

    def params_of(which: int) -> Callable[[Any], Params]:
        names = wired.params

        def params(state: State) -> Params:
            average = state.model.average
            return average if names is None else average[names[which]]

        return params

    flow, objective, has_graph = wired.flow, wired.objective, config.graph.of != "none"
    if has_graph:
        objective = penalties.penalised(
            objective,
            lambda params: graph_networks.group_lasso(params[wired.first]),
            config.graph.sparsity,
        )
    return Method(
        algorithm=matching.matching(
            (room.ends[0], *room.between, room.ends[1]),
            _couplings(config, room),
            objective,
            batch_size=shards.share(config, "batch_size", config.batch_size),
            init_params=init_params,
            optimiser=wiring.build_optimiser(config, settings.num_steps),
            ema_decay=config.optimiser.ema_decay,
            axis_name=shards.axis(config),
        ),
        total_steps=settings.num_steps,
        phase_of=wiring.even_phases(settings.num_steps, "matching"),
        forward=wired.forward,
        backward=wired.backward,
        forward_params=params_of(0),
        backward_params=params_of(1),
        flow=None if flow is None else lambda state: flow(state.model.average),
        has_noise=config.method != "cfm",
        graph=(lambda state: state.model.average[wired.first]) if has_graph else None,
    )


def _plain_network(config: ConfigDict, room: Room) -> NetworkPair:
    return wiring.build_network(config, room, room.ends[1])


def _first_network(config: ConfigDict, room: Room) -> NetworkPair:
    """That of the drift that may have a graph."""
    has_graph = config.graph.of != "none"
    return (wiring.build_graph_network if has_graph else _plain_network)(config, room)


def _flow_and_score(config: ConfigDict, room: Room) -> _Wired:
    first, osmotic = _first_network(config, room), _plain_network(config, room)
    of_drift = config.graph.of == "forward"
    forward, backward = flows.drift_networks(first.apply, osmotic.apply, of_drift=of_drift)

    def flow(params: Params) -> flows.Velocity:
        if of_drift:
            network = flows.current_network(first.apply, osmotic.apply)
            return flows.network_velocity(network, params, room.law)
        return flows.network_velocity(first.apply, params["current"], room.law)

    return _Wired(
        objective=matching.flow_and_score(
            first.apply,
            osmotic.apply,
            room.law,
            room.grid,
            draw_times=_times(config, room),
            score_weight=config.matching.score_weight,
            knots=room.knots,
            of_drift=of_drift,
        ),
        inits={"current": first.init, "osmotic": osmotic.init},
        forward=wiring.build_process(config, room, forward, backward=False),
        backward=wiring.build_process(config, room, backward, backward=True),
        flow=flow,
    )


def _flow(config: ConfigDict, room: Room) -> _Wired:
    current, t_max = _first_network(config, room), config.grid.t_max
    forward, backward = flows.drift_networks(current.apply)
    sigma = _STILL * (float(room.law.variance(0.0, t_max)) / t_max) ** 0.5
    still = room._replace(law=references.brownian(sigma))
    return _Wired(
        objective=matching.flow_alone(
            current.apply,
            room.law,
            room.grid,
            draw_times=_times(config, room),
            path_std=config.matching.path_std,
            knots=room.knots,
        ),
        inits={"current": current.init},
        forward=wiring.build_process(config, still, forward, backward=False),
        backward=wiring.build_process(config, still, backward, backward=True),
        flow=lambda params: flows.network_velocity(current.apply, params["current"]),
    )


def _bridges(config: ConfigDict, room: Room) -> _Wired:
    network = _first_network(config, room)
    forward = wiring.build_process(config, room, network.apply, backward=False)
    backward = wiring.build_side(config, room, backward=True)
    return _Wired(
        objective=matching.bridge_regression(
            forward, backward.process, room.law, room.grid, knots=room.knots
        ),
        inits={"forward": network.init, "backward": backward.init},
        forward=forward,
        backward=backward.process,
        params=("forward", "backward"),
        first="forward",
    )


def _couplings(config: ConfigDict, room: Room) -> list[couplings.Coupling]:
    """One for each leg, whose part of the time ε is tied to."""
    settings = config.matching
    name = settings.coupling
    if name == "auto":
        name = fields.COUPLING_OF_METHOD[config.method]
    if name == "entropic":
        inner = (float(room.grid.times[knot]) for knot in room.knots)
        stops = (0.0, *inner, config.grid.t_max)
        scale = settings.coupling_epsilon_scale
        return [
            couplings.entropic(room.law, end, start=start, epsilon_scale=scale)
            for start, end in itertools.pairwise(stops)
        ]
    plain = {"independent": couplings.independent, "exact": couplings.exact}[name]
    return [plain] * (len(room.knots) + 1)


def _times(config: ConfigDict, room: Room) -> Callable[[Key], Array]:
    settings = config.matching
    return matching.stratified_times(
        room.grid,
        -(-settings.num_times // (len(room.knots) + 1)),
        spacing=settings.times,
        knots=room.knots,
    )
