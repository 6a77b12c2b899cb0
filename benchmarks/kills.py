"""Kills a run again and again, at any moment of its life, and holds what it ends as against it.

`python -m benchmarks.kills --kills=200 --folder=runs/kills` lets the smoke run live once to its
end, with many small dispatches and checkpoints, and measures how long each phase of its life
lasts. Then it starts the same command in a new workdir, kills its whole process group with
SIGKILL at a moment drawn within some phase, starts the same command again, and so on; the
phases take turns. After every ten kills the run is left alone until it ends, and another
begins.

It must hold after every kill that the newest checkpoint is no older than it was at the kill
before, that metrics.jsonl says no more than one interval of checkpoints past it, and that the
next life goes on from it; and at the end of a run that every bit of its last state, its
metrics.jsonl and its summary.json are those of the run that lived once, times and memory aside.
The first that does not ends the benchmark with an error.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks import runs
from experiments import checkpoints, loop, workdir

PHASES = ("starting", "compiling", "training", "saving", "evaluating", "plotting")
"""In the order in which they first begin; saving is while a checkpoint is being written."""

INTERVAL = 4
FLAGS = (
    "--config=experiments/configs/smoke.py",
    "--config.loop.steps_per_dispatch=2",
    f"--config.loop.checkpoint_every={INTERVAL}",
)
_AFTER_TRAINING = ("evaluating", "plotting")
_KILLS_OF_A_RUN = 10
_TIMES = ("wall_seconds", "compile_seconds", "steps_per_second")
_SAYS = {"compiling the training step": "compiling", "evaluating": "evaluating"}
_POLL_SECONDS = 0.002
_ROOT = Path(__file__).parents[1]


class Broken(Exception):
    """A run did not go on as it must."""


class Moment(NamedTuple):
    """So many seconds after a phase of a life began."""

    phase: str
    seconds: float


class Life(NamedTuple):
    """A process from its start to its end.

    Attributes:
        status: Its exit status, negative if a signal ended it.
        out: What it said on stdout.
        err: And on stderr.
        begun: When each phase that it came to was first seen, in seconds from its start.
        seconds: How long it lived.
        hit: In which phase it ended.
    """

    status: int
    out: str
    err: str
    begun: dict[str, float]
    seconds: float
    hit: str


class Death(NamedTuple):
    """What a kill hit, and how many recorded steps past the newest checkpoint it lost."""

    hit: str
    lost: int


def live(
    directory: Path,
    flags: Sequence[str],
    environment: Mapping[str, str],
    moment: Moment | None = None,
) -> Life:
    """Starts a run in a process group of its own, and kills all of it at a moment.

    Where a life has passed over the phase of the moment, a later phase stands for it.
    """
    born = time.time_ns()
    command = [sys.executable, "-m", "experiments.run", *flags]
    process = subprocess.Popen(
        [*command, f"--workdir={directory.absolute()}"],
        cwd=_ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    start, begun = time.perf_counter(), {PHASES[0]: 0.0}
    out, err = _lines_of(process.stdout), _lines_of(process.stderr)
    try:
        while process.poll() is None:
            now = time.perf_counter() - start
            for phase in _seen(directory, born, out.lines):
                begun.setdefault(phase, now)
            if moment is not None and _is_past(moment, begun, now):
                break
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    status, seconds = process.wait(), time.perf_counter() - start
    hit = _hit(begun, saving="saving" in _seen(directory, born, out.lines))
    return Life(status, out.text(), err.text(), begun, seconds, hit)


def lengths(life: Life, num_saves: int) -> dict[str, float]:
    """Seconds that each phase of a whole life lasted; of saving, those from one to the next."""
    order = [phase for phase in PHASES if phase != "saving"]
    ends = [*(life.begun[phase] for phase in order[1:]), life.seconds]
    found = {phase: end - life.begun[phase] for phase, end in zip(order, ends, strict=True)}
    return found | {"saving": found["training"] / num_saves}


def moments(seed: int, number: int, lasting: Mapping[str, float]) -> Iterator[Moment]:
    """Moments for the kills of one run: each phase in its turn, those of training first."""
    draw = random.Random(seed)
    phases = [PHASES[i % len(PHASES)] for i in range(number)]
    draw.shuffle(phases)
    # Once it has been trained, a run trains no more.
    for phase in sorted(phases, key=_AFTER_TRAINING.__contains__):
        yield Moment(phase, draw.uniform(0.0, lasting[phase]))


def end(
    directory: Path,
    flags: Sequence[str],
    environment: Mapping[str, str],
    given: Sequence[Moment],
    last: Sequence[str] = (),
) -> Iterator[Death]:
    """Kills a run at each of some moments, then lets it end; yields what each kill hit.

    Args:
        directory: A new workdir.
        flags: Of the runner.
        environment: Of its processes.
        given: The moments.
        last: Flags of the last life alone.

    Raises:
        Broken: If a kill lost more than it may, or a life ended badly by itself.
    """
    newest = 0
    for moment in (*given, None):
        more = last if moment is None else ()
        life = live(directory, [*flags, *more], environment, moment)
        _check(life.status in (0, -signal.SIGKILL), directory, f"ended by itself: {life.err}")
        _check("damaged" not in life.err, directory, f"a checkpoint was damaged: {life.err}")
        _check(
            "resumed at" not in life.out or f"resumed at step {newest}/" in life.out,
            directory,
            f"did not go on from step {newest}: {life.out}",
        )
        if life.status == 0:
            return
        found = workdir.latest_step(directory / workdir.CHECKPOINTS) or 0
        _check(found >= newest, directory, f"lost the checkpoint of step {newest}")
        records = workdir.read_records(directory, sys.maxsize)
        lost = max(records[-1]["step"] - found, 0) if records else 0
        _check(lost <= INTERVAL, directory, f"lost {lost} steps, after step {found}")
        newest = found
        yield Death(life.hit, lost)


def differences(one: Path, other: Path) -> list[str]:
    """In what two finished runs are not the same bit for bit, times and memory aside."""
    a, b = (checkpoints.read(run / workdir.CHECKPOINTS) for run in (one, other))
    found = [] if a.step == b.step else [f"step {a.step} and {b.step}"]
    for name in sorted(a.leaves.keys() | b.leaves.keys()):
        if a.leaves.get(name) != b.leaves.get(name) or not _equal(a, b, name):
            found.append(f"leaf {name}")
    records = [workdir.read_records(run, sys.maxsize) for run in (one, other)]
    if _without(loop.MEASURED, records[0]) != _without(loop.MEASURED, records[1]):
        found.append(workdir.METRICS)
    summaries = [json.loads((run / workdir.SUMMARY).read_text()) for run in (one, other)]
    if _without(_TIMES, summaries[:1]) != _without(_TIMES, summaries[1:]):
        found.append(workdir.SUMMARY)
    return found


def table(deaths: Sequence[Death]) -> str:
    """Kills of each phase, and the most that one of them lost."""
    rows = []
    for phase in PHASES:
        lost = [death.lost for death in deaths if death.hit == phase]
        rows.append([phase, str(len(lost)), str(max(lost, default="-"))])
    rows.append(["all", str(len(deaths)), str(max((d.lost for d in deaths), default="-"))])
    return runs.markdown(["phase hit", "kills", "most steps lost"], rows)


class _Lines(NamedTuple):
    lines: list[str]
    reader: threading.Thread

    def text(self) -> str:
        self.reader.join()
        return "".join(self.lines)


def _lines_of(pipe: IO[str] | None) -> _Lines:
    """The lines of a pipe, read as they come."""
    lines: list[str] = []

    def read() -> None:
        for line in pipe or ():
            lines.append(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return _Lines(lines, reader)


def _seen(directory: Path, born: int, out: Sequence[str]) -> list[str]:
    """The phases of which there is a trace; of saving, while it lasts."""
    found = [
        phase
        for line in list(out)
        for words, phase in _SAYS.items()
        if line.rstrip().endswith(words)
    ]
    traces: dict[str, Iterable[Path]] = {
        "training": [directory / workdir.METRICS],
        "saving": (directory / workdir.CHECKPOINTS).glob("*.orbax-checkpoint-tmp"),
        "plotting": (directory / workdir.PLOTS).glob("*"),
    }
    return found + [
        phase for phase, paths in traces.items() if any(_is_newer(path, born) for path in paths)
    ]


def _is_newer(path: Path, born: int) -> bool:
    try:
        return path.stat().st_mtime_ns > born
    except FileNotFoundError:
        return False


def _is_past(moment: Moment, begun: Mapping[str, float], now: float) -> bool:
    later = PHASES[PHASES.index(moment.phase) :]
    starts = [begun[phase] for phase in later if phase in begun]
    return bool(starts) and now >= min(starts) + moment.seconds


def _hit(begun: Mapping[str, float], saving: bool) -> str:
    reached = max(begun, key=PHASES.index)
    return "saving" if saving else "training" if reached == "saving" else reached


def _equal(one: checkpoints.Saved, other: checkpoints.Saved, name: str) -> bool:
    if name not in one.arrays and name not in other.arrays:  # Empty.
        return True
    return one.arrays[name].tobytes() == other.arrays[name].tobytes()


def _without(names: Sequence[str], records: Sequence[Mapping[str, object]]) -> list[object]:
    return [{k: v for k, v in record.items() if k not in names} for record in records]


def _check(holds: bool, directory: Path, complaint: str) -> None:
    if not holds:
        raise Broken(f"{directory}: {complaint}")


def _compiled_in(folder: Path) -> dict[str, str]:
    """The environment of processes that share their compiled programs."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder.absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _measured(folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Lives twice without a kill, the second time with all programs compiled."""
    for name in ("once", "again"):
        life = live(folder / name, FLAGS, environment)
        _check(life.status == 0, folder / name, life.err)
    found = differences(folder / "once", folder / "again")
    _check(not found, folder, f"two lives that nobody killed differ in {', '.join(found)}")
    steps = workdir.latest_step(folder / "once" / workdir.CHECKPOINTS) or 0
    return lengths(life, steps // INTERVAL)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.kills")
    add = parser.add_argument
    add("--kills", type=int, default=200)
    add("--folder", type=Path, required=True, help="a new one")
    add("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Kills as often as asked, and prints the table after every run that came through."""
    args = parse(argv)
    if args.folder.exists() and any(args.folder.iterdir()):
        raise SystemExit(f"error: --folder={args.folder}: must be a new directory")
    args.folder.mkdir(parents=True, exist_ok=True)
    environment = _compiled_in(args.folder / "compiled")
    lasting = _measured(args.folder, environment)
    print(
        "seconds:", ", ".join(f"{phase} {lasting[phase]:.2f}" for phase in PHASES), flush=True
    )
    deaths: list[Death] = []
    number = 0
    while len(deaths) < args.kills:
        number += 1
        directory = args.folder / f"run_{number}"
        left = min(_KILLS_OF_A_RUN, args.kills - len(deaths))
        given = list(moments(args.seed + number, left, lasting))
        deaths += end(directory, FLAGS, environment, given)
        found = differences(args.folder / "once", directory)
        _check(not found, directory, f"differs in {', '.join(found)}")
        shutil.rmtree(directory)
        print(f"run {number} ended bit for bit as the one that nobody killed", flush=True)
        print(table(deaths), flush=True)


if __name__ == "__main__":
    main()
