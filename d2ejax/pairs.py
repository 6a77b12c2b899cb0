"""Two ends of which the bridge is known, made together, in any dimension.

An endpoint by itself leaves its bridge to be solved for, which ends at two dimensions. Here
the Schrödinger potentials come first and the ends are read off them, so that training sees two
ordinary endpoints and everything it finds has an exact answer.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from d2ejax import metrics
from d2ejax.endpoints import mixtures, options
from d2ejax.endpoints.base import Endpoint, square_around
from d2ejax.exact import Mixture, PlanBridge, mixture_bridge, plan_bridge
from d2ejax.exact.base import HostArray, Transition, transition
from d2ejax.exact.mixtures import log_overlaps
from d2ejax.references import Reference
from d2ejax.typing import Array, Key, LogDensity

# Draws per end behind the shares of its modes, and the most numbers that they may hold: a
# standard error of 0.1 %, or 0.2 % in 512 dimensions.
_SHARE_DRAWS, _SHARE_NUMBERS = 200_000, 2**25
# A component lighter than this is never drawn, and its weight may underflow.
_NEGLIGIBLE = 1e-10
# Standard deviations vary between components and axes by up to this factor's logarithm.
_SPREAD = 0.35
_CANDIDATES = 100
_BALANCE_DRAWS, _MAX_SWEEPS = 16_384, 2_000
_CHUNK = 2**20


class Pair(NamedTuple):
    """Two ends and the exact bridge between them.

    Attributes:
        source: p_0.
        target: p_1.
        bridge: The bridge between them.
    """

    source: Endpoint
    target: Endpoint
    bridge: PlanBridge


def mixture_pair(
    reference: Reference,
    t_max: float,
    *,
    dim: int = 2,
    num_components: int = 4,
    separation: float = 3.0,
    std: float = 0.5,
    seed: int = 0,
) -> Pair:
    """Two mixtures of Gaussians whose bridge is known exactly, with energies at both ends.

    Both potentials are mixtures of `num_components` Gaussians with diagonal covariances. Their
    centres lie on a sphere: in the plane evenly spaced, those of one end halfway between those
    of the other; else the best spread of some random draws for each end. Their standard
    deviations are `std` times exp(U(-0.35, 0.35)), drawn for each component and axis, and their
    weights make every component carry the same mass of the plan.

    The ends are then mixtures of num_components² Gaussians, each drawn towards its partner at
    the other end: with ε = σ²T and a Brownian reference, components of variances A and C keep
    a share ε / (A + C + ε) of the distance between their centres. For ends that stay apart at
    small ε, choose `std` below √ε.

    Args:
        reference: The reference process.
        t_max: The horizon T > 0.
        dim: Number of coordinates.
        num_components: Gaussians in each potential.
        separation: Radius of the sphere of centres.
        std: Typical standard deviation of a component.
        seed: Of everything random about the pair.

    Returns:
        Endpoints with samples, normalised log-densities and modes: one per component of the
        end's own potential, at the mean of the end given that component, with the share of the
        end that lies nearest to it.

    Raises:
        ValueError: If t_max or an option is out of range.
    """
    options.positive("t_max", t_max)
    _, phi, psi = _components(dim, num_components, separation, std, seed)
    whole = transition(reference, 0.0, t_max)
    log_phi, log_psi = _balance(log_overlaps(phi.push(*whole), psi))
    bridge = mixture_bridge(
        phi._replace(log_weights=log_phi), psi._replace(log_weights=log_psi), reference, t_max
    )
    phi_end, psi_start = bridge.phi.push(*whole), bridge.psi.push(1.0, whole.variance)
    # The components of either end, as `mixture_bridge` orders them.
    owners = np.divmod(np.arange(num_components**2), num_components)
    return Pair(
        source=_mixture_end(
            "mixtures_source",
            bridge.source,
            owners[0],
            _log_product((bridge.phi, 1.0), (psi_start, whole.scale)),
        ),
        target=_mixture_end(
            "mixtures_target",
            bridge.target,
            owners[1],
            _log_product((bridge.psi, 1.0), (phi_end, 1.0)),
        ),
        bridge=bridge,
    )


def gaussian_plan_pair(
    reference: Reference,
    t_max: float,
    *,
    dim: int = 2,
    num_components: int = 5,
    separation: float = 5.0,
    std: float = 0.5,
    seed: int = 0,
) -> Pair:
    """A standard Gaussian and what a known plan makes of it: samples alone at the target.

    The construction of Gushchin et al. (2023): p_0 = N(0, I) and π(x_T | x_0) ∝
    q(x_T | x_0) ψ(x_T) with a mixture ψ, which for a Brownian reference is
    exp(x_0ᵀ x_T / ε) v(x_T), ε = σ²T. Their constants come with their data only; here ψ is as
    in `mixture_pair`, its weights making every component carry the same mass of p_1.

    Args:
        reference: The reference process.
        t_max: The horizon T > 0.
        dim: Number of coordinates.
        num_components: Gaussians in ψ.
        separation: Radius of the sphere of centres.
        std: Typical standard deviation of a component.
        seed: Of everything random about the pair.

    Returns:
        A Gaussian source with everything, and a target with samples and modes.

    Raises:
        ValueError: If t_max or an option is out of range.

    Source: Gushchin et al. (2023), arXiv:2306.10161.
    """
    options.positive("t_max", t_max)
    rng, psi, _ = _components(dim, num_components, separation, std, seed)
    dim = psi.dim
    source = Mixture(np.zeros(1), np.zeros((1, dim)), np.ones((1, dim)))
    whole = transition(reference, 0.0, t_max)
    bridge = plan_bridge(source, _balance_plan(rng, source, psi, whole), reference, t_max)
    return Pair(mixtures.gaussian(dim=dim), _plan_end(bridge, whole), bridge)


PAIRS: dict[str, Callable[..., Pair]] = {
    "gaussian_plan": gaussian_plan_pair,
    "mixtures": mixture_pair,
}


def make_pair(name: str, reference: Reference, t_max: float, /, **options_: Any) -> Pair:
    """Builds a pair by name.

    Args:
        name: A key of `PAIRS`.
        reference: The reference process.
        t_max: The horizon T.
        **options_: Keyword arguments of that pair.

    Returns:
        The pair.

    Raises:
        ValueError: If the name or an option is unknown (the message holds the nearest right
            name), or a value has the wrong kind or range.
    """
    return options.build_by_name("pair", PAIRS, name, (reference, t_max), options_)


def _components(
    dim: int, num_components: int, separation: float, std: float, seed: int
) -> tuple[np.random.Generator, Mixture, Mixture]:
    """The generator of a pair after its first draws, and components for either end.

    Raises:
        ValueError: If an option is out of range.
    """
    dim = options.integer("dim", dim, minimum=2)
    size = options.integer("num_components", num_components, minimum=1)
    radius, width = options.positive("separation", separation), options.positive("std", std)
    rng = np.random.default_rng(options.integer("seed", seed, minimum=0))
    first, second = (
        Mixture(np.zeros(size), radius * centres, _variances(rng, size, dim, width))
        for centres in _directions(rng, size, dim)
    )
    return rng, first, second


def _directions(rng: np.random.Generator, num: int, dim: int) -> tuple[HostArray, HostArray]:
    """Points of the unit sphere that keep apart, `(num, dim)`, for either end."""
    if dim == 2:
        angles = 2.0 * np.pi * (np.arange(num) / num + rng.uniform())
        first, second = (
            np.stack([np.cos(a), np.sin(a)], axis=-1) for a in (angles, angles + np.pi / num)
        )
        return first, second
    draws = rng.standard_normal((2, _CANDIDATES, num, dim))
    draws /= np.linalg.norm(draws, axis=-1, keepdims=True)
    cosines = draws @ np.swapaxes(draws, -1, -2) - 2.0 * np.eye(num)
    best = np.argmin(cosines.max(axis=(2, 3)), axis=1)
    return draws[0, best[0]], draws[1, best[1]]


def _variances(rng: np.random.Generator, num: int, dim: int, std: float) -> HostArray:
    return (std * np.exp(rng.uniform(-_SPREAD, _SPREAD, size=(num, dim)))) ** 2


def _balance(log_masses: HostArray) -> tuple[HostArray, HostArray]:
    """Log-weights `(I,)` and `(J,)` that give every row and every column the same mass."""
    rows, columns = (np.full(size, -math.log(size)) for size in log_masses.shape)
    log_psi = np.zeros(len(columns))
    for _ in range(_MAX_SWEEPS):
        log_phi = rows - logsumexp(log_masses + log_psi, axis=1)
        sums = logsumexp(log_masses + log_phi[:, None], axis=0)
        if np.abs(sums + log_psi - columns).max() < 1e-4:
            break
        log_psi = columns - sums
    return log_phi, log_psi


def _balance_plan(
    rng: np.random.Generator, source: Mixture, psi: Mixture, whole: Transition
) -> Mixture:
    """ψ with weights that give its components equal masses of p_1, to about one per cent."""
    x_0 = source.sample(rng, _BALANCE_DRAWS)
    log_components = psi.push(1.0, whole.variance).log_components(whole.scale * x_0)
    return psi._replace(log_weights=_balance(log_components)[1])


def _log_product(first: tuple[Mixture, float], second: tuple[Mixture, float]) -> LogDensity:
    """The sum over two mixtures of log m(scale · x), each with its own scale, in float32."""
    (log_p, scale_p), (log_q, scale_q) = (
        (
            mixtures.diagonal_log_density(m.means, np.sqrt(m.variances), m.log_weights),
            np.float32(scale),
        )
        for m, scale in (first, second)
    )

    def log_density(x: Array) -> Array:
        return log_p(scale_p * x) + log_q(scale_q * x)

    return log_density


def _mixture_end(
    name: str, law: Mixture, owners: np.ndarray, log_density: LogDensity
) -> Endpoint:
    """An end of a `MixtureBridge`.

    Args:
        name: Of the endpoint.
        law: The end as a mixture of I · J components.
        owners: The component of the end's own potential that each of them belongs to.
        log_density: The same in float32.
    """
    weights = np.exp(law.log_weights)
    shares = np.eye(owners.max() + 1)[:, owners] * weights
    modes = (shares / shares.sum(axis=1, keepdims=True)) @ law.means
    seen = weights > _NEGLIGIBLE
    means, stds = law.means[seen], np.sqrt(law.variances[seen])
    logits, centres, scales = (
        values.astype(np.float32) for values in (law.log_weights[seen], means, stds)
    )

    def sample(key: Key, n: int) -> Array:
        # One draw per point, not one per point and component.
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.categorical(label_key, jnp.asarray(logits), shape=(n,))
        noise = jax.random.normal(noise_key, (n, law.dim))
        return jnp.asarray(centres)[labels] + jnp.asarray(scales)[labels] * noise

    return Endpoint(
        name=name,
        dim=law.dim,
        sample=sample,
        log_density=log_density,
        log_z=0.0,
        modes=modes.astype(np.float32),
        mode_weights=_nearest_shares(law.sample, modes),
        extent=square_around(means, stds),
    )


def _plan_end(bridge: PlanBridge, whole: Transition) -> Endpoint:
    """The target of `gaussian_plan_pair`: x_0 from p_0, then x_T from the plan."""
    psi, dim = bridge.psi, bridge.psi.dim
    seen = psi.push(1.0, whole.variance)
    gains = psi.variances / seen.variances
    stds = np.sqrt(gains * whole.variance)
    rates = np.sqrt(0.5 / seen.variances)
    parts = (psi.log_weights + np.log(rates).sum(axis=1), psi.means, rates, gains, stds)
    constants = tuple(part.astype(np.float32) for part in parts)
    scale = np.float32(whole.scale)

    def sample(key: Key, n: int) -> Array:
        start_key, label_key, noise_key = jax.random.split(key, 3)
        offsets, centres, rates, gains, stds = (jnp.asarray(part) for part in constants)
        moved = scale * jax.random.normal(start_key, (n, dim))
        misses = (moved[:, None, :] - centres[None]) * rates[None]
        logits = offsets[None] - jnp.sum(jnp.square(misses), axis=-1)
        labels = jax.random.categorical(label_key, logits)
        mean = centres[labels] + gains[labels] * (moved - centres[labels])
        return mean + stds[labels] * jax.random.normal(noise_key, (n, dim))

    modes = _plan_modes(bridge)
    return Endpoint(
        name="gaussian_plan_target",
        dim=dim,
        sample=sample,
        modes=modes.astype(np.float32),
        mode_weights=_nearest_shares(lambda rng, n: bridge.sample_plan(rng, n)[1], modes),
        extent=square_around((1.0 - gains) * psi.means, gains * whole.scale + stds),
    )


def _plan_modes(bridge: PlanBridge) -> HostArray:
    """The mean of p_1 given each component of ψ, `(J, dim)`."""
    num, dim = bridge.psi.means.shape
    rng = np.random.default_rng(0)
    sums, masses = np.zeros((num, dim)), np.zeros((num, 1))
    for size in _sizes(_BALANCE_DRAWS, num * dim):
        plan = bridge.conditional_plan(bridge.source.sample(rng, size))
        weights = np.exp(plan.log_weights)
        sums += np.einsum("nm,nmd->md", weights, plan.means)
        masses += weights.sum(axis=0)[:, None]
    return sums / masses


def _nearest_shares(
    sample: Callable[[np.random.Generator, int], HostArray], modes: HostArray
) -> np.ndarray:
    """The shares of many draws that lie nearest to each mode, float32."""
    rng = np.random.default_rng(0)
    counts = np.zeros(len(modes))
    dim = modes.shape[1]
    for size in _sizes(min(_SHARE_DRAWS, _SHARE_NUMBERS // dim), 4 * dim):
        counts += size * metrics.mode_weights(sample(rng, size), modes)
    return (counts / counts.sum()).astype(np.float32)


def _sizes(total: int, width: int) -> list[int]:
    """Splits draws into chunks of at most a million numbers, `width` of them per draw."""
    num = max(1, math.ceil(total * width / _CHUNK))
    return [total // num + (i < total % num) for i in range(num)]
