"""summary.json: its keys, and the table that shows each metric beside its ideal."""

from collections.abc import Mapping
from typing import Any

from experiments.loop import Times

KEYS = (
    "wall_seconds",
    "compile_seconds",
    "gradient_steps",
    "steps_per_second",
    "path_kl",
    "path_kl_optimal",
    "bridge_gap",
    "w2_squared",
    "w2_squared_floor",
    "log_z_lower",
    "log_z_upper",
    "log_z_true",
    "transport_cost",
    "transport_cost_optimal",
    "mode_coverage",
    "ess",
)
"""Every summary has these; null where a quantity is not defined."""

_FEW_ANCHORS = 4
"""Below this many the minibatch estimate of a potential is mostly noise."""

IDEALS: dict[str, str | float] = {
    "bridge_gap": 0.0,
    "judge_accuracy": 1.0,
    "frechet_distance": "frechet_distance_rejection",
    "log_reward": "log_reward_rejection",
    "feature_distance": 0.0,
    "reward": "reward_exact",
    "kl_to_base": "kl_to_base_exact",
    "drift_error": 0.0,
    "path_kl": "path_kl_optimal",
    "w2_squared": "w2_squared_floor",
    "w2_squared_ode": "w2_squared_floor",
    "w1_left_out": "w1_left_out_floor",
    "w1_left_out_ode": "w1_left_out_floor",
    "w1_left_out_from_start": "w1_left_out_floor",
    "w1_left_out_from_start_ode": "w1_left_out_floor",
    "edge_auroc": 1.0,
    "edge_auroc_sensitivity": 1.0,
    "edge_average_precision": 1.0,
    "edge_average_precision_sensitivity": 1.0,
    "circuit_drift_error": 0.0,
    "bw_uvp": 0.0,
    "conditional_bw_uvp": "conditional_bw_uvp_floor",
    "log_z_lower": "log_z_true",
    "log_z_upper": "log_z_true",
    "log_z_error": 0.0,
    "transport_cost": "transport_cost_optimal",
    "mode_coverage": 1.0,
    "ess": 1.0,
}
"""The ideal of a metric: a number, or the key that holds it."""


def compose(
    metrics: Mapping[str, Any],
    *,
    step: int,
    times: Times,
    devices: str,
    finished: bool,
) -> dict[str, Any]:
    """What summary.json is to hold: `KEYS` first, then what else was measured."""
    timing = {
        "wall_seconds": round(times.wall, 3),
        "compile_seconds": round(times.compile, 3),
        "gradient_steps": step,
        "steps_per_second": round(step / times.train, 2) if times.train else None,
    }
    values = {**dict.fromkeys(KEYS), **metrics, **timing}
    return values | {"devices": devices, "finished": finished}


def table(summary: Mapping[str, Any]) -> str:
    """The metrics that are defined, each beside its ideal, and what there is to say of them."""
    shown = [("metric", "value", "ideal"), *rows(summary)]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {best:>{widths[2]}}"
        for name, value, best in shown
    ]
    return "\n".join([*lines, *notes(summary), duration(summary)])


def rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and ideal of each metric that is defined."""
    found = []
    for name, ideal in IDEALS.items():
        if summary.get(name) is not None:
            best = summary.get(ideal) if isinstance(ideal, str) else ideal
            found.append((name, _show(summary[name]), _show(best)))
    return found


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What is to be said of the metrics, a line each."""
    lines = []
    if summary.get("bridge_gap_limit") is not None:
        limit = _show(summary["bridge_gap_limit"])
        lines.append(f"kernels matched to the exact bridge on this grid: bridge_gap {limit}")
    if summary.get("gap_path") is not None:
        lines.append(_split(summary))
    if summary.get("w1_left_out_straight") is not None:
        parts = (
            f"{name} {_show(summary[f'w1_left_out_{key}'])}"
            for name, key in (
                ("the snapshot before", "previous"),
                ("the one after", "next"),
                ("straight lines between them", "straight"),
            )
        )
        lines.append(f"W1 to the snapshot left out, without training: {', '.join(parts)}")
    if summary.get("edge_auroc_correlation") is not None:
        parts = (
            f"{name} {_show(summary[f'edge_auroc_{key}'])}"
            for name, key in (
                ("correlation", "correlation"),
                ("partial correlation", "partial_correlation"),
            )
        )
        lines.append(f"edge_auroc without training: {', '.join(parts)}, chance 0.5")
    anchors = summary.get("effective_anchors")
    if anchors is not None and anchors < _FEW_ANCHORS:
        advice = "raise ipf.num_anchors"
        # Zero where a hybrid has handed over already.
        if summary.get("closed_form") != 0.0:
            advice += ", or learn the opposite process with loss 'hybrid' or 'log_variance'"
        lines.append(
            f"only {anchors:.1f} effective anchors behind the semi-discrete potential: {advice}"
        )
    return lines


def duration(summary: Mapping[str, Any]) -> str:
    """How long it took, on one line."""
    rate = summary.get("steps_per_second")
    return (
        f"{summary['gradient_steps']} gradient steps in {summary['wall_seconds']:.1f} s "
        f"({summary['compile_seconds']:.1f} s of compilation"
        + (f", {rate:.0f} steps/s)" if rate else ")")
    )


def _split(summary: Mapping[str, Any]) -> str:
    """The bridge gap as a sum, on one line."""
    parts = [
        (summary[key], label)
        for key, label in (
            ("gap_discretisation", "discretisation"),
            ("gap_terminal", "terminal marginal"),
            ("gap_path", "path"),
        )
    ]
    terms = " + ".join(f"{value:.3f} {label}" for value, label in parts).replace("+ -", "- ")
    return (
        f"bridge gap {summary['bridge_gap']:.3f} = {terms} "
        f"(the last two ± {summary['gap_path_standard_error']:.3f})"
    )


def _show(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
