"""Whether training holds as much memory after half an hour as after its first minutes.

`python -m benchmarks.soak --minutes=30` trains a configuration for so long, measuring the state
at the end of every phase as a run does, and reads the resident memory of the process at every
checkpoint. It prints how much that is after a warm-up and at the end, the slope of a line
through what lies between, and whether all of it is within 2 percent of where it began; where it
is not it ends with an error.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import arguments, loop, run
from experiments.errors import Stopped
from experiments.judge import Judge
from experiments.progress import Progress

_CONFIG = "experiments/configs/two_moons.py"
# No end in sight.
_FLAGS = (
    "--config.ipf.iterations=1000",
    "--config.ipf.forward_steps=2000",
    "--config.ipf.backward_steps=1000",
)
_FLAT = 0.02


class Sample(NamedTuple):
    """Resident memory so many seconds after training began, in GB (10⁹ bytes)."""

    seconds: float
    resident_gb: float


class Verdict(NamedTuple):
    """What samples say.

    Attributes:
        start: GB at the first sample after the warm-up.
        end: At the last one.
        slope: Of a line through all of them by least squares, in GB per hour.
        spread: Largest deviation from the start, as a share of it.
    """

    start: float
    end: float
    slope: float
    spread: float

    @property
    def flat(self) -> bool:
        """Whether all samples are within two percent of the first."""
        return self.spread <= _FLAT


def judge(samples: Sequence[Sample], warm_up: float) -> Verdict:
    """Judges the samples later than `warm_up` seconds.

    Raises:
        ValueError: If there are fewer than three of them.
    """
    late = [sample for sample in samples if sample.seconds >= warm_up]
    if len(late) < 3:
        raise ValueError(f"{len(late)} samples after {warm_up:.0f} s: must be three or more")
    seconds, gb = np.asarray(late).T
    slope = float(np.polyfit(seconds / 3600, gb, 1)[0])
    spread = float(np.abs(gb / gb[0] - 1).max())
    return Verdict(float(gb[0]), float(gb[-1]), slope, spread)


def train(args: argparse.Namespace, directory: Path) -> list[Sample]:
    """Trains for so many minutes; the resident memory at every checkpoint."""
    flags = [f"--config={args.config}", *_FLAGS, *args.flags]
    parsed = arguments.parse(["benchmarks.soak", *flags, f"--workdir={directory}"])
    experiment, trainer = run.build_trainer(parsed)
    directory.mkdir(parents=True, exist_ok=True)
    settings, samples, start = parsed.config.loop, list[Sample](), time.perf_counter()
    plan = loop.make_plan(experiment, settings)

    def sample(record: Mapping[str, Any]) -> None:
        if record["step"] % plan.checkpoint_every == 0:
            samples.append(Sample(time.perf_counter() - start, _resident_gb()))

    def is_over(asked: bool) -> bool:
        return asked or time.perf_counter() - start > 60 * args.minutes

    with suppress(Stopped):  # By the clock.
        loop.train(
            trainer,
            plan,
            key=jax.random.key(parsed.config.seed),
            saved=None,
            directory=directory,
            keep=settings.keep,
            progress=Progress(plan.total_steps),
            probe=Judge(experiment).probe,
            process_start=start,
            agree=is_over,
            listener=sample,
        )
    return samples


def _resident_gb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak")
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="of training")
    add("--warm_up", type=float, default=0.1, help="share of them that is not judged")
    add("--config", default=_CONFIG, help="file of the configuration")
    add("flags", nargs="*", help="of the runner, --config.KEY=VALUE, after a --")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, and prints what was found."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        samples = train(args, Path(folder) / "run")
    if samples[-1].seconds < 0.95 * 60 * args.minutes:
        raise SystemExit(
            f"error: training ended after {samples[-1].seconds:.0f} s: must be "
            f"--minutes={args.minutes:g}"
        )
    found = judge(samples, 60 * args.warm_up * args.minutes)
    print(
        f"{found.start:.3f} GB after the warm-up, {found.end:.3f} GB at the end, "
        f"{1e3 * found.slope:+.1f} MB an hour, at most {found.spread:.2%} from the start"
    )
    if not found.flat:
        raise SystemExit(f"error: not within {_FLAT:.0%}")


if __name__ == "__main__":
    main()
