"""Planar curves with Gaussian noise: x = scale (γ(u) + noise z) + shift, u ~ U[0, 1].

The density is the integral of a Gaussian along the curve, p(x) = ∫ N(x; γ(u), noise² I) du
before scale and shift. It is computed as a mixture over the nodes of a composite Gauss-Legendre
rule: a midpoint rule of as many nodes is off by several percent at the two ends of a curve,
where the integrand does not vanish, and Gauss-Legendre is not.
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from d2ejax.endpoints import options
from d2ejax.endpoints.base import Endpoint, square_around
from d2ejax.endpoints.mixtures import isotropic_log_density
from d2ejax.typing import Array, Key, LogDensity

# On a panel of 8 standard deviations, 16 nodes integrate the Gaussian to a relative 1e-5 where
# the mass lies, and to 1e-3 in the tails.
_NODES_PER_PANEL = 16
_PANEL_IN_STDS = 8.0
# Below, the nodes needed would be tens of thousands.
_LEAST_NOISE = 1e-3


class _Curve(NamedTuple):
    """One smooth piece: `point(u, xp)` is γ at each u `(n,)`, as `(n, 2)`."""

    # Takes the array module, so that nodes are placed in float64 NumPy without running JAX.
    point: Callable[[Any, ModuleType], Any]
    speed: float  # largest |dγ/du|


class _Frame(NamedTuple):
    """Checked noise, scale and shift `(2,)`; the deviation in the final frame is `std`."""

    noise: float
    scale: float
    shift: np.ndarray

    @property
    def std(self) -> float:
        return self.scale * self.noise


def _check_frame(noise: float, scale: float, shift: ArrayLike) -> _Frame:
    if options.finite("noise", noise) != 0.0 and noise < _LEAST_NOISE:
        raise ValueError(
            f"noise = {noise!r} is not allowed: must be at least {_LEAST_NOISE}, or 0 for"
            " samples on the curve itself (which have no density)"
        )
    offset = options.array("shift", shift, ndims=(0, 1))
    if offset.shape not in ((), (2,)):
        raise ValueError(f"shift = {shift!r} is not allowed: must be one number or two")
    return _Frame(float(noise), options.positive("scale", scale), np.broadcast_to(offset, (2,)))


def _sampler(curves: tuple[_Curve, ...], frame: _Frame) -> Callable[[Key, int], Array]:
    """Draws from the pieces with equal probability."""
    shift = frame.shift.astype(np.float32)

    def sample(key: Key, n: int) -> Array:
        key_piece, key_u, key_noise = jax.random.split(key, 3)
        u = jax.random.uniform(key_u, (n,), jnp.float32)
        points = jnp.stack([curve.point(u, jnp) for curve in curves])
        piece = jax.random.randint(key_piece, (n,), 0, len(curves))
        noise = jax.random.normal(key_noise, (n, 2), jnp.float32)
        on_curve = points[piece, jnp.arange(n)]
        return frame.scale * (on_curve + frame.noise * noise) + jnp.asarray(shift)[None, :]

    return sample


def _quadrature(curve: _Curve, frame: _Frame) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `(m, 2)` on the curve in the final frame, and weights `(m,)` of sum 1."""
    # Even, because the curvature of the S jumps at u = 1/2, which must not lie inside a panel;
    # at least 4, because for wide noise it is the bends that the nodes must resolve.
    panels = max(4, 2 * math.ceil(0.5 * curve.speed / (_PANEL_IN_STDS * frame.noise)))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES_PER_PANEL)
    u = (np.arange(panels)[:, None] + 0.5 * (1.0 + nodes)) / panels
    points = frame.scale * curve.point(u.ravel(), np) + frame.shift
    return points, np.tile(0.5 * weights / panels, panels)


def _arc_log_density(curves: tuple[_Curve, ...], frame: _Frame) -> LogDensity:
    points, weights = map(
        np.concatenate, zip(*(_quadrature(curve, frame) for curve in curves), strict=True)
    )
    stds = np.full(len(points), frame.std)
    return isotropic_log_density(points, stds, np.log(weights / len(curves)))


def _noisy_curves(
    name: str,
    curves: tuple[_Curve, ...],
    frame: _Frame,
    density: Callable[[tuple[_Curve, ...], _Frame], LogDensity] = _arc_log_density,
) -> Endpoint:
    u = np.linspace(0.0, 1.0, 512)
    outline = np.concatenate([frame.scale * c.point(u, np) + frame.shift for c in curves])
    has_density = frame.noise > 0.0
    return Endpoint(
        name=name,
        dim=2,
        sample=_sampler(curves, frame),
        log_density=density(curves, frame) if has_density else None,
        log_z=0.0 if has_density else None,
        extent=square_around(outline, frame.std),
    )


def two_moons(*, noise: float = 0.05, scale: float = 1.0, shift: ArrayLike = 0.0) -> Endpoint:
    """Two interleaved half circles of equal mass, the geometry of sklearn's `make_moons`.

    γ is (cos θ, sin θ) or (1 - cos θ, ½ - sin θ) with θ ~ U[0, π].
    The scaling of [SF]²M (Tong et al., 2024) is `noise=0.2, scale=3, shift=-1`.

    Args:
        noise: Standard deviation around the curve, in units of the circles' radius; 0 gives
            samples on the curve and no log-density.
        scale: Factor applied to the noisy points.
        shift: Added after the scale; one number or two.

    Returns:
        Endpoint in the plane with samples and normalised log-density.

    Raises:
        ValueError: If an option is out of its range.
    """

    def outer(u: Any, xp: ModuleType) -> Any:
        return xp.stack([xp.cos(math.pi * u), xp.sin(math.pi * u)], axis=-1)

    def inner(u: Any, xp: ModuleType) -> Any:
        return xp.stack([1.0 - xp.cos(math.pi * u), 0.5 - xp.sin(math.pi * u)], axis=-1)

    curves = (_Curve(outer, math.pi), _Curve(inner, math.pi))
    return _noisy_curves("two_moons", curves, _check_frame(noise, scale, shift))


def two_circles(
    *,
    factor: float = 0.5,
    noise: float = 0.05,
    scale: float = 1.0,
    shift: ArrayLike = 0.0,
) -> Endpoint:
    """Concentric circles of equal mass, of radius 1 and `factor` (sklearn's `make_circles`).

    The density of a noisy circle of radius R is exact, with r = |x| and s the noise:
    p(x) = (2πs²)⁻¹ exp(-(r - R)²/2s²) e^{-rR/s²} I₀(rR/s²) (Rice's law in polar coordinates).

    Args:
        factor: Radius of the inner circle, in (0, 1).
        noise: As for `two_moons`, in units of the outer radius.
        scale: Factor applied to the noisy points.
        shift: Added after the scale; one number or two.

    Returns:
        Endpoint in the plane with samples and normalised log-density.

    Raises:
        ValueError: If an option is out of its range.
    """
    if not options.positive("factor", factor) < 1.0:
        raise ValueError(f"factor = {factor!r} is not allowed: must be below one")
    radii = (1.0, float(factor))

    def circle(radius: float) -> _Curve:
        def point(u: Any, xp: ModuleType) -> Any:
            angle = 2.0 * math.pi * u
            return radius * xp.stack([xp.cos(angle), xp.sin(angle)], axis=-1)

        return _Curve(point, 2.0 * math.pi * radius)

    def density(_: tuple[_Curve, ...], frame: _Frame) -> LogDensity:
        return _circles_log_density(frame.scale * np.array(radii), frame.std, frame.shift)

    curves = tuple(circle(radius) for radius in radii)
    frame = _check_frame(noise, scale, shift)
    return _noisy_curves("two_circles", curves, frame, density)


def _circles_log_density(radii: np.ndarray, std: float, centre: np.ndarray) -> LogDensity:
    """Equal mixture of noisy circles of some radii `(m,)` about one centre `(2,)`."""
    offset = -math.log(2.0 * math.pi * std**2 * len(radii))
    rings, middle = radii.astype(np.float32), centre.astype(np.float32)

    def log_density(x: Array) -> Array:
        chex.assert_shape(x, (2,))
        # The floor keeps the gradient of the root finite (and right: zero) at the centre.
        tiny = jnp.asarray(1e-30, x.dtype)
        r = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x - jnp.asarray(middle))), tiny))
        bessel = jnp.log(jax.scipy.special.i0e(r * jnp.asarray(rings / std**2)))
        radial = -0.5 * jnp.square((r - jnp.asarray(rings)) / std)
        return offset + jax.nn.logsumexp(radial + bessel)

    return log_density


def swiss_roll(*, noise: float = 0.05, scale: float = 1.0, shift: ArrayLike = 0.0) -> Endpoint:
    """A spiral of one and a half turns, in the plane.

    γ = (t cos t, t sin t) / 3π with t ~ U[3π/2, 9π/2], so that the radius runs from 0.5 to 1.5.

    Args:
        noise: As for `two_moons`, in the units of γ.
        scale: Factor applied to the noisy points.
        shift: Added after the scale; one number or two.

    Returns:
        Endpoint in the plane with samples and normalised log-density.

    Raises:
        ValueError: If an option is out of its range.
    """

    def point(u: Any, xp: ModuleType) -> Any:
        radius = 0.5 + u
        angle = 3.0 * math.pi * radius
        return xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], axis=-1)

    curve = _Curve(point, math.hypot(1.0, 3.0 * math.pi * 1.5))
    return _noisy_curves("swiss_roll", (curve,), _check_frame(noise, scale, shift))


def s_curve(*, noise: float = 0.05, scale: float = 1.0, shift: ArrayLike = 0.0) -> Endpoint:
    """The letter S, the two planar coordinates of sklearn's `make_s_curve`.

    γ = (sin t, sign(t)(cos t - 1)) with t ~ U[-3π/2, 3π/2].

    Args:
        noise: As for `two_moons`, in units of the arcs' radius.
        scale: Factor applied to the noisy points.
        shift: Added after the scale; one number or two.

    Returns:
        Endpoint in the plane with samples and normalised log-density.

    Raises:
        ValueError: If an option is out of its range.
    """

    def point(u: Any, xp: ModuleType) -> Any:
        t = 3.0 * math.pi * (u - 0.5)
        return xp.stack([xp.sin(t), xp.sign(t) * (xp.cos(t) - 1.0)], axis=-1)

    curve = _Curve(point, 3.0 * math.pi)
    return _noisy_curves("s_curve", (curve,), _check_frame(noise, scale, shift))
