"""The training loop: dispatches of many gradient steps, records, checkpoints, resume.

The result depends on the trainer and the plan's phases alone, never on how the steps are cut
into dispatches or how often the process dies: all randomness is in the state.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from experiments import checkpoints, memory, workdir
from experiments.errors import NonFiniteError
from experiments.progress import Progress


class Trainer(Protocol):
    """What the loop drives: an algorithm spread over the local devices.

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
        state, step = checkpoints.place(saved, state), saved.step
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
    progress: Progress,
    probe: Callable[[Any], Mapping[str, float]],
    process_start: float,
) -> Result:
    """Trains to the end of the plan in a workdir.

    Args:
        trainer: What to drive.
        plan: How far and in which pieces.
        key: Of the initial state; a saved state has its own.
        saved: The checkpoint to go on from, None to start afresh.
        directory: The workdir.
        keep: Newest checkpoints to keep.
        progress: Told of every dispatch.
        probe: Measures a state; asked at the end of every phase, for the record of it.
        process_start: `time.perf_counter()` when the process started, for the wall time.

    Returns:
        The last state, which has been saved.

    Raises:
        InputError: If the checkpoint holds another kind of state.
        NonFiniteError: After too many steps in a row that were not finite; the state, which
            those steps left as it was, has been saved.
    """
    saved_in = directory / workdir.CHECKPOINTS
    state, step, times = start(trainer, key, saved)
    workdir.trim_metrics(directory, step)
    progress.start(step)

    with checkpoints.manager(saved_in, keep=keep) as manager:
        for done in dispatches(trainer, plan, state, step):
            state, step = done.state, done.step
            times = times._replace(train=times.train + done.seconds)
            ended = step == plan.phase_of(step - 1)[1]
            workdir.append_metrics(directory, _record(done, probe(state) if ended else {}))
            progress.update(done.step, done.phase, done.metrics, done.num_steps / done.seconds)
            skipped = int(np.max(np.asarray(state.consecutive_skipped)))
            failed = skipped >= plan.max_consecutive_skipped
            if failed or step % plan.checkpoint_every == 0 or step == plan.total_steps:
                wall = times.wall + time.perf_counter() - process_start
                metadata = {"times": times._replace(wall=wall)._asdict()}
                checkpoints.save(manager, step, state, metadata)
            if failed:
                raise NonFiniteError(
                    f"the last {skipped} gradient steps were not finite, at step {step}: "
                    f"allowed are fewer than loop.max_consecutive_skipped = "
                    f"{plan.max_consecutive_skipped}: the last good state is saved in "
                    f"{saved_in / str(step)}"
                )
    return Result(state, step, times)


def _record(done: Dispatch, probed: Mapping[str, float]) -> dict[str, Any]:
    rate = done.num_steps / done.seconds
    return {
        "step": done.step,
        "phase": done.phase,
        **done.metrics,
        **probed,
        "steps_per_second": round(rate, 2),
    }
