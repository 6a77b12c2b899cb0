"""Trains the stand-in in the workdir given, in a process that can be killed."""

import sys
import time
from pathlib import Path

import jax

from experiments import checkpoints, loop, workdir
from experiments.progress import Progress
from tests.experiments import toy

PLAN = toy.plan(300, phase_length=130, steps_per_dispatch=3, checkpoint_every=10)


def main(directory: Path) -> None:
    saved_in = directory / workdir.CHECKPOINTS
    saved = None if workdir.latest_step(saved_in) is None else checkpoints.read(saved_in)
    loop.train(
        toy.trainer(1),
        PLAN,
        key=jax.random.key(3),
        saved=saved,
        directory=directory,
        keep=2,
        progress=Progress(PLAN.total_steps),
        probe=lambda state: {},
        process_start=time.perf_counter(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
