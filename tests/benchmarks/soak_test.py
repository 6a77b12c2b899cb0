"""What memory over time says; the training itself is that of every run."""

import numpy as np
import pytest

from benchmarks import soak


def samples(*gb):
    return [soak.Sample(60.0 * i, value) for i, value in enumerate(gb)]


def test_memory_is_flat_within_two_percent_after_the_warm_up():
    found = soak.judge(samples(0.2, 0.9, 1.0, 1.01, 0.99, 1.0), warm_up=100.0)
    assert (found.start, found.end) == (1.0, 1.0)
    assert found.spread == pytest.approx(0.01)
    assert found.flat
    assert not soak.judge(samples(0.2, 0.9, 1.0, 1.01, 0.99, 1.0), warm_up=50.0).flat
    # A hump counts, though it begins and ends alike.
    assert not soak.judge(samples(1.0, 1.03, 1.0), warm_up=0.0).flat


def test_the_slope_is_in_gb_an_hour():
    grown = 1.0 + 0.5 * np.arange(10) / 60
    assert soak.judge(samples(*grown), warm_up=0.0).slope == pytest.approx(0.5)


def test_too_few_samples():
    with pytest.raises(ValueError, match="2 samples after 60 s"):
        soak.judge(samples(1.0, 1.0, 1.0), warm_up=60.0)


def test_resident_memory_is_read():
    before = soak._resident_gb()
    held = np.ones(20_000_000)
    assert 0.1 < soak._resident_gb() - before < 0.2
    del held
