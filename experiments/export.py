"""The trained bridge of a run, as `d2ejax.load` reads it."""

import sys
from pathlib import Path
from typing import Any

from d2ejax import saved_bridges
from experiments import judge, workdir
from experiments.build import Experiment
from experiments.errors import one_line


def write(experiment: Experiment, state: Any, directory: Path) -> dict[str, Any] | None:
    """Writes the folder `bridge` of a workdir.

    Args:
        experiment: The experiment.
        state: The trained state, of one device.
        directory: The workdir.

    Returns:
        The fields of bridge.json; None, once it has been said why, where it cannot be written:
        no run is lost for that.
    """
    try:
        backward = experiment.backward, experiment.backward_params(state)
        return saved_bridges.save(
            directory / workdir.BRIDGE,
            grid=experiment.grid,
            source=experiment.source,
            target=experiment.target,
            forward=(experiment.forward, experiment.forward_params(state)),
            backward=backward if experiment.has_reversal else None,
            has_density=experiment.has_noise,
            # With these the same key gives the paths of --mode=sample.
            draws=judge.CHUNK,
        )
    except OSError:
        raise  # The disk: the run is not finished, and can be once there is room.
    except Exception as error:  # a backend that cannot lower a program
        print(f"{directory / workdir.BRIDGE}: not written: {one_line(error)}", file=sys.stderr)
        return None
