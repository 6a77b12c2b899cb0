"""The README's table of results: `python -m benchmarks.results --folder=runs/results`.

Trains every config and seed of the table through the runner, one after the other, and prints
the table in Markdown. Runs that are finished are not repeated, interrupted ones go on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import runs

_ONE_SEED = ("gaussian_to_gaussian", "gaussian_to_ring_d2d", "moons_to_ring_d2d")
_CONFIGS = ("two_moons", "gaussian_to_ring", "cross_to_ring", *_ONE_SEED)
_COLUMNS = (
    "config",
    "seed",
    "bridge gap (matched kernels)",
    "path KL (optimum)",
    "W2² (floor)",
    "mode weights",
    "seconds",
)


def row(name: str, seed: int, found: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    weights = found.get("mode_weights")
    error = found["bridge_gap_standard_error"]
    return (
        f"`{name}`",
        str(seed),
        f"{found['bridge_gap']:.3f} ± {error:.3f} ({found['bridge_gap_limit']:.3f})",
        runs.beside(found["path_kl"], found["path_kl_optimal"]),
        runs.beside(found["w2_squared"], found["w2_squared_floor"], 4),
        f"{min(weights):.3f} to {max(weights):.3f}" if weights else "-",
        runs.number(found["wall_seconds"], 0),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.results")
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/results"), help="where the runs are")
    add("--seeds", type=int, default=3, help="of each config that has marks to meet")
    args = parser.parse_args(argv)
    rows = []
    for name in _CONFIGS:
        for seed in range(1 if name in _ONE_SEED else args.seeds):
            config = f"experiments/configs/{name}.py"
            found = runs.train(config, {"seed": seed}, args.folder / f"{name}_{seed}")
            rows.append(row(name, seed, found))
    print(runs.markdown(_COLUMNS, rows))


if __name__ == "__main__":
    main()
