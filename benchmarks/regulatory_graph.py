"""Is a regulatory graph found in snapshots? `python -m benchmarks.regulatory_graph`.

Trains drifts that have a graph on simulated cells through the runner (the configuration
`regulatory`), each seed with cells, and a random circuit, of its own, and leaves results.jsonl
(runs with a record of the same configuration are not repeated) and the table, results.md, in
the folder: how well the learned strengths tell the true edges from the other pairs of different
genes, beside correlations of expression and chance.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks import runs
from benchmarks.runs import Cell, Record
from d2ejax.snapshots import CIRCUITS

LEARNED: dict[str, dict[str, Any]] = {
    "forward drift": {"graph.of": "forward"},
    "forward drift without penalty": {"graph.of": "forward", "graph.sparsity": 0.0},
    "flow": {"graph.of": "current"},
    "flow without penalty": {"graph.of": "current", "graph.sparsity": 0.0},
    "forward drift by eot": {"graph.of": "forward", "method": "eot"},
    "no graph": {"graph.of": "none"},
}
"""What carries the graph, and the values of dotted keys that this takes."""

_CONFIG = "experiments/configs/regulatory.py"
_FIELDS = ("circuit", "learned", "seed", "steps")
_SCORES = {
    "first layer": "",
    "sensitivity": "_sensitivity",
    "correlation": "_correlation",
    "partial correlation": "_partial_correlation",
}
_COLUMNS = ("circuit", "learned", "edges by", "AUROC", "of all seeds", "average precision")


def settings(fields: Record) -> dict[str, Any]:
    """The values of dotted keys of a run."""
    return {
        "seed": fields["seed"],
        "snapshots.options.circuit": fields["circuit"],
        "snapshots.options.seed": fields["seed"],
        "matching.num_steps": fields["steps"],
        "evaluate.plots": False,
        **LEARNED[fields["learned"]],
    }


def configure(fields: Record) -> ConfigDict:
    """The configuration of a run."""
    return runs.checked(_CONFIG, settings(fields))


def measure(folder: Path, found: Cell) -> Record:
    """Trains one run; its summary, or why it failed."""
    fields = found.fields
    name = "_".join([fields["circuit"], str(fields["seed"]), found.config_hash])
    return runs.outcome(
        _CONFIG, settings(fields), folder / "runs" / name, cache=folder / "compiled"
    )


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """The runs asked for, seed by seed."""
    for seed in range(args.seeds):
        for circuit in args.circuits:
            for learned in args.learned:
                yield dict(zip(_FIELDS, (circuit, learned, seed, args.steps), strict=True))


def table(records: Sequence[Record]) -> str:
    """A line per circuit, what was learned and what its edges are read off: medians."""
    lines = []
    for circuit in CIRCUITS:
        own = [r for r in records if r["circuit"] == circuit and "failed" not in r]
        for learned in LEARNED:
            trained = [r for r in own if r["learned"] == learned]
            for name in ("first layer", "sensitivity"):
                lines.append(_line(trained, circuit, learned, name))
        for name in ("correlation", "partial correlation"):
            # Of the cells alone: the same whatever was learned from them.
            once = {r["seed"]: r for r in own}.values()
            lines.append(_line(list(once), circuit, "-", name))
        if own:
            chance = runs.number(runs.median(own, "edge_average_precision_chance"))
            lines.append((circuit, "-", "chance", "0.500", "-", chance))
    failed = sum("failed" in r for r in records)
    text = runs.markdown(_COLUMNS, filter(None, lines))
    return text + (f"\n\n{failed} runs failed." if failed else "")


def _line(
    records: Sequence[Record], circuit: str, learned: str, name: str
) -> tuple[str, ...] | None:
    """None where nothing was found."""
    auroc, precision = (
        f"edge_{kind}{_SCORES[name]}" for kind in ("auroc", "average_precision")
    )
    values = [r[auroc] for r in records if auroc in r]
    if not values:
        return None
    every = ", ".join(runs.number(value) for value in values)
    medians = [runs.number(runs.median(records, key)) for key in (auroc, precision)]
    return circuit, learned, name, medians[0], every, medians[1]


def write(folder: Path) -> None:
    """Writes and prints the table of all records."""
    runs.write_table(folder, _FIELDS, table)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.parser("regulatory_graph", __doc__)
    add = parser.add_argument
    add("--circuits", type=runs.listed(str, CIRCUITS), default=list(CIRCUITS))
    add("--learned", type=runs.listed(str, LEARNED), default=["forward drift", "flow"])
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=1500, help="gradient steps of each run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    runs.run(args, cells(args), configure, measure, write)


if __name__ == "__main__":
    main()
