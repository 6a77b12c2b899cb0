"""Fine-tuning of diffusion models: every loss, with all noise and with less.

`python -m benchmarks.fine_tuning --folder=runs/fine_tuning` trains a variance-preserving and a
variance-exploding diffusion model of two moons through the runner, once, then fine-tunes either
by each loss, and leaves results.jsonl (runs with a record of the same configuration are not
repeated) and the table, results.md, in the folder. Mean reward, W2² and the KL divergence from
the base stand beside what the data have once they are weighted by the reward. Control and
adjoint matching are repeated with less noise than makes the base forget its start (η < 1):
their optimum, which keeps the law of the start, is then another one.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from benchmarks import runs
from benchmarks.runs import Cell, Record

BASES = ("vp_base", "ve_base")
"""Each is a configuration file."""

NOISES: dict[str, tuple[float, ...]] = {
    "relative_trajectory_balance": (1.0,),
    "log_variance": (1.0,),
    "control": (1.0, 0.3),
    "policy_gradient": (1.0,),
    "adjoint_matching": (1.0, 0.3),
}
"""The losses, and the noise of the base that each is run with, η."""

_CONFIG = "experiments/configs/fine_tuning.py"
_WITHOUT_PLOTS = {"evaluate.plots": False}
_FIELDS = ("base", "loss", "noise", "seed", "steps", "base_steps")
_COLUMNS = (
    "loss",
    "η",
    "seeds",
    "mean reward (exact)",
    "W2² (floor)",
    "KL to the base (exact)",
    "seconds",
)
_QUICK: dict[str, Any] = {
    "bases": ["vp_base"],
    "losses": ["log_variance", "adjoint_matching"],
    "seeds": 1,
    "steps": 100,
    "base_steps": 300,
}


def _file(base: str) -> str:
    return f"experiments/configs/{base}.py"


def base_settings(steps: int) -> dict[str, Any]:
    """The values of dotted keys of a base."""
    return {"diffusion.num_steps": steps, **_WITHOUT_PLOTS}


def base_directory(folder: Path, base: str, steps: int) -> Path:
    """The workdir of a base."""
    config = runs.checked(_file(base), base_settings(steps))
    return folder / "bases" / f"{base}_{runs.config_hash(config)}"


def train_bases(folder: Path, bases: Sequence[str], steps: int) -> None:
    """Trains what of the bases is not finished."""
    with runs.locked(folder):
        for base in bases:
            directory = base_directory(folder, base, steps)
            runs.train(_file(base), base_settings(steps), directory, cache=folder / "compiled")


def settings(folder: Path, fields: Record) -> dict[str, Any]:
    """The values of dotted keys of a run."""
    base = base_directory(folder, fields["base"], fields["base_steps"])
    return {
        "seed": fields["seed"],
        "fine_tuning.base": str(base),
        "fine_tuning.loss": fields["loss"],
        "fine_tuning.noise": fields["noise"],
        "fine_tuning.num_steps": fields["steps"],
        **_WITHOUT_PLOTS,
    }


def configure(folder: Path, fields: Record) -> ConfigDict:
    """The configuration of a run, for its hash; its base has to be finished.

    Without the base's path: what the base holds is in its digest, however the folder is spelt.
    """
    config = runs.checked(f"{_CONFIG}:{fields['base']}", settings(folder, fields))
    config.fine_tuning.base = ""
    return config


def measure(folder: Path, found: Cell) -> Record:
    """Trains one run; its summary, or why it failed."""
    name = "_".join([*map(str, found.fields.values()), found.config_hash])
    return runs.outcome(
        f"{_CONFIG}:{found.fields['base']}",
        settings(folder, found.fields),
        folder / "runs" / name,
        cache=folder / "compiled",
    )


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """The runs asked for, seed by seed, so that a first table is soon complete."""
    for seed in range(args.seeds):
        for base in args.bases:
            for loss in args.losses:
                for noise in NOISES[loss]:
                    found = (base, loss, noise, seed, args.steps, args.base_steps)
                    yield dict(zip(_FIELDS, found, strict=True))


def table(records: Sequence[Record]) -> str:
    """A section per base, in it a line per loss and noise: medians over the seeds."""
    parts = []
    for base in BASES:
        own = [record for record in records if record["base"] == base]
        done = [record for record in own if record.get("reward") is not None]
        rows = [_untuned(done)] if done else []
        for loss, noises in NOISES.items():
            for noise in noises:
                found = [r for r in own if (r["loss"], r["noise"]) == (loss, noise)]
                if found:
                    rows.append(_row(loss, noise, found))
        if rows:
            parts += [f"## {base}", runs.markdown(_COLUMNS, rows)]
    return "\n\n".join(parts)


def _untuned(records: Sequence[Record]) -> list[str]:
    """The base itself."""
    whole = [record for record in records if record["noise"] == 1] or records
    reward = runs.beside(runs.median(whole, "reward_base"), runs.median(whole, "reward_exact"))
    return ["none", "1", "-", reward, "-", "0", "-"]


def _row(loss: str, noise: float, found: Sequence[Record]) -> list[str]:
    done = [record for record in found if record.get("reward") is not None]
    failed = len(found) - len(done)

    def median(name: str) -> float | None:
        return runs.median(done, name)

    def seconds(record: Mapping[str, Any]) -> Record:
        return {"seconds": runs.train_seconds(record)}

    return [
        loss.replace("_", " "),
        f"{noise:g}",
        f"{len(done)}, {failed} failed" if failed else str(len(done)),
        runs.beside(median("reward"), median("reward_exact")),
        runs.beside(median("w2_squared"), median("w2_squared_floor"), 4),
        runs.beside(median("kl_to_base"), median("kl_to_base_exact")),
        runs.number(runs.median(map(seconds, done), "seconds"), 0),
    ]


def write(folder: Path) -> None:
    """Writes and prints the table of all records."""
    runs.write_table(folder, _FIELDS, table)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.parser("fine_tuning", __doc__)
    add = parser.add_argument
    add("--bases", type=runs.listed(str, BASES), default=list(BASES))
    add("--losses", type=runs.listed(str, NOISES), default=list(NOISES))
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=2000, help="gradient steps of each fine-tuning")
    add("--base-steps", type=int, default=6000, help="gradient steps of each base")
    add("--quick", action="store_true", help="one base, two losses and few steps, by default")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**_QUICK)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    train_bases(args.folder, args.bases, args.base_steps)
    configured = functools.partial(configure, args.folder)
    runs.run(args, cells(args), configured, measure, write)


if __name__ == "__main__":
    main()
