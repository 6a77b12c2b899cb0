"""report.md: a run on one page, for somebody who was not there."""

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from d2ejax import non_finite
from experiments import summary, validation, workdir
from experiments.configs import base

_MEANINGS = {
    "bridge_gap": "KL(learned ‖ true bridge) in nats: zero only at the bridge",
    "judge_accuracy": "share of the images moved that another network, never a reward, takes "
    "for the class",
    "frechet_distance": "of the judge's features of the images moved from those of real ones; "
    "beside it that of the posterior itself, sampled by rejection",
    "log_reward": "mean log-probability of the class by the classifier, in nats; beside it the "
    "same by rejection",
    "feature_distance": "squared distance of the judge's features of an image before and after",
    "reward": "mean reward at the ends of paths, in nats",
    "kl_to_base": "how far fine-tuning went from its base, in nats",
    "drift_error": "relative squared error of the drift along the true bridge",
    "path_kl": "KL of the paths from the reference in nats: the control spent",
    "w2_squared": "squared Wasserstein distance of the ends of paths from the target; its "
    "ideal is that of two sets of true samples",
    "w2_squared_ode": "the same for the ends of the probability flow",
    "w1_left_out": "distance from the snapshot left out, by paths from the one before it",
    "w1_left_out_ode": "the same by the probability flow",
    "w1_left_out_from_start": "the same by paths from the source",
    "w1_left_out_from_start_ode": "the same by the probability flow from the source",
    "edge_auroc": "how well the learned graph ranks true edges first; chance is one half",
    "edge_auroc_sensitivity": "the same, edges ranked by derivatives of the drift",
    "edge_average_precision": "mean precision over the ranking of edges",
    "edge_average_precision_sensitivity": "the same, edges ranked by derivatives of the drift",
    "circuit_drift_error": "relative squared error of the drift of the circuit",
    "bw_uvp": "error of the end's first two moments, in per cent of the target's variance",
    "conditional_bw_uvp": "the same of the ends given their starts: of the coupling",
    "log_z_lower": "lower bound of the target's log-normaliser, in nats",
    "log_z_upper": "upper bound of the same",
    "log_z_error": "error of its estimate by importance weights, in nats",
    "transport_cost": "mean squared distance between the two ends of a path",
    "mode_coverage": "share of the target's modes that hold at least half of their mass",
    "ess": "effective sample size of the weighted paths, as a share of them",
}
"""What the metrics of `summary.IDEALS` mean, a phrase each."""

_CAPTIONS = {
    "overview.png": "Marginals and paths as learned, and below them those of the true bridge "
    "where it is known; what matters most in numbers.",
    "transport.gif": "Points on their way from the source to the target.",
    "marginals.png": "Where the process is at some times, beside where the true bridge is.",
    "paths.png": "Some of its paths, coloured by time.",
    "coupling.png": "Which end each start is joined to: the wrong ones cost more.",
    "drift.png": "The learned drift at some times, upon the true one where it is known.",
    "training.png": "The loss of each half-step, thick where it is smoothed, and what was "
    "measured at the end of each; ideals are dashed.",
    "snapshots.png": "The process at the times at which it was observed.",
    "translations.png": "Images of the source, what each was moved to, and the training image "
    "of the class that is nearest to that.",
    "morphs.png": "Images on their way, a path a row.",
    "graph.png": "Who regulates whom, as learned.",
}

_SHARES = {
    "invalid": "paths whose end has no defined log-density, or that are not finite themselves",
    "outside": "paths that end where the target has no mass",
}


def write(
    directory: Path,
    config: ConfigDict,
    found: Mapping[str, Any],
    bridge: Mapping[str, Any] | None,
) -> None:
    """Writes the report of a run.

    Args:
        directory: The workdir: its records and plots are read.
        config: Of the run.
        found: What summary.json holds.
        bridge: What bridge.json holds; None if there is no such file.
    """
    records = workdir.read_records(directory, found["gradient_steps"])
    sections = [
        _head(config, found),
        _numbers(found),
        _not_finite(found, records),
        _plots(directory) if config.evaluate.plots else [],
        _settings(config),
        _machine(found, records),
        _commands(directory, found, bridge),
    ]
    text = "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"
    workdir.write_text(directory / workdir.REPORT, text)


def _head(config: ConfigDict, found: Mapping[str, Any]) -> list[str]:
    known = {"samples": "known by samples", "energy": "known by its energy"}
    ends = [
        f"{end.name.replace('_', ' ')} ({known[end.access]})"
        for end in (config.source, config.target)
    ]
    names = [end.name.replace("_", " ") for end in (config.source, config.target)]
    pair = f" The ends are those of the pair `{config.pair.name}`." * (
        config.pair.name != "none"
    )
    process = f" They are those of the process `{config.snapshots.name}`." * (
        config.snapshots.name != "none"
    )
    state = "finished" if found["finished"] else "not finished"
    return [
        f"# From {names[0]} to {names[1]}",
        "",
        f"`{config.method}` from {ends[0]} to {ends[1]}, in {config.grid.num_steps} steps from "
        f"t = 0 to {config.grid.t_max:g} around the reference `{config.reference.name}`."
        f"{pair}{process} {found['gradient_steps']} gradient steps with seed {config.seed}; "
        f"the run is {state}.",
    ]


def _numbers(found: Mapping[str, Any]) -> list[str]:
    rows = [
        (f"`{name}`", value + _error(found, name), best, _MEANINGS.get(name, ""))
        for name, value, best in summary.rows(found)
    ]
    if not rows:
        return []
    notes = [line for note in summary.notes(found) for line in ("", f"{_sentence(note)}")]
    table = _table(("metric", "value", "ideal", "what it is"), rows)
    return ["## How good it is", "", *table, *notes]


def _not_finite(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    skipped = found.get("skipped_steps")
    lines = []
    if skipped:
        lines.append(
            f"- {skipped} of {found['gradient_steps']} gradient steps were not finite: they "
            "were left out, and parameters stayed as they were."
        )
    for name in non_finite.SHARES:
        shares = [share for r in records if (share := r.get(name))]
        if shares:
            lines.append(
                f"- `{name}`, {_SHARES[name]}: {max(shares):.2%} of a batch at most, in "
                f"{len(shares)} of {len(records)} records. They were handled as "
                "`d2ejax/non_finite.py` says."
            )
    return ["## Numbers that were not finite", "", *lines] if lines else []


def _plots(directory: Path) -> list[str]:
    lines = ["## Plots"]
    for name, caption in _CAPTIONS.items():
        if (directory / workdir.PLOTS / name).exists():
            title = Path(name).stem
            lines += ["", f"![{title}]({workdir.PLOTS}/{name})", "", caption]
    return lines if len(lines) > 1 else []


def _settings(config: ConfigDict) -> list[str]:
    defaults = dict(validation.flatten(base.get_config()))
    rows = [
        (f"`{name}`", f"`{_value(value)}`", f"`{_value(defaults.get(name))}`")
        for name, value in validation.flatten(config)
        # As JSON has them: tuples and lists do not differ, nor do 1 and 1.0.
        if json.loads(_value(value)) != json.loads(_value(defaults.get(name)))
    ]
    what = (
        "Every key is in `config.json`; these differ from the defaults of "
        "`experiments/configs/base.py`, which says what they mean:"
        if rows
        else "Every key has its default, see `experiments/configs/base.py` and `config.json`."
    )
    table = ["", *_table(("key", "here", "default"), rows)] if rows else []
    return ["## What was run", "", what, *table]


def _machine(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    peaks = [peak for record in records if (peak := record.get("peak_memory_gb"))]
    lines = [
        f"- {summary.duration(found)}, with the evaluation.",
        f"- Devices: {found['devices']}; JAX {jax.__version__}, Python "
        f"{platform.python_version()}, {platform.system()}.",
    ]
    if peaks:
        lines.append(f"- Memory while training: {max(peaks):.2f} GB at most.")
    return ["## Where and how long", "", *lines]


def _commands(
    directory: Path, found: Mapping[str, Any], bridge: Mapping[str, Any] | None
) -> list[str]:
    run = f"python -m experiments.run --workdir={shlex.quote(str(directory))}"
    lines = ["## What can be done with it", ""]
    if not found["finished"]:
        lines += ["Go on with training:", "", f"    {run}", ""]
    lines += [
        "Evaluate it again, this page included:",
        "",
        f"    {run} --mode=evaluate",
        "",
        "Write paths to a file:",
        "",
        f"    {run} --mode=sample --num_samples=10000 --output=samples.npz",
        "",
    ]
    if bridge is None:
        return [*lines, "It could not be written as a bridge for `d2ejax.load`."]
    return [*lines, "Use it in any JAX code:", "", *_loading(directory, bridge)]


def _loading(directory: Path, bridge: Mapping[str, Any]) -> list[str]:
    programs = bridge["programs"]
    code = ["import d2ejax", "import jax", "", f"bridge = d2ejax.load({str(directory)!r})"]
    if "source_samples" in programs:
        code += [
            "drawn = bridge.sample(jax.random.key(0), 1000)",
            f"print(drawn.paths.shape)  # (1000, {len(bridge['times'])}, {bridge['dim']})",
        ]
    platforms = sorted({p for program in programs.values() for p in program["platforms"]})
    left_out = [
        line
        for name, why in bridge["left_out"].items()
        for line in ("", f"Without its {name.replace('_', ' ')}: {why}")
    ]
    return ["```python", *code, "```", "", f"It runs on {', '.join(platforms)}.", *left_out]


def _error(found: Mapping[str, Any], name: str) -> str:
    error = found.get(f"{name}_standard_error")
    return "" if error is None else f" ± {error:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    ]


def _value(value: Any) -> str:
    plain = value.to_dict() if isinstance(value, ConfigDict) else value
    return json.dumps(plain, sort_keys=True)


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."
