"""Trains and judges the seeds of one setting in this process."""

from collections.abc import Sequence
from typing import Any

import jax

from d2ejax import parallel
from experiments import checkpoints, events, loop, memory, run, workdir
from experiments.arguments import Arguments
from experiments.errors import InputError, one_line
from experiments.judge import Judge
from experiments.methods import METHODS
from experiments.sweeping import capacity, seeds, training
from experiments.sweeping.settings import Run, Sweep


def check(sweep: Sweep) -> None:
    """Checks what depends on this machine in every setting.

    Raises:
        InputError: If batch or buffers do not suit them, or a package is missing.
    """
    for setting in sweep.settings:
        config = setting.args.config
        events.check(config.loop.tensorboard)
        try:
            METHODS[config.method].check(config)
        except ValueError as error:
            raise InputError(one_line(error)) from error


def finish(args: Arguments, runs: Sequence[Run], *, at_once: int, sharers: int) -> None:
    """Trains and judges what is not finished of some runs.

    Args:
        args: Their command line, but for the seed and the workdir.
        runs: Of one setting.
        at_once: Most seeds to train together; 0 for as many as there is memory for.
        sharers: Processes that share the memory.

    Raises:
        InputError: If the configuration does not suit the devices, or a checkpoint it.
        Stopped: If a signal asked for it while training.
        StorageError: If the disk is full.
    """
    left = [one for one in runs if not workdir.is_finished(one.directory)]
    if not left:
        return
    settings = args.config
    experiment, alone = run.build_trainer(args)
    trainer = parallel.data_parallel(
        seeds.together(experiment.algorithm),
        backend=settings.parallel.backend,
        num_shards=settings.parallel.shards,
    )
    judge, like = Judge(experiment), seeds.template(alone)
    for one in left:
        workdir.create(one.directory, one.config)

    def judged(state: Any) -> Any:
        return seeds.of_first_shard(state, alone.own)

    plan = loop.make_plan(experiment, settings.loop)
    room = training.Room(
        trainer,
        plan,
        like,
        settings.loop,
        lambda state: judge.probe(jax.tree.map(lambda leaf: leaf[None], judged(state))),
    )

    def most(num: int) -> int:
        return at_once or capacity.seeds_at_once(trainer, num, sharers=sharers)

    print(f"{left[0].directory.parent}: compiling the training step", flush=True)
    training.train(room, left, most)
    # The training program is needed no more.
    memory.release()
    for one in left:
        saved = training.read(one)
        if saved is None or training.failure(saved, plan.max_consecutive_skipped) is not None:
            continue
        print(f"{one.directory}: evaluating", flush=True)
        run.conclude(
            one.config,
            one.directory,
            judge,
            judged(checkpoints.place(saved, like)),
            saved.step,
            loop.Times(**saved.metadata["times"]),
            # Its rate is that of all seeds of its batch, each of which took such a step.
            seeds_at_once=saved.metadata.get("seeds_at_once", 1),
        )
