"""Trains the runs of one configuration, many seeds at a time.

Each run has a workdir of the usual kind, and what lies in it says how far the run is: nothing
else is remembered. The same records and checkpoints are written there as by a run alone.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from signal import Signals
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from d2ejax.parallel import Trainer
from experiments import checkpoints, events, loop, scores, signals, workdir
from experiments.checkpoints import Saved
from experiments.errors import Stopped
from experiments.loop import Plan, Times
from experiments.progress import Progress
from experiments.sweeping import seeds
from experiments.sweeping.settings import Run


class Dispatch(NamedTuple):
    """One call of the device, as `loop.Dispatch` but with the metrics of every seed."""

    step: int
    num_steps: int
    phase: str
    state: Any
    metrics: dict[str, Any]
    seconds: float


class Room(NamedTuple):
    """What all batches of a configuration are trained with.

    Attributes:
        trainer: Of `seeds.together`.
        plan: How far and in which pieces.
        like: From `seeds.template`.
        settings: The section `loop` of the configuration.
        probe: Measures the state of one run at the end of every phase.
    """

    trainer: Trainer
    plan: Plan
    like: Any
    settings: ConfigDict
    probe: Callable[[Any], Mapping[str, float]]


def read(run: Run) -> Saved | None:
    """The newest sound checkpoint of a run, None if it has none."""
    directory = run.directory / workdir.CHECKPOINTS
    if workdir.latest_step(directory) is None:
        return None
    return checkpoints.read(directory, fall_back=True)


def failure(saved: Saved | None, most_skipped: int) -> str | None:
    """Why a run has stopped, None if it goes on.

    Args:
        saved: Its newest checkpoint.
        most_skipped: Non-finite steps in a row after which training stops.
    """
    skipped = 0 if saved is None else int(np.max(saved.arrays["consecutive_skipped"]))
    if saved is None or skipped < most_skipped:
        return None
    return f"the last {skipped} gradient steps were not finite, at step {saved.step}"


def train(room: Room, runs: Sequence[Run], at_once: Callable[[int], int]) -> None:
    """Trains runs to the end of the plan, or until each has failed by itself.

    Those that stand at the same step go together; those behind the others, as a kill between
    two saves leaves them, catch up first.

    Args:
        room: What to train with.
        runs: Of one configuration, whatever was trained of them before.
        at_once: Maps how many there are to train to the most to be trained together.

    Raises:
        InputError: If a checkpoint holds another kind of state.
        Stopped: If a signal asked for it; what was under way has been saved.
        StorageError: If the disk is full.
    """
    most = None
    while True:
        standing = [(run, read(run)) for run in runs]
        steps = {run.seed: 0 if saved is None else saved.step for run, saved in standing}
        pending = [
            (run, saved)
            for run, saved in standing
            if steps[run.seed] < room.plan.total_steps
            and failure(saved, room.plan.max_consecutive_skipped) is None
        ]
        if not pending:
            return
        most = most or at_once(len(pending))
        chosen = next_batch({run.seed: steps[run.seed] for run, _ in pending}, most)
        batch = [(run, saved) for run, saved in pending if run.seed in chosen]
        ahead = {steps[run.seed] for run, _ in pending} - {steps[batch[0][0].seed]}
        # A full batch has no room for those ahead of it.
        until = min(ahead) if ahead and len(batch) < most else room.plan.total_steps
        _train_batch(room._replace(plan=room.plan._replace(total_steps=until)), batch)


def next_batch(steps: Mapping[int, int], at_once: int) -> list[int]:
    """The seeds to be trained next, of given seeds and their steps: the first of the lowest."""
    lowest = min(steps.values())
    return [seed for seed, step in steps.items() if step == lowest][:at_once]


class Lane(NamedTuple):
    """One run of a batch.

    Attributes:
        run: What it is.
        manager: Of its checkpoints.
        listener: Told of every record.
        times: Seconds spent on it before this batch.
        losses: Those since its last checkpoint, each as (steps, mean loss).
    """

    run: Run
    manager: Any
    listener: events.Listener
    times: Times
    losses: list[tuple[int, float]]


def _train_batch(room: Room, batch: Sequence[tuple[Run, Saved | None]]) -> None:
    """Trains runs that stand at the same step to the end of the plan."""
    begun, plan = time.perf_counter(), room.plan
    state, step = _start(room, batch)
    spent = Times(compile=time.perf_counter() - begun)
    with (
        signals.deferred() as request,
        ExitStack() as stack,
        Progress(plan.total_steps) as progress,
    ):
        progress.start(step)
        lanes = [_open(stack, room, step, *given) for given in batch]
        alive = list(range(len(lanes)))
        for done in _dispatches(room.trainer, plan, state, step):
            step, rate = done.step, done.num_steps / done.seconds
            spent = spent._replace(
                train=spent.train + done.seconds, wall=time.perf_counter() - begun
            )
            failed = _failed(done.state, alive, plan.max_consecutive_skipped)
            stopping = request.signum is not None
            due = stopping or _is_due(room, step)
            _write(room, lanes, done, alive, saved=alive if due else failed, spent=spent)
            means = {name: _mean(values[alive]) for name, values in done.metrics.items()}
            progress.update(step, done.phase, means, rate)
            for lane in (lanes[i] for i in failed):
                print(f"seed {lane.run.seed}: failed at step {step}: the others go on")
            alive = [i for i in alive if i not in failed]
            if stopping or not alive:
                break
    if request.signum is not None:
        raise Stopped(
            f"stopped by {Signals(request.signum).name} at step {step}/{plan.total_steps}, "
            "which is saved: the same command goes on from it",
            request.signum,
        )


def _start(room: Room, batch: Sequence[tuple[Run, Saved | None]]) -> tuple[Any, int]:
    """The state that the runs of a batch go on from, with the trainer compiled."""
    keys = seeds.keys([run.seed for run, _ in batch])
    state = loop.start(room.trainer, keys, None).state
    saved = [found for _, found in batch if found is not None]
    if not saved:
        return state, 0
    states = [checkpoints.place(found, room.like) for found in saved]
    return room.trainer.place(seeds.join(states, room.trainer.own), state), saved[0].step


def _open(stack: ExitStack, room: Room, step: int, run: Run, saved: Saved | None) -> Lane:
    settings = room.settings
    workdir.trim_metrics(run.directory, step)
    manager = checkpoints.manager(
        run.directory / workdir.CHECKPOINTS,
        keep=settings.keep,
        keep_best=settings.keep_best,
        after=step,
    )
    listener = events.writer(run.directory, settings.tensorboard, step)
    times = Times() if saved is None else Times(**saved.metadata["times"])
    return Lane(run, stack.enter_context(manager), stack.enter_context(listener), times, [])


def _is_due(room: Room, step: int) -> bool:
    plan = room.plan
    best = room.settings.keep_best and step == plan.phase_of(step - 1)[1]
    return best or step % plan.checkpoint_every == 0 or step == plan.total_steps


def _dispatches(trainer: Trainer, plan: Plan, state: Any, step: int) -> Iterator[Dispatch]:
    """As `loop.dispatches`, with the metrics of every seed."""
    while step < plan.total_steps:
        phase, _ = plan.phase_of(step)
        stop, start = loop.next_stop(plan, step), time.perf_counter()
        state, metrics = trainer.run(state, stop - step)
        values = {name: np.asarray(value) for name, value in metrics.items()}
        jax.block_until_ready(state)
        yield Dispatch(stop, stop - step, phase, state, values, time.perf_counter() - start)
        step = stop


def _mean(values: np.ndarray) -> float:
    """The mean of what is finite."""
    finite = values[np.isfinite(values)]
    return float(np.mean(finite)) if len(finite) else math.nan


def _failed(state: Any, alive: Sequence[int], most_skipped: int) -> list[int]:
    """Those of the seeds alive whose last steps were all not finite."""
    skipped = np.max(np.asarray(state.consecutive_skipped), axis=0)
    return [i for i in alive if skipped[i] >= most_skipped]


def _write(
    room: Room,
    lanes: Sequence[Lane],
    done: Dispatch,
    alive: Sequence[int],
    *,
    saved: Sequence[int],
    spent: Times,
) -> None:
    """Writes the records of a dispatch, and the checkpoints of some seeds."""
    phase_end = room.plan.phase_of(done.step - 1)[1]
    ended, states = done.step == phase_end, list[Any]()
    if ended or saved:
        gathered = room.trainer.gather(done.state)
        states = seeds.split(gathered, room.trainer.own, len(lanes))
    for i in alive:
        lane = lanes[i]
        if i in saved:
            # So that the records never say more than one interval past what is saved.
            checkpoints.wait(lane.manager)
        metrics = {name: float(values[i]) for name, values in done.metrics.items()}
        probed = room.probe(states[i]) if ended else {}
        record = loop.to_record(loop.Dispatch(*done._replace(metrics=metrics)), probed)
        workdir.append_metrics(lane.run.directory, record)
        lane.listener(record)
        lane.losses.append((done.num_steps, metrics.get("loss", math.nan)))
        if i in saved:
            total = Times(*(a + b for a, b in zip(lane.times, spent, strict=True)))
            metadata = {"times": total._asdict(), "seeds_at_once": len(lanes)}
            score = scores.score(loop.mean(lane.losses), phase_end, probed)
            checkpoints.save(lane.manager, done.step, states[i], metadata, score)
        if i in saved or ended:
            lane.losses.clear()
