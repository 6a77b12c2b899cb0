"""Weak scaling: a gradient step on more devices with as many paths on each.

`python -m benchmarks.weak_scaling` times the half-steps of D2D and D2E on one CPU device, with
one core, and on as many devices as there are cores, each in a process of its own, in
turns. Efficiency is the time on one device over that on all of them. Beside it stands what the
devices exchange in one step, the gradient's mean, in one collective.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import runs, timing
from benchmarks.scaling import ACCESS
from d2ejax import parallel
from experiments import build, validation

_BYTES = 4
_COLUMNS = ("method", "paths / device", "devices", "ms / step", "efficiency", "exchanged [kB]")


def measure(method: str, per_device: int, devices: int, dispatch: int) -> dict[str, float]:
    """Milliseconds of a gradient step and bytes exchanged in it, in this very process."""
    parallel.cut_cpu(devices)
    config = timing.configuration(2, "samples", ACCESS[method])
    config.batch_size = per_device * devices
    config.parallel.cpu_devices = devices
    config = validation.validate(config)
    cost = timing.cost_of_step(config, dispatch=dispatch, repeats=3)
    state = jax.eval_shape(
        parallel.data_parallel(build.build(config).algorithm).init, jax.random.key(0)
    )
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(state.models[1].params)]
    size = _BYTES * sum(int(np.prod(shape)) for shape in shapes)
    return {"milliseconds": cost.milliseconds, "bytes": size}


def measure_apart(
    method: str, per_device: int, devices: int, dispatch: int
) -> dict[str, float]:
    """The same in a process of its own, with as many cores as devices."""
    cores = sorted(os.sched_getaffinity(0))[:devices]
    cell = json.dumps([method, per_device, devices, dispatch])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.weak_scaling", f"--cell={cell}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--per-device", type=runs.listed(int), default=[64, 512])
    parser.add_argument("--dispatch", type=int, default=50, help="gradient steps timed at once")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.cell:
        print(json.dumps(measure(*args.cell)))
        return
    most, rows = len(os.sched_getaffinity(0)), []
    for method in ACCESS:
        for size in args.per_device:
            found = [
                [measure_apart(method, size, count, args.dispatch) for count in (1, most)]
                for _ in range(args.turns)
            ]
            times = np.median([[f["milliseconds"] for f in pair] for pair in found], axis=0)
            ratio = np.median([a["milliseconds"] / b["milliseconds"] for a, b in found])
            sent = found[0][0]["bytes"] / 1e3
            for count, time, efficiency in ((1, times[0], 1.0), (most, times[1], ratio)):
                shown = [
                    f"{time:.2f}",
                    f"{efficiency:.2f}",
                    f"{sent:.0f}" if count > 1 else "0",
                ]
                rows.append([method, str(size), str(count), *shown])
    print(runs.markdown(_COLUMNS, rows))


if __name__ == "__main__":
    main()
