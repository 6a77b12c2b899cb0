"""Does any seed lose a mode? `python -m benchmarks.mode_weights --folder=runs/mode_weights`.

Trains ten seeds of every default config whose target has modes, and prints how much of its true
mass each mode got. Runs that are finished are not repeated, interrupted ones go on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import runs
from experiments import ends, validation, workdir

_CONFIGS = (
    "two_moons",
    "gaussian_to_ring",
    "cross_to_ring",
    "gaussian_to_ring_d2d",
    "moons_to_ring_d2d",
    "mixtures",
)
_COLUMNS = ("config", "seed", "smallest / true", "largest / true", "gap (limit)", "weights")
# Below half its mass a mode counts as lost, as in metrics.mode_coverage.
_LOST = 0.5

Shares = dict[tuple[str, int], np.ndarray]
"""Config and seed to the mass of each mode, in units of its true mass."""


def train(name: str, seed: int, folder: Path) -> tuple[runs.Record, np.ndarray]:
    """Runs one config and seed; its summary, and the mass of each mode over the true one."""
    directory = folder / f"{name}_{seed}"
    settings = {"seed": seed, "evaluate.plots": False}
    config = f"experiments/configs/{name}.py"
    found = runs.train(config, settings, directory, cache=folder / "compiled")
    target = ends.build_ends(validation.validate(workdir.read_config(directory))).target
    return found, np.asarray(found["mode_weights"]) / np.asarray(target.mode_weights)


def row(name: str, seed: int, found: runs.Record, shares: np.ndarray) -> tuple[str, ...]:
    """One line of the table."""
    return (
        f"`{name}`",
        str(seed),
        runs.number(shares.min(), 2),
        runs.number(shares.max(), 2),
        runs.beside(found.get("bridge_gap"), found.get("bridge_gap_limit")),
        " ".join(runs.number(weight) for weight in found["mode_weights"]),
    )


def verdict(shares: Shares) -> str:
    """How many runs lost a mode, and which."""
    lost = [f"{name} seed {seed}" for (name, seed), s in shares.items() if s.min() < _LOST]
    return f"{len(lost)} of {len(shares)} runs lost a mode: {', '.join(lost) or 'none'}"


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.mode_weights")
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/mode_weights"), help="where the runs are")
    add("--configs", type=runs.listed(str), default=list(_CONFIGS))
    add("--seeds", type=int, default=10, help="of each config")
    args = parser.parse_args(argv)
    rows, shares = [], {}
    for name in args.configs:
        for seed in range(args.seeds):
            found, shares[name, seed] = train(name, seed, args.folder)
            rows.append(row(name, seed, found, shares[name, seed]))
    text = f"{runs.markdown(_COLUMNS, rows)}\n\n{verdict(shares)}"
    (args.folder / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
