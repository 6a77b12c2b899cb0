"""Bridges on disk: what comes back is what was saved, and nothing else is let in."""

import hashlib
import io
import json
import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import d2ejax
from d2ejax import kernels, references, rollouts, saved_bridges, time_grids
from d2ejax.endpoints.base import Endpoint
from d2ejax.saved_bridges import programs

STEPS, DRAWS, MEAN, VARIANCE, RATE, T_MAX = 3, 8, 0.7, 0.5, 1.3, 0.6
GRID = time_grids.uniform(STEPS, T_MAX)
LAW = references.ornstein_uhlenbeck(1.1, RATE)
SHRINK = float(np.exp(-RATE * T_MAX))


def network(params, x, t):
    return jnp.tanh(params["w"] @ x + t) * params["scale"], params["scale"] * x


def gaussian(name, mean, variance):
    def sample(key, n):
        return mean + jnp.sqrt(variance) * jax.random.normal(key, (n, 2))

    def log_density(x):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, mean, jnp.sqrt(variance)))

    return Endpoint(name, 2, sample=sample, log_density=log_density)


SOURCE = gaussian("source", MEAN, VARIANCE)
# The exact marginal of the reference at the end.
TARGET = gaussian(
    "target", SHRINK * MEAN, SHRINK**2 * VARIANCE + float(LAW.variance(0.0, T_MAX))
)
FORWARD = kernels.process(network, LAW, GRID, discretisation="exact")
REVERSAL = kernels.gaussian_reversal(LAW, GRID, mean=jnp.full(2, MEAN), variance=VARIANCE)
# Of the reference, and of something else.
PARAMS, OTHER = (
    {"w": jnp.array([[0.3, -1.0], [2.0, 0.5]]), "scale": jnp.float32(scale)}
    for scale in (0.0, 0.4)
)


def save(directory, params=PARAMS, **changes):
    given = {
        "grid": GRID,
        "source": SOURCE,
        "target": TARGET,
        "forward": (FORWARD, params),
        "backward": (REVERSAL, ()),
        "draws": DRAWS,
    }
    return saved_bridges.save(directory, **given | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / saved_bridges.FOLDER
    save(directory)
    return directory


@pytest.fixture(scope="module")
def bridge(folder):
    return d2ejax.load(folder.parent)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / saved_bridges.FOLDER))


def forge(copy, name, content):
    """Replaces a file and makes its checksum fit."""
    (copy / name).write_bytes(content)
    manifest = json.loads((copy / "bridge.json").read_text())
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (copy / "bridge.json").write_text(json.dumps(manifest))


# ---- What it computes


def test_the_reference_between_its_own_marginals_has_no_weights_to_speak_of(bridge, key):
    # Forward the reference, backward its exact reversal: P p_0 = R p_1 for every path.
    for found in (bridge.sample(key, 20), bridge.sample_backward(key, 20)):
        assert found.paths.shape == (20, STEPS + 1, 2)
        assert np.std(found.log_forward) > 0.5
        np.testing.assert_allclose(found.log_weights, 0.0, atol=1e-5)
    np.testing.assert_array_equal(bridge.times, GRID.times)
    assert (bridge.dim, bridge.source, bridge.target) == (2, "source", "target")


def test_densities_and_drift_have_their_closed_forms_and_gradients(bridge):
    x = jnp.array([[0.2, -1.0], [1.5, 0.3], [0.0, 4.0]])
    score = jax.grad(lambda x: jnp.sum(bridge.source_log_density(x)))(x)
    np.testing.assert_allclose(score, (MEAN - x) / VARIANCE, rtol=1e-5)
    want = jax.vmap(TARGET.log_density)(x)
    np.testing.assert_allclose(bridge.target_log_density(x), want, rtol=1e-5)
    length = T_MAX / STEPS
    slope = (np.exp(-RATE * length) - 1) / length
    np.testing.assert_allclose(bridge.drift(x, 1), slope * x, rtol=1e-4)
    # Of the reference an end is SHRINK times the start, and noise.
    end = jax.grad(lambda x: jnp.sum(bridge.forward(jax.random.key(1), x).paths[:, -1]))(x)
    np.testing.assert_allclose(end, SHRINK, rtol=1e-5)


def test_a_network_comes_back_with_its_parameters(tmp_path, key):
    save(tmp_path, OTHER)
    loaded = d2ejax.load(tmp_path)
    x = jax.random.normal(key, (5, 2))
    found = loaded.forward(key, x)
    keys = jax.random.split(key, 5)
    paths = jax.vmap(rollouts.simulate, (0, None, None, 0))(keys, FORWARD, OTHER, x)
    np.testing.assert_allclose(found.paths, paths, atol=1e-6)
    want = rollouts.log_density(FORWARD, OTHER, paths)
    np.testing.assert_allclose(found.log_forward, want, atol=1e-5)
    want = rollouts.log_density(REVERSAL, (), paths)
    np.testing.assert_allclose(loaded.score(paths).log_backward, want, atol=1e-5)
    plain = rollouts.log_density(FORWARD, PARAMS, paths)
    assert np.abs(found.log_forward - plain).max() > 1e-2


def test_a_path_does_not_depend_on_how_many_are_asked_for(bridge, key):
    many = bridge.sample(key, 2 * DRAWS + 3)
    assert many.paths.shape[0] == len(np.unique(many.paths[:, 0], axis=0)) == 2 * DRAWS + 3
    pieces = jax.random.split(key, 3)
    start_key, path_key = jax.random.split(pieces[2])
    starts = SOURCE.sample(start_key, DRAWS)
    np.testing.assert_allclose(many.paths[-3:, 0], starts[:3], rtol=1e-6)
    keys = jax.random.split(path_key, DRAWS)[:3]
    paths = jax.vmap(rollouts.simulate, (0, None, None, 0))(keys, FORWARD, PARAMS, starts[:3])
    np.testing.assert_allclose(many.paths[-3:], paths, atol=1e-6)
    few = bridge.sample(key, 3)
    np.testing.assert_allclose(few.paths, bridge.sample(key, DRAWS).paths[:3], atol=1e-6)


def test_it_can_be_compiled_into_a_larger_program_but_not_mapped(bridge, key):
    found = jax.jit(lambda key: jax.nn.softmax(bridge.sample(key, 4).log_weights))(key)
    np.testing.assert_allclose(found, 0.25, rtol=1e-4)
    with pytest.raises(NotImplementedError, match="Batching rule"):
        jax.vmap(lambda x: bridge.drift(x[None], 0))(jnp.zeros((3, 2)))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda b, k: b.drift(jnp.zeros(2), 0), r"points: shape \(2,\): must be \(n, 2\)"),
        (lambda b, k: b.drift(jnp.zeros((1, 2)), STEPS), "step = 3: must be from 0 to 2"),
        (lambda b, k: b.score(jnp.zeros((1, 3, 2))), r"must be \(n, 4, 2\)"),
        (lambda b, k: b.sample(k, 0), "n = 0: must be ≥ 1"),
        (lambda b, k: b.sample(jnp.zeros(2, jnp.uint32), 1), r"made by jax\.random\.key"),
        (lambda b, k: b.sample(jax.random.key(0, impl="rbg"), 1), "must be of threefry2x32"),
    ],
)
def test_what_is_not_allowed_is_refused(bridge, key, call, text):
    with pytest.raises(ValueError, match=text):
        call(bridge, key)


def test_what_is_not_known_is_none(folder, tmp_path, key):
    def called_back(x):
        return jax.pure_callback(
            lambda x: np.float32(0), jax.ShapeDtypeStruct((), "float32"), x
        )

    callback = TARGET._replace(log_density=called_back, sample=None)
    written = save(tmp_path / "a", target=callback, backward=None)
    assert written["left_out"].keys() == {"target_log_density"}
    loaded = d2ejax.load(tmp_path / "a")
    for name in ("backward", "backward_kernel", "backward_drift", "sample_backward"):
        assert getattr(loaded, name) is None, name
    assert loaded.target_samples is None and loaded.target_log_density is None
    found = loaded.sample(key, 2)
    assert found.log_forward.shape == (2,)
    assert found.log_backward is None and found.log_weights is None
    flow = json.loads((folder / "bridge.json").read_text()) | {"has_density": False}
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "bridge.json").write_text(json.dumps(flow))
    assert d2ejax.load(tmp_path / "b").sample(key, 2)[1:] == (None, None, None)


def test_a_platform_that_a_program_cannot_be_lowered_for_is_left_out(monkeypatch):
    given = export.export

    def without_tpu(function, *, platforms):
        if "tpu" in platforms:
            raise NotImplementedError("tpu")
        return given(function, platforms=platforms)

    monkeypatch.setattr(programs.export, "export", without_tpu)
    _, platforms = programs.write(jnp.sin, (programs.spec("n", 2),), differentiable=False)
    assert platforms == ("cpu", "cuda")


# ---- What is refused


@pytest.mark.parametrize("name", ["parameters.npz", "forward_kernel.stablehlo"])
def test_a_changed_byte_is_refused(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: does not match its checksum.*--mode=eval"):
        d2ejax.load(copy)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, "format = 2: must be 1"),
        ({"dim": "2"}, "dim = '2': must be of type int"),
        ({"dim": 3}, r"forward_kernel\.stablehlo: maps .* must map"),
        ({"times": [0.0, 0.0]}, "must be two or more, and increase"),
        ({"files": {"../secret": "0"}}, r"'\.\./secret': must be one of its own folder"),
        ({"files": {}}, r"lists no checksum of parameters\.npz"),
        ({"programs": {}}, "has no program forward_kernel"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(copy, change, text):
    manifest = json.loads((copy / "bridge.json").read_text()) | change
    (copy / "bridge.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=text):
        d2ejax.load(copy)


def test_what_is_missing_is_refused_with_the_command_that_writes_it(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"--workdir={tmp_path}/no --mode=evaluate"):
        d2ejax.load(tmp_path / "no")
    (copy / "parameters.npz").unlink()
    with pytest.raises(ValueError, match=f"--workdir={tmp_path} --mode=evaluate"):
        d2ejax.load(tmp_path)
    (copy / "bridge.json").write_text('{"format": ')
    with pytest.raises(ValueError, match="is no JSON"):
        d2ejax.load(tmp_path)


class Malicious:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(copy, tmp_path):
    trace = tmp_path / "executed"
    pickled = pickle.dumps(Malicious(trace))
    pickle.loads(pickled)
    assert trace.exists()  # It would be seen.
    trace.unlink()
    (copy / "bridge.pkl").write_bytes(pickled)
    buffer = io.BytesIO()
    np.savez(buffer, **{"forward_kernel/w": np.array([Malicious(trace)], object)})
    for name, content in (
        ("parameters.npz", buffer.getvalue()),
        ("parameters.npz", pickled),
        ("forward_kernel.stablehlo", pickled),
    ):
        kept = (copy / name).read_bytes()
        forge(copy, name, content)
        with pytest.raises(ValueError, match=name):
            d2ejax.load(copy)
        assert not trace.exists()
        forge(copy, name, kept)
    d2ejax.load(copy)
    assert not trace.exists()


def test_a_program_that_calls_out_of_its_arrays_is_refused(copy):
    def evil(x):
        return jax.ffi.ffi_call("evil", jax.ShapeDtypeStruct(x.shape[:1], x.dtype))(x)

    allowed = [export.DisabledSafetyCheck.custom_call("evil")]
    exported = export.export(jax.jit(evil), platforms=["cpu"], disabled_checks=allowed)
    content = bytes(exported(programs.spec("n", 2)).serialize())
    forge(copy, "source_log_density.stablehlo", content)
    with pytest.raises(ValueError, match=r"source_log_density.*custom calls \['evil'\]"):
        d2ejax.load(copy)


def test_a_program_in_the_place_of_another_is_refused(copy):
    other = (copy / "source_log_density.stablehlo").read_bytes()
    forge(copy, "source_samples.stablehlo", other)
    with pytest.raises(ValueError, match=r"source_samples\.stablehlo: maps .* must map"):
        d2ejax.load(copy)


def test_writing_again_replaces_what_was_there(copy):
    (copy / "left.over").touch()
    before = (copy / "bridge.json").read_bytes()
    save(copy)
    assert not (copy / "left.over").exists()
    # Byte for byte: no times, no paths of this machine.
    assert (copy / "bridge.json").read_bytes() == before
    assert [p.name for p in copy.parent.iterdir()] == [saved_bridges.FOLDER]
    here = str(Path(__file__).parents[1]).encode()
    assert not any(here in path.read_bytes() for path in copy.iterdir())


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds something else: must be new, empty or a saved"):
        save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
