"""The wiring of matching: what is trained, by which coupling, and what it is judged by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import couplings, kernels, parallel, rollouts
from d2ejax.algorithms import matching
from d2ejax.endpoints import registry
from experiments import build, fields, judge, report
from experiments.errors import InputError
from tests.experiments import small

METHODS = tuple(fields.COUPLING_OF_METHOD)


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def states(experiment):
    """The first state, of one device, without compiling for it."""
    trainer = parallel.data_parallel(experiment.algorithm, devices=jax.local_devices()[:1])
    return trainer, trainer.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("sf2m", {}, "entropic"),
        ("eot", {}, "entropic"),
        ("cfm", {}, "exact"),
        ("cfm", {"matching.coupling": "independent"}, "independent"),
        ("cfm", {"matching.coupling": "entropic"}, "entropic"),
        ("sf2m", {"matching.coupling": "exact"}, "exact"),
    ],
)
def test_the_coupling_follows_the_method_unless_told(monkeypatch, method, changes, expected):
    seen = {}

    def spy(ends, couple, objective, **options):
        seen.update(couple=couple, **options)
        return original(ends, couple, objective, **options)

    original = matching.matching
    monkeypatch.setattr(matching, "matching", spy)
    tied = object()
    monkeypatch.setattr(
        couplings, "entropic", lambda law, t_max, **options: (tied, t_max, options)
    )
    build.build(small.shrunk(method, {"batch_size": 64, **changes}))
    assert seen["batch_size"] == 64 // jax.local_device_count()
    (couple,) = seen["couple"]
    if expected == "entropic":
        assert couple == (tied, 1.0, {"start": 0.0, "epsilon_scale": 1.0})
    else:
        assert couple is getattr(couplings, expected)


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_and_each_process_has_its_own_parameters(method):
    experiment = build.build(small.shrunk(method))
    trainer, before = states(experiment)
    first = jax.tree.map(np.asarray, before.model.params)
    after, metrics = trainer.run(before, experiment.total_steps)
    assert int(after.step[0]) == 3 and int(after.skipped[0]) == 0
    assert np.isfinite(metrics["loss"])
    for name, params in after.model.params.items():
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), first[name], params)
        assert any(jax.tree.leaves(moved)), name
    state = parallel.unreplicate(after)
    average = state.model.average
    expected = (average["forward"], average["backward"]) if method == "eot" else (average,) * 2
    assert experiment.forward_params(state) is expected[0]
    assert experiment.backward_params(state) is expected[1]
    assert not experiment.forward.backward and experiment.backward.backward
    assert experiment.has_noise == (method != "cfm")
    assert (experiment.flow is None) == (method == "eot")


@pytest.mark.parametrize("method", METHODS)
def test_before_training_a_process_is_the_reference_or_stands_still(method):
    experiment = build.build(small.shrunk(method, {"reference.name": "ornstein_uhlenbeck"}))
    state = parallel.unreplicate(states(experiment)[1])
    x = jnp.asarray([[[-1.0, 0.5], [1.0, 2.0]]])
    for backward, process, params in (
        (False, experiment.forward, experiment.forward_params(state)),
        (True, experiment.backward, experiment.backward_params(state)),
    ):
        law = rollouts.step_kernels(process, params, x)
        if method == "cfm":
            np.testing.assert_array_equal(law.mean, x)
            # Nothing that a metric could see, and nothing that overflows either.
            assert np.all(law.log_variance < -15) and np.all(law.log_variance > -30)
            continue
        plain = kernels.process(
            kernels.zero_network,
            experiment.law,
            experiment.grid,
            backward=backward,
            variance="fixed",
            discretisation="exact",
        )
        expected = rollouts.step_kernels(plain, None, x)
        np.testing.assert_allclose(law.mean, expected.mean, rtol=1e-6)
        np.testing.assert_allclose(law.log_variance, expected.log_variance, rtol=1e-5)


@pytest.mark.parametrize("method", ["sf2m", "cfm"])
def test_the_flow_of_an_untrained_network_is_the_drift_of_the_reference_or_zero(method):
    changes = {"reference.name": "ornstein_uhlenbeck", "reference.rate": 0.5}
    experiment = build.build(small.shrunk(method, changes))
    velocity = experiment.flow(parallel.unreplicate(states(experiment)[1]))
    x = jnp.asarray([1.0, -2.0])
    pull = 0.5 if method == "sf2m" else 0.0
    np.testing.assert_allclose(velocity(x, jnp.float32(0.3)), -pull * x, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_it_sees_no_energy(monkeypatch, method):
    def refuse(*_):
        raise AssertionError("training used what the configuration denies it")

    for name in ("gaussian", "eight_gaussians"):
        maker = registry.ENDPOINTS[name]

        def guarded(maker=maker, **options):
            return maker(**options)._replace(log_density=refuse)

        monkeypatch.setitem(registry.ENDPOINTS, name, functools.wraps(maker)(guarded))
    experiment = build.build(small.shrunk(method, {"network.energy_feature": True}))
    on_one = functools.partial(
        jax.pmap, axis_name=parallel.AXIS, devices=jax.local_devices()[:1]
    )
    keys = jax.random.split(jax.random.key(0), 1)
    state = jax.eval_shape(on_one(experiment.algorithm.init), keys)
    jax.eval_shape(on_one(experiment.algorithm.step), state)


def test_phases_cover_the_run():
    for total in (1, 3, 12):
        experiment = build.build(small.shrunk("sf2m", {"matching.num_steps": total}))
        labels, step = [], 0
        while step < experiment.total_steps:
            label, step = experiment.phase_of(step)
            labels.append(label)
        assert step == total == experiment.total_steps
        assert labels == [f"matching {i + 1}" for i in range(len(labels))]
        assert experiment.phase_of(total) == ("done", total)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ["source", "target"])
def test_energies_are_refused_by_name(method, end):
    with pytest.raises(InputError) as caught:
        small.shrunk(method, {f"{end}.access": "energy"})
    assert str(caught.value) == (
        f"{end}.access = 'energy': must be 'samples' with method = {method!r}"
    )


@pytest.mark.parametrize("method", ["sf2m", "cfm"])
def test_flows_refuse_a_learned_variance_and_other_predictions(method):
    with pytest.raises(InputError, match=rf"^learn_variance = True: must be false .*{method}"):
        small.shrunk(method, {"learn_variance": True})
    with pytest.raises(InputError, match=r"^network.prediction = 'endpoint': must be 'drift'"):
        small.shrunk(method, {"network.prediction": "endpoint"})
    for field, value in (("learn_variance", True), ("network.prediction", "endpoint")):
        small.shrunk("eot", {field: value})


def test_other_bad_settings_are_refused():
    with pytest.raises(
        InputError, match=r"^optimiser.warmup_steps = 3: must be fewer than the 3"
    ):
        small.shrunk("sf2m", {"optimiser.warmup_steps": 3})
    with pytest.raises(InputError, match=r"^matching.coupling = 'ot': must be one of 'auto'"):
        small.shrunk("sf2m", {"matching.coupling": "ot"})
    with pytest.raises(ValueError, match=r"^batch_size = 36: must be a multiple of 8"):
        build.build(small.shrunk("sf2m", {"batch_size": 36}))


@pytest.mark.parametrize("method", METHODS)
def test_a_flow_is_judged_by_its_ends_and_without_noise_by_no_density_of_paths(
    monkeypatch, tmp_path, method
):
    monkeypatch.setattr(judge, "CHUNK", 64)
    monkeypatch.setattr(judge, "SCORED", 64)
    monkeypatch.setattr(judge, "PROBED", 64)
    changes = {
        "method": method,
        "learn_variance": method == "eot",
        "reference.sigma": 1.0,
        "evaluate.plots": False,
        "evaluate.flow": True,
    }
    config = small.gaussians(changes, access=("samples", "samples"))
    experiment = build.build(config)
    state = parallel.unreplicate(states(experiment)[1])
    judged = judge.Judge(experiment)
    found = report.evaluate(config, judged, state, tmp_path)
    # Nothing is trained: a flow that stands still leaves the source as it is, and the ends of
    # the reference are wider than that.
    assert found["w2_squared_ode"] < found["w2_squared"] or method == "cfm"
    if method == "cfm":
        np.testing.assert_allclose(found["w2_squared_ode"], found["w2_squared"], rtol=1e-3)
    of_paths = {"path_kl", "bridge_gap", "bridge_gap_limit", "log_z_lower", "drift_error"}
    assert (of_paths & set(found) == set()) == (method == "cfm")
    assert ("bridge_gap" in judged.probe(states(experiment)[1])) == (method != "cfm")
    report.write_samples(config, judged, state, 4, tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as written:
        for name in ("log_weights", "log_forward", "log_backward", "log_reference"):
            assert np.all(np.isnan(written[name])) == (method == "cfm")
