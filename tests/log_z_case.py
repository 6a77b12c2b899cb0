"""Ends whose bridge, conditional law and log Z are known, and processes that contain it.

A mixture of three Gaussians is a potential ψ with which the chain of `LightPotential` is the
bridge, so that whatever loss trains its few parameters has an optimum among them. A Gaussian is
three equal components: the same shapes, and with that the same compiled programs.

Two kinds of start: "wide", a Gaussian or mixture as the target is, and "point", a Gaussian of
next to no variance, from which the bridge is the tilt of the reference by ψ alone.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax import exact, kernels, metrics, references, rollouts, time_grids
from d2ejax.endpoints import Endpoint
from d2ejax.light import LightPotential
from tests import gaussian_case

SIGMA, T_MAX, NUM_STEPS = 0.8, 1.0, 8
EPSILON = SIGMA**2 * T_MAX
LAW, GRID = references.brownian(SIGMA), time_grids.uniform(NUM_STEPS, T_MAX)
POTENTIAL = LightPotential(LAW, T_MAX)
FORWARD, BACKWARD = POTENTIAL.process(GRID), POTENTIAL.process(GRID, backward=True)
REFERENCE = kernels.reference_process(LAW, GRID)
POINT_STD, LOG_Z = 1e-3, 1.3
_CIRCLE = np.stack([f(2 * np.pi * np.arange(3) / 3) for f in (np.cos, np.sin)], axis=-1)
_ALIKE = np.ones((3, 1))
_PARTS = {
    "gaussian": (_ALIKE * [0.7, -0.5], _ALIKE * [0.3, 0.2]),
    "mixture": (1.3 * _CIRCLE, np.array([[0.5, 0.6], [0.6, 0.4], [0.45, 0.5]]) ** 2),
}
"""Centres and variances of three components at the target."""
_UNSPOILT = jnp.ones(()), jnp.asarray(LOG_Z)
_NUM_PATHS = 4000


class Mixture(NamedTuple):
    log_weights: Any
    means: Any
    variances: Any

    def log_density(self, x):
        squares = jnp.square(x[None] - self.means) / self.variances
        logs = -0.5 * jnp.sum(squares + jnp.log(2 * jnp.pi * self.variances), axis=-1)
        return jax.nn.logsumexp(self.log_weights + logs)

    def sample(self, key, n):
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.categorical(label_key, self.log_weights, shape=(n,))
        noise = jax.random.normal(noise_key, (n, self.means.shape[1]))
        return self.means[labels] + jnp.sqrt(self.variances[labels]) * noise


class Problem(NamedTuple):
    """Arrays alone: an argument of compiled programs.

    Attributes:
        phi: Parameters of the source's potential φ.
        psi: Those of the target's, ψ.
        source: p_0.
        target: p_1.
        factor: Of every energy that training sees: one, unless a bug is planted.
        log_z: The constant of every such energy: LOG_Z, unless a bug is planted.
    """

    phi: Any
    psi: Any
    source: Mixture
    target: Mixture
    factor: Any
    log_z: Any

    def ends(self):
        """Source and target; the target's energy is that of e^LOG_Z p_1."""
        source, target = self.source, self.target
        return (
            Endpoint("source", 2, sample=source.sample, log_density=source.log_density),
            Endpoint(
                "target",
                2,
                sample=target.sample,
                log_density=lambda x: self.factor * target.log_density(x) + self.log_z,
            ),
        )

    def reward(self, x):
        """Log ψ + LOG_Z: the reference tilted by it from each start by itself is the bridge."""
        return self.factor * POTENTIAL.log_value(self.psi, x, T_MAX) + self.log_z


def _potential(centres, variances):
    return exact.Mixture(np.full(3, -np.log(3.0)), np.asarray(centres), np.asarray(variances))


def _mixture(law):
    return Mixture(*(jnp.asarray(part, jnp.float32) for part in law))


@functools.cache
def problem(start, target):
    """From a "wide" start or a "point" to a "gaussian" or a "mixture"."""
    centres, variances = _PARTS[target]
    if start == "point":
        phi = _potential(np.zeros((3, 2)), np.full((3, 2), POINT_STD**2))
    else:
        phi = _potential(-centres + 0.1, variances[::-1])
    bridge = exact.mixture_bridge(phi, _potential(centres, variances), LAW, T_MAX)
    psi, phi = (POTENTIAL.from_mixture(*_mixture(law)) for law in (bridge.psi, bridge.phi))
    return Problem(phi, psi, _mixture(bridge.source), _mixture(bridge.target), *_UNSPOILT)


def off(params):
    """Parameters a nat or more from the optimum: what training starts from."""
    moved = {"log_weights": [0.8, -0.8, 0.0], "means": [[0.5, -0.4]], "log_variances": [[0.6]]}
    return {name: leaf + jnp.asarray(moved[name]) for name, leaf in params.items()}


# ---- Independent ends, whose bridges made Markov are no Schrödinger bridge

_BOUND = 6.0
_START_MEAN, _START_VARIANCES = np.array([-0.4, 0.6]), np.array([0.5, 0.3])


def _independent(backward):
    """The chain with the moments of each step, of parameters of the mixture at the target."""

    def network(params, x, t):
        share = t / T_MAX
        mean, variances = (jnp.asarray(v, x.dtype) for v in (_START_MEAN, _START_VARIANCES))
        means, spread = params["means"], jnp.exp(params["log_variances"])
        # Of x_t, given the component of the target.
        noise = EPSILON * share * (1 - share)
        total = (1 - share) ** 2 * variances[None] + share**2 * spread + noise
        misses = (x - (1 - share) * mean)[None] - share * means
        logits = -0.5 * jnp.sum(misses**2 / total + jnp.log(total), axis=-1)
        weights = jax.nn.softmax(params["log_weights"] + logits)
        prior = (mean[None], variances[None]) if backward else (means, spread)
        lever = 1 - share if backward else share
        gain = lever * prior[1] / total
        expected = prior[0] + gain * misses
        end = weights @ expected
        left = weights @ (prior[1] * (1 - lever * gain) + jnp.square(expected - end[None]))
        length = t if backward else T_MAX - t
        ratio = jnp.log(left / (SIGMA**2 * length))
        return (end - x) / length, _BOUND * jnp.arctanh(ratio / _BOUND)

    return kernels.process(network, LAW, GRID, backward=backward, bound=_BOUND)


INDEPENDENT = _independent(False)


@functools.cache
def independent_problem(target):
    """From a Gaussian; φ and ψ play no part, and "psi" is the mixture at the target itself."""
    law = _mixture(_potential(*_PARTS[target]))
    psi = {
        "log_weights": law.log_weights,
        "means": law.means,
        "log_variances": jnp.log(law.variances),
    }
    source = _mixture((np.zeros(1), _START_MEAN[None], _START_VARIANCES[None]))
    return Problem({}, psi, source, law, *_UNSPOILT)


# ---- Weights


def _weigher(forward, log_opposite):
    @gaussian_case.jit
    def parts(key, params, problem):
        start_key, path_key = jax.random.split(key)
        starts = problem.source.sample(start_key, _NUM_PATHS)
        keys = jax.random.split(path_key, _NUM_PATHS)
        paths = jax.vmap(rollouts.simulate, (0, None, None, 0))(keys, forward, params, starts)
        return {
            "log_start": jax.vmap(problem.source.log_density)(paths[:, 0]),
            "log_forward": rollouts.log_density(forward, params, paths),
            "log_backward": log_opposite(problem, paths),
            "log_end": jax.vmap(problem.target.log_density)(paths[:, -1]) + LOG_Z,
        }

    return parts


def log_reversal(problem, paths):
    """Log R of the bridge's own reversal, exactly: Q(τ | x_0) φ(x_0) / φ_T(x_K)."""
    at = jax.vmap(POTENTIAL.log_value, (None, 0, None))
    # Brownian motion is its own reversal: φ_T is as ψ_0 is.
    ratio = at(problem.phi, paths[:, 0], T_MAX) - at(problem.phi, paths[:, -1], 0.0)
    return rollouts.log_density(REFERENCE, None, paths) + ratio


def _log_independent_reversal(problem, paths):
    return rollouts.log_density(_independent(True), problem.psi, paths)


_WEIGHERS = {
    "bridge": _weigher(FORWARD, log_reversal),
    "independent": _weigher(INDEPENDENT, _log_independent_reversal),
}


def log_weights(params, problem, of="bridge"):
    """Of paths of a process beside the exact reversal; the mean of their exponentials is Z."""
    return metrics.log_weights(**_WEIGHERS[of](jax.random.key(10), params, problem))
