"""The page about a run: what it says of each kind of run."""

import json

import pytest

from experiments import report_page, summary, workdir
from tests.experiments import small

FOUND = dict.fromkeys(summary.KEYS) | {
    "wall_seconds": 12.0,
    "compile_seconds": 3.0,
    "gradient_steps": 40,
    "steps_per_second": 10.0,
    "bridge_gap": 0.25,
    "bridge_gap_standard_error": 0.0125,
    "bridge_gap_limit": 0.07,
    "skipped_steps": 0,
    "devices": "2 x cpu",
    "finished": True,
}
BRIDGE = {
    "times": [0.0, 0.1, 0.2],
    "dim": 2,
    "programs": {
        "forward_kernel": {"platforms": ["cpu", "tpu"]},
        "source_samples": {"platforms": ["cpu"]},
    },
    "left_out": {},
}


@pytest.fixture(scope="module")
def config():
    return small.gaussians({"evaluate.plots": False})


def page(directory, config, found=FOUND, bridge=BRIDGE, records=()):
    for record in records:
        workdir.append_metrics(directory, record)
    report_page.write(directory, config, found, bridge)
    return (directory / workdir.REPORT).read_text()


def test_every_metric_of_the_table_is_explained():
    assert report_page._MEANINGS.keys() == summary.IDEALS.keys()


def test_metrics_stand_beside_their_ideals_with_their_errors(tmp_path, config):
    text = page(tmp_path, config)
    (row,) = (line for line in text.splitlines() if line.startswith("| `bridge_gap`"))
    assert row.startswith("| `bridge_gap` | 0.2500 ± 0.0125 | 0.0000 | KL(learned")
    assert "`path_kl`" not in text
    assert "Kernels matched to the exact bridge on this grid: bridge_gap 0.0700." in text
    assert "40 gradient steps in 12.0 s (3.0 s of compilation, 10 steps/s)" in text
    assert "2 x cpu" in text and "the run is finished" in text
    assert "not finite" not in text and "Go on" not in text


def test_only_what_differs_from_the_defaults_is_listed(tmp_path, config):
    lines = page(tmp_path, config).splitlines()
    start = lines.index("| key | here | default |")
    rows = {line.split("`")[1] for line in lines[start + 2 :] if line.startswith("| `")}
    assert {"source.name", "target.options", "grid.num_steps", "batch_size"} <= rows
    assert not rows & {"seed", "method", "target.access", "reference.name"}
    assert '| `target.options` | `{"dim": 1, "std": 0.6}` | `{}` |' in lines


@pytest.mark.parametrize("drawn", [True, False])
def test_plots_are_there_if_they_were_drawn(tmp_path, config, drawn):
    plots = tmp_path / workdir.PLOTS
    plots.mkdir()
    # Of an earlier evaluation, where no plots are asked for.
    (plots / "overview.png").touch()
    asked = small.change(config.copy_and_resolve_references(), {"evaluate.plots": drawn})
    text = page(tmp_path, asked)
    assert ("![overview](plots/overview.png)" in text) == drawn
    assert ("## Plots" in text) == drawn
    assert "marginals" not in text


def test_what_was_not_finite_is_said(tmp_path, config):
    records = [
        {"step": 20, "skipped": 0.1, "invalid": 0.0, "outside": None, "peak_memory_gb": 0.5},
        {"step": 40, "skipped": 0.0, "invalid": 0.025, "outside": None, "peak_memory_gb": 0.75},
        # Past the checkpoint that was evaluated.
        {"step": 60, "skipped": 1.0, "invalid": 1.0, "outside": None, "peak_memory_gb": 9.0},
    ]
    text = page(tmp_path, config, FOUND | {"skipped_steps": 2}, records=records)
    assert "- 2 of 40 gradient steps were not finite" in text
    assert "2.50% of a batch at most, in 1 of 2 records" in text
    assert "`outside`" not in text
    assert "Memory while training: 0.75 GB at most." in text


def test_an_unfinished_run_says_how_to_go_on(tmp_path, config):
    text = page(tmp_path, config, FOUND | {"finished": False})
    assert f"\n    python -m experiments.run --workdir={tmp_path}\n" in text
    assert "the run is not finished" in text


def test_the_bridge_is_loaded_or_said_to_be_missing(tmp_path, config):
    text = page(tmp_path, config)
    assert f"d2ejax.load('{tmp_path}')" in text
    assert "# (1000, 3, 2)" in text
    assert "It runs on cpu, tpu." in text
    partial = BRIDGE | {"programs": {"forward_kernel": {"platforms": ["cpu"]}}}
    partial["left_out"] = {"source_samples": "cannot be exported"}
    text = page(tmp_path, config, bridge=partial)
    assert "bridge.sample" not in text
    assert "Without its source samples: cannot be exported" in text
    text = page(tmp_path, config, bridge=None)
    assert "could not be written as a bridge" in text and "d2ejax.load(" not in text


def test_a_run_without_metrics_has_a_page(tmp_path, config):
    text = page(tmp_path, config, FOUND | {"bridge_gap": None, "bridge_gap_limit": None})
    assert "## How good it is" not in text
    assert json.dumps("gaussian") in text
