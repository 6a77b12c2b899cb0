"""One lever at a time off the defaults: what each choice of training is worth.

`python -m benchmarks.ablation --config=two_moons --folder=runs/ablation` trains the defaults
and every setting of every lever on some seeds, and leaves results.jsonl (cells that have a
record of the same configuration are not repeated) and, for each config and --set, the table of
all its records, <config>[_<set>].md, in the folder. To add a lever, add its line to `LEVERS`;
levers pulled together are a lever like any other.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ml_collections import ConfigDict

from benchmarks import runs
from benchmarks.runs import Cell, Record
from experiments import ends

Overrides = Mapping[str, Any] | Callable[[ConfigDict], Mapping[str, Any]]
"""Values of dotted keys, or how they follow from those of the config."""


def _key(name: str, *values: Any) -> dict[str, Overrides]:
    """Settings of one key, labelled by its values."""
    return {str(value): {name: value} for value in values}


def _off_policy(start: float, end: float) -> dict[str, Any]:
    return {
        "exploration.off_policy_ratio": start,
        "exploration.off_policy_ratio_end": end,
    }


def _iterations(count: int) -> Callable[[ConfigDict], dict[str, Any]]:
    """The same gradient steps in another number of iterations."""

    def overrides(config: ConfigDict) -> dict[str, Any]:
        steps = {
            f"ipf.{name}": max(1, round(config.ipf[name] * config.ipf.iterations / count))
            for name in ("forward_steps", "backward_steps")
        }
        return {"ipf.iterations": count, **steps}

    return overrides


def _forward_share(share: float) -> Callable[[ConfigDict], dict[str, Any]]:
    """The same gradient steps, shared out otherwise between the two processes."""

    def overrides(config: ConfigDict) -> dict[str, Any]:
        both = config.ipf.forward_steps + config.ipf.backward_steps
        forward = max(1, round(share * both))
        return {"ipf.forward_steps": forward, "ipf.backward_steps": max(1, both - forward)}

    return overrides


LEVERS: dict[str, dict[str, Overrides]] = {
    "grid": {
        "uniform": {"grid.spacing": "uniform"},
        "cosine": {"grid.spacing": "cosine"},
        **{f"power {power}": {"grid.power": power} for power in (1.5, 3.0)},
    },
    "variance": {
        "bounded": {"variance.family": "bounded"},
        "fixed": {"learn_variance": False},
    },
    "paths_per_start": _key("ipf.paths_per_start", 2, 4, 16),
    "off_policy_ratio": {
        **{f"{ratio}": _off_policy(ratio, ratio) for ratio in (0.0, 0.25, 0.75, 1.0)},
        "1 to 0": _off_policy(1.0, 0.0),
    },
    "reuse_path": _key("exploration.reuse_path", False),
    "refresh": _key("exploration.refresh_method", "none", "averaged_ula", "hmc"),
    "add_ends": _key("exploration.add_ends", False),
    "temperature": _key("exploration.inverse_temperature_start", 0.1, 0.5),
    "energy_feature": _key("network.energy_feature", True),
    "forward_loss": _key("ipf.forward_loss", "log_variance", "trajectory_balance", "hybrid"),
    "reanchor": _key("ipf.reanchor", "none", "backward", "forward"),
    "warm_start": _key("ipf.warm_start", False),
    "priority_power": _key("exploration.priority_power", 0.5),
    "optimiser": {"adamw": {"optimiser.name": "adamw", "optimiser.learning_rate": 2e-3}},
    "learning_rate": _key("optimiser.learning_rate", 5e-3, 2e-2),
    "backward_ratio": _key("optimiser.backward_ratio", 0.5, 2.0),
    "schedule": _key("optimiser.schedule", "constant"),
    "depth": _key("network.depth", 3, 5),
    "batch_size": _key("batch_size", 64, 256),
    "ema_decay": _key("optimiser.ema_decay", 0.0, 0.9, 0.999),
    "use_ema_opposite": _key("ipf.use_ema_opposite", False),
    "num_anchors": _key("ipf.num_anchors", 256, 512, 2048),
    "iterations": {f"{count}": _iterations(count) for count in (1, 2, 10, 20)},
    "forward_share": {f"{share}": _forward_share(share) for share in (0.5, 0.8)},
}
"""Lever to its settings, each other than the default: label to overrides."""

_ADAMW = {"optimiser.name": "adamw", "optimiser.learning_rate": 2e-3}
_PLAIN = {"ipf.forward_loss": "log_variance", "ipf.reanchor": "none"}
_PUBLISHED_KERNELS = {"grid.spacing": "uniform", "variance.family": "bounded"}
LEVERS["together"] = {
    "adamw, depth 3": {**_ADAMW, "network.depth": 3},
    "adamw, depth 3, batch 256": {**_ADAMW, "network.depth": 3, "batch_size": 256},
    "on-policy, no energy feature": {
        **_off_policy(0.0, 0.0),
        "network.energy_feature": False,
    },
    "plain IPF": _PLAIN,
    "plain IPF, on-policy": {**_PLAIN, **_off_policy(0.0, 0.0)},
    "uniform grid, bounded variance": _PUBLISHED_KERNELS,
    "near the published setting": {
        **_PLAIN,
        **_ADAMW,
        **_PUBLISHED_KERNELS,
        "network.energy_feature": False,
        "ipf.paths_per_start": 2,
        "exploration.reuse_path": False,
    },
}

DEFAULTS = "defaults"

_FIELDS = ("config", "set", "lever", "setting", "seed")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.ablation")
    add = parser.add_argument
    runs.add_flags(parser, "runs/ablation")
    add("--config", default="two_moons", help="a name in experiments/configs")
    add("--levers", type=runs.listed(str, LEVERS), default=list(LEVERS))
    add("--seeds", type=runs.listed(int), default=[0, 1, 2])
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="in every run")
    args = parser.parse_args(argv)
    for setting in args.set:
        name, equals, _ = setting.partition("=")
        if not equals:
            parser.error(f"--set {setting}: must be KEY=VALUE")
        if name == "seed":
            parser.error(f"--set {setting}: must be another key: see --seeds")
    # In whatever order they are given, they are the same runs.
    args.set = sorted(args.set)
    return args


def cells(args: argparse.Namespace) -> Iterator[Record]:
    """The defaults first, then every setting of the levers asked for."""
    settings = [(DEFAULTS, "")]
    settings += [(lever, label) for lever in args.levers for label in LEVERS[lever]]
    for lever, setting in settings:
        for seed in args.seeds:
            yield {
                "config": args.config,
                "set": args.set,
                "lever": lever,
                "setting": setting,
                "seed": seed,
            }


def overrides(fields: Record) -> dict[str, Any]:
    """The cell's values of dotted keys; those of --set as they were written."""
    always = dict(setting.split("=", 1) for setting in fields["set"])
    found: Overrides = {}
    if fields["lever"] != DEFAULTS:
        found = LEVERS[fields["lever"]][fields["setting"]]
    if callable(found):
        found = found(runs.checked(_file(fields["config"]), always))
    return {"seed": fields["seed"], "evaluate.plots": False, **always, **found}


def configure(fields: Record) -> ConfigDict:
    """The configuration of a cell."""
    return runs.checked(_file(fields["config"]), overrides(fields))


def _file(name: str) -> str:
    return f"experiments/configs/{name}.py"


def measure(folder: Path, cell: Cell) -> Record:
    """Trains one cell; what it found, or why it failed."""
    parts = (*cell.fields["set"], *(str(cell.fields[key]) for key in _FIELDS if key != "set"))
    name = _as_file("_".join(part for part in (*parts, cell.config_hash) if part))
    directory, cache = folder / "runs" / name, folder / "compiled"
    config = _file(cell.fields["config"])
    return runs.outcome(config, overrides(cell.fields), directory, cache=cache)


def _as_file(name: str) -> str:
    """A name with nothing in it that a path could misread."""
    return re.sub(r"[^\w.=+-]+", "-", name)


def table(records: Sequence[Record], true_weights: npt.ArrayLike | None) -> str:
    """A line per setting: medians over its seeds, the range of the gap, the smallest mode.

    Args:
        records: Of one config and --set.
        true_weights: Of the target's modes, None if it has none: the smallest mode of all seeds
            is shown in units of its true weight.
    """
    columns = (
        "lever",
        "setting",
        "gap (limit) [nats]",
        "over seeds",
        "terminal part",
        "path part",
        "smallest mode / true",
        "seconds",
    )
    lines: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=_place):
        lines.setdefault((record["lever"], record["setting"]), []).append(record)
    return runs.markdown(columns, (_row(*key, lines[key], true_weights) for key in lines))


def _place(record: Record) -> tuple[int, int]:
    """The defaults first; last what is no longer among the levers."""
    levers = [DEFAULTS, *LEVERS]
    if record["lever"] not in levers:
        return len(levers), 0
    settings = list(LEVERS.get(record["lever"], {}))
    known = record["setting"] in settings
    return (
        levers.index(record["lever"]),
        settings.index(record["setting"]) if known else len(settings),
    )


def _row(
    lever: str, setting: str, records: Sequence[Record], true_weights: npt.ArrayLike | None
) -> list[str]:
    done = [r for r in records if runs.failure(r) is None]
    failed = len(records) - len(done)
    gaps = [r["bridge_gap"] for r in done]
    span = f"{min(gaps):.3f} to {max(gaps):.3f}" if gaps else "-"
    seconds = [{"seconds": runs.train_seconds(r)} for r in done]
    shares = [runs.mode_shares(r.get("mode_weights"), true_weights) for r in done]
    modes = np.concatenate(shares or [np.zeros(0)])
    return [
        lever,
        setting,
        runs.beside(runs.median(done, "bridge_gap"), runs.median(done, "bridge_gap_limit")),
        f"{span}, {failed} failed" if failed else span,
        runs.number(runs.median(done, "gap_terminal")),
        runs.number(runs.median(done, "gap_path")),
        runs.number(float(modes.min()) if modes.size else None, 2),
        runs.number(runs.median(seconds, "seconds"), 0),
    ]


def write(args: argparse.Namespace) -> None:
    """Writes and prints the table of all records of this config and --set."""
    records = runs.newest(runs.read_records(args.folder / runs.RECORDS), _FIELDS)
    part = [r for r in records if (r["config"], r["set"]) == (args.config, args.set)]
    settings = dict(setting.split("=", 1) for setting in args.set)
    target = ends.build_ends(runs.checked(_file(args.config), settings)).target
    given = ", ".join(f"`{setting}`" for setting in args.set)
    caption = f"`{args.config}`" + (f" with {given}" if given else "")
    text = f"{caption}\n\n{table(part, target.mode_weights)}"
    name = _as_file("_".join((args.config, *args.set)))
    (args.folder / f"{name}.md").write_text(text + "\n")
    print(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, then writes what there is, also if it was interrupted."""
    args = parse(argv)
    runs.run(
        args,
        cells(args),
        configure,
        measure,
        lambda _: write(args),
    )


if __name__ == "__main__":
    main()
