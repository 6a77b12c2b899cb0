"""Trains a sweep in several processes, each with some seeds of one setting."""

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from signal import Signals
from typing import NamedTuple

from experiments import signals, workdir
from experiments.errors import InputError, Stopped, StorageError
from experiments.sweeping import settings
from experiments.sweeping.settings import Setting, Sweep

_POLL_SECONDS = 0.2
_BAD_INPUT = 2
_NOT_WRITTEN = 3


class Job(NamedTuple):
    """What one process does: some seeds of one setting, and where it writes what it prints."""

    setting: Setting
    seeds: tuple[int, ...]
    log: Path


class Worker(NamedTuple):
    """A process at work."""

    job: Job
    process: subprocess.Popen


def train(sweep: Sweep) -> None:
    """Trains what is not finished, so many processes at a time.

    Args:
        sweep: What to train.

    Raises:
        InputError: If one of them refused what it was given.
        Stopped: If a signal asked for it; the processes have been told, and have saved.
    """
    waiting, working = list(jobs(sweep)), list[Worker]()
    refused: list[str] = []
    with signals.deferred() as request, ExitStack() as stack:
        try:
            while (waiting or working) and request.signum is None:
                while waiting and len(working) < sweep.processes:
                    working.append(_begin(sweep, waiting.pop(0), stack))
                time.sleep(_POLL_SECONDS)
                for worker in [w for w in working if w.process.poll() is not None]:
                    working.remove(worker)
                    refused += _ended(worker)
        finally:  # Nobody may go on training when this process has gone.
            for worker in working:
                worker.process.terminate()
            for worker in working:
                worker.process.wait()
    if request.signum is not None:
        name = Signals(request.signum).name
        raise Stopped(f"stopped by {name}: the same command goes on", request.signum)
    if refused:
        raise InputError(refused[0])


def jobs(sweep: Sweep) -> Iterator[Job]:
    """What there is to do; the seeds of a setting are shared out if settings are too few."""
    left = {
        setting.name: [
            seed for seed in sweep.seeds if not workdir.is_finished(setting.run(seed).directory)
        ]
        for setting in sweep.settings
    }
    shares = math.ceil(sweep.processes / max(1, sum(map(bool, left.values()))))
    for setting in sweep.settings:
        for seeds in settings.groups(left[setting.name], shares):
            log = setting.directory / f"seeds_{'_'.join(map(str, seeds))}.log"
            yield Job(setting, seeds, log)


def command(sweep: Sweep, job: Job) -> list[str]:
    """The command line of a process: a sweep of one setting."""
    return [
        *(sys.executable, "-m", "experiments.sweep", *job.setting.command),
        f"--seeds={','.join(map(str, job.seeds))}",
        f"--workdir={job.setting.directory}",
        f"--seeds_at_once={sweep.seeds_at_once}",
        f"--sharers={sweep.processes}",
    ]


def _begin(sweep: Sweep, job: Job, stack: ExitStack) -> Worker:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = stack.enter_context(job.log.open("a"))
    # Ctrl-C is for this process, which hands it on: twice, it would end the others at once.
    process = subprocess.Popen(
        command(sweep, job),
        env=sweep.environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    print(f"{_words(job)}: begun, see {job.log}", flush=True)
    return Worker(job, process)


def _ended(worker: Worker) -> list[str]:
    """Says how a process ended, and returns why it refused its input, if it did."""
    status, job = worker.process.returncode, worker.job
    lines: Sequence[str] = job.log.read_text().strip().splitlines() or ["no output"]
    if not status:
        print(f"{_words(job)}: done", flush=True)
        return []
    print(f"{_words(job)}: ended with status {status}: {lines[-1]}", file=sys.stderr)
    if status == _NOT_WRITTEN:
        raise StorageError(lines[-1].removeprefix("error: "))
    return [lines[-1].removeprefix("error: ")] if status == _BAD_INPUT else []


def _words(job: Job) -> str:
    seeds = f"seeds {', '.join(map(str, job.seeds))}"
    return f"{job.setting.name}, {seeds}" if job.setting.name else seeds
