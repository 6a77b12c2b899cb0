import numpy as np
import pytest

from d2ejax.endpoints import checkerboard, gaussian, restrict, ring


def test_samples_access_hides_all_that_describes_the_density(key):
    seen = restrict(ring(), "samples")
    assert seen.sample(key, 3).shape == (3, 2)
    hidden = (seen.log_density, seen.log_z, seen.modes, seen.mode_weights, seen.moments)
    assert hidden == (None,) * 5
    assert restrict(gaussian(), "samples").moments is None


def test_energy_access_hides_the_sampler_and_keeps_the_energy():
    full = gaussian(dim=3)
    seen = restrict(full, "energy")
    assert seen.sample is None and seen.moments is None
    assert restrict(ring(), "energy").modes is None
    assert seen.log_density is full.log_density
    assert (seen.log_z, seen.dim, seen.name, seen.extent) == (0.0, 3, "gaussian", full.extent)


def test_restrict_leaves_the_full_endpoint_alone():
    full = ring()
    restrict(full, "energy")
    assert full.sample is not None and full.modes is not None


def test_access_that_is_not_offered_is_refused():
    with pytest.raises(ValueError, match=r"'checkerboard' offers samples only.*no log-density"):
        restrict(checkerboard(), "energy")
    with pytest.raises(ValueError, match="'gaussian' offers energy only"):
        restrict(gaussian()._replace(sample=None), "samples")
    with pytest.raises(ValueError, match=r"unknown access 'sample'.*'samples'"):
        restrict(gaussian(), "sample")


def test_extent_reaches_beyond_every_component():
    low, high = gaussian(mean=(1.0, -2.0), std=0.5).extent
    np.testing.assert_allclose((low, high), (-2.0 - 2.75, 1.0 + 2.75))
