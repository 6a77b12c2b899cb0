"""From a validated config to an experiment.

With `bases`, `ends`, `wiring`, `methods` and, for images, `amortising`, `image_models` and
`translations` the only reader of configs.

Nothing here simulates or trains; it wires functions of the library together.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from d2ejax import kernels, parallel
from d2ejax.algorithms.base import Algorithm
from d2ejax.endpoints.base import Endpoint, restrict
from d2ejax.exact.base import ExactBridge
from d2ejax.flows import Velocity
from d2ejax.kernels import Process
from d2ejax.metrics.base import HostArray
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Key, Params
from experiments import bases, checkpoints, ends, tilts, wiring, workdir
from experiments.methods import METHODS, fine_tuning
from experiments.wiring import Base, Method, Observed, Room


class Experiment(NamedTuple):
    """A bridge to train, and all that judging it needs.

    Attributes:
        algorithm: The (init, step) pair, for the mapped axis of `d2ejax.parallel`.
        total_steps: Gradient steps of the whole run.
        phase_of: Maps a gradient step to the name of its half-step and the step after that.
        source: Everything known about p_0; training sees a restricted view.
        target: Everything known about p_1.
        law: The reference in continuous time.
        grid: The time grid.
        reference: The reference on the grid, by its exact transitions.
        forward: The forward process.
        backward: The backward process.
        forward_params: Maps the state to the parameters that the forward process is judged by.
        backward_params: The same for the backward process.
        flow: Maps the state to the velocity of its probability flow; None for what the two
            processes give together.
        has_noise: Whether it is a bridge at all: False for a flow alone, whose processes only
            follow it.
        graph: Maps the state to the parameters of the drift that has a graph; None without.
        bridge: The exact bridge, where the two ends were made as a pair.
        observed: The snapshots, where the ends are those of a process observed at more times.
        has_bridge: Whether the Schrödinger bridge of its ends is what is sought; False for
            diffusion models and what is made of them.
        has_reversal: Whether the backward process is one of the forward one; where it is not,
            nothing is said that needs both.
        measure: Maps a key, the state and paths of the forward process to what else there is to
            be measured of these; None for nothing.
    """

    algorithm: Algorithm
    total_steps: int
    phase_of: Callable[[int], tuple[str, int]]
    source: Endpoint
    target: Endpoint
    law: Reference
    grid: TimeGrid
    reference: Process
    forward: Process
    backward: Process
    forward_params: Callable[[Any], Params]
    backward_params: Callable[[Any], Params]
    flow: Callable[[Any], Velocity] | None
    has_noise: bool
    graph: Callable[[Any], Params] | None
    bridge: ExactBridge | None
    observed: Observed | None
    has_bridge: bool = True
    has_reversal: bool = True
    measure: Callable[[Key, Any, HostArray], dict[str, Any]] | None = None


def build(config: ConfigDict) -> Experiment:
    """Wires an experiment.

    Args:
        config: A validated config.

    Returns:
        The experiment.

    Raises:
        ValueError: If the batch does not divide over the devices or the buffer is too small.
        InputError: If what is to be fine-tuned is not there, or is something else.
    """
    METHODS[config.method].check(config)
    source, target, bridge, snapshots = ends.build_ends(config)
    law, grid = ends.build_reference(config), wiring.build_grid(config, snapshots)
    observed = wiring.observe(config, snapshots)
    # The bridge is one of the reference itself, not of its Euler steps.
    reference = kernels.reference_process(law, grid, discretisation="exact")
    seen = (
        restrict(source, config.source.access),
        restrict(target, config.target.access),
    )
    room = Room(seen, law, grid, reference, *_between(observed))
    if config.method == "fine_tuning":
        base = _restore_base(config)
        # The law that its paths are to end in, and no longer that of a pair.
        room, target, bridge = room._replace(base=base), base.tilt.endpoint, None
    wire = _images if config.target.name == ends.IMAGE_CLASS else METHODS[config.method].build
    method = wire(config, room)
    return Experiment(
        **method._asdict(),
        source=source,
        target=target,
        law=law,
        grid=grid,
        reference=reference,
        bridge=bridge,
        observed=observed,
    )


def _images(config: ConfigDict, room: Room) -> Method:
    """A method whose target is a class of images, or each of several."""
    # Imported here: their networks are slow to import, and most runs have none.
    from experiments import amortising, translations

    wire = METHODS[config.method].build
    if not amortising.is_asked(config):
        return wire(config, room)._replace(measure=translations.measure(config))
    method = amortising.build(config, room, wire)
    each = amortising.for_each(config, room, wire)
    return method._replace(measure=translations.measure_each(config, room.ends[0], each))


def _restore_base(config: ConfigDict) -> Base:
    """What a fine-tuning starts from, by the newest checkpoint of that run."""
    given = bases.read(config)
    saved = checkpoints.read(Path(config.fine_tuning.base) / workdir.CHECKPOINTS)
    found = build(given)
    trainer = parallel.data_parallel(found.algorithm, num_shards=given.parallel.shards)
    state = parallel.unreplicate(checkpoints.to_judge(saved, trainer, given.seed))
    # On the host: they are constants to what is compiled for all devices.
    forward_params, backward_params = jax.device_get(
        (found.forward_params(state), found.backward_params(state))
    )
    reward = fine_tuning.reward(config)
    forgets_start = given.method == "diffusion"
    if forgets_start:
        tilt = tilts.of_data(found.target, reward)
    else:
        tilt = tilts.of_process(
            found.forward, forward_params, found.source, found.target, reward
        )
    return Base(
        found.forward, forward_params, found.backward, backward_params, tilt, forgets_start
    )


def _between(observed: Observed | None) -> tuple[tuple[Endpoint, ...], tuple[int, ...]]:
    """What training may see between the ends, and at which points of the grid."""
    if observed is None:
        return (), ()
    inner = observed.kept[1:-1]
    marginals = (restrict(observed.snapshots.marginals[i], "samples") for i in inner)
    return tuple(marginals), tuple(observed.knots[i] for i in inner)
