"""Posteriors: logistic regression, and a log-Gaussian Cox process.

Priors and likelihoods have all their constants, so that Z is the evidence.
"""

import csv
import gzip
import importlib.metadata
import math
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from scipy.spatial.distance import cdist

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint
from d2ejax.endpoints.numerics import bounded_exp
from d2ejax.typing import Array

_PRECISION = jax.lax.Precision.HIGHEST
_LOG_2PI = math.log(2.0 * math.pi)

_TABLES = "sklearn/datasets/data/"
_DATASETS: dict[str, tuple[str, tuple[int, int]]] = {
    "breast_cancer": ("breast_cancer.csv", (0, 1)),
    "digits_3_5": ("digits.csv.gz", (3, 5)),
    "iris_1_2": ("iris.csv", (1, 2)),
    "wine_1_2": ("wine_data.csv", (1, 2)),
}
"""The file of each, and the two of its classes that are told apart."""


def logistic_regression(*, dataset: str = "breast_cancer") -> Endpoint:
    """The posterior of a Bayesian logistic regression, on data that scikit-learn ships.

    w ~ N(0, I), y_i ~ Bernoulli(1 / (1 + e^{-w·z_i})), with z_i the features of example i, each
    less its mean and in units of its deviation, and last of all a one. Features that do not
    vary are left out.

    Args:
        dataset: "breast_cancer" (dimension 31, 569 examples), "digits_3_5" (threes and fives
            of 8 × 8 pixels: 55, 365), "iris_1_2" (the second and the third kind: 5, 100) or
            "wine_1_2" (the second and the third kind: 14, 119).

    Returns:
        Endpoint with a log-density alone: prior times likelihood, so that Z is the evidence.

    Raises:
        ValueError: If the data set is unknown, or scikit-learn is not installed.
    """
    options.refuse_unknown("dataset", dataset, _DATASETS)
    features, labels = _examples(*_DATASETS[dataset])
    # The log-likelihood is Σ log σ(±w·z): the signs are put into the features.
    design = (np.where(labels, 1.0, -1.0)[:, None] * features).astype(np.float32)
    dim = design.shape[1]

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (dim,))
        margins = jnp.matmul(jnp.asarray(design), x, precision=_PRECISION)
        prior = -0.5 * (jnp.sum(jnp.square(x)) + dim * _LOG_2PI)
        return prior + jnp.sum(jax.nn.log_sigmoid(margins))

    # The posterior is log-concave, and steeper than the prior about a mode within three.
    return Endpoint(
        name="logistic_regression", dim=dim, log_density=log_density, extent=(-8.5, 8.5)
    )


def _examples(file: str, classes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features `(n, num_features + 1)` and whether the second class, `(n,)`."""
    table = np.array(list(_rows(file)), np.float64)
    table = table[np.isin(table[:, -1], classes)]
    raw, labels = table[:, :-1], table[:, -1] == classes[1]
    raw = raw[:, raw.std(axis=0) > 0.0]
    standard = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    return np.concatenate([standard, np.ones((len(raw), 1))], axis=1), labels


def _rows(file: str) -> Iterator[list[str]]:
    """The rows of numbers of a table that scikit-learn ships, the class last."""
    try:
        # Its file alone: importing the package would take longer than reading it.
        path = importlib.metadata.distribution("scikit-learn").locate_file(_TABLES + file)
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            "its data come with the package scikit-learn, which is not installed:"
            " pip install scikit-learn"
        ) from error
    is_packed = file.endswith(".gz")
    opened = gzip.open(str(path), "rt") if is_packed else open(str(path))  # noqa: SIM115
    with opened as stream:
        rows = csv.reader(stream)
        if not is_packed:
            next(rows)  # Sizes and names.
        yield from rows


def log_gaussian_cox(*, side: int = 16, whitened: bool = False, seed: int = 0) -> Endpoint:
    """The posterior of the log-intensity of a point process on a grid.

    On the unit square, cut into side × side cells of area a: x ~ N(μ, K) with
    K_ij = σ² exp(-|i - j| / (side β)), i and j the cells' rows and columns, and
    counts y_i ~ Poisson(a e^{x_i}), with σ² = 1.91, β = 1/33 and μ = log 126 - σ²/2 as fitted
    to the Finnish pines of Møller, Syversveen & Waagepetersen (1998). No package ships the
    pines: the counts are simulated from the model itself, from the seed, so that figures
    published for the pines are not comparable.

    Args:
        side: Cells along one side; 40 for the published dimension of 1600.
        whitened: Whether a point is z in x = μ + L z, L the Cholesky factor of K, instead of x.
        seed: Of the counts.

    Returns:
        Endpoint of dimension side² with a log-density alone: prior times likelihood, so that Z
        is the evidence, the same whitened or not.

    Raises:
        ValueError: If an option is out of its range.
    """
    side = options.integer("side", side, minimum=2)
    seed = options.integer("seed", seed, minimum=0)
    if not isinstance(whitened, bool | np.bool_):
        raise ValueError(f"whitened = {whitened!r} is not allowed: must be True or False")
    dim = side**2
    mean, factor, counts = _simulated_field(side, seed)
    log_area = -2.0 * math.log(side)
    constant = float((counts * log_area - scipy.special.gammaln(counts + 1.0)).sum())
    constant -= 0.5 * dim * _LOG_2PI
    if not whitened:
        constant -= float(np.log(np.diagonal(factor)).sum())
    # From z to x, or from x to z.
    matrix = (factor if whitened else np.linalg.inv(factor)).astype(np.float32)
    observed = counts.astype(np.float32)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (dim,))
        if whitened:
            z, field = x, mean + jnp.matmul(jnp.asarray(matrix), x, precision=_PRECISION)
        else:
            z, field = jnp.matmul(jnp.asarray(matrix), x - mean, precision=_PRECISION), x
        # Beyond e^40 expected points there is no mass to get wrong.
        expected = jnp.sum(bounded_exp(field + log_area, 40.0))
        prior = -0.5 * jnp.sum(jnp.square(z))
        return constant + prior + jnp.sum(jnp.asarray(observed) * field) - expected

    spread = 5.5 * math.sqrt(_VARIANCE)
    extent = (-6.5, 6.5) if whitened else (mean - spread, mean + spread)
    return Endpoint(name="log_gaussian_cox", dim=dim, log_density=log_density, extent=extent)


_VARIANCE, _RANGE, _NUM_PINES = 1.91, 1.0 / 33.0, 126.0


def _simulated_field(side: int, seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    """The prior's mean μ and Cholesky factor, and counts simulated from the model."""
    mean = math.log(_NUM_PINES) - 0.5 * _VARIANCE
    cells = np.stack(np.divmod(np.arange(side**2), side), axis=1).astype(np.float64)
    covariance = _VARIANCE * np.exp(-cdist(cells, cells) / (side * _RANGE))
    factor = np.linalg.cholesky(covariance)
    # The stream of `RandomState` is frozen: the same target with every version of NumPy.
    stream = np.random.RandomState(seed)
    field = mean + factor @ stream.standard_normal(side**2)
    return mean, factor, stream.poisson(np.exp(field) / side**2).astype(np.float64)
