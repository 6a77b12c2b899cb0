"""One reference process of each kind, for tests that must hold for all of them."""

import pytest

from d2ejax import references

T_MAX = 1.5
REFERENCES = {
    "brownian": references.brownian(0.8),
    "ornstein_uhlenbeck": references.ornstein_uhlenbeck(0.8, 1.3),
    "variance_exploding": references.variance_exploding(0.1, 3.0, T_MAX),
    "variance_preserving": references.variance_preserving(0.2, 4.0, T_MAX),
}
every_reference = pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
