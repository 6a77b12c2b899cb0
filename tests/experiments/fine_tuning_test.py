"""The wiring of diffusion models and of what is fine-tuned from a finished run."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import endpoints, kernels, parallel, rollouts
from d2ejax.algorithms import fine_tuning
from d2ejax.endpoints.base import log_density, sampler
from experiments import (
    arguments,
    bases,
    build,
    checkpoints,
    fields,
    judge,
    loop,
    report,
    sampling,
    tilts,
    validation,
    workdir,
)
from experiments.errors import InputError
from tests import gaussian_case
from tests.experiments import finished, small

VP = {
    "method": "diffusion",
    "reference.name": "variance_preserving",
    "reference.reversed": True,
    "grid.t_max": 1.0,
    # Adamw compiles sooner.
    "optimiser.name": "adamw",
}
TUNED = VP | {"method": "fine_tuning", "fine_tuning.reward.options": {"dim": 1, "mean": 1.0}}


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def samples(changes):
    return small.gaussians(changes, access=("samples", "samples"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bases") / "vp"
    config = samples(VP | {"optimiser.learning_rate": 0.1})
    return directory, *finished.run(directory, config, num_steps=3)


def laws(process, params, given):
    return gaussian_case.jit(functools.partial(rollouts.step_kernels, process))(params, given)


def tuned(base, changes=None):
    return samples(TUNED | {"fine_tuning.base": str(base[0])} | (changes or {}))


def test_a_diffusion_model_is_trained_and_its_opposite_is_known(base):
    _, experiment, state, metrics = base
    assert int(state.step) == experiment.total_steps == 3 and int(state.skipped) == 0
    assert np.isfinite(metrics["loss"])
    assert experiment.forward_params(state) is state.model.average
    assert experiment.backward.backward and not experiment.forward.backward
    # The noise falls on the way to the data, and forgets them.
    variances = np.exp(np.asarray(experiment.reference.steps.log_variance))
    assert np.all(np.diff(variances) < 0)
    assert float(experiment.law.scale(0.0, 1.0)) < 0.01


def bits(state):
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    return [np.asarray(leaf).tobytes() for leaf in leaves]


@pytest.fixture(scope="module")
def control(base):
    """A fine-tuning of three steps: what is compiled, and its first state and its last."""
    config = tuned(base, {"fine_tuning.loss": "control", "learn_variance": False})
    found = build.build(config)
    trainer = parallel.data_parallel(found.algorithm, devices=jax.local_devices()[:1])
    # A run takes its state's memory.
    before, given = (trainer.init(jax.random.key(1)) for _ in range(2))
    return config, found, trainer, before, trainer.run(given, found.total_steps)


def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(control, tmp_path):
    config, found, trainer, before, (after, _) = control
    middle, _ = trainer.run(trainer.init(jax.random.key(1)), 1)
    assert len({tuple(bits(state)) for state in (before, middle, after)}) == 3
    with checkpoints.manager(tmp_path, keep=1) as opened:
        checkpoints.save(opened, 1, trainer.gather(middle), {"times": {}})
    # As another process does: all but the checkpoint anew, and the base read once more.
    again = build.build(config)
    resumed = parallel.data_parallel(again.algorithm, devices=jax.local_devices()[:1])
    start = loop.start(resumed, jax.random.key(1), checkpoints.read(tmp_path))
    assert start.step == 1
    last, _ = resumed.run(start.state, found.total_steps - start.step)
    assert bits(last) == bits(after)


def test_it_starts_as_the_base_and_changes_it(base, control):
    _, experiment, base_state, _ = base
    _, found, _, before, (after, metrics) = control
    state = parallel.unreplicate(before)
    given = jax.random.normal(jax.random.key(2), (5, found.grid.num_steps, 1))
    own = laws(found.forward, found.forward_params(state), given)
    base_params = experiment.forward_params(base_state)
    expected = laws(experiment.forward, base_params, given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, expected)
    # And not as the reference: the base is a trained one.
    reference = laws(experiment.reference, None, given)
    assert np.abs(own.mean - reference.mean).max() > 1e-3
    params = found.forward_params(parallel.unreplicate(after))
    assert np.isfinite(metrics["loss"]) and int(parallel.unreplicate(after).skipped) == 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        params[kernels.BASE],
        base_params,
    )
    moved = laws(found.forward, params, given)
    assert np.abs(moved.mean - own.mean).max() > 1e-4
    paths = np.asarray(jax.random.normal(jax.random.key(3), (30, found.grid.num_steps + 1, 1)))
    measured = found.measure(jax.random.key(4), parallel.unreplicate(after), paths)
    # log N(x; 1, 1) of a standard normal x.
    assert measured["reward"].value == pytest.approx(
        np.mean(-0.5 * (paths[:, -1] - 1) ** 2) - 0.5 * np.log(2 * np.pi), rel=1e-4
    )
    assert measured["kl_to_base"].value > 0 and np.isfinite(measured["reward_base"].value)


def test_what_it_is_judged_by_are_the_weighted_data(base):
    found = build.build(tuned(base))
    # N(0, .6²) times N(1, 1).
    precision = 1 / 0.36 + 1
    draws = np.asarray(sampler(found.target)(jax.random.key(0), 4000), np.float64)
    assert abs(draws.mean() - 1 / precision) < 4 * (1 / precision / 4000) ** 0.5
    assert abs(draws.var() * precision - 1) < 4 * (2 / 4000) ** 0.5
    assert found.target.moments is None and found.target.log_z is None
    at = [float(log_density(found.target)(jnp.full(1, x))) for x in (0.0, 1.0)]
    assert at[1] - at[0] == pytest.approx(0.5 - 0.5 / 0.36, rel=1e-5)


def reward(x):
    return -0.5 * jnp.sum((x - 1.0) ** 2)


def kl_of_gaussians(mean, variance, base_mean, base_variance):
    ratio = variance / base_variance
    return 0.5 * (ratio + (mean - base_mean) ** 2 / base_variance - 1 - np.log(ratio))


def test_the_optimum_for_data_is_known(key):
    _, optimum = tilts.of_data(endpoints.gaussian(dim=1, std=0.6), reward)
    found_reward, found_kl = optimum(key)
    variance = 1 / (1 / 0.36 + 1)
    exact = -0.5 * ((1 - variance) ** 2 + variance)
    assert found_reward == pytest.approx(exact, abs=0.01)
    exact_kl = kl_of_gaussians(variance, variance, 0.0, 0.36)
    assert found_kl == pytest.approx(exact_kl, abs=0.01)


def test_a_bridge_is_tilted_from_each_start_by_itself(key):
    config = samples({"method": "eot", "grid.num_steps": 2, "grid.t_max": 0.4})
    experiment = build.build(config)  # Its reference has σ² = 2.
    source, noise = endpoints.gaussian(dim=1, std=1.5), 0.8
    tilt = tilts.of_process(experiment.reference, None, source, experiment.target, reward)
    variance = 1 / (1 / noise + 1)
    n, shrink = 2000, variance / noise
    draws = np.asarray(sampler(tilt.endpoint)(key, n), np.float64)
    total = variance + shrink**2 * 2.25
    # One of 512 ends is drawn, so that 1/512 of what the tilt does is missing.
    assert abs(draws.mean() - variance) < 4 * (total / n) ** 0.5 + variance / 512
    assert abs(draws.var() / total - 1) < 4 * (2 / n) ** 0.5 + 2 / 512
    assert tilt.endpoint.log_density is None
    starts = np.random.default_rng(0).normal(scale=1.5, size=100_000)
    kls = kl_of_gaussians(variance + shrink * starts, variance, starts, noise)
    assert tilt.optimum(key)[1] == pytest.approx(kls.mean(), rel=0.1)


@pytest.mark.parametrize("of", ["data", "process"])
def test_an_optimum_is_given_where_enough_draws_carry_the_weight(of, key):
    """With r(x) = s x a standard normal law moves to s: reward s², KL s²/2."""

    def optimum(slope):
        def linear(x):
            return slope * jnp.sum(x)

        if of == "data":
            return tilts.of_data(endpoints.gaussian(dim=1), linear).optimum(key)
        # σ² T = 1, from starts that are the same.
        config = samples({"method": "eot", "grid.num_steps": 1, "grid.t_max": 0.5})
        found = build.build(config)
        start = endpoints.gaussian(dim=1, std=1e-3)
        given = (found.reference, None, start, found.target)
        return tilts.of_process(*given, linear).optimum(key)

    assert optimum(1.0) == (pytest.approx(1.0, rel=0.03), pytest.approx(0.5, rel=0.03))
    # Of 2048 ends about one is beyond 3.3, and of 100 000 draws about three are beyond 4.
    assert optimum(4.0) == (None, None)


def test_losses_are_listed_as_the_library_knows_them():
    allowed = fields.FIELDS["fine_tuning.loss"].allowed
    assert allowed == "one of " + ", ".join(map(repr, fine_tuning.LOSSES))


LOG_VARIANCE = {"fine_tuning.loss": "log_variance"}


def test_every_setting_reaches_the_library(base, monkeypatch):
    seen = []

    def spy(given, **options):
        seen.append(given)
        return fine_tuning_of(given, **options)

    fine_tuning_of = fine_tuning.fine_tuning
    monkeypatch.setattr(fine_tuning, "fine_tuning", spy)
    plain = build.build(tuned(base))
    changes = {
        "fine_tuning.reward.name": "gaussian_mixture",
        "fine_tuning.reward.options": {"means": [[0.0]], "stds": 0.5},
        "fine_tuning.temperature": 2.0,
        "fine_tuning.num_steps": 4,
        "fine_tuning.num_paths": 4,
        "fine_tuning.noise": 0.5,
    }
    other = build.build(tuned(base, LOG_VARIANCE | changes))
    cut = {"fine_tuning.loss": "control", "fine_tuning.tracked_steps": 1}
    build.build(tuned(base, cut))
    first, second, third = seen
    assert (plain.total_steps, other.total_steps) == (3, 4)
    assert (first.loss, second.loss) == ("relative_trajectory_balance", "log_variance")
    assert (first.tracked_steps, third.tracked_steps) == (None, 1)
    assert (first.num_paths, second.num_paths) == (2, 4)
    log_density = -0.5 * (2.0 / 0.5) ** 2 - 0.5 * np.log(2 * np.pi * 0.25)
    assert float(second.reward(jnp.full(1, 2.0))) == pytest.approx(log_density / 2, rel=1e-5)
    points = jnp.zeros((plain.grid.num_steps, 1))
    noise = [laws(given.base, given.base_params, points).log_variance for given in seen]
    # All of it in the last step.
    taken = [[2 * np.log(0.5)], [0.0]]
    np.testing.assert_allclose(noise[1] - noise[0], taken, rtol=1e-5, atol=1e-6)


def test_a_policy_gradient_needs_two_paths_on_each_device(base):
    changes = {"fine_tuning.loss": "policy_gradient", "batch_size": 8}
    with pytest.raises(
        ValueError, match=r"batch_size = 8: must be ≥ 16: with fine_tuning\.loss"
    ):
        build.build(tuned(base, changes))
    build.build(tuned(base, changes | {"batch_size": 16}))


def test_what_needs_a_reversal_is_not_said_without_one(base, tmp_path):
    config = tuned(base, LOG_VARIANCE | {"fine_tuning.noise": 0.5})
    whole, lean = build.build(tuned(base)), build.build(config)
    assert whole.has_reversal and not lean.has_reversal
    # Two paths that stay at the origin.
    paths = judge.Paths(np.zeros((2, 3, 1)), *np.zeros((4, 2)))
    assert "log_z_lower" in judge.evidence_metrics(whole, paths, None)
    assert judge.evidence_metrics(lean, paths, paths) == {}
    assert sampling.smc_metrics(judge.Judge(lean), None, jax.random.key(0)) == {}
    for along in ("backward", "flow"):
        with pytest.raises(InputError, match=f"--along={along}: must be forward: of what is"):
            report.write_samples(
                config, judge.Judge(lean), None, 1, tmp_path / "never.npz", along=along
            )


def refusal(config):
    with pytest.raises(InputError) as caught:
        bases.read(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_base_has_to_be_a_finished_run_of_the_same_paths(base, tmp_path):
    directory = base[0]
    assert bases.read(tuned(base)).method == "diffusion"
    named = f"fine_tuning.base = {str(directory)!r}"
    for changes, message in (
        ({"grid.num_steps": 3}, f"grid.num_steps = 3: must be 2, as in {named}"),
        ({"reference.beta_max": 9.0}, f"reference.beta_max = 9.0: must be 20.0, as in {named}"),
        ({"target.options": {"dim": 1, "std": 2.0}}, "target.options = {'dim': 1, 'std': 2.0}"),
        (
            {"network.prediction": "endpoint"},
            "network.prediction = 'endpoint': must be 'drift'",
        ),
    ):
        assert refusal(tuned(base, changes)).startswith(message)
    # What is not of the paths may differ.
    bases.read(tuned(base, {"network.width": 7, "seed": 3, "batch_size": 64}))
    nowhere = tmp_path / "nowhere"
    assert refusal(tuned((nowhere,))) == (
        f"fine_tuning.base = {str(nowhere)!r}: no such run: must be the workdir of a finished "
        "run"
    )
    config = samples(VP)
    workdir.create(tmp_path / "begun", config)
    assert "begun': not finished: must be the workdir of" in refusal(
        tuned((tmp_path / "begun",))
    )
    with config.unlocked():
        del config.diffusion
    workdir.create(tmp_path / "older", config)
    text = refusal(tuned((tmp_path / "older",)))
    assert "its configuration: diffusion.num_steps: missing" in text
    for method, changes, message in (
        ("cfm", {}, "of the method 'cfm', a flow without noise"),
        (
            "eot",
            LOG_VARIANCE | {"fine_tuning.noise": 0.5},
            "fine_tuning.noise = 0.5: must be 1 with a base",
        ),
        (
            "eot",
            {},
            "fine_tuning.loss = 'relative_trajectory_balance': must be another one, as 'log_va",
        ),
        (
            "eot",
            LOG_VARIANCE | {"evaluate.smc": True},
            "evaluate.smc = True: must be false with a base of the method 'eot'",
        ),
    ):
        other = tmp_path / method
        workdir.create(other, samples(VP | {"method": method, "learn_variance": False}))
        workdir.write_json(other / workdir.SUMMARY, {"finished": True})
        assert message in refusal(tuned((other,), changes))
    # A bridge is tilted by the other losses.
    with pytest.raises(InputError, match="has no checkpoint"):
        bases.read(tuned((tmp_path / "eot",), LOG_VARIANCE))


def test_a_run_goes_on_with_no_other_base(base, tmp_path):
    there, directory = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(base[0], there)
    config = tuned((there,))
    pinned = bases.pinned(config)
    digest = pinned.fine_tuning.base_digest
    # It is the content that counts, not where it lies.
    assert len(digest) == 16 and bases.digest(tuned(base)) == digest
    assert config.fine_tuning.base_digest == ""
    workdir.create(directory, pinned)
    flags = ["run", "--mode=evaluate", f"--workdir={directory}"]
    assert arguments.parse(flags).config.fine_tuning.base_digest == digest
    # One byte of the parameters, the names and the sizes as they were.
    saved = (f for f in (there / workdir.CHECKPOINTS).rglob("*") if f.is_file())
    file = max(saved, key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    other = bases.digest(config)
    assert other != digest
    for mode in ("train", "evaluate", "sample"):
        with pytest.raises(InputError) as caught:
            # Given as a file the key is empty, and is filled in.
            given = (
                bases.pinned(config)
                if mode == "train"
                else arguments.parse(["run", f"--mode={mode}", f"--workdir={directory}"]).config
            )
            workdir.check(directory, given)
        text = str(caught.value)
        assert f"fine_tuning.base_digest = {digest!r}" in text and repr(other) in text
    shutil.rmtree(there / workdir.CHECKPOINTS)
    assert refusal(config).endswith("has no checkpoint: must be the workdir of a finished run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (TUNED, "fine_tuning.base = '': must be the workdir of a finished run"),
        ({"fine_tuning.loss": "dpok"}, "fine_tuning.loss = 'dpok': must be one of 'relative_"),
        ({"fine_tuning.noise": 0.0}, "fine_tuning.noise = 0.0: must be a number > 0 and ≤ 1"),
        ({"fine_tuning.temperature": 0.0}, "fine_tuning.temperature = 0.0: must be"),
        (
            {"fine_tuning.loss": "adjoint_matching"},
            "learn_variance = True: must be false with the loss 'adjoint_matching'",
        ),
        (
            LOG_VARIANCE | {"fine_tuning.num_paths": 1},
            "fine_tuning.num_paths = 1: must be an integer ≥ 2 with the loss 'log_variance'",
        ),
        (LOG_VARIANCE | {"fine_tuning.num_paths": 3}, "batch_size = 32: must be a multiple of"),
        ({"fine_tuning.tracked_steps": 3}, "fine_tuning.tracked_steps = 3: must be at most"),
        (
            {"fine_tuning.tracked_steps": 1},
            "fine_tuning.tracked_steps = 1: must be 0 with the loss 'relative_trajectory_",
        ),
        (
            {"fine_tuning.noise": 0.5},
            "fine_tuning.loss = 'relative_trajectory_balance': must be another one with",
        ),
        (
            LOG_VARIANCE | {"fine_tuning.noise": 0.5, "evaluate.flow": True},
            "evaluate.flow = True: must be false with fine_tuning.noise = 0.5 < 1",
        ),
        (
            {"optimiser.weight_decay": 0.1},
            "optimiser.weight_decay = 0.1: must be 0 with method",
        ),
        (
            {"fine_tuning.reward.name": "rign"},
            "fine_tuning.reward.name = 'rign' with fine_tuning.reward.options = {'dim': 1",
        ),
        (
            {"fine_tuning.reward.options": {"dim": 3}},
            "fine_tuning.reward.name = 'gaussian': must be an endpoint of dimension 1, as the",
        ),
        ({"reference.name": "brownian"}, "reference.reversed = True: must be false with"),
    ],
)
def test_bad_settings_of_a_fine_tuning(changes, message):
    given = {"fine_tuning.base": "somewhere"} if changes is not TUNED else {}
    with pytest.raises(InputError) as caught:
        samples(TUNED | given | changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference.reversed": False}, "reference.reversed = False: must be true with method"),
        ({"reference.discretisation": "euler"}, "reference.discretisation = 'euler': must be"),
        (
            {"source.name": "gaussian_mixture", "source.options": {"means": [[0.0]]}},
            "source.na",
        ),
        (
            {"source.options": {"dim": 1, "std": 3.0}},
            "source.options = {'dim': 1, 'std': 3.0}: must be of a centred Gaussian with std",
        ),
        (
            {"reference.name": "variance_exploding"},
            "source.options = {'dim': 1}: must be of a centred Gaussian with std = 3 to 3.3,",
        ),
        (
            {
                "reference.name": "variance_exploding",
                "source.options": {"dim": 1, "std": 3.6},
            },
            "source.options = {'dim': 1, 'std': 3.6}: must be of a centred Gaussian with std",
        ),
        # Of the data exp(-½ · 0.2 · 10.05) are left, and exp(-½ · 0.15).
        ({"grid.t_max": 0.2}, "reference.beta_max = 20.0: must be > 59.81 with method = 'diff"),
        ({"reference.beta_max": 0.2}, "reference.beta_max = 0.2: must be > 11.88 with method"),
        (
            {
                "reference.name": "ornstein_uhlenbeck",
                "reference.reversed": False,
                "grid.t_max": 0.2,
            },
            "reference.rate = 1.0: must be > 14.98 with method = 'diffusion' and grid.t_max = ",
        ),
        (
            {"target.access": "energy"},
            "target.access = 'energy': must be 'samples' with method",
        ),
    ],
)
def test_bad_settings_of_a_diffusion_model(changes, message):
    with pytest.raises(InputError) as caught:
        samples(VP | changes)
    assert str(caught.value).startswith(message)
    wide = {"reference.name": "variance_exploding", "source.options": {"dim": 1, "std": 3.1}}
    validation.validate(samples(VP | wide))
