"""Truncated gradients: bias and spread of known gradients, and a run of next to nothing."""

import json

import numpy as np
import pytest

from benchmarks import truncated_gradients


def test_bias_and_spread_of_gradients_that_are_known():
    rng = np.random.default_rng(0)
    truth, off = np.array([3.0, 4.0]), np.array([1.0, 0.0])
    noise = rng.standard_normal((4000, 2))
    found = truncated_gradients.moments(2, truth + off + noise, truth + noise, 0.002)
    np.testing.assert_allclose(found["bias"], 0.2, rtol=0.02)
    np.testing.assert_allclose(found["spread"], 2**0.5 / 5, rtol=0.05)
    angle = (truth + off) @ truth / (np.linalg.norm(truth + off) * 5)
    np.testing.assert_allclose(found["cosine"], angle, atol=2e-3)
    assert (found["steps"], found["milliseconds"]) == (2.0, 2.0)
    # Noise of their own is not taken for a bias.
    other = truth + rng.standard_normal((4000, 2))
    assert truncated_gradients.moments(2, other, truth + noise, 1.0)["bias"] < 0.01


def test_it_measures_and_writes(tmp_path, capsys):
    truncated_gradients.main(
        [
            f"--folder={tmp_path}",
            "--num_steps=3",
            "--lengths=1",
            "--batch_size=8",
            "--width=4",
            "--train_steps=2",
            "--num_batches=3",
        ]
    )
    lines = json.loads((tmp_path / "results.json").read_text())["lengths"]
    assert [line["steps"] for line in lines] == [1, 3]
    assert lines[1]["bias"] == 0 and lines[1]["cosine"] == pytest.approx(1)
    assert lines[0]["bias"] > 0
    assert "| 3 |" in capsys.readouterr().out
    assert (tmp_path / "truncated.png").stat().st_size > 10_000


def test_lengths_are_checked(capsys):
    with pytest.raises(SystemExit):
        truncated_gradients.parse(["--lengths=20"])
    assert "--lengths=20: must be from 1 to 19" in capsys.readouterr().err
