"""The wiring: what is configured is what is trained, and training sees no more than it may.

Most tests trace the training step without compiling it: all Python code of a step runs while it
is traced, and the traced program is the step.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import pairs, parallel, references
from d2ejax.algorithms import ipf
from d2ejax.endpoints import registry
from experiments import build, ends, fields
from experiments.errors import InputError
from tests.experiments import small

MUON = {"optimiser.name": "muon"}
QUICK = {"optimiser.name": "adamw"}
"""Traced in half the time of Muon, for what has nothing to do with the optimiser."""


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def on_one_device(function):
    return jax.pmap(function, axis_name=parallel.AXIS, devices=jax.local_devices()[:1])


def keys():
    return jax.random.split(jax.random.key(0), 1)


def trace(config):
    """The programs that initialise and train, each with the constants in it."""
    experiment = build.build(config)
    init = on_one_device(experiment.algorithm.init)
    initialise, state = jax.make_jaxpr(init, return_shape=True)(keys())
    programs = [initialise, jax.make_jaxpr(on_one_device(experiment.algorithm.step))(state)]
    constants = [c for program in programs for c in constants_of(program)]
    text = "\n".join(re.sub("0x[0-9a-f]+", "", str(program)) for program in programs)
    return text, constants, experiment.total_steps


def constants_of(closed):
    found = [np.asarray(c).tobytes() for c in closed.consts if not is_key(c)]
    for equation in closed.jaxpr.eqns:
        for value in equation.params.values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                found += nested(item)
    return found


def nested(item):
    if isinstance(item, jax.extend.core.ClosedJaxpr):
        return constants_of(item)
    if isinstance(item, jax.extend.core.Jaxpr):
        return constants_of(jax.extend.core.ClosedJaxpr(item, ()))
    return []


def is_key(constant):
    return jnp.issubdtype(jnp.asarray(constant).dtype, jax.dtypes.prng_key)


# ---- What each pair of ends is trained by


@pytest.fixture
def wired(monkeypatch):
    """Builds a configuration and returns (backward half, forward half, plan)."""
    seen = {}

    def spy(backward, forward, plan, **options):
        seen.update(halves=(backward, forward, plan))
        return original(backward, forward, plan, **options)

    original = ipf.ipf
    monkeypatch.setattr(ipf, "ipf", spy)

    def wired(changes):
        build.build(small.shrunk("two_moons", changes))
        return seen["halves"]

    return wired


@pytest.mark.parametrize(
    ("source", "target", "asked", "losses"),
    [
        ("samples", "samples", {}, ("bridge_matching", "bridge_matching")),
        ("samples", "energy", {}, ("bridge_matching", "semi_discrete")),
        ("energy", "samples", {}, ("semi_discrete", "bridge_matching")),
        ("energy", "energy", {}, ("log_variance", "semi_discrete")),
        ("samples", "energy", {"forward": "log_variance"}, ("bridge_matching", "log_variance")),
        (
            "samples",
            "energy",
            {"forward": "trajectory_balance"},
            ("bridge_matching", "trajectory_balance"),
        ),
        (
            "energy",
            "samples",
            {"backward": "log_variance"},
            ("log_variance", "bridge_matching"),
        ),
        ("energy", "energy", {"backward": "semi_discrete"}, ("semi_discrete", "log_variance")),
        ("energy", "energy", {"forward": "log_variance"}, ("log_variance", "log_variance")),
        (
            "energy",
            "energy",
            {"forward": "log_variance", "backward": "trajectory_balance"},
            ("trajectory_balance", "log_variance"),
        ),
    ],
)
def test_losses_follow_the_access_unless_told(wired, source, target, asked, losses):
    changes = {f"ipf.{direction}_loss": loss for direction, loss in asked.items()}
    access = {"source.access": source, "target.access": target}
    backward, forward, plan = wired(access | changes | {"ipf.iterations": 2})
    assert (backward.loss, forward.loss) == losses
    assert backward.trained.backward and not forward.trained.backward
    assert forward.opposite is backward.trained and backward.opposite is forward.trained
    assert (forward.start.name, forward.goal.name) == ("two_moons", "ring")
    assert (backward.start.name, backward.goal.name) == ("ring", "two_moons")
    for half in (backward, forward):
        ends = {end.name: end for end in (half.start, half.goal)}
        for name, access, explorer in zip(
            ("two_moons", "ring"), (source, target), half.particles, strict=True
        ):
            assert (ends[name].sample is None) == (access == "energy")
            assert (ends[name].log_density is None) == (access == "samples")
            assert (explorer is None) == (access == "samples")
    # A semi-discrete half-step needs no opposite process: that one is fitted once, at the end.
    directions = [direction for direction, _, _ in plan.boundaries()]
    expected = {
        ("bridge_matching", "semi_discrete"): [ipf.FORWARD, ipf.FORWARD, ipf.BACKWARD],
        ("log_variance", "semi_discrete"): [ipf.FORWARD, ipf.FORWARD, ipf.BACKWARD],
        ("semi_discrete", "bridge_matching"): [ipf.BACKWARD, ipf.BACKWARD, ipf.FORWARD],
        ("semi_discrete", "log_variance"): [ipf.BACKWARD, ipf.BACKWARD, ipf.FORWARD],
    }
    assert directions == expected.get(losses, [ipf.BACKWARD, ipf.FORWARD] * 2)
    assert plan.total == 2 * (3 + 2)


@pytest.mark.parametrize(
    ("method", "changes", "losses"),
    [
        ("dsb", {}, ("mean_matching", "mean_matching")),
        ("dsb", {"ipf.forward_loss": "drift_matching"}, ("mean_matching", "drift_matching")),
        ("sde", {"ipf.divergence": "hutchinson"}, ("sde_likelihood", "sde_likelihood")),
        ("sde", {"ipf.backward_loss": "likelihood"}, ("likelihood", "sde_likelihood")),
        ("dsbm", {"ipf.reanchor": "both"}, ("bridge_matching", "bridge_matching")),
    ],
)
def test_a_method_between_samples_is_ipf_with_its_own_losses(wired, method, changes, losses):
    cache = {"ipf.cached_batches": 3, "ipf.cache_every": 1}
    given = {"method": method, "target.access": "samples"} | PLAIN | cache | changes
    halves = wired(given)[:2]
    assert tuple(half.loss for half in halves) == losses
    for half in halves:
        assert half.reanchor == (method == "dsbm")
        assert half.divergence == given.get("ipf.divergence", "exact")
        assert (half.cached_batches, half.cache_every) == (3, 1)


def test_a_batch_is_split_over_the_devices(wired):
    backward, forward, _ = wired({"batch_size": 64})
    assert backward.batch_size == forward.batch_size == 64 // jax.local_device_count()
    config = small.shrunk("two_moons", {"batch_size": 36})
    with pytest.raises(
        ValueError, match=r"batch_size = 36: must be a multiple of 16: groups of 2 on each of 8"
    ):
        build.build(config)


def test_a_light_bridge_splits_both_of_its_batches():
    config = {"method": "lightsb", "target.access": "samples"}
    for key in ("batch_size", "light.batch_size"):
        with pytest.raises(ValueError, match=f"^{key} = 36: must be a multiple of 8"):
            build.build(small.shrunk("two_moons", config | {key: 36}))


def test_a_light_bridge_is_judged_by_its_averages():
    experiment = build.build(small.shrunk("lightsb"))
    state = jax.eval_shape(on_one_device(experiment.algorithm.init), keys())
    for params, model in (
        (experiment.forward_params, state.potential),
        (experiment.backward_params, state.backward),
    ):
        assert params(state) is model.average
    assert not experiment.forward.backward and experiment.backward.backward
    labels = [experiment.phase_of(step) for step in (0, 2, 3, 4)]
    assert labels == [("forward 1", 3)] * 2 + [("backward 1", 5)] * 2


def test_a_process_is_judged_by_its_average():
    experiment = build.build(small.gaussians())
    state = jax.eval_shape(on_one_device(experiment.algorithm.init), keys())
    tagged = tuple(
        model._replace(average={"drift": f"average {name}"}, params={"drift": "raw"})
        for name, model in zip(("backward", "forward"), state.models, strict=True)
    )
    state = state._replace(models=tagged)
    assert experiment.forward_params(state) == "average forward"
    assert experiment.backward_params(state) == "average backward"


def test_a_pair_gives_both_ends_and_their_bridge():
    options = {"dim": 3, "num_components": 2}
    config = small.shrunk("mixtures", {"pair.options": options, "reference.sigma": 0.7})
    experiment = build.build(config)
    pair = pairs.make_pair("mixtures", references.brownian(0.7), 1.0, **options)
    assert experiment.source.dim == experiment.target.dim == 3
    np.testing.assert_array_equal(experiment.target.modes, pair.target.modes)
    assert experiment.bridge.path_kl == pair.bridge.path_kl
    x = np.zeros((1, 3), np.float32)
    np.testing.assert_allclose(
        experiment.source.log_density(x[0]),
        experiment.bridge.source.log_density(x)[0],
        rtol=1e-4,
    )
    assert build.build(small.gaussians()).bridge is None


# ---- Training sees no more than it may


@pytest.fixture
def forbidden(monkeypatch):
    """Endpoints whose samples, or log-density, raise when used."""

    def refuse(*_):
        raise AssertionError("training used what the configuration denies it")

    def forbid(name, field):
        maker = registry.ENDPOINTS[name]

        @functools.wraps(maker)
        def guarded(**options):
            return maker(**options)._replace(**{field: refuse})

        monkeypatch.setitem(registry.ENDPOINTS, name, guarded)

    forbid.blind = lambda endpoint: endpoint._replace(sample=refuse)
    return forbid


def trace_both_half_steps(name, changes):
    experiment = build.build(small.shrunk(name, QUICK | changes))
    state = jax.eval_shape(on_one_device(experiment.algorithm.init), keys())
    jax.eval_shape(on_one_device(experiment.algorithm.step), state)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ipf.forward_loss": "log_variance"},
        {"ipf.forward_loss": "trajectory_balance"},
        {"ipf.backward_loss": "semi_discrete"},
    ],
)
def test_energy_to_energy_never_asks_for_samples(forbidden, changes):
    forbidden("cross", "sample")
    forbidden("ring", "sample")
    trace_both_half_steps("cross_to_ring", changes)


def test_energies_of_a_pair_are_trained_without_its_samples(forbidden, monkeypatch):
    @functools.wraps(pairs.mixture_pair)
    def blinded(*arguments, **options):
        source, target, bridge = pairs.mixture_pair(*arguments, **options)
        return pairs.Pair(forbidden.blind(source), forbidden.blind(target), bridge)

    monkeypatch.setitem(pairs.PAIRS, "mixtures", blinded)
    # Other options than elsewhere: a pair is kept.
    changes = {"source.access": "energy", "pair.options": {"num_components": 2, "seed": 9}}
    trace_both_half_steps("mixtures", changes)
    with pytest.raises(AssertionError, match="denies"):
        trace_both_half_steps("mixtures", changes | {"source.access": "samples"})


@pytest.mark.parametrize("loss", ["auto", "log_variance", "trajectory_balance"])
def test_data_to_energy_sees_no_sample_of_the_target_and_no_energy_of_the_source(
    forbidden, loss
):
    forbidden("ring", "sample")
    forbidden("two_moons", "log_density")
    trace_both_half_steps("two_moons", {"ipf.forward_loss": loss})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gaussian_to_ring_d2d", {}),
        ("gaussian_to_ring_d2d", {"ipf.reanchor": "none"}),
        ("dsb", {"ipf.cache_every": 1}),
        ("dsb", {"ipf.forward_loss": "drift_matching", "ipf.cached_batches": 0}),
        ("sde_likelihood", {"ipf.cache_every": 1}),
        ("dsbm", {"ipf.cache_every": 1}),
        ("lightsb", {"source.name": "gaussian"}),
        ("enot", {}),
    ],
)
def test_data_to_data_sees_no_energy(forbidden, name, changes):
    forbidden("gaussian", "log_density")
    forbidden("ring", "log_density")
    trace_both_half_steps(name, changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sampler", {}),
        ("sampler", {"sampler.loss": "subtrajectory_balance"}),
        ("sampler", {"sampler.loss": "path_kl"}),
        ("asbs", {}),
        ("asbs", {"adjoint.corrector": "semi_discrete", "adjoint.off_policy_ratio": 0.5}),
        ("asbs", {"method": "adjoint_sampling"}),
        ("asbs", {"method": "bms"}),
    ],
)
def test_from_an_energy_no_sample_of_it_is_seen(forbidden, name, changes):
    forbidden("ring", "sample")
    forbidden("two_moons", "log_density")
    trace_both_half_steps(name, changes)


def test_what_a_target_is_judged_by_is_not_trained_on(forbidden, monkeypatch):
    monkeypatch.setattr(ends, "with_reference", lambda end, *_: forbidden.blind(end))
    changes = QUICK | PARTICLES | {"evaluate.reference": "chains.npz"}
    experiment = build.build(small.gaussians(changes))
    with pytest.raises(AssertionError, match="denies"):
        experiment.target.sample(None, 3)
    state = jax.eval_shape(on_one_device(experiment.algorithm.init), keys())
    jax.eval_shape(on_one_device(experiment.algorithm.step), state)


def test_the_proof_would_notice(forbidden):
    forbidden("ring", "sample")
    with pytest.raises(AssertionError, match="denies"):
        trace_both_half_steps("gaussian_to_ring_d2d", {})


@pytest.mark.slow
def test_energy_to_energy_trains_without_samples(forbidden):
    forbidden("cross", "sample")
    forbidden("ring", "sample")
    # Both gradients pass through the energies; a first refresh of both ends is in.
    changes = {"ipf.num_anchors": 64, "exploration.buffer_size": 64}
    changes |= QUICK | {"optimiser.schedule": "constant"}
    experiment = build.build(small.shrunk("cross_to_ring", changes))
    trainer = parallel.data_parallel(experiment.algorithm, devices=jax.local_devices()[:1])
    before = trainer.init(jax.random.key(0))
    first = jax.tree.map(np.asarray, before.models)
    buffers = jax.tree.map(np.asarray, before.buffers)
    after, metrics = trainer.run(before, experiment.total_steps)
    assert int(after.skipped[0]) == 0
    assert np.isfinite(metrics["loss"])
    for old, new in zip(first, after.models, strict=True):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), old.params, new.params)
        assert any(jax.tree.leaves(moved))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new.params))
    for old, new in zip(buffers, after.buffers, strict=True):
        assert not np.array_equal(old.positions, new.positions)


# ---- Every key reaches the training step

DATA = {
    "reference.sigma": 1.0,
    "grid.num_steps": 3,
    "grid.t_max": 0.3,
    "grid.spacing": "uniform",
    "grid.power": 3.0,
    "learn_variance": False,
    "variance.family": "bounded",
    "variance.bound": 5.0,
    "network.width": 5,
    "network.prediction": "endpoint",
    "network.affine": True,
    "network.depth": 2,
    "network.num_frequencies": 2,
    "network.layer_norm": False,
    "network.dtype": "bfloat16",
    "network.steps_at_once": 1,
    "network.drift_scale": 2.0,
    "batch_size": 64,
    "ipf.iterations": 2,
    "ipf.forward_steps": 4,
    "ipf.backward_steps": 3,
    "ipf.reanchor": "backward",
    "ipf.warm_start": False,
    "ipf.likelihood_batch_size": 16,
    "ipf.use_ema_opposite": False,
    "optimiser.name": "adamw",
    "optimiser.learning_rate": 3e-3,
    "optimiser.backward_ratio": 2.0,
    "optimiser.schedule": "constant",
    "optimiser.warmup_steps": 1,
    "optimiser.b2": 0.99,
    "optimiser.weight_decay": 0.1,
    "optimiser.clip_norm": 2.0,
    "optimiser.ema_decay": 0.9,
    "source.options": {"dim": 1, "std": 2.0},
    "target.options": {"dim": 1, "std": 2.0},
}
"""Keys that matter between two sampled ends, each with another value than the default."""

ENERGY = {
    "source.access": "energy",
    "target.access": "samples",
    "source.name": "gaussian_mixture",
    "target.name": "gaussian_mixture",
    "ipf.forward_loss": "trajectory_balance",
    "ipf.paths_per_start": 4,
    "network.energy_feature": True,
    "exploration.off_policy_ratio": 0.4,
    "exploration.off_policy_ratio_end": 0.4,
    "exploration.reuse_path": False,
    "exploration.buffer_size": 9,
    "exploration.add_ends": False,
    "exploration.priority_power": 0.5,
    "exploration.refresh_method": "hmc",
    "exploration.refresh_every": 3,
    "exploration.refresh_steps": 2,
    "exploration.refresh_step_size": 0.003,
    "exploration.restart_fraction": 0.1,
    "exploration.restart_std": 2.0,
    "exploration.inverse_temperature_start": 0.5,
}
"""Keys that matter where an end is an energy."""

ELSEWHERE = {
    "seed",  # the loop draws the first key from it
    "parallel.backend",  # the trainer takes it
    "parallel.cpu_devices",  # the command line sets it before JAX starts
    "parallel.shards",  # see devices_test
    "loop.steps_per_dispatch",
    "loop.checkpoint_every",
    "loop.keep",
    "loop.keep_best",
    "loop.tensorboard",
    "loop.max_consecutive_skipped",
    "evaluate.num_samples",
    "evaluate.num_paths",
    "evaluate.flow",
    "evaluate.smc",
    "evaluate.sinkhorn",
    "evaluate.reference",
    "evaluate.plots",
    # Under a base that is trained first: see fine_tuning_test.
    "fine_tuning.base",
    "fine_tuning.base_digest",
    "fine_tuning.loss",
    "fine_tuning.reward.name",
    "fine_tuning.reward.options",
    "fine_tuning.temperature",
    "fine_tuning.num_steps",
    "fine_tuning.num_paths",
    "fine_tuning.tracked_steps",
    "fine_tuning.noise",
}

PAIR = {
    "pair.name": "mixtures",
    "pair.options": {"num_components": 2},
    "source.name": "pair",
    "source.options": {},
    "target.name": "pair",
    "target.options": {},
}
"""Settings of two ends that are made as a pair."""

PLAIN = {"ipf.reanchor": "none", "learn_variance": False}
"""Settings that every loss between sampled ends allows."""

LIGHT = {"method": "lightsb"}
"""The settings of a light bridge."""

MATCHING = PLAIN | {"method": "sf2m"}
"""Settings of a flow and a score."""

GRAPH = MATCHING | {"graph.of": "forward"}
"""Settings of a drift with a graph."""

ENOT = {"method": "enot"}
"""Settings of a saddle point."""

SAMPLER = {
    "method": "sampler",
    "target.access": "energy",
    "exploration.refresh_method": "ula",
}
"""Settings of a diffusion sampler."""

DIFFUSION = {
    "method": "diffusion",
    "reference.name": "variance_preserving",
    "reference.reversed": True,
    "grid.t_max": 1.0,
}
"""Settings of a diffusion model."""

ADJOINT = SAMPLER | {"method": "asbs"}
"""Settings of an adjoint method."""

CLOSED_FORM = ADJOINT | {"adjoint.corrector": "semi_discrete"}
"""Settings of one without a network for its corrector."""

PARTICLES = SAMPLER | {
    "source.options": {"dim": 6},
    "target.name": "double_well_particles",
    "target.options": {},
}
"""Settings of four particles in the plane."""

SNAPSHOTS = MATCHING | {
    "snapshots.name": "branching",
    "snapshots.options": {"num_snapshots": 3},
    "source.name": "snapshots",
    "source.options": {},
    "target.name": "snapshots",
    "target.options": {},
    "grid.num_steps": 6,
}
"""Settings of a process observed three times."""

UNDER = {
    "snapshots.name": (SNAPSHOTS, "regulatory"),
    "snapshots.options": (SNAPSHOTS, {"num_snapshots": 4}),
    "snapshots.left_out": (SNAPSHOTS, 1),
    "graph.of": (MATCHING, "current"),
    "graph.width": (GRAPH, 3),
    "graph.depth": (GRAPH, 1),
    "graph.num_frequencies": (GRAPH, 2),
    "graph.sparsity": (GRAPH, 0.5),
    "matching.num_steps": (MATCHING, 4),
    "matching.coupling": (MATCHING, "independent"),
    "matching.coupling_epsilon_scale": (MATCHING, 2.0),
    "matching.times": (MATCHING | {"grid.num_steps": 3}, "grid"),
    "matching.num_times": (MATCHING, 3),
    "matching.score_weight": (MATCHING, 2.0),
    "matching.path_std": (PLAIN | {"method": "cfm"}, 0.1),
    "network.equivariant": (PARTICLES, True),
    "enot.num_steps": (ENOT, 4),
    "enot.backward_steps": (ENOT, 3),
    "enot.inner_steps": (ENOT, 2),
    "sampler.num_steps": (SAMPLER, 4),
    "sampler.loss": (SAMPLER, "trajectory_balance"),
    "sampler.decay": (SAMPLER | {"sampler.loss": "subtrajectory_balance"}, 0.5),
    "sampler.tracked_steps": (SAMPLER | {"sampler.loss": "path_kl"}, 1),
    "sampler.window": (
        SAMPLER | {"sampler.loss": "path_kl", "sampler.tracked_steps": 1},
        "random",
    ),
    "adjoint.iterations": (ADJOINT, 3),
    "adjoint.forward_steps": (ADJOINT, 4),
    "adjoint.corrector_steps": (ADJOINT, 3),
    "adjoint.backward_steps": (ADJOINT, 3),
    "adjoint.corrector": (ADJOINT, "semi_discrete"),
    "adjoint.rollout_every": (ADJOINT, 3),
    "adjoint.rollout_size": (ADJOINT, 24),
    "adjoint.replay_size": (ADJOINT, 9),
    "adjoint.off_policy_ratio": (CLOSED_FORM, 0.5),
    "adjoint.num_anchors": (CLOSED_FORM, 5),
    "adjoint.max_gradient": (ADJOINT, 5.0),
    "adjoint.curvature": (ADJOINT, 10.0),
    "adjoint.damping": (ADJOINT, 1.0),
    "light.num_components": (LIGHT, 5),
    "light.init_share": (LIGHT, 0.2),
    "light.steps": (LIGHT, 4),
    "light.backward_steps": (LIGHT, 3),
    "light.batch_size": (LIGHT, 64),
    "light.learning_rate": (LIGHT, 3e-3),
    "pair.name": (PAIR, "gaussian_plan"),
    "pair.options": (PAIR, {"num_components": 3}),
    "reference.rate": ({"reference.name": "ornstein_uhlenbeck"}, 2.0),
    "reference.sigma_min": ({"reference.name": "variance_exploding"}, 0.02),
    "reference.sigma_max": ({"reference.name": "variance_exploding"}, 4.0),
    "reference.beta_min": ({"reference.name": "variance_preserving"}, 0.2),
    "reference.beta_max": ({"reference.name": "variance_preserving"}, 10.0),
    "reference.name": ({}, "ornstein_uhlenbeck"),
    "reference.reversed": ({"reference.name": "variance_preserving"}, True),
    "diffusion.num_steps": (DIFFUSION, 4),
    # Both are the same for Brownian motion.
    "reference.discretisation": ({"reference.name": "ornstein_uhlenbeck"}, "euler"),
    "method": (PLAIN, "dsb"),
    "ipf.first_coupling": ({"target.access": "samples"}, "independent"),
    "ipf.start_from": ({"target.access": "samples"}, "lightsb"),
    "ipf.divergence": (PLAIN | {"method": "sde"}, "hutchinson"),
    # One divides any number of gradient steps.
    "ipf.cached_batches": ({"ipf.cache_every": 1}, 2),
    "ipf.cache_every": (
        {"ipf.forward_steps": 2, "ipf.cached_batches": 2, "ipf.cache_every": 1},
        2,
    ),
    "ipf.num_anchors": ({"target.access": "energy", "ipf.forward_loss": "semi_discrete"}, 8),
    "ipf.min_anchors": ({"target.access": "energy", "ipf.forward_loss": "hybrid"}, 8.0),
    "ipf.backward_loss": (
        {"source.access": "energy", "ipf.backward_loss": "log_variance"},
        "trajectory_balance",
    ),
    "network.score_clip": (
        {
            "target.access": "energy",
            "ipf.forward_loss": "log_variance",
            "network.energy_feature": True,
        },
        50.0,
    ),
    "exploration.anneal_fraction": (
        {
            "target.access": "energy",
            "ipf.forward_loss": "log_variance",
            "exploration.inverse_temperature_start": 0.5,
        },
        1.0,
    ),
}
"""Keys that matter under other settings: those settings, and another value."""


def data_ends(changes):
    return trace(small.gaussians(QUICK | changes, access=("samples", "samples")))


def energy_end(changes):
    cheap = {"ipf.forward_loss": "log_variance", "exploration.refresh_method": "ula"}
    return trace(small.gaussians(QUICK | cheap | changes))


@pytest.fixture(scope="module")
def data_trace():
    """The trace between sampled ends under some settings, which several keys share."""
    found = {}

    def data_trace(settings):
        name = str(sorted(settings.items()))
        if name not in found:
            found[name] = data_ends(settings)
        return found[name]

    return data_trace


@pytest.fixture(scope="module")
def energy_trace():
    return energy_end({})


def test_every_key_is_in_one_of_the_lists():
    listed = [*DATA, *ENERGY, *ELSEWHERE, *UNDER]
    assert sorted(listed) == sorted(fields.FIELDS)


@pytest.mark.parametrize("key", DATA)
def test_a_key_changes_what_is_trained(data_trace, key):
    settings = MUON if key.startswith("optimiser.") else {}
    assert data_ends(settings | {key: DATA[key]}) != data_trace(settings)


@pytest.mark.parametrize("key", [k for k in ENERGY if not k.startswith(("source", "target"))])
def test_a_key_of_energies_changes_what_is_trained(energy_trace, key):
    assert energy_end({key: ENERGY[key]}) != energy_trace


@pytest.mark.parametrize("key", UNDER)
def test_a_key_changes_what_is_trained_where_it_applies(data_trace, key):
    settings, value = UNDER[key]
    assert data_ends(settings | {key: value}) != data_trace(settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5, "loop.steps_per_dispatch": 3, "loop.keep": 7, "evaluate.num_paths": 99},
        {"reference.rate": 3.0, "reference.beta_max": 5.0, "reference.sigma_max": 9.0},
        {"exploration.buffer_size": 99, "exploration.refresh_every": 7},
        {"ipf.num_anchors": 9, "ipf.paths_per_start": 4, "network.score_clip": 3.0},
    ],
)
def test_what_does_not_apply_changes_nothing(data_trace, changes):
    # Else the tests above would pass for any key.
    assert data_ends(changes) == data_trace({})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Eight devices.
        ({"batch_size": 128}, None),
        ({"batch_size": 2048}, 1),
        ({"batch_size": 128, "ipf.likelihood_batch_size": 2048}, 1),
        ({"batch_size": 2048, "network.steps_at_once": 2}, 2),
        ({"batch_size": 128, "network.steps_at_once": 1}, 1),
    ],
)
def test_many_paths_are_scored_in_parts_on_a_cpu(changes, expected):
    experiment = build.build(small.gaussians({"exploration.buffer_size": 256} | changes))
    assert experiment.forward.steps_at_once == experiment.backward.steps_at_once == expected


def test_parts_of_a_path_must_make_a_path():
    match = r"network.steps_at_once = 3: must be 0 or a divisor of grid.num_steps = 4"
    with pytest.raises(InputError, match=match):
        small.gaussians({"grid.num_steps": 4, "network.steps_at_once": 3})
