"""Summaries, plots and samples where not everything is defined; energies that are broken."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import parallel
from d2ejax.endpoints import registry
from experiments import (
    build,
    checkpoints,
    diagnosis,
    judge,
    loop,
    report,
    run,
    summary,
    workdir,
)
from experiments.errors import InputError
from tests.experiments import small
from tests.experiments.conftest import ROOT

EXACT = (
    "path_kl_optimal",
    "bridge_gap",
    "bridge_gap_limit",
    "gap_discretisation",
    "gap_terminal",
    "gap_path",
    "drift_error",
    "transport_cost_optimal",
)
PLOTS = {"marginals", "paths", "coupling", "drift", "training", "overview"}
EVIDENCE = ("log_z_lower", "log_z_upper", "log_z_true", "log_z_importance", "ess")


@pytest.fixture(autouse=True)
def few_paths(monkeypatch):
    monkeypatch.setattr(judge, "CHUNK", 64)
    monkeypatch.setattr(judge, "SCORED", 64)
    monkeypatch.setattr(report, "_PLOTTED", 60)
    for name, few in {
        "ENDS": 32,
        "OTHERS": 2,
        "DRIFT_PATHS": 64,
        "ALL_DRAWS": 128,
        "FEWEST_STARTS": 8,
        "FEWEST_DRAWS": 16,
    }.items():
        monkeypatch.setattr(diagnosis, f"_{name}", few)
    # Tested elsewhere, and slow.
    monkeypatch.setattr(
        report.plotting, "animation", lambda times, paths, *, path: path.write_bytes(b"GIF")
    )


def untrained(config):
    experiment = build.build(config)
    init = jax.jit(jax.vmap(experiment.algorithm.init, axis_name=parallel.AXIS))
    state = init(jax.random.split(jax.random.key(0), 1))
    return judge.Judge(experiment), parallel.unreplicate(state)


RECORDS = (
    {"step": 10, "phase": "backward 1", "loss": 0.5},
    {"step": 20, "phase": "forward 1", "loss": 0.25, "path_kl": 0.5},
)


def evaluate(config, directory, records=RECORDS):
    """The summary and the plots of an untrained run."""
    workdir.create(directory, config)
    for record in records:
        workdir.append_metrics(directory, record)
    judged, state = untrained(config)
    state = state._replace(step=jnp.int32(records[-1]["step"]))
    fields = report.evaluate(config, judged, state, directory)
    whole = summary.compose(
        fields, step=0, times=loop.Times(), devices="8 x cpu", finished=False
    )
    workdir.write_json(directory / workdir.SUMMARY, whole)
    plots = {path.name for path in (directory / workdir.PLOTS).glob("*")}
    return json.loads((directory / workdir.SUMMARY).read_text()), plots


@pytest.fixture(scope="module")
def samples_only():
    return small.shrunk(
        "gaussian_to_ring_d2d", {"target.name": "checkerboard", "target.access": "samples"}
    )


def test_what_a_target_of_samples_leaves_undefined_is_null(samples_only, tmp_path):
    found, plots = evaluate(samples_only, tmp_path)
    for name in (*EXACT, *EVIDENCE, "mode_coverage", "steps_per_second"):
        assert found.get(name) is None, name
    assert set(summary.KEYS) <= found.keys()
    for name in ("path_kl", "w2_squared", "w2_squared_floor", "transport_cost"):
        assert np.isfinite(found[name]), name
    assert plots == {f"{name}.png" for name in PLOTS} | {"transport.gif"}
    table = summary.table(found)
    assert "w2_squared" in table and "bridge_gap" not in table


def test_another_dimension_is_judged_and_drawn(tmp_path):
    found, plots = evaluate(small.gaussians(dim=3), tmp_path)
    for name in (*EXACT, *EVIDENCE, "marginal_moment_error", "coupling_moment_error"):
        assert np.isfinite(found[name]), name
    # The untrained process is the reference: it does not end in the target.
    assert found["marginal_moment_error"] > 1
    assert found["marginal_kl"] > 5 * found["marginal_kl_standard_error"] > 0
    assert found["bridge_gap"] > found["bridge_gap_limit"]
    assert "bridge_gap_standard_error" in found
    # There is no drift field to draw but in the plane.
    assert plots == {f"{name}.png" for name in PLOTS - {"drift"}} | {"transport.gif"}


def test_a_pair_is_judged_by_its_own_plan_and_without_plots_if_none_are_asked_for(tmp_path):
    found, plots = evaluate(small.shrunk("mixtures", {"evaluate.plots": False}), tmp_path)
    for name in (*EXACT, *EVIDENCE, "log_z_error", "bw_uvp", "conditional_bw_uvp"):
        assert np.isfinite(found[name]), name
    assert found["conditional_bw_uvp"] > found["conditional_bw_uvp_floor"]
    assert found["log_z_error"] == pytest.approx(
        abs(found["log_z_importance"] - found["log_z_true"])
    )
    assert plots == set()
    assert "path (the last two ±" in summary.table(found)


def test_samples_of_undefined_weights_are_nan(samples_only, tmp_path):
    judged, state = untrained(samples_only)
    report.write_samples(samples_only, judged, state, 70, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["paths"].shape == (70, 3, 2)
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
        assert arrays["log_weights"].shape == (70,)
        assert np.isnan(arrays["log_weights"]).all()
        for name in set(arrays) - {"log_weights"}:
            assert np.isfinite(arrays[name]).all(), name


def test_samples_run_along_either_process_or_the_flow(tmp_path):
    config = small.gaussians(access=("samples", "samples"))
    judged, state = untrained(config)
    found = {}
    for along in ("forward", "backward", "flow"):
        report.write_samples(config, judged, state, 300, tmp_path / "a.npz", along=along)
        with np.load(tmp_path / "a.npz") as arrays:
            found[along] = dict(arrays)
    # The source has standard deviation 1 and the target .6; untrained processes add noise, and
    # the flow between two that are each other's opposite stands still.
    spread = {along: arrays["x0"].std() for along, arrays in found.items()}
    assert found["backward"]["x1"].std() < 0.7 < 0.85 < spread["forward"]
    np.testing.assert_array_equal(found["flow"]["x0"], found["forward"]["x0"])
    np.testing.assert_allclose(found["flow"]["x1"], found["flow"]["x0"], atol=1e-5)
    for name in ("log_forward", "log_backward", "log_reference", "log_weights"):
        assert np.isnan(found["flow"][name]).all()
        assert np.isfinite(found["backward"][name]).all()
    target = judged.experiment.target._replace(sample=None)
    judged.experiment = judged.experiment._replace(target=target)
    with pytest.raises(InputError, match="--along=backward: must be forward or flow"):
        report.write_samples(config, judged, state, 3, tmp_path / "b.npz", along="backward")


def test_a_target_without_samples_is_judged_by_its_energy_or_by_chains(tmp_path, monkeypatch):
    changes = {
        "method": "sampler",
        "source.options": {"dim": 6},
        "target.name": "double_well_particles",
        "target.options": {},
        "evaluate.plots": False,
        "evaluate.flow": True,
    }
    monkeypatch.setattr(judge, "WEIGHTED", 60)
    config = small.gaussians(changes | {"evaluate.smc": True})
    found, _ = evaluate(config, tmp_path / "alone")
    for name in ("log_z_lower", "transport_cost", "log_z_smc", "log_z_smc_standard_error"):
        assert np.isfinite(found[name]), name
    assert found["log_z_error_smc"] is None and 0 < found["ess_smc"] <= 1
    assert found["log_z_upper"] is None and found["w2_squared"] is None
    judged, state = untrained(config)
    replicated = jax.tree.map(lambda leaf: leaf[None], state)
    assert set(judged.probe(replicated)) == {"path_kl"}
    chains = tmp_path / "chains.npz"
    draws = np.random.default_rng(0).standard_normal((10, 20, 6))
    settings = json.dumps({"target": "double_well_particles", "options": {}})
    given = {"samples": draws, "log_z": 29.7, "settings": settings}
    np.savez(chains, **given)
    with_chains = small.gaussians(changes | {"evaluate.reference": str(chains)})
    found, _ = evaluate(with_chains, tmp_path / "judged")
    assert found["log_z_true"] == 29.7
    for name in ("w2_squared", "w2_squared_floor", "energy_distance", "log_z_upper"):
        assert np.isfinite(found[name]), name
    assert found["w2_geometric"] > found["w2_geometric_optimal"] > 0
    assert "log_z_smc" not in found
    other = json.dumps({"target": "double_well_particles", "options": {"temperature": 2.0}})
    for wrong, message in (
        (
            given | {"settings": other},
            r"is of 'double_well_particles' with the options \{'temp",
        ),
        ({"draws": draws}, "samples is not a file in the archive"),
    ):
        np.savez(chains, **wrong)
        with pytest.raises(InputError, match=f"evaluate.reference = .*{message}"):
            small.gaussians(changes | {"evaluate.reference": str(chains)})
    with pytest.raises(InputError, match="must be empty with a target that has samples"):
        small.gaussians({"evaluate.reference": str(chains)})


def test_a_run_without_a_finite_loss_can_be_evaluated(samples_only, tmp_path):
    # As after a run that was stopped by steps that were not finite.
    records = ({"step": 6, "phase": "forward 1", "loss": None},)
    _, plots = evaluate(samples_only, tmp_path, records)
    assert "training.png" not in plots


# ---- An energy that is not finite


@pytest.fixture
def broken_ring(monkeypatch):
    """A ring whose energy is NaN, and whose samples are not for training."""
    ring = registry.ENDPOINTS["ring"]

    @functools.wraps(ring)
    def broken(**options):
        endpoint = ring(**options)
        return endpoint._replace(log_density=lambda x: jnp.nan * endpoint.log_density(x))

    monkeypatch.setitem(registry.ENDPOINTS, "ring", broken)


def train(directory, changes):
    settings = small.SHRINK | {"evaluate.num_samples": 40} | changes
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    config = ROOT / "experiments" / "configs" / "two_moons.py"
    with jax.numpy_dtype_promotion("standard"):
        return run.main(["run", f"--config={config}", f"--workdir={directory}", *flags])


@pytest.mark.slow
def test_an_energy_of_nan_stops_the_run_with_its_last_good_state_saved(
    broken_ring, tmp_path, capsys
):
    changes = {"ipf.forward_steps": 20, "loop.max_consecutive_skipped": 6}
    changes |= {"loop.steps_per_dispatch": 3, "loop.checkpoint_every": 100}
    assert train(tmp_path / "run", changes) == 1
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith("error: the last 6 gradient steps were not finite, at step 6: ")
    assert "loop.max_consecutive_skipped = 6" in err
    assert not (tmp_path / "run" / workdir.SUMMARY).exists()
    records = workdir.read_records(tmp_path / "run", 100)
    assert [(r["step"], r["loss"], r["skipped"]) for r in records] == [
        (3, None, 1.0),
        (6, None, 1.0),
    ]
    saved = checkpoints.read(tmp_path / "run" / workdir.CHECKPOINTS)
    assert saved.step == 6
    assert str(saved.path) in err
    np.testing.assert_array_equal(saved.arrays["step"], 6)
    np.testing.assert_array_equal(saved.arrays["skipped"], 6)
    models = {k: v for k, v in saved.arrays.items() if k.startswith(("models", "buffers"))}
    floats = [v for v in models.values() if v.dtype == np.float32]
    assert len(floats) > 20
    # The log-weights of a buffer's particles may be -inf by design; nothing is NaN.
    assert not any(np.isnan(v).any() for v in floats)
    assert all(np.isfinite(v).all() for k, v in saved.arrays.items() if k.startswith("models"))


@pytest.mark.parametrize(
    "changes",
    [
        {"reference.sigma": 0.1},  # too little noise for the grid to be solved
        {"target.name": "ring"},  # the broken one
    ],
)
def test_an_exact_bridge_that_cannot_be_solved_is_none(broken_ring, changes):
    if "reference.sigma" in changes:
        changes = changes | {"target.name": "eight_gaussians", "target.options.radius": 1.0}
    experiment = build.build(small.shrunk("two_moons", changes))
    assert judge.Judge(experiment).bridge is None


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({"bridge_gap": 0.1, "log_z_error": 0.2}, ("bridge gap [nats]", (0.1, 0.0))),
        ({"bridge_gap": None, "log_z_error": 0.2}, ("log Z error [nats]", (0.2, 0.0))),
        (
            {"reward": -1.7, "reward_exact": -1.6, "log_z_error": 0.2},
            ("mean reward [nats]", (-1.7, -1.6)),
        ),
    ],
)
def test_the_first_number_is_what_the_run_is_after(fields, first):
    assert next(iter(report._headline_numbers(fields).items())) == first
