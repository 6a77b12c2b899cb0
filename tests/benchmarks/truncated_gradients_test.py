"""Truncated gradients: bias and spread of known gradients, and a run of next to nothing."""

import json

import numpy as np
import pytest

from benchmarks import truncated_gradients


def test_bias_and_spread_of_gradients_that_are_known():
    rng = np.random.default_rng(0)
    truth, off = np.array([3.0, 4.0]), np.array([1.0, 0.0])
    noise = rng.standard_normal((4000, 2))
    found = truncated_gradients.moments(truth + off + noise, truth + noise)
    np.testing.assert_allclose(found["bias"], 0.2, rtol=0.02)
    np.testing.assert_allclose(found["spread"], 2**0.5 / 5, rtol=0.05)
    angle = (truth + off) @ truth / (np.linalg.norm(truth + off) * 5)
    np.testing.assert_allclose(found["cosine"], angle, atol=2e-3)


def test_noise_is_taken_neither_for_a_bias_nor_for_length():
    rng = np.random.default_rng(1)
    truth = np.full(2000, 0.1)
    # Of the mean of 50 batches, as long as the truth is: 6.3 beside 4.5.
    whole, other = (truth + rng.standard_normal((50, 2000)) for _ in range(2))
    found = truncated_gradients.moments(other, whole)
    assert found["bias"] < 0.5
    size = np.linalg.norm(truth)
    np.testing.assert_allclose(found["spread"], 2000**0.5 / size, rtol=0.1)
    np.testing.assert_allclose(found["cosine"], 1.0, atol=0.2)
    lost = truncated_gradients.moments(other - truth, whole - truth)
    assert np.isnan(lost["spread"]) or lost["spread"] > 3 * found["spread"]


def test_it_measures_and_writes(tmp_path, capsys):
    truncated_gradients.main(
        [
            f"--folder={tmp_path}",
            "--num_steps=3",
            "--lengths=1",
            "--batch_size=64",
            "--width=4",
            "--train_steps=2",
            "--num_batches=12",
        ]
    )
    lines = json.loads((tmp_path / "results.json").read_text())["gradients"]
    kinds = [(line["steps"], line["window"]) for line in lines]
    assert kinds == [(1, "last"), (1, "random"), (3, "last")]
    assert lines[2]["bias"] == 0 and lines[2]["cosine"] == pytest.approx(1)
    assert lines[0]["bias"] > 0
    assert lines[1]["spread"] > lines[2]["spread"]
    assert "| 3 | all |" in capsys.readouterr().out
    assert (tmp_path / "truncated.png").stat().st_size > 10_000


def test_lengths_are_checked(capsys):
    with pytest.raises(SystemExit):
        truncated_gradients.parse(["--lengths=20"])
    assert "--lengths=20: must be from 1 to 19" in capsys.readouterr().err
