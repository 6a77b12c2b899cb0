"""What a sweep comes to: means over the seeds with their standard errors, a table, a figure."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import tables, workdir
from experiments.sweeping import training
from experiments.sweeping.settings import Setting, Sweep

RECORDS, TABLE, FIGURE = "results.jsonl", "results.md", "sweep.png"

NUMBERS: dict[str, str | None] = {
    "bridge_gap": "bridge_gap_limit",
    "reward": "reward_exact",
    "kl_to_base": "kl_to_base_exact",
    "w1_left_out": "w1_left_out_floor",
    "log_z_error": None,
    "path_kl": "path_kl_optimal",
    "w2_squared": "w2_squared_floor",
    "transport_cost": "transport_cost_optimal",
}
"""Keys of summaries that are averaged, each with the one that holds what it is held against."""

# Title and name of the limit of what is drawn: the first three that are defined, those first
# that are measured while training as well.
_DRAWN = {
    "bridge_gap": ("Bridge gap [nats]", "K-step limit"),
    "reward": ("Mean reward [nats]", "exact"),
    "w1_left_out": ("W₁, left out", "sampling floor"),
    "path_kl": ("Path KL [nats]", "optimum"),
    "w2_squared": ("W₂² to the target", "sampling floor"),
    "log_z_error": ("log Z error [nats]", ""),
}
_COLUMNS = 3
# Limits that differ by less are sampling error.
_SAME = 0.05

Record = dict[str, Any]


def collect(sweep: Sweep) -> list[Record]:
    """One record for each setting; reads the workdirs alone.

    Fields: the `setting`, the `finished` seeds, the `failed` ones with the reason and those
    `missing`, which another command will go on with; `steps_per_second` of all seeds that were
    trained together; and of each of `NUMBERS` that is defined the mean, `<name>_standard_error`
    (None for one seed), `<name>_of_seeds`, and the mean of what it is held against.
    """
    return [_record(sweep, setting) for setting in sweep.settings]


def write(sweep: Sweep, records: Sequence[Record]) -> str:
    """Writes records, table and figure, and returns the table."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    text = table(records, title=sweep.settings[0].args.workdir.name)
    with workdir.writing(sweep.directory):
        sweep.directory.mkdir(parents=True, exist_ok=True)
        (sweep.directory / RECORDS).write_text(lines)
        (sweep.directory / TABLE).write_text(text + "\n")
        _draw(sweep, records)
    return text


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, which takes two values at least."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(np.mean(values)), error


def table(records: Sequence[Record], *, title: str) -> str:
    """The records in Markdown; what a number is held against stands in brackets."""
    varied = list(records[0]["setting"])
    found = [name for name in NUMBERS if any(name in record for record in records)]
    columns = [*(varied or ["config"]), "seeds", *found, "steps/s, all seeds"]
    return tables.markdown(columns, (_row(record, varied, found, title) for record in records))


def _row(record: Record, varied: Sequence[str], found: Sequence[str], title: str) -> list[str]:
    cells = [str(record["setting"][key]) for key in varied] or [title]
    seeds = [f"{len(record['finished'])}"]
    seeds += [f"{len(record[what])} {what}" for what in ("failed", "missing") if record[what]]
    cells.append(", ".join(seeds))
    for name in found:
        shown = tables.with_error(record.get(name), record.get(f"{name}_standard_error"))
        ideal = record.get(NUMBERS[name] or "")
        cells.append(shown if ideal is None else f"{shown} ({tables.number(ideal, 4)})")
    cells.append(tables.number(record["steps_per_second"], 1))
    return cells


def _record(sweep: Sweep, setting: Setting) -> Record:
    summaries: dict[int, Mapping[str, Any]] = {}
    failed, missing = {}, []
    for seed in sweep.seeds:
        run = setting.run(seed)
        if workdir.is_finished(run.directory):
            summaries[seed] = json.loads((run.directory / workdir.SUMMARY).read_text())
            continue
        most = run.config.loop.max_consecutive_skipped
        why = training.failure(training.read(run), most)
        if why is None:
            missing.append(seed)
        else:
            failed[seed] = why
    record: Record = {
        "setting": setting.changes,
        "finished": list(summaries),
        "failed": failed,
        "missing": missing,
        "steps_per_second": _rate(summaries.values()),
    }
    for name, ideal in NUMBERS.items():
        values = _defined(summaries.values(), name)
        if values:
            record[name], record[f"{name}_standard_error"] = mean_and_error(values)
            record[f"{name}_of_seeds"] = values
            if ideal and (ideals := _defined(summaries.values(), ideal)):
                record[ideal] = float(np.mean(ideals))
    return record


def _defined(summaries: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [summary[name] for summary in summaries if summary.get(name) is not None]


def _rate(summaries: Iterable[Mapping[str, Any]]) -> float | None:
    """Gradient steps of all seeds in a second of training."""
    steps, seconds = 0, 0.0
    for summary in summaries:
        if summary["steps_per_second"]:
            own, together = summary["gradient_steps"], summary.get("seeds_at_once", 1)
            steps += own
            seconds += own / (summary["steps_per_second"] * together)
    return steps / seconds if seconds else None


def _draw(sweep: Sweep, records: Sequence[Record]) -> None:
    from d2ejax import plotting

    found = [name for name in _DRAWN if any(name in record for record in records)][:_COLUMNS]
    if not found:
        return
    title = sweep.settings[0].args.workdir.name.replace("_", " ")
    figure = plotting.sweep([_outcome(sweep, records, name) for name in found], title=title)
    plotting.save(figure, sweep.directory / FIGURE)


def _outcome(sweep: Sweep, records: Sequence[Record], name: str) -> Any:
    """A column of the figure."""
    from d2ejax import plotting

    title, limit_name = _DRAWN[name]
    finals, curves = {}, {}
    for setting, record in zip(sweep.settings, records, strict=True):
        if name in record:
            label = _label(setting)
            finals[label] = record[f"{name}_of_seeds"]
            curves[label] = _curves(setting, record["finished"], name)
    ideals = [r[key] for r in records if (key := NUMBERS[name]) is not None and key in r]
    # One line for all, or none where settings differ in what can be reached.
    same = bool(ideals) and np.ptp(ideals) <= _SAME * abs(ideals[0])
    limit = (limit_name, float(np.mean(ideals))) if same else None
    return plotting.Outcome(title, finals, curves, limit)


def _label(setting: Setting) -> str:
    changes = (
        f"{key.rpartition('.')[2]} = {value}".replace("_", " ")
        for key, value in setting.changes.items()
    )
    return "\n".join(changes) or "all seeds"


def _curves(
    setting: Setting, seeds: Sequence[int], name: str
) -> tuple[list[int], list[list[float]]]:
    """The steps at which all seeds have recorded a number, and what each has then."""
    found = []
    for seed in seeds:
        run = setting.run(seed)
        records = _records(run.directory)
        found.append({r["step"]: r[name] for r in records if r.get(name) is not None})
    steps = sorted(set.intersection(*map(set, found))) if found else []
    return steps, [[curve[step] for step in steps] for curve in found]


def _records(directory: Path) -> list[dict[str, Any]]:
    summary = json.loads((directory / workdir.SUMMARY).read_text())
    return workdir.read_records(directory, summary["gradient_steps"])
