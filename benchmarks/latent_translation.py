"""Images moved to a class: what exploration is worth, and what other methods do instead.

`python -m benchmarks.latent_translation --folder=runs/latent_translation` trains the networks
of the images once, then moves latents to a class of digits by the data-to-energy bridge, with
one tool of exploration after the other (Tamogashev & Malkin 2026, table 3), by the adjoint
Schrödinger bridge sampler, and by a diffusion sampler that forgets its start. It leaves
results.jsonl (runs with a record of the same configuration are not repeated) and the table,
results.md, in the folder. Beside them stands the posterior itself, sampled by rejection.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks import runs
from benchmarks.runs import Cell, Record
from experiments import image_models

_CONFIG = "experiments/configs/mnist_latent.py"
_FIELDS = ("method", "class", "seed", "steps")
_ITERATIONS = 5


class Method(NamedTuple):
    """A way to move latents.

    Attributes:
        label: In the table.
        settings: Values of dotted keys; those of the configuration by default.
        moves: Whether its paths start where the others do. Where they do not, what depends on
            the start or on the reference is not compared.
    """

    label: str
    settings: Mapping[str, Any]
    moves: bool = True


def _ipf(**changed: Any) -> dict[str, Any]:
    """Plain IPF by the log-variance of paths, without any exploration but what is named."""
    plain = {
        "ipf.forward_loss": "log_variance",
        "ipf.reanchor": "none",
        "exploration.off_policy_ratio": 0.0,
        "exploration.off_policy_ratio_end": 0.0,
        "exploration.reuse_path": False,
        "exploration.refresh_method": "none",
    }
    return plain | {name.replace("__", "."): value for name, value in changed.items()}


_HALF = {"exploration__off_policy_ratio": 0.5, "exploration__off_policy_ratio_end": 0.5}
_LANGEVIN = {**_HALF, "exploration__refresh_method": "mala"}
_REUSE = {**_LANGEVIN, "exploration__reuse_path": True}
_ANNEALED = {
    **_REUSE,
    "exploration__off_policy_ratio": 1.0,
    "exploration__off_policy_ratio_end": 0.0,
}

METHODS = {
    "on-policy": Method("IPF by log-variance, on-policy", _ipf()),
    "buffer": Method("+ replay buffer", _ipf(**_HALF)),
    "langevin": Method("+ Langevin refresh", _ipf(**_LANGEVIN)),
    "reuse": Method("+ path reuse", _ipf(**_REUSE)),
    "annealed": Method("+ annealed off-policy share", _ipf(**_ANNEALED)),
    "bridge": Method("IPF, our defaults", {}),
    "asbs": Method("ASBS", {"method": "asbs"}),
    "sampler": Method(
        "diffusion sampler",
        {
            "method": "sampler",
            # From next to one point: its ends know nothing of any start.
            "source.options.std": 1e-2,
            "reference.sigma": 1.0,
        },
        moves=False,
    ),
}
"""By the names that `--methods` knows."""

_COLUMNS = (
    "method",
    "seeds",
    "judge accuracy (rejection)",
    "Fréchet distance (rejection)",
    "mean log-reward (rejection)",
    "transport cost",
    "feature distance",
    "path KL",
    "seconds",
)


def settings(fields: Record, models: Path) -> dict[str, Any]:
    """The values of dotted keys of a run.

    Args:
        fields: Which run.
        models: The folder of the networks.
    """
    steps = fields["steps"]
    iteration = max(1, steps // _ITERATIONS)
    spent = {
        "ipf.iterations": _ITERATIONS,
        "ipf.backward_steps": max(1, iteration // 4),
        "ipf.forward_steps": max(1, iteration - iteration // 4),
        "sampler.num_steps": steps,
        "adjoint.iterations": _ITERATIONS,
        "adjoint.forward_steps": max(1, iteration // 2),
        "adjoint.corrector_steps": max(1, iteration // 4),
        "adjoint.backward_steps": max(1, steps // 4),
    }
    return {
        **spent,
        "seed": fields["seed"],
        "target.options.folder": str(models),
        "target.options.classes": f"({fields['class']},)",
        **METHODS[fields["method"]].settings,
    }


def configure(fields: Record) -> ConfigDict:
    """The configuration of a run, for its hash: wherever its networks lie, it is the same."""
    return runs.checked(_CONFIG, settings(fields, Path("models")))


def measure(folder: Path, found: Cell) -> Record:
    """Trains one run; its summary, or why it failed."""
    fields = found.fields
    name = "_".join([*(str(fields[field]) for field in _FIELDS), found.config_hash])
    given = settings(fields, folder / "models")
    return runs.outcome(_CONFIG, given, folder / "runs" / name, cache=folder / "compiled")


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """The runs asked for, seed by seed, so that a first table is soon complete."""
    for seed in args.seeds:
        for label in args.classes:
            for method in args.methods:
                found = (method, label, seed, args.steps)
                yield dict(zip(_FIELDS, found, strict=True))


def table(records: Sequence[Record]) -> str:
    """A section per class, in it a line per method: medians over the seeds."""
    parts = []
    for label in sorted({record["class"] for record in records}):
        own = [record for record in records if record["class"] == label]
        rows = [
            _row(method, found)
            for name, method in METHODS.items()
            if (found := [record for record in own if record["method"] == name])
        ]
        parts += [f"## To class {label}", runs.markdown(_COLUMNS, rows)]
    return "\n\n".join(parts)


def _row(method: Method, found: Sequence[Record]) -> list[str]:
    done = [record for record in found if record.get("judge_accuracy") is not None]
    failed = len(found) - len(done)

    def median(name: str) -> float | None:
        return runs.median(done, name)

    def with_rejection(name: str, digits: int = 3) -> str:
        return runs.beside(median(name), median(f"{name}_rejection"), digits)

    seconds = [{"seconds": runs.train_seconds(record)} for record in done]

    def if_moved(name: str, digits: int) -> str:
        return runs.number(median(name) if method.moves else None, digits)

    return [
        method.label,
        f"{len(done)}, {failed} failed" if failed else str(len(done)),
        with_rejection("judge_accuracy"),
        with_rejection("frechet_distance", 2),
        with_rejection("log_reward"),
        if_moved("transport_cost", 2),
        if_moved("feature_distance", 2),
        if_moved("path_kl", 1),
        runs.number(runs.median(seconds, "seconds"), 0),
    ]


def write(folder: Path) -> None:
    """Writes and prints the table of all records."""
    runs.write_table(folder, _FIELDS, table)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = runs.parser("latent_translation", __doc__)
    add = parser.add_argument
    add("--methods", type=runs.listed(str, METHODS), default=list(METHODS))
    add("--classes", type=runs.listed(int), default=[5])
    add("--seeds", type=runs.listed(int), default=[0, 1, 2, 3, 4])
    add("--steps", type=int, default=5000, help="gradient steps of each run")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    with runs.locked(args.folder):
        image_models.prepare(args.folder / "models")
    runs.run(args, cells(args), configure, measure, write)


if __name__ == "__main__":
    main()
