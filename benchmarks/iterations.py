"""What alternating does, iteration by iteration: plain half-steps drift off the reference.

`python -m benchmarks.iterations --folder=runs/iterations` trains IPF between samples of two
moons and of a ring for ten short iterations, plain as published and re-anchored on the
reference, and leaves in the folder results.jsonl (runs with a record of the same configuration
are not repeated), iterations.md and iterations.png: bridge gap, path KL and W2² (512 points) at
the end of every forward half-step.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks import runs
from benchmarks.runs import Cell, Record
from d2ejax import plotting
from experiments import workdir

_CONFIG = "experiments/configs/moons_to_ring_d2d.py"
_LIKELIHOOD = {"ipf.forward_loss": "likelihood", "ipf.backward_loss": "likelihood"}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain likelihood": {**_LIKELIHOOD, "ipf.reanchor": "none"},
    "re-anchored likelihood": {**_LIKELIHOOD, "ipf.reanchor": "both"},
    "bridge matching": {},
}
"""Values of dotted keys of each; bridge matching is re-anchored by nature."""

# A schedule that ends would hide in its small steps what more iterations do.
_SCHEDULE = {"optimiser.schedule": "constant", "optimiser.learning_rate": 3e-3}

_FIELDS = ("variant", "seed", "iterations", "steps")
CURVES = {
    "bridge_gap": "bridge gap [nats]",
    "path_kl": "path KL [nats]",
    "w2_squared": "W2²",
}
_IDEALS = {
    "bridge_gap": "bridge_gap_limit",
    "path_kl": "path_kl_optimal",
    "w2_squared": "w2_squared_floor",
}


def settings(fields: Record) -> dict[str, Any]:
    """The values of dotted keys of a run."""
    return {
        "seed": fields["seed"],
        "ipf.iterations": fields["iterations"],
        "ipf.forward_steps": fields["steps"],
        "ipf.backward_steps": fields["steps"],
        # Floor and curves are between as many points.
        "evaluate.num_samples": 512,
        "evaluate.plots": False,
        **_SCHEDULE,
        **VARIANTS[fields["variant"]],
    }


def configure(fields: Record) -> ConfigDict:
    """The configuration of a run."""
    return runs.checked(_CONFIG, settings(fields))


def measure(folder: Path, found: Cell) -> Record:
    """Trains one run; its summary with what was measured at the end of each iteration."""
    name = "_".join([*map(str, found.fields.values()), found.config_hash]).replace(" ", "-")
    directory = folder / "runs" / name
    summary = runs.outcome(
        _CONFIG, settings(found.fields), directory, cache=folder / "compiled"
    )
    if "failed" in summary:
        return summary
    return {**summary, "curves": curves(runs.read_records(directory / workdir.METRICS))}


def curves(records: Sequence[Record]) -> dict[str, list[float]]:
    """Each measure at the end of the forward half-steps, in order."""
    probed = [r for r in records if "bridge_gap" in r and r["phase"].startswith("forward")]
    return {name: [record[name] for record in probed] for name in CURVES}


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """The runs asked for."""
    for variant in args.variants:
        for seed in range(args.seeds):
            yield {
                "variant": variant,
                "seed": seed,
                "iterations": args.iterations,
                "steps": args.steps,
            }


def table(records: Sequence[Record]) -> str:
    """A table for each measure: a line per variant, a column per iteration; medians."""
    parts = []
    for name, title in CURVES.items():
        ideal = runs.median(records, _IDEALS[name])
        rows = [
            [variant, *(runs.number(value) for value in _median_curve(records, variant, name))]
            for variant in VARIANTS
            if any(r["variant"] == variant and "curves" in r for r in records)
        ]
        length = max((len(row) for row in rows), default=1) - 1
        columns = ["variant", *(str(n + 1) for n in range(length))]
        parts += [f"{title}, ideal {runs.number(ideal)}", runs.markdown(columns, rows)]
    return "\n\n".join(parts)


def _median_curve(records: Sequence[Record], variant: str, name: str) -> list[float]:
    found = [r["curves"][name] for r in records if r["variant"] == variant and "curves" in r]
    at_each = (
        runs.median([{name: value} for value in values], name)
        for values in zip(*found, strict=True)
    )
    return [float("nan") if value is None else value for value in at_each]


def panels(records: Sequence[Record]) -> list[plotting.Panel]:
    """A panel per measure: a line per variant against iterations, the ideal dashed."""
    found = []
    for name, title in CURVES.items():
        lines = {variant: _median_curve(records, variant, name) for variant in VARIANTS}
        length, ideal = max(map(len, lines.values())), runs.median(records, _IDEALS[name])
        found.append(
            plotting.Panel(
                title=title,
                lines={
                    variant: (range(1, len(line) + 1), line) for variant, line in lines.items()
                },
                x_label="iteration",
                y_label=title,
                limit=None if ideal is None else ([1, length], [ideal, ideal]),
            )
        )
    return found


def write(folder: Path) -> None:
    """Writes and prints the tables of all records, and draws the figure."""
    records = runs.newest(runs.read_records(folder / runs.RECORDS), _FIELDS)
    text = table(records)
    (folder / "iterations.md").write_text(text + "\n")
    print(text)
    if any("curves" in record for record in records):
        figure = plotting.comparison(
            panels(records),
            title="IPF between samples of two moons and a ring",
            limit_name="K-step limit, optimum, sampling floor",
            share_y=False,
        )
        plotting.save(figure, folder / "iterations.png")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.parser("iterations", __doc__)
    add = parser.add_argument
    add("--variants", type=runs.listed(str, VARIANTS), default=list(VARIANTS))
    add("--seeds", type=int, default=1)
    add("--iterations", type=int, default=10)
    add("--steps", type=int, default=400, help="gradient steps of each half-step")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    runs.run(args, cells(args), configure, measure, write)


if __name__ == "__main__":
    main()
