"""Gaussians and mixtures of Gaussians, in any dimension.

Samples come from distrax. The log-density is written out: its gradient is evaluated on every
point of every path of a training step, and there the form below costs a fifth of
`distrax.MixtureSameFamily` (8 modes in the plane, 2560 points, one core).
"""

import math

import chex
import distrax
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint, square_around
from d2ejax.typing import Array, Key, LogDensity

# Up to here a sum written out over the coordinates fuses into one loop; beyond, a reduction
# over the last axis is faster and quicker to compile (on CPU they cross between 10 and 16).
_MAX_UNROLLED_DIM = 8


def isotropic_log_density(
    means: np.ndarray, stds: np.ndarray, log_weights: np.ndarray
) -> LogDensity:
    """Makes log Σ_i w_i N(x; m_i, s_i² I).

    Args:
        means: Centres `(m, dim)`.
        stds: Standard deviations `(m,)`.
        log_weights: log w_i `(m,)`.

    Returns:
        The log-density of one point.
    """
    dim = means.shape[1]
    constants = log_weights - dim * (np.log(stds) + 0.5 * math.log(2.0 * math.pi))
    offsets = constants.astype(np.float32)
    half_precisions = (0.5 / stds**2).astype(np.float32)
    centres = means.astype(np.float32)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (dim,))
        if dim <= _MAX_UNROLLED_DIM:
            squares = sum(jnp.square(x[i] - jnp.asarray(centres[:, i])) for i in range(dim))
        else:
            squares = jnp.sum(jnp.square(x[None, :] - jnp.asarray(centres)), axis=-1)
        return jax.nn.logsumexp(jnp.asarray(offsets) - jnp.asarray(half_precisions) * squares)

    return log_density


def diagonal_log_density(
    means: np.ndarray, stds: np.ndarray, log_weights: np.ndarray
) -> LogDensity:
    """Makes log Σ_i w_i N(x; m_i, diag(s_i²)).

    Args:
        means: Centres `(m, dim)`.
        stds: Standard deviations `(m, dim)`.
        log_weights: log w_i `(m,)`.

    Returns:
        The log-density of one point.
    """
    dim = means.shape[1]
    constants = log_weights - np.log(stds).sum(axis=1) - 0.5 * dim * math.log(2.0 * math.pi)
    offsets = constants.astype(np.float32)
    roots = (math.sqrt(0.5) / stds).astype(np.float32)
    centres = means.astype(np.float32)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (dim,))
        rates, middles = jnp.asarray(roots), jnp.asarray(centres)
        if dim <= _MAX_UNROLLED_DIM:
            squares = sum(jnp.square((x[i] - middles[:, i]) * rates[:, i]) for i in range(dim))
        else:
            squares = jnp.sum(jnp.square((x[None, :] - middles) * rates), axis=-1)
        return jax.nn.logsumexp(jnp.asarray(offsets) - squares)

    return log_density


def _full_log_density(
    means: np.ndarray, factors: np.ndarray, log_weights: np.ndarray
) -> LogDensity:
    """Makes log Σ_i w_i N(x; m_i, L_i L_iᵀ), with factors L `(m, dim, dim)`."""
    dim = means.shape[1]
    log_dets = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    constants = log_weights - log_dets - 0.5 * dim * math.log(2.0 * math.pi)
    offsets = constants.astype(np.float32)
    # Inverted once, here, in float64: the hot path is then a product, not a triangular solve.
    whitening = np.linalg.inv(factors).astype(np.float32)
    centres = means.astype(np.float32)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (dim,))
        residuals = x[None, :] - jnp.asarray(centres)
        whitened = jnp.einsum("mij,mj->mi", jnp.asarray(whitening), residuals)
        return jax.nn.logsumexp(jnp.asarray(offsets) - 0.5 * jnp.sum(whitened**2, axis=-1))

    return log_density


def _mixture(
    name: str, means: np.ndarray, factors: np.ndarray, weights: np.ndarray
) -> Endpoint:
    """A mixture from checked float64 arrays.

    Args:
        name: Of the endpoint.
        means: `(m, dim)`.
        factors: Standard deviations `(m,)` or `(m, dim)`, or Cholesky factors of covariances
            `(m, dim, dim)`.
        weights: `(m,)`, positive, of sum 1.
    """
    builds = (isotropic_log_density, diagonal_log_density, _full_log_density)
    spreads = np.linalg.norm(factors, axis=2) if factors.ndim == 3 else factors
    log_density = builds[factors.ndim - 1](means, factors, np.log(weights))
    centres, scales, masses = (a.astype(np.float32) for a in (means, factors, weights))

    def sample(key: Key, n: int) -> Array:
        locations, spreads = jnp.asarray(centres), jnp.asarray(scales)
        components: distrax.Distribution
        if scales.ndim == 3:
            components = distrax.MultivariateNormalTri(locations, spreads)
        else:
            diagonals = spreads[:, None] if scales.ndim == 1 else spreads
            diagonals = jnp.broadcast_to(diagonals, locations.shape)
            components = distrax.MultivariateNormalDiag(locations, diagonals)
        modes = distrax.Categorical(probs=jnp.asarray(masses))
        mixture = distrax.MixtureSameFamily(modes, components)
        return mixture.sample(seed=key, sample_shape=(n,))

    return Endpoint(
        name=name,
        dim=means.shape[1],
        sample=sample,
        log_density=log_density,
        log_z=0.0,
        modes=centres,
        mode_weights=masses,
        extent=square_around(means, spreads[:, None] if spreads.ndim == 1 else spreads),
    )


def _cholesky(name: str, covariances: np.ndarray) -> np.ndarray:
    """Cholesky factors of `(..., dim, dim)`; ValueError unless symmetric and definite."""
    symmetric = np.allclose(covariances, np.swapaxes(covariances, -1, -2))
    try:
        factors = np.linalg.cholesky(covariances)
    except np.linalg.LinAlgError:
        symmetric = False
    if not symmetric:
        raise ValueError(
            f"{name} = {covariances.tolist()} is not allowed: must be symmetric and"
            " positive definite"
        )
    return factors


def gaussian_mixture(
    means: ArrayLike,
    *,
    stds: ArrayLike | None = None,
    covariances: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Endpoint:
    """Mixture of Gaussians, p(x) = Σ_i w_i N(x; m_i, C_i).

    Args:
        means: Centres `(m, dim)`.
        stds: Standard deviation of each isotropic component, `(m,)` or one number for all; or
            one per component and axis, `(m, dim)`.
        covariances: `(m, dim, dim)`, or one `(dim, dim)` for all; instead of `stds`.
        weights: `(m,)`, positive, scaled here to sum 1; equal when None.

    Returns:
        Endpoint with samples and normalised log-density.

    Raises:
        ValueError: If shapes disagree, both or neither of `stds` and `covariances` are given, a
            covariance is not positive definite, or a weight or deviation is not positive.
    """
    centres = options.array("means", means, ndims=(2,))
    num_modes, dim = centres.shape
    if (stds is None) == (covariances is None):
        raise ValueError(f"give one of stds = {stds!r} and covariances = {covariances!r}")
    if stds is not None:
        factors = _deviations(stds, centres.shape)
    else:
        matrices = options.array("covariances", covariances, ndims=(2, 3))
        if matrices.shape not in ((dim, dim), (num_modes, dim, dim)):
            raise ValueError(
                f"covariances of shape {matrices.shape} are not allowed with means of shape"
                f" {centres.shape}: must be {(num_modes, dim, dim)} or {(dim, dim)}"
            )
        factors = np.broadcast_to(_cholesky("covariances", matrices), (num_modes, dim, dim))
    masses = _positive_vector("weights", 1.0 if weights is None else weights, num_modes)
    return _mixture("gaussian_mixture", centres, factors, masses / masses.sum())


def _deviations(stds: ArrayLike, shape: tuple[int, int]) -> np.ndarray:
    """Standard deviations as `(m,)`, or as `(m, dim)` where they were given so."""
    if np.ndim(stds) < 2:
        return _positive_vector("stds", stds, shape[0])
    table = options.array("stds", stds, ndims=(2,))
    if table.shape != shape or not (table > 0.0).all():
        raise ValueError(
            f"stds = {stds!r} is not allowed: must be positive numbers of shape {shape}"
        )
    return table


def _positive_vector(name: str, value: ArrayLike, size: int) -> np.ndarray:
    """One positive number, or `(size,)` of them, as `(size,)`."""
    vector = options.array(name, value, ndims=(0, 1))
    if vector.shape not in ((), (size,)) or not (vector > 0.0).all():
        raise ValueError(
            f"{name} = {value!r} is not allowed: must be one positive number, or {size} of them"
        )
    return np.broadcast_to(vector, (size,))


def gaussian(
    *,
    dim: int | None = None,
    mean: ArrayLike = 0.0,
    std: float | None = None,
    covariance: ArrayLike | None = None,
) -> Endpoint:
    """The Gaussian N(mean, covariance), or N(mean, std² I).

    Args:
        dim: Number of coordinates; when None, taken from `mean` or `covariance`, else 2.
        mean: `(dim,)`, or one number for every coordinate.
        std: Standard deviation of every coordinate; 1 when neither is given.
        covariance: `(dim, dim)`; instead of `std`.

    Returns:
        Endpoint with samples, normalised log-density and moments.

    Raises:
        ValueError: If sizes disagree, both `std` and `covariance` are given, or one of them is
            not positive (definite).
    """
    if std is not None and covariance is not None:
        raise ValueError(f"give one of std = {std!r} and covariance = {covariance!r}")
    centre = options.array("mean", mean, ndims=(0, 1))
    matrix = None
    if covariance is not None:
        matrix = options.array("covariance", covariance, ndims=(2,))
    if dim is None and centre.ndim == 1:
        dim = centre.size
    elif dim is None:
        dim = 2 if matrix is None else len(matrix)
    dim = options.integer("dim", dim, minimum=1)
    if centre.shape not in ((), (dim,)):
        raise ValueError(f"mean = {mean!r} is not allowed: dim = {dim}")
    centre = np.broadcast_to(centre, (dim,))
    if matrix is None:
        deviation = options.positive("std", 1.0 if std is None else std)
        factors = np.array([deviation])
        matrix = deviation**2 * np.eye(dim)
    elif matrix.shape == (dim, dim):
        factors = _cholesky("covariance", matrix)[None]
    else:
        raise ValueError(
            f"covariance of shape {matrix.shape} is not allowed: must be {(dim, dim)}"
        )
    endpoint = _mixture("gaussian", centre[None], factors, np.ones(1))
    return endpoint._replace(modes=None, mode_weights=None, moments=(centre.copy(), matrix))


def ring(*, num_modes: int = 8, radius: float = 1.0, std: float = 0.1) -> Endpoint:
    """Equal Gaussians evenly spaced on a circle about the origin, the first at angle 0.

    Args:
        num_modes: Number of Gaussians.
        radius: Of the circle.
        std: Standard deviation of each.

    Returns:
        Endpoint in the plane with samples and normalised log-density.

    Raises:
        ValueError: If an option is not positive.
    """
    angles = 2.0 * math.pi * np.arange(options.integer("num_modes", num_modes, minimum=1))
    directions = np.stack([np.cos(angles / num_modes), np.sin(angles / num_modes)], axis=-1)
    means = options.positive("radius", radius) * directions
    endpoint = gaussian_mixture(means, stds=options.positive("std", std))
    return endpoint._replace(name="ring")


def eight_gaussians(*, radius: float = 5.0, std: float = 0.1**0.25) -> Endpoint:
    """Eight Gaussians on a circle, in the scaling of [SF]²M.

    Args:
        radius: Of the circle.
        std: Standard deviation of each; the default is the covariance √0.1 · I of Tong et al.
            (2024), "Simulation-free Schrödinger bridges via score and flow matching".

    Returns:
        Endpoint in the plane with samples and normalised log-density.

    Raises:
        ValueError: If an option is not positive.
    """
    return ring(num_modes=8, radius=radius, std=std)._replace(name="eight_gaussians")


def cross(*, std: float = 0.1) -> Endpoint:
    """Five equal Gaussians at (0, 0) and (±0.6, ±0.36).

    Args:
        std: Standard deviation of each.

    Returns:
        Endpoint in the plane with samples and normalised log-density.

    Raises:
        ValueError: If `std` is not positive.
    """
    means = [(0.0, 0.0), (0.6, 0.36), (0.6, -0.36), (-0.6, 0.36), (-0.6, -0.36)]
    endpoint = gaussian_mixture(means, stds=options.positive("std", std))
    return endpoint._replace(name="cross")


def grid_mixture(
    *, side: int = 5, dim: int = 2, spacing: float = 5.0, std: float = math.sqrt(0.3)
) -> Endpoint:
    """Equal Gaussians on a square grid about the origin, in the first two coordinates.

    The 25 and the 9 (`side=3`) Gaussians that diffusion samplers are compared on (Zhang & Chen
    2022, arXiv:2111.15141; Sendera et al. 2024, arXiv:2402.05098); the other coordinates are
    independent of them, N(0, std²).

    Args:
        side: Gaussians along one side.
        dim: Number of coordinates; at least 2.
        spacing: Distance of neighbours.
        std: Standard deviation of each.

    Returns:
        Endpoint with samples and normalised log-density.

    Raises:
        ValueError: If an option is out of its range.
    """
    side = options.integer("side", side, minimum=1)
    dim = options.integer("dim", dim, minimum=2)
    ticks = options.positive("spacing", spacing) * (np.arange(side) - 0.5 * (side - 1))
    means = np.zeros((side**2, dim))
    means[:, 0], means[:, 1] = np.repeat(ticks, side), np.tile(ticks, side)
    endpoint = gaussian_mixture(means, stds=options.positive("std", std))
    return endpoint._replace(name="grid_mixture")


def random_mixture(
    *,
    dim: int = 2,
    num_modes: int = 40,
    half_width: float = 40.0,
    std: float = math.log1p(math.e),
    seed: int = 0,
) -> Endpoint:
    """Equal Gaussians about centres drawn once, uniformly in [-half_width, half_width]^dim.

    The recipe of the 40 Gaussians of FAB (Midgley et al. 2023, arXiv:2208.01893), whose
    deviation is the softplus of one; the centres are a draw of our own.

    Args:
        dim: Number of coordinates.
        num_modes: Number of Gaussians.
        half_width: Half the side of the cube that the centres lie in.
        std: Standard deviation of each.
        seed: Of the centres, which depend on nothing else.

    Returns:
        Endpoint with samples and normalised log-density.

    Raises:
        ValueError: If an option is out of its range.
    """
    shape = tuple(
        options.integer(name, value, minimum=1)
        for name, value in (("num_modes", num_modes), ("dim", dim))
    )
    half_width = options.positive("half_width", half_width)
    # The stream of `RandomState` is frozen: the same target with every version of NumPy.
    stream = np.random.RandomState(options.integer("seed", seed, minimum=0))
    means = stream.uniform(-half_width, half_width, shape)
    endpoint = gaussian_mixture(means, stds=options.positive("std", std))
    return endpoint._replace(name="random_mixture")
