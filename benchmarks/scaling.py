"""Training time and peak memory against dimension, steps K, batch, width and paths per start N.

`python -m benchmarks.scaling --folder=runs/scaling` measures each cell in a process of its own,
so that its peak of resident memory, that of compilation included, is its own. The time is that
of a gradient step of the half-step that trains first, compilation left out: of D2E the forward
one, which pins the energy of the target; of D2D the backward one, which pins the samples of the
source and costs what its mirror image costs. In the folder it leaves results.jsonl (cells that
have a record of the same configuration are not repeated), results.md with all records and how
each cost grows, and scaling.png.
"""

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks import runs, timing
from benchmarks.runs import Cell, Record
from d2ejax import plotting
from experiments import validation

ACCESS = {"D2D": "samples", "D2E": "energy"}
DEFAULTS = {"dim": 2, "num_steps": 20, "batch_size": 128, "width": 64, "num_paths": 8}
AXES = {
    "dim": ("dimension", (2, 8, 32, 128, 512)),
    "num_steps": ("steps K", (10, 20, 50, 100)),
    "batch_size": ("batch", (32, 128, 512, 2048, 8192)),
    "width": ("width", (32, 64, 128, 256, 512)),
    # What D2D has no use for: its paths all start apart.
    "num_paths": ("paths per start N", (2, 4, 8, 16)),
}
_FIELDS = ("method", *DEFAULTS)
_FIGURE = "scaling.png"
_COST = {"milliseconds": "ms / step", "peak_megabytes": "peak memory [MB]"}


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """Every cell once, one quantity at a time off its default."""
    seen = []
    for axis, (_, values) in AXES.items():
        for method in args.methods:
            for value in values:
                cell = {"method": method, **DEFAULTS, axis: value}
                if cell not in seen and not (axis == "num_paths" and method == "D2D"):
                    seen.append(cell)
                    yield cell


def configuration(cell: Record) -> ConfigDict:
    """D2D begins with the backward half-step, D2E with the forward one."""
    config = timing.configuration(cell["dim"], "samples", ACCESS[cell["method"]])
    config.grid.num_steps = cell["num_steps"]
    config.ipf.paths_per_start = cell["num_paths"]
    config.network.width, config.batch_size = cell["width"], cell["batch_size"]
    return validation.validate(config)


def measure(cell: Record, *, dispatch: int, repeats: int) -> Record:
    """The cost of a cell, in this very process."""
    cost = timing.cost_of_step(configuration(cell), dispatch=dispatch, repeats=repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kilobytes, macOS bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {**cost._asdict(), "peak_megabytes": peak / unit}


def measure_apart(cell: Cell, args: argparse.Namespace) -> Record:
    """The cost of a cell in a process of its own, or that it could not be had."""
    fields = json.dumps(cell.fields)
    command = [sys.executable, "-m", "benchmarks.scaling", f"--cell={fields}"]
    command += [f"--dispatch={args.dispatch}", f"--repeats={args.repeats}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        return {"failed": f"exit status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def table(records: Sequence[Record]) -> str:
    """A line per cell, in order."""
    columns = ("method", "dim", "K", "batch", "width", "N", *_COST.values(), "compile [s]")
    rows = []
    for r in sorted(records, key=lambda r: [r[name] for name in _FIELDS]):
        row = [str(r[name]) for name in _FIELDS[:-1]]
        row.append("-" if r["method"] == "D2D" else str(r["num_paths"]))
        row.append(r.get("failed") or runs.number(r["milliseconds"], 2))
        row += [
            runs.number(r.get("peak_megabytes"), 0),
            runs.number(r.get("compile_seconds"), 1),
        ]
        rows.append(row)
    return runs.markdown(columns, rows)


def growth(records: Sequence[Record]) -> str:
    """By which power of each quantity a cost grows at its upper end: one is in proportion."""
    columns = ("method", "quantity", "from", "to", *_COST.values())
    rows = []
    for method, (axis, (name, _)) in itertools.product(ACCESS, AXES.items()):
        lines = [_line(records, method, axis, cost) for cost in _COST]
        if min(len(line) for line in lines) < 2:
            continue
        powers = [_power(*line[-2:]) for line in lines]
        ends = [str(x) for x, _ in lines[0][-2:]]
        rows.append([method, name, *ends, *(runs.number(power, 2) for power in powers)])
    return runs.markdown(columns, rows)


def _power(start: tuple[float, float], end: tuple[float, float]) -> float:
    return math.log(end[1] / start[1]) / math.log(end[0] / start[0])


def panels(records: Sequence[Record]) -> list[plotting.Panel]:
    """A row of time and one of memory; a panel per quantity that was varied."""
    found = []
    for cost, y_label in _COST.items():
        for axis, (x_label, _) in AXES.items():
            lines = {}
            for method in ACCESS:
                line = _line(records, method, axis, cost)
                if line:
                    x, y = zip(*line, strict=True)
                    lines[method] = (x, y)
            if lines:
                found.append(plotting.Panel("", lines, x_label, y_label))
    return found


def _line(
    records: Sequence[Record], method: str, axis: str, cost: str
) -> list[tuple[float, float]]:
    """A cost against one quantity, the others at their defaults."""
    if axis == "num_paths" and method == "D2D":
        return []
    fixed = {"method": method} | {n: value for n, value in DEFAULTS.items() if n != axis}
    part = [r for r in records if cost in r and all(r[n] == v for n, v in fixed.items())]
    return sorted((r[axis], r[cost]) for r in part)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling")
    add = parser.add_argument
    runs.add_flags(parser, "runs/scaling")
    add("--methods", type=runs.listed(str, ACCESS), default=list(ACCESS))
    add("--dispatch", type=int, default=50, help="gradient steps in one dispatch")
    add("--repeats", type=int, default=3, help="dispatches timed; the fastest counts")
    add("--cell", type=json.loads, help="measure this cell alone, here, and print it")
    return parser.parse_args(argv)


def write(folder: Path) -> None:
    """Writes and prints the tables of all records, and draws them."""
    records = runs.newest(runs.read_records(folder / runs.RECORDS), _FIELDS)
    text = f"{table(records)}\n\n{growth(records)}"
    (folder / "results.md").write_text(text + "\n")
    print(text)
    drawn = panels(records)
    if drawn:
        title = "Cost of a gradient step"
        figure = plotting.comparison(drawn, title=title, columns=len(drawn) // len(_COST))
        plotting.save(figure, folder / _FIGURE)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    if args.cell is not None:
        timing.start()
        print(json.dumps(measure(args.cell, dispatch=args.dispatch, repeats=args.repeats)))
        return
    runs.run(
        args,
        cells(args),
        configuration,
        lambda _, cell: measure_apart(cell, args),
        write,
    )


if __name__ == "__main__":
    main()
