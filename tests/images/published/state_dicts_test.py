"""Files are read without running them, and what does not fit a network is named."""

import pickle

import numpy as np
import pytest

from d2ejax.images.published import dcgan, resnet, sn_gan, state_dicts, stylegan2, vgg
from tests.images.published import fixtures

IMPORTERS = {
    "sn_gan_collections": sn_gan.from_state_dict,
    "dcgan_32_last_1x1": dcgan.from_state_dict,
    "vgg13_bn": vgg.from_state_dict,
    "resnet18": resnet.from_state_dict,
    "stylegan2": stylegan2.from_state_dict,
}


@pytest.fixture(scope="module")
def arrays():
    return {name: fixtures.load(name).state_dict for name in IMPORTERS}


def without(arrays, name):
    return {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sn_gan_collections", "blocks.2.residual.6.bias"),
        ("sn_gan_collections", "linear.weight"),
        ("dcgan_32_last_1x1", "main.4.running_var"),
        ("dcgan_32_last_1x1", "main.6.weight"),
        ("vgg13_bn", "classifier.3.weight"),
        ("vgg13_bn", "features.1.running_mean"),
        ("resnet18", "layer3.0.downsample.1.weight"),
        ("resnet18", "layer2.1.conv2.weight"),
        ("stylegan2", "synthesis.b16.conv0.noise_const"),
        ("stylegan2", "mapping.w_avg"),
    ],
)
def test_a_missing_array_is_named(arrays, name, key):
    assert key in arrays[name]
    # Without its first layer a network is of no known naming.
    expected = "linear ... blocks.5" if key == "linear.weight" else key
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
        IMPORTERS[name](without(arrays[name], key))


def test_a_missing_shortcut_is_named(arrays):
    kept = {key: x for key, x in arrays["resnet18"].items() if "layer2.0.downsample" not in key}
    with pytest.raises(ValueError, match=r"missing: .*layer2\.0\.downsample\.0\.weight"):
        resnet.from_state_dict(kept)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sn_gan_collections", "blocks.7.weight"),
        ("dcgan_32_last_1x1", "main.0.bias_again"),
        ("vgg13_bn", "aux.weight"),
        ("resnet18", "layer1.0.shortcut.0.weight"),
        ("stylegan2", "synthesis.b8.skip.weight"),
    ],
)
def test_an_array_too_many_is_named(arrays, name, key):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        IMPORTERS[name]({**arrays[name], key: np.zeros((3, 3, 3, 3), np.float32)})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sn_gan_collections", "blocks.0.residual.3.weight"),
        ("dcgan_32_last_1x1", "main.1.running_mean"),
        ("vgg13_bn", "classifier.0.weight"),
        ("resnet18", "bn1.bias"),
        ("stylegan2", "synthesis.b8.conv1.affine.bias"),
    ],
)
def test_an_array_of_another_shape_is_named(arrays, name, key):
    array = arrays[name][key]
    longer = np.concatenate([array, array], axis=-1)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        IMPORTERS[name]({**arrays[name], key: longer})


def test_another_filter_of_stylegan2_is_refused(arrays):
    key = "synthesis.b8.conv0.resample_filter"
    sharper = {**arrays["stylegan2"], key: np.ones((4, 4), np.float32) / 16}
    with pytest.raises(ValueError, match=r"conv0\.resample_filter.*\[1, 3, 3, 1\]"):
        stylegan2.from_state_dict(sharper)


@pytest.mark.parametrize("options", [{"noise": "random"}, {"noise": None}])
def test_unknown_noise_is_refused(arrays, options):
    with pytest.raises(ValueError, match=r"noise = .*must be one of const, none"):
        stylegan2.from_state_dict(arrays["stylegan2"], **options)


def test_unknown_upsampling_is_refused(arrays):
    with pytest.raises(ValueError, match="upsampling = 'bicubic': must be one of nearest"):
        sn_gan.from_state_dict(arrays["sn_gan_collections"], upsampling="bicubic")


def test_files_without_batch_norm_are_refused(arrays):
    moved = {
        name.replace("features.3.", "features.2."): x for name, x in arrays["vgg13_bn"].items()
    }
    with pytest.raises(ValueError, match=r"features\.2\.weight: must be 3 or 4 after"):
        vgg.from_state_dict(moved)


def test_prefixes_of_data_parallel_training_are_left_off():
    plain = state_dicts.plain({"module.module.a.weight": np.ones(2), "b.module.c": np.ones(1)})
    assert set(plain) == {"a.weight", "b.module.c"}
    assert all(value.dtype == np.float32 for value in plain.values())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("new", [False, True])
def test_spectral_norm_divides_by_the_largest_singular_value(axis, new):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 4, 2, 2)).astype(np.float32)
    matrix = np.concatenate([np.take(weight, i, axis)[None] for i in range(3 + axis)])
    matrix = matrix.reshape(3 + axis, -1)
    left, values, right = np.linalg.svd(matrix)
    names = ("weight_orig", "weight_u", "weight_v")
    if new:
        inner = "parametrizations.weight."
        names = (inner + "original", inner + "0._u", inner + "0._v")
    vectors = (weight, left[:, 0], right[0])
    plain = state_dicts.plain(
        {f"c.{name}": x for name, x in zip(names, vectors, strict=True)}, output_axis=axis
    )
    assert set(plain) == {"c.weight"}
    np.testing.assert_allclose(plain["c.weight"], weight / values[0], rtol=1e-5)


def test_singular_vectors_of_another_axis_are_refused():
    arrays = {
        "c.weight_orig": np.ones((3, 4)),
        "c.weight_u": np.ones(4),
        "c.weight_v": np.ones(3),
    }
    with pytest.raises(ValueError, match=r"c\.weight_orig: shape = \(3, 4\)"):
        state_dicts.plain(arrays)


def test_npz_files_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", **{"generator.x.weight": np.ones(3), "judge.x": np.zeros(2)})
    everything = state_dicts.read(tmp_path / "a.npz")
    assert set(everything) == {"generator.x.weight", "judge.x"}
    part = state_dicts.read(tmp_path / "a.npz", prefix="generator.")
    np.testing.assert_array_equal(part.pop("x.weight"), np.ones(3))
    assert not part
    with pytest.raises(ValueError, match=r"prefix = 'b\.'"):
        state_dicts.read(tmp_path / "a.npz", prefix="b.")


def test_pickles_are_not_run(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ValueError, match="must end in one of"):
        state_dicts.read(tmp_path / "a.pkl")
    with (tmp_path / "a.npz").open("wb") as file:
        np.savez(file, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        state_dicts.read(tmp_path / "a.npz")


def test_safetensors_files_are_read(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"x": np.arange(3, dtype=np.float16)}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(state_dicts.read(tmp_path / "a.safetensors")["x"], range(3))


class Executed(Exception):
    """What a pickle that runs would raise."""


def _execute():
    raise Executed


class Harmful:
    def __reduce__(self):
        return _execute, ()


def test_checkpoints_of_pytorch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"module.x": torch.arange(3, dtype=torch.bfloat16)}
    torch.save(weights, tmp_path / "plain.pt")
    torch.save({"net": weights, "epoch": 3, "acc": 1.0}, tmp_path / "training.pth")
    torch.save({"state_dict": weights, "config": {"z_dim": 2}}, tmp_path / "config.ckpt")
    torch.save({"net_G": weights, "net_D": weights}, tmp_path / "gan.pt")
    for name in ("plain.pt", "training.pth", "config.ckpt"):
        np.testing.assert_array_equal(state_dicts.read(tmp_path / name)["module.x"], range(3))
    assert "module.x" in state_dicts.read(tmp_path / "gan.pt", entry="net_D")
    with pytest.raises(ValueError, match="entry = None: must be one of net_G, net_D"):
        state_dicts.read(tmp_path / "gan.pt")
    with pytest.raises(ValueError, match="entry = 'net_X'"):
        state_dicts.read(tmp_path / "gan.pt", entry="net_X")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="is a Tensor: must be a state dict"):
        state_dicts.read(tmp_path / "tensor.pt")
    torch.save(Harmful(), tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match="could execute code"):
        state_dicts.read(tmp_path / "harmful.pt")
