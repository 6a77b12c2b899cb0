"""Training time and peak memory against dimension, steps K and paths per start N.

`python -m benchmarks.scaling --folder=runs/scaling` measures each cell in a process of its own,
so that its peak of resident memory, that of compilation included, is its own. The time is that
of a gradient step of the half-step that trains first, compilation left out: of D2E the forward
one, which pins the energy of the target; of D2D the backward one, which pins the samples of the
source and costs what its mirror image costs. In the folder it leaves results.jsonl (cells that
have a record of the same configuration are not repeated), results.md with all records, and a
figure per width and batch.
"""

import argparse
import itertools
import json
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
DEFAULTS = {"dim": 2, "num_steps": 20, "num_paths": 8}
AXES = {
    "dim": ("dimension", (2, 8, 32, 128, 512)),
    "num_steps": ("steps K", (10, 20, 50, 100)),
    # What D2D has no use for: its paths all start apart.
    "num_paths": ("paths per start N", (2, 4, 8, 16)),
}
_FIELDS = ("method", *DEFAULTS, "width", "batch_size")
_COST = {"milliseconds": "ms / step", "peak_megabytes": "peak memory [MB]"}


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """Every cell once, one quantity at a time off its default."""
    seen = []
    for axis, (_, values) in AXES.items():
        for method in args.methods:
            for value in values:
                cell = {"method": method, **DEFAULTS, axis: value}
                cell |= {"width": args.width, "batch_size": args.batch_size}
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
    columns = ("width", "batch", "method", "dim", "K", "N", *_COST.values(), "compile [s]")
    order = ("width", "batch_size", "method", *DEFAULTS)
    rows = []
    for r in sorted(records, key=lambda r: [r[name] for name in order]):
        row = [str(r[name]) for name in ("width", "batch_size", "method", "dim", "num_steps")]
        row.append("-" if r["method"] == "D2D" else str(r["num_paths"]))
        row.append(r.get("failed") or runs.number(r["milliseconds"], 2))
        row += [
            runs.number(r.get("peak_megabytes"), 0),
            runs.number(r.get("compile_seconds"), 1),
        ]
        rows.append(row)
    return runs.markdown(columns, rows)


def panels(records: Sequence[Record]) -> list[plotting.Panel]:
    """A row of time and one of memory; a panel per quantity that was varied."""
    found = []
    for cost, y_label in _COST.items():
        for axis, (x_label, _) in AXES.items():
            fixed = {name: value for name, value in DEFAULTS.items() if name != axis}
            part = [r for r in records if all(r[n] == v for n, v in fixed.items())]
            lines = {}
            for method in ACCESS:
                line = sorted((r[axis], r[cost]) for r in part if _shown(r, method, axis, cost))
                if line:
                    x, y = zip(*line, strict=True)
                    lines[method] = (x, y)
            if lines:
                found.append(plotting.Panel("", lines, x_label, y_label))
    return found


def _shown(record: Record, method: str, axis: str, cost: str) -> bool:
    meaningless = axis == "num_paths" and method == "D2D"
    return record["method"] == method and cost in record and not meaningless


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling")
    add = parser.add_argument
    runs.add_flags(parser, "runs/scaling")
    add("--methods", type=runs.listed(str, ACCESS), default=list(ACCESS))
    add("--width", type=int, default=64, help="of the hidden layers")
    add("--batch_size", type=int, default=128, help="paths scored in one gradient step")
    add("--dispatch", type=int, default=50, help="gradient steps in one dispatch")
    add("--repeats", type=int, default=3, help="dispatches timed; the fastest counts")
    add("--cell", type=json.loads, help="measure this cell alone, here, and print it")
    return parser.parse_args(argv)


def write(folder: Path) -> None:
    """Writes and prints the table of all records, and draws them per width and batch."""
    records = runs.newest(runs.read_records(folder / runs.RECORDS), _FIELDS)
    text = table(records)
    (folder / "results.md").write_text(text + "\n")
    print(text)
    sizes = [sorted({r[name] for r in records}) for name in ("width", "batch_size")]
    for width, batch in itertools.product(*sizes):
        drawn = panels([r for r in records if (r["width"], r["batch_size"]) == (width, batch)])
        if drawn:
            title = f"Cost of a gradient step, batch {batch}, width {width}"
            figure = plotting.comparison(drawn, title=title, columns=len(drawn) // len(_COST))
            plotting.save(figure, folder / f"scaling_width{width}_batch{batch}.png")


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
        lambda cell: measure_apart(cell, args),
        lambda: write(args.folder),
    )


if __name__ == "__main__":
    main()
