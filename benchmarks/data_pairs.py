"""Every method that learns from samples of both ends, on pairs in the plane.

`python -m benchmarks.data_pairs --folder=runs/data_pairs` trains each method on each pair and
seed through the runner, all with as many gradient steps, on the reference and the grid of the
library's defaults or on those of [SF]²M (Tong et al. 2024), and leaves results.jsonl (runs with
a record of the same configuration are not repeated) and the table, results.md, in the folder.
W2² is between as many points as published tables have it, 512 of the first pairs and 10,000 of
[SF]²M's, beside what two sets of true points of that size are apart.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks import bridge_methods, runs
from benchmarks.runs import Cell, Record

METHODS = bridge_methods.METHODS | bridge_methods.FLOWS


class Pair(NamedTuple):
    """Two ends known by samples.

    Attributes:
        config: Name of a configuration file.
        overrides: Values of dotted keys.
        num_samples: Points that W2² is between.
    """

    config: str
    overrides: Mapping[str, Any] = MappingProxyType({})
    num_samples: int = 512


_MOONS = {
    "name": "two_moons",
    "options.noise": 0.2,
    "options.scale": 3.0,
    "options.shift": -1.0,
}
"""In the scaling of [SF]²M."""


def _in_scaling_of_sf2m(**ends: dict[str, Any]) -> Pair:
    values = {
        f"{end}.{key}": value for end, given in ends.items() for key, value in given.items()
    }
    # The defaults of the library but for ends, reference and horizon.
    usual = {"method": "ipf", "learn_variance": True, "evaluate.flow": False}
    return Pair("sf2m", usual | values, 10_000)


PAIRS: dict[str, Pair] = {
    "Gauss-ring": Pair("gaussian_to_ring_d2d"),
    "moons-ring": Pair("moons_to_ring_d2d"),
    "Gauss-moons": Pair("gaussian_to_ring_d2d", {"target.name": "two_moons"}),
    "moons-roll": Pair("moons_to_ring_d2d", {"target.name": "swiss_roll"}),
    "roll-moons": Pair(
        "moons_to_ring_d2d", {"source.name": "swiss_roll", "target.name": "two_moons"}
    ),
    "N-8gaussians": _in_scaling_of_sf2m(),
    "moons-8gaussians": _in_scaling_of_sf2m(source=_MOONS),
    "N-moons": _in_scaling_of_sf2m(target=_MOONS),
    "N-scurve": _in_scaling_of_sf2m(target={"name": "s_curve", "options.scale": 1.5}),
}
"""The three of Tamogashev & Malkin (2026), two of curves, and the four of [SF]²M."""

PUBLISHED: dict[str, tuple[float, ...]] = {
    "ipf D2D": (0.042, 0.023, 0.022),
    "dsb": (0.052, 0.066, 0.171, 0.411, 0.987, 0.190, 0.272),
    "sde": (0.037, 0.025, 0.033),
    "dsbm": (np.nan, np.nan, np.nan, 0.338, 0.838, 0.144, 0.145),
    "sf2m": (np.nan, np.nan, np.nan, 0.275, 0.726, 0.124, 0.128),
    "cfm": (np.nan, np.nan, np.nan, 0.303, 0.601, 0.130, 0.144),
}
"""W2² of the three pairs of Tamogashev & Malkin (2026, table 1: log-likelihood with a learned
variance, DSB, SDE), then W2 of the four of Tong et al. (2024, table 2: DSB, DSBM-IMF, [SF]²M
and OT-CFM with exact couplings)."""

_COMPARED = (
    "Gauss-ring",
    "moons-ring",
    "Gauss-moons",
    "N-8gaussians",
    "moons-8gaussians",
    "N-moons",
    "N-scurve",
)

FROM_DATA = [
    name
    for name, method in METHODS.items()
    if (method.source, method.target) == ("samples", "samples")
]

_FIELDS = ("pair", "method", "seed", "steps")
_COLUMNS = (
    "method",
    "seeds",
    "bridge gap (matched kernels)",
    "path KL (optimum)",
    "W2² ± s.e. (floor)",
    "W2 ± s.e. (floor)",
    "published",
    "drift error",
    "steps/s",
)


def settings(fields: Record) -> dict[str, Any]:
    """The values of dotted keys of a run."""
    method, pair = METHODS[fields["method"]], PAIRS[fields["pair"]]
    return {
        "seed": fields["seed"],
        "evaluate.num_samples": pair.num_samples,
        "evaluate.plots": False,
        **pair.overrides,
        **method.spend(fields["steps"]),
        **method.overrides,
    }


def configure(fields: Record) -> ConfigDict:
    """The configuration of a run."""
    return runs.checked(_file(fields), settings(fields))


def measure(folder: Path, found: Cell) -> Record:
    """Trains one run; its summary, or why it failed."""
    name = "_".join([*map(str, found.fields.values()), found.config_hash]).replace(" ", "-")
    return runs.outcome(
        _file(found.fields),
        settings(found.fields),
        folder / "runs" / name,
        cache=folder / "compiled",
    )


def _file(fields: Record) -> str:
    return f"experiments/configs/{PAIRS[fields['pair']][0]}.py"


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """The runs asked for, seed by seed, so that a first table is soon complete."""
    for seed in range(args.seeds):
        for pair in args.pairs:
            for method in args.methods:
                yield {"pair": pair, "method": method, "seed": seed, "steps": args.steps}


def table(records: Sequence[Record]) -> str:
    """A section per pair, in it a line per method: medians over the seeds."""
    parts = []
    for pair in PAIRS:
        rows = []
        for method in FROM_DATA:
            found = [r for r in records if (r["pair"], r["method"]) == (pair, method)]
            if found:
                rows.append(_row(pair, method, found))
        if rows:
            parts += [f"## {pair}", runs.markdown(_COLUMNS, rows)]
    return "\n\n".join(parts)


def _row(pair: str, method: str, found: Sequence[Record]) -> list[str]:
    done = [record for record in found if record.get("w2_squared") is not None]
    failed = len(found) - len(done)

    def median(name: str) -> float | None:
        return runs.median(done, name)

    return [
        method,
        f"{len(done)}, {failed} failed" if failed else str(len(done)),
        runs.beside(median("bridge_gap"), median("bridge_gap_limit")),
        runs.beside(median("path_kl"), median("path_kl_optimal")),
        *(_w2(done, power) for power in (1.0, 0.5)),
        _published(pair, method),
        runs.number(median("drift_error"), 4),
        runs.number(median("steps_per_second"), 0),
    ]


def _published(pair: str, method: str) -> str:
    """What is published of a method on a pair: W2² if that is between 512 points, else W2."""
    values = PUBLISHED.get(method, ())
    place = _COMPARED.index(pair) if pair in _COMPARED else len(values)
    if place >= len(values):
        return "-"
    return runs.number(values[place])


def _w2(records: Sequence[Record], power: float) -> str:
    """A power of W2², mean and standard error over the seeds, with that of the floor."""
    found, floors = (
        np.array([record[name] for record in records]) ** power
        for name in ("w2_squared", "w2_squared_floor")
    )
    if not found.size:
        return "-"
    shown = runs.number(found.mean())
    if found.size > 1:
        shown += f" ± {runs.number(found.std(ddof=1) / found.size**0.5)}"
    return f"{shown} ({runs.number(np.median(floors))})"


def write(folder: Path) -> None:
    """Writes and prints the table of all records."""
    runs.write_table(folder, _FIELDS, table)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.parser("data_pairs", __doc__)
    add = parser.add_argument
    add("--pairs", type=runs.listed(str, PAIRS), default=list(PAIRS))
    add("--methods", type=runs.listed(str, FROM_DATA), default=FROM_DATA)
    add("--seeds", type=int, default=5)
    add("--steps", type=int, default=6000, help="gradient steps of each run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    runs.run(args, cells(args), configure, measure, write)


if __name__ == "__main__":
    main()
