"""The training loop: dispatches of many gradient steps, records, checkpoints, resume.

The result depends on the trainer and the plan's phases alone, never on how the steps are cut
into dispatches or how often the process dies: all randomness is in the state.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from experiments import checkpoints, events, memory, scores, signals, workdir
from experiments.errors import NonFiniteError, Stopped
from experiments.progress import Progress

MEASURED = ("steps_per_second", "memory_gb", "peak_memory_gb")
"""Fields of a record that differ between two runs of one configuration."""


class Trainer(Protocol):
    """What the loop drives: an algorithm spread over devices, see `parallel.Trainer`.

    The state has the fields `step` (gradient steps tried, skipped ones included) and
    `consecutive_skipped` (those of them, up to now, that were not finite and changed nothing).
    """

    @property
    def init(self) -> Callable[[jax.Array], Any]:
        """Maps a key to a state."""

    @property
    def run(self) -> Callable[[Any, int], tuple[Any, dict[str, Any]]]:
        """Maps `(state, num_steps)` to the state after them and the means of the metrics.

        `num_steps` is traced: any number runs without compiling again, zero included.
        """

    @property
    def gather(self) -> Callable[[Any], Any]:
        """Maps a state to what is saved of it."""

    @property
    def place(self) -> Callable[[Any, Any], Any]:
        """Maps what was saved, and a state on the devices, to a state."""

    @property
    def own(self) -> tuple[str, ...]:
        """The fields that each shard has of its own."""


class Plan(NamedTuple):
    """How many steps there are and where a dispatch must end.

    Attributes:
        total_steps: Gradient steps of the whole run.
        phase_of: Maps a step to (label, first step after its phase).
        steps_per_dispatch: Most gradient steps of one call of the device.
        checkpoint_every: Gradient steps between checkpoints.
        max_consecutive_skipped: Non-finite steps in a row after which training stops.
    """

    total_steps: int
    phase_of: Callable[[int], tuple[str, int]]
    steps_per_dispatch: int
    checkpoint_every: int
    max_consecutive_skipped: int


def make_plan(experiment: Any, settings: Any) -> Plan:
    """The plan of an experiment.

    Args:
        experiment: Has `total_steps` and `phase_of`.
        settings: The section `loop` of its configuration.
    """
    return Plan(
        total_steps=experiment.total_steps,
        phase_of=experiment.phase_of,
        steps_per_dispatch=settings.steps_per_dispatch,
        checkpoint_every=settings.checkpoint_every,
        max_consecutive_skipped=settings.max_consecutive_skipped,
    )


class Times(NamedTuple):
    """Seconds spent on a run.

    Attributes:
        wall: In the processes before this one, each up to its last checkpoint.
        compile: In compilation of the training step, initialisation included; all processes.
        train: In gradient steps; all processes.
    """

    wall: float = 0.0
    compile: float = 0.0
    train: float = 0.0


class Dispatch(NamedTuple):
    """One call of the device: `num_steps` steps that ended at `step`."""

    step: int
    num_steps: int
    phase: str
    state: Any
    metrics: dict[str, float]
    seconds: float


class Result(NamedTuple):
    """Where training ended."""

    state: Any
    step: int
    times: Times


def next_stop(plan: Plan, step: int) -> int:
    """The step at which a dispatch that starts at `step` ends."""
    _, phase_end = plan.phase_of(step)
    checkpoint = (step // plan.checkpoint_every + 1) * plan.checkpoint_every
    stop = min(step + plan.steps_per_dispatch, phase_end, checkpoint, plan.total_steps)
    if stop <= step:
        raise ValueError(f"phase_of({step}) ends at {phase_end}: must end after {step}")
    return stop


def dispatches(trainer: Trainer, plan: Plan, state: Any, step: int) -> Iterator[Dispatch]:
    """Yields the state after every dispatch from `step` to the end of the plan.

    The states handed out may be donated to the next dispatch: use each before asking for more.
    """
    while step < plan.total_steps:
        phase, _ = plan.phase_of(step)
        stop = next_stop(plan, step)
        start = time.perf_counter()
        state, metrics = trainer.run(state, stop - step)
        means = {name: float(np.mean(np.asarray(value))) for name, value in metrics.items()}
        jax.block_until_ready(state)
        yield Dispatch(stop, stop - step, phase, state, means, time.perf_counter() - start)
        step = stop


def start(trainer: Trainer, key: jax.Array, saved: checkpoints.Saved | None) -> Result:
    """The saved state, or the initial one where there is none, with the trainer compiled."""
    begun = time.perf_counter()
    state, step, times = trainer.init(key), 0, Times()
    if saved is not None:
        gathered = checkpoints.place(saved, trainer.gather(state), trainer.own)
        state, step = trainer.place(gathered, state), saved.step
        times = Times(**saved.metadata["times"])
    # No steps: compiles, and leaves the rate that is shown later to the steps alone.
    state, _ = jax.block_until_ready(trainer.run(state, 0))
    memory.trim()
    seconds = time.perf_counter() - begun
    return Result(state, step, times._replace(compile=times.compile + seconds))


def train(
    trainer: Trainer,
    plan: Plan,
    *,
    key: jax.Array,
    saved: checkpoints.Saved | None,
    directory: Path,
    keep: int,
    keep_best: bool = False,
    progress: Progress,
    probe: Callable[[Any], Mapping[str, float]],
    process_start: float,
    agree: Callable[[bool], bool] = lambda asked: asked,
    listener: events.Listener = events.ignore,
    writes: bool = True,
) -> Result:
    """Trains to the end of the plan in a workdir.

    Args:
        trainer: What to drive.
        plan: How far and in which pieces.
        key: Of the initial state; a saved state has its own.
        saved: The checkpoint to go on from, None to start afresh.
        directory: The workdir.
        keep: Newest checkpoints to keep.
        keep_best: Whether to keep the best beside them; the end of a phase is then saved too.
        progress: Told of every dispatch.
        probe: Measures a state; asked at the end of every phase, for the record of it.
        process_start: `time.perf_counter()` when the process started, for the wall time.
        agree: Maps whether a signal has asked this process to stop to whether all processes
            stop; called once after every dispatch.
        listener: Told of every record.
        writes: Whether this is the process, of several, that writes the records.

    Returns:
        The last state, which has been saved.

    Raises:
        InputError: If the checkpoint holds another kind of state.
        NonFiniteError: After too many steps in a row that were not finite; the state, which
            those steps left as it was, has been saved.
        Stopped: After the dispatch under way when SIGTERM or SIGINT came; its state has been
            saved.
        StorageError: If the disk is full; the checkpoints before are as they were.
    """
    saved_in = directory / workdir.CHECKPOINTS
    state, step, times = start(trainer, key, saved)
    if writes:
        workdir.trim_metrics(directory, step)
    progress.start(step)
    losses: list[tuple[int, float]] = []
    stopping = False
    with (
        signals.deferred() as request,
        checkpoints.manager(saved_in, keep=keep, keep_best=keep_best, after=step) as manager,
    ):
        for done in dispatches(trainer, plan, state, step):
            state, step = done.state, done.step
            times = times._replace(train=times.train + done.seconds)
            phase_end = plan.phase_of(step - 1)[1]
            probed = probe(state) if step == phase_end else {}
            due = _is_due(plan, step) or (keep_best and step == phase_end)
            # A save goes on beside one dispatch and no longer: else the records would say more
            # than one interval past what is on disk.
            checkpoints.wait(manager)
            record = to_record(done, probed)
            if writes:
                workdir.append_metrics(directory, record)
            listener(record)
            progress.update(done.step, done.phase, done.metrics, done.num_steps / done.seconds)
            losses.append((done.num_steps, done.metrics.get("loss", math.nan)))
            failed = _skipped(state) >= plan.max_consecutive_skipped
            stopping = agree(request.signum is not None)
            if due or failed or stopping:
                wall = times.wall + time.perf_counter() - process_start
                metadata = {"times": times._replace(wall=wall)._asdict()}
                score = scores.score(mean(losses), phase_end, probed)
                checkpoints.save(manager, step, trainer.gather(state), metadata, score)
            if failed or stopping:
                break
            if due or step == phase_end:
                losses.clear()
    _check_finite(state, step, plan, saved_in)
    # Asked once more: of what came since, too, all must make the same.
    stopping = agree(request.signum is not None) or stopping
    if stopping:
        raise _stopped(request, step, plan)
    return Result(state, step, times)


def _is_due(plan: Plan, step: int) -> bool:
    return step % plan.checkpoint_every == 0 or step == plan.total_steps


def mean(losses: Sequence[tuple[int, float]]) -> float:
    """The mean over the steps of dispatches, each given as (steps, mean loss)."""
    return float(np.average([x for _, x in losses], weights=[n for n, _ in losses]))


def _skipped(state: Any) -> int:
    return int(np.max(np.asarray(state.consecutive_skipped)))


def _check_finite(state: Any, step: int, plan: Plan, saved_in: Path) -> None:
    skipped = _skipped(state)
    if skipped >= plan.max_consecutive_skipped:
        raise NonFiniteError(
            f"the last {skipped} gradient steps were not finite, at step {step}: allowed are "
            f"fewer than loop.max_consecutive_skipped = {plan.max_consecutive_skipped}: the "
            f"last good state is saved in {saved_in / str(step)}"
        )


def _stopped(request: signals.Request, step: int, plan: Plan) -> Stopped:
    # What another process was asked to do may not have been asked of this one.
    signum = signal.SIGTERM if request.signum is None else request.signum
    return Stopped(
        f"stopped by {signal.Signals(signum).name} at step {step}/{plan.total_steps}, which is "
        "saved: the same command goes on from it",
        signum,
    )


def to_record(done: Dispatch, probed: Mapping[str, float]) -> dict[str, Any]:
    """A line of metrics.jsonl: a dispatch, and what was measured of the state after it."""
    rate = done.num_steps / done.seconds
    return {
        "step": done.step,
        "phase": done.phase,
        **done.metrics,
        **probed,
        "steps_per_second": round(rate, 2),
        **memory.usage(),
    }
