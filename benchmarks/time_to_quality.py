"""Seconds until a bridge is good, here and in an eager PyTorch loop as published.

`python -m benchmarks.time_to_quality` (`pip install ".[bench]"`) trains two moons, known by
samples, to the energy of a ring of eight Gaussians, and says when the bridge gap first fell
under each of some thresholds:

- d2ejax: `experiments/configs/two_moons.py`, the defaults, set up and trained as the runner
  does it, but without checkpoints and records.
- PyTorch: the same ends with all other settings of
  `experiments/configs/paper_gaussian_to_ring.py`, by `benchmarks.eager`. Its paths are scored
  step by step, as published code does, or all at once with --at_once; nothing is logged.

The rules:

- Each side runs in a process of its own. The clock starts with the process, so that imports,
  set-up and compilation count, and stands still while the gap is evaluated. It also stands
  still while the PyTorch side loads this library and JAX, of which it takes the grid, points of
  the source and the judgement.
- Our compiled programs are kept where the runner keeps them; the record says how many were
  found there (hits) and how many were not (misses) before the first gradient step. With --cold
  that folder is an empty one.
- The gap is `d2ejax.metrics.bridge_gap` on both sides: log dP/dP* along as many forward paths,
  the same random numbers at every evaluation of a side, and the potentials of the exact bridge
  that `experiments.judge` finds by Sinkhorn's algorithm on grids. What is judged is what a side
  would return: the moving average of the parameters here, the parameters there.
- It is evaluated before the first gradient step, then after the first dispatch (here) or
  gradient step (PyTorch) that ends --ours_every or --every seconds or more after the last
  evaluation, and at the end. So the times are rounded up to that, and a gap that falls under a
  threshold and rises again in between is missed. A side stops once it is under the lowest
  threshold, at its limit, or where its training ends; with 0 among the thresholds it goes on.

--json keeps a record of each side: its settings, the times, and the curve of seconds, gradient
steps, gap and standard error. Run it on an idle machine, several times with another --seed.
"""

import argparse
import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import runs
from benchmarks.runs import Record

if TYPE_CHECKING:  # What a side needs it imports itself, on its own clock.
    from d2ejax.metrics import Estimate

SIDES = ("d2ejax", "PyTorch")

_CACHE_EVENTS = "/jax/compilation_cache/cache_"
# Of the evaluations, apart from every seed of training.
_JUDGE_SEED = 2**31


class Clock:
    """Seconds since a process was started, less those for which the clock stood still."""

    def __init__(self, started: float):
        # Only the time of day is the same in the process that started this one.
        self._zero = time.perf_counter() - (time.time() - started)

    def seconds(self) -> float:
        """What the clock shows."""
        return time.perf_counter() - self._zero

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops the clock in a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._zero += time.perf_counter() - start


class Point(NamedTuple):
    """One evaluation: what the clock showed, gradient steps, the gap and its error."""

    seconds: float
    steps: int
    gap: float
    standard_error: float


def watch(
    training: Iterable[tuple[int, Any]],
    gap: Callable[[Any], "Estimate"],
    clock: Clock,
    *,
    every: float,
    limit: float,
    until: float,
) -> list[Point]:
    """Trains, and evaluates the gap now and then; see the rules above.

    Args:
        training: Trains as it is iterated: gradient steps so far and the state after them,
            begun with the state before the first.
        gap: Maps a state to its gap.
        clock: Stopped for evaluations.
        every: Least seconds of training between two of them.
        limit: Seconds after which training stops.
        until: The gap under which it stops.

    Returns:
        The evaluations.
    """
    points: list[Point] = []

    def evaluate(steps: int, state: Any) -> Point:
        seconds = clock.seconds()
        with clock.stopped():
            points.append(Point(seconds, steps, *gap(state)))
            shown = f"{seconds:8.1f} s {steps:7d} steps: gap {points[-1].gap:.3f}"
            print(shown, file=sys.stderr, flush=True)
        return points[-1]

    due = 0.0
    for steps, state in training:
        if clock.seconds() < due:
            continue
        point = evaluate(steps, state)
        if point.seconds >= limit or point.gap < until:
            return points
        due = min(point.seconds + every, limit)
    if points[-1].steps < steps:
        evaluate(steps, state)
    return points


def first_under(curve: Iterable[Point], threshold: float) -> float | None:
    """The seconds of the first evaluation with a gap under a threshold, None without one."""
    return next((point.seconds for point in curve if point.gap < threshold), None)


def ours(args: argparse.Namespace, clock: Clock) -> Record:
    """Trains with the defaults, by the runner's own way from a command line to a trainer."""
    from experiments import arguments

    name = "smoke" if args.quick else "two_moons"
    flags = [f"--config=experiments/configs/{name}.py", f"--config.seed={args.seed}"]
    parsed = arguments.parse(["experiments.run", *flags])

    import jax

    from d2ejax import parallel
    from experiments import loop
    from experiments import run as runner
    from experiments.judge import Judge, bridge_metrics

    counts: collections.Counter[str] = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
    experiment, trainer = runner.build_trainer(parsed)
    begun = loop.start(trainer, jax.random.key(args.seed), None)
    # Before the first evaluation, which compiles programs of its own.
    cache = {name: counts[_CACHE_EVENTS + name] for name in ("hits", "misses")}
    plan = loop.Plan(
        total_steps=experiment.total_steps,
        phase_of=experiment.phase_of,
        steps_per_dispatch=parsed.config.loop.steps_per_dispatch,
        checkpoint_every=experiment.total_steps,
        max_consecutive_skipped=parsed.config.loop.max_consecutive_skipped,
    )
    judge = Judge(experiment)

    def gap(state: Any) -> "Estimate":
        first = parallel.unreplicate(state)
        paths = judge.forward(first, jax.random.key(_JUDGE_SEED), args.num_paths)
        found = bridge_metrics(paths, judge.bridge)["bridge_gap"]
        if found is None:
            raise ValueError("the exact bridge between these ends is not known")
        return found

    def training() -> Iterator[tuple[int, Any]]:
        yield 0, begun.state
        for done in loop.dispatches(trainer, plan, begun.state, 0):
            yield done.step, done.state

    limits = {"every": args.ours_every, "limit": args.ours_limit}
    side = {"cold": args.cold, "cache": cache, "devices": parallel.describe_devices()}
    return _measure(args, clock, training(), gap, limits, side)


def theirs(args: argparse.Namespace, clock: Clock) -> Record:
    """Trains the published loop in PyTorch."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    with clock.stopped():
        from benchmarks import eager_paper
        from experiments import build

        config = eager_paper.configuration(quick=args.quick)
        experiment = build.build(config)
        points = eager_paper.source_points(experiment, args.seed)
        gap = eager_paper.bridge_gap(experiment, args.num_paths, seed=_JUDGE_SEED)
    training = eager_paper.train(config, experiment, points, at_once=args.at_once)
    limits = {"every": args.every, "limit": args.limit}
    side = {"at_once": args.at_once, "threads": torch.get_num_threads()}
    return _measure(args, clock, training, gap, limits, side)


def _measure(
    args: argparse.Namespace,
    clock: Clock,
    training: Iterable[tuple[int, Any]],
    gap: Callable[[Any], "Estimate"],
    limits: Mapping[str, float],
    side: Mapping[str, Any],
) -> Record:
    """Trains a side; the record of what it was, when it got where, and its curve."""
    curve = watch(training, gap, clock, until=min(args.thresholds), **limits)
    times = {f"{threshold:g}": first_under(curve, threshold) for threshold in args.thresholds}
    common = {name: getattr(args, name) for name in ("seed", "quick", "num_paths")}
    record = {"side": args.apart, **common, **limits, **side, "first_under": times}
    return {**record, "curve": [point._asdict() for point in curve]}


def run_apart(side: str, argv: Sequence[str], *, cold: bool) -> Record:
    """The record of a side that runs in a process of its own.

    Args:
        side: Which.
        argv: The flags that it shares with this process.
        cold: Whether it finds no compiled programs.

    Raises:
        SystemExit: If it failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if cold:
            environment["JAX_COMPILATION_CACHE_DIR"] = folder
            # As the runner's own folder has it.
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        command = [sys.executable, "-m", "benchmarks.time_to_quality", *argv, f"--apart={side}"]
        command += [f"--started={time.time()!r}"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: {side}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def table(records: Sequence[Record], thresholds: Iterable[float]) -> str:
    """A line per threshold: the seconds of each side, and the ratio of the second to ours."""
    columns = ["gap under", *(f"{record['side']} [s]" for record in records)]
    by_side = {record["side"]: record for record in records}
    both = all(side in by_side for side in SIDES)
    rows = []
    for threshold in thresholds:
        name = f"{threshold:g}"
        row = [name, *(_cell(record, name) for record in records)]
        if both:
            row.append(_ratio(by_side[SIDES[0]], by_side[SIDES[1]], name))
        rows.append(row)
    return runs.markdown([*columns, *(["ratio"] if both else [])], rows)


def _cell(record: Record, threshold: str) -> str:
    seconds = record["first_under"][threshold]
    if seconds is not None:
        return f"{seconds:.1f}"
    lowest = min(point["gap"] for point in record["curve"])
    return f"> {record['curve'][-1]['seconds']:.0f} (gap reached: {lowest:.3f})"


def _ratio(our: Record, their: Record, threshold: str) -> str:
    ours_took, theirs_took = (r["first_under"][threshold] for r in (our, their))
    if ours_took is None:
        return "-"
    if theirs_took is None:
        return f"> {their['curve'][-1]['seconds'] / ours_took:.1f}"
    return f"{theirs_took / ours_took:.1f}"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.time_to_quality")
    add = parser.add_argument
    add("--thresholds", type=runs.listed(float), default=[0.25, 0.15, 0.1], help="in nats")
    add("--sides", type=runs.listed(str, SIDES), default=list(SIDES))
    add("--limit", type=float, default=1500.0, help="seconds that PyTorch trains at most")
    add("--ours_limit", type=float, default=600.0, help="the same for us")
    add("--every", type=float, default=30.0, help="seconds between evaluations of PyTorch")
    add("--ours_every", type=float, default=2.0, help="the same for us")
    add("--num_paths", type=int, default=4000, help="paths behind each gap")
    add("--cold", action="store_true", help="compile everything anew")
    add("--at_once", action="store_true", help="PyTorch scores all steps in one call")
    add("--threads", type=int, default=0, help="of PyTorch; 0: as many as it takes itself")
    add("--seed", type=int, default=0, help="of both")
    add("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    add("--json", type=Path, help="a file for one JSON object a line")
    add("--apart", choices=SIDES, help="run this side alone, here, and print its record")
    add("--started", type=float, default=time.time(), help="with --apart: its time of birth")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the sides one after the other, and prints the table."""
    given = sys.argv[1:] if argv is None else list(argv)
    args = parse(given)
    if args.apart:
        side = {"d2ejax": ours, "PyTorch": theirs}[args.apart]
        print(json.dumps(side(args, Clock(args.started))))
        return
    records = []
    for name in args.sides:
        print(name, file=sys.stderr, flush=True)
        records.append(run_apart(name, given, cold=args.cold))
        if args.json:
            runs.append_record(args.json, records[-1])
    print(table(records, args.thresholds))


if __name__ == "__main__":
    main()
