"""Runs as `experiments.run` leaves them, without the command line and the evaluation."""

import jax

from d2ejax import parallel
from experiments import build, checkpoints, workdir


def run(directory, config, *, num_steps):
    """Trains for so many gradient steps, and says that this was all.

    Returns the experiment, the state of one device, and the metrics, None without a step.
    """
    experiment = build.build(config)
    trainer = parallel.data_parallel(experiment.algorithm)
    state, metrics = trainer.init(jax.random.key(0)), None
    if num_steps:
        state, metrics = trainer.run(state, num_steps)
    workdir.create(directory, config)
    with checkpoints.manager(directory / workdir.CHECKPOINTS, keep=1) as opened:
        checkpoints.save(opened, num_steps, trainer.gather(state), {})
    workdir.write_json(directory / workdir.SUMMARY, {"finished": True})
    return experiment, parallel.unreplicate(state), metrics
