"""Weights on disk: the same back, whole or an error, and never anything executed."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax.images import weights

PARAMS = {
    "generator": {
        "params": {"Dense_0": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
    },
    "half": jnp.asarray([1.5, -2.0], jnp.bfloat16),
    "log_temperature": jnp.float32(0.25),
    "count": np.arange(3, dtype=np.int32),
}
DESCRIPTION = {"network": "autoencoder", "shape": [8, 8, 1], "latent_dim": 2, "rate": 1e-3}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(found[name], value)
        else:
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(value))


def test_the_same_comes_back(tmp_path):
    path = weights.save(tmp_path / "new" / "folder", "vae-20", PARAMS, DESCRIPTION)
    assert path == tmp_path / "new" / "folder" / "vae-20.json"
    params, description = weights.load(tmp_path / "new" / "folder", "vae-20")
    assert description == DESCRIPTION
    assert_same(params, PARAMS)


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path):
    weights.save(tmp_path, "a", {"w": np.zeros(2)}, {"n": 1})
    weights.save(tmp_path, "a-b", {"w": np.full(2, 7.0, np.float32)}, {"n": 3})
    weights.save(tmp_path, "a", {"w": np.ones(2, np.float32)}, {"n": 2})
    params, description = weights.load(tmp_path, "a")
    np.testing.assert_array_equal(params["w"], [1.0, 1.0])
    assert description == {"n": 2}
    assert weights.load(tmp_path, "a-b")[1] == {"n": 3}
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("kind", [".msgpack", ".json"])
def test_a_save_that_fails_midway_leaves_the_old_ones(tmp_path, monkeypatch, kind):
    weights.save(tmp_path, "a", {"w": np.zeros(2, np.float32)}, {"n": 1})
    write = weights._write

    def full(path, content):
        if path.suffix == kind:
            raise OSError("no space left on device")
        write(path, content)

    monkeypatch.setattr(weights, "_write", full)
    with pytest.raises(OSError, match="no space"):
        weights.save(tmp_path, "a", {"w": np.ones(2, np.float32)}, {"n": 2})
    params, description = weights.load(tmp_path, "a")
    np.testing.assert_array_equal(params["w"], [0.0, 0.0])
    assert description == {"n": 1}


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b\.json: does not exist.*: none"):
        weights.load(tmp_path, "b")
    weights.save(tmp_path, "judge", {"w": np.zeros(2)}, {})
    with pytest.raises(FileNotFoundError, match=r"b\.json: does not exist.*: judge"):
        weights.load(tmp_path, "b")
    next(tmp_path.glob("*.msgpack")).unlink()
    with pytest.raises(FileNotFoundError, match=r"judge-\w+\.msgpack: is missing"):
        weights.load(tmp_path, "judge")


@pytest.mark.parametrize("position", [0, 40, -1])
def test_any_changed_byte_is_found(tmp_path, position):
    weights.save(tmp_path, "a", PARAMS, DESCRIPTION)
    file = next(tmp_path.glob("*.msgpack"))
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="does not match its checksum"):
        weights.load(tmp_path, "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: [], "format = None"),
        (lambda manifest: manifest | {"format": 2}, "format = 2 is not allowed: must be 1"),
        (lambda manifest: manifest | {"sha256": None}, "sha256 = None"),
        (lambda manifest: manifest | {"description": 3}, "description = 3"),
        (lambda manifest: manifest | {"file": "../a-0000000000000000.msgpack"}, "file = "),
        (lambda manifest: manifest | {"file": "b-0000000000000000.msgpack"}, "file = "),
    ],
)
def test_json_that_save_did_not_write_is_refused(tmp_path, change, message):
    path = weights.save(tmp_path, "a", PARAMS, DESCRIPTION)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        weights.load(tmp_path, "a")


def test_pickles_are_not_executed(tmp_path):
    marker = tmp_path / "executed"
    bomb = pickle.dumps(_Bomb(str(marker)))
    path = weights.save(tmp_path, "a", PARAMS, DESCRIPTION)
    path.write_bytes(bomb)
    with pytest.raises(ValueError, match="is no JSON"):
        weights.load(tmp_path, "a")
    assert not marker.exists()


class _Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize(
    ("name", "params", "description", "message"),
    [
        ("../a", {}, {}, "name = "),
        ("", {}, {}, "name = ''"),
        ("a", {"w": [np.zeros(2)]}, {}, r"params\['w'\] of type list"),
        ("a", {"w": {"v": np.asarray(["x"])}}, {}, r"params\['w'\]\['v'\] of type ndarray"),
        ("a", {0: np.zeros(2)}, {}, "the key 0"),
        ("a", {}, {"shape": (8, 8, 1)}, "description = "),
        ("a", {}, {"x": float("nan")}, "description = "),
        ("a", {}, {"x": np.float32(1.0)}, "description = "),
    ],
)
def test_what_would_not_come_back_is_refused(tmp_path, name, params, description, message):
    with pytest.raises(ValueError, match=message):
        weights.save(tmp_path, name, params, description)
    assert not list(tmp_path.iterdir())
