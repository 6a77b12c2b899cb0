"""Diagonal Gaussian bridges as parameters of an affine network, and half-steps around them.

The K-step Schrödinger bridge between Gaussians has affine kernels of constant variance, so a
network that is affine in x at each time holds it exactly, and so does every iterate of IPF.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from d2ejax import endpoints, exact, kernels, references, rollouts, time_grids
from d2ejax.algorithms.half_steps import HalfStep, Inputs
from d2ejax.endpoints import Endpoint
from d2ejax.exploration import replay_buffer
from d2ejax.exploration.particles import Particles

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles twice as fast as `jax.jit`, which is where the time of small tests goes."""

BOUND = 6.0
SIGMA, T_MAX, NUM_STEPS = 0.9, 0.7, 5
MOMENTS = {
    1: (([0.5], [0.6]), ([-0.8], [0.3])),
    2: (([0.3, -0.5], [0.8, 0.4]), ([-0.4, 1.0], [0.3, 0.9])),
}
"""Per dimension: mean and variances of the source, then of the target."""


class Case(NamedTuple):
    ends: tuple[Endpoint, Endpoint]
    law: references.Reference
    grid: time_grids.TimeGrid
    bridge: exact.GaussianBridge

    @property
    def dim(self):
        return self.ends[0].dim

    @property
    def times(self):
        return np.asarray(self.grid.times, np.float64)


@functools.cache
def make(dim):
    (mean_0, var_0), (mean_1, var_1) = MOMENTS[dim]
    law = references.brownian(SIGMA)
    return Case(
        ends=(
            endpoints.gaussian(mean=mean_0, covariance=np.diag(var_0)),
            endpoints.gaussian(mean=mean_1, covariance=np.diag(var_1)),
        ),
        law=law,
        grid=time_grids.end_refined(NUM_STEPS, T_MAX),
        bridge=exact.gaussian_bridge(
            mean_0, np.diag(var_0), mean_1, np.diag(var_1), law, T_MAX
        ),
    )


def process(case, *, backward):
    """An affine network looked up by time; zeros are the reference."""
    knots = case.grid.times[1:] if backward else case.grid.times[:-1]

    def network(params, x, t):
        k = jnp.argmin(jnp.abs(knots - t))
        shift = params["slope"][k] * x + params["offset"][k]
        return shift / jnp.sqrt(case.grid.steps[k]), params["raw"][k]

    return kernels.process(
        network, case.law, case.grid, backward=backward, variance="bounded", bound=BOUND
    )


def zero_params(case):
    zeros = jnp.zeros((NUM_STEPS, case.dim))
    return {"slope": zeros, "offset": zeros, "raw": zeros}


def exact_params(case, *, backward):
    bridge = case.bridge
    law = (bridge.backward_kernels if backward else bridge.forward_kernels)(case.times)
    steps = np.diff(case.times)[:, None]
    ratio = np.log(np.einsum("kii->ki", law.cov) / (SIGMA**2 * steps))
    params = {
        "slope": (np.einsum("kii->ki", law.matrix) - 1.0) / np.sqrt(steps),
        "offset": law.offset / np.sqrt(steps),
        "raw": BOUND * np.arctanh(ratio / BOUND),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def perturbed(params):
    """Another drift: 0.3 more in each offset."""
    return params | {"offset": params["offset"] + 0.3}


@functools.partial(jit, static_argnames=("num_paths", "dim", "backward"))
def paths(key, params, starts, num_paths, *, dim, backward):
    """Paths of the affine process from each start, `(num_starts, num_paths, K + 1, dim)`."""
    chain = process(make(dim), backward=backward)
    keys = jax.random.split(key, (starts.shape[0], num_paths))
    simulate = jax.vmap(lambda key, x: rollouts.simulate(key, chain, params, x), (0, None))
    return jax.vmap(simulate)(keys, starts)


def quadratic(params, x):
    """A potential Σ_i (square_i x_i² + linear_i x_i) + constant."""
    return jnp.sum(params["square"] * x**2 + params["linear"] * x) + params["constant"]


def as_quadratic(function, dim):
    """The parameters of a separable quadratic from float64 values `(n, dim) -> (n,)`."""
    eye = np.eye(dim)
    up, down, middle = function(eye), function(-eye), function(np.zeros((1, dim)))[0]
    params = {
        "square": (up + down) / 2 - middle,
        "linear": (up - down) / 2,
        "constant": middle,
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def log_density(case, end, x):
    """log p_0 or log p_1 in float64, for x `(n, dim)`."""
    mean, variance = (np.asarray(value) for value in MOMENTS[case.dim][end])
    return np.sum(-0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance)), axis=1)


def log_potential(case, end, x):
    """log ψ_0 at the source or log φ_T at the target, of one pair of potentials."""
    at_start, at_end = case.bridge.log_potentials(x, x)
    return -at_start if end == 0 else log_density(case, 1, x) - at_end


def centred_potential(case, end):
    """The quadratic of `log_potential` with mean zero over its end."""
    params = as_quadratic(lambda x: log_potential(case, end, x), case.dim)
    mean, variance = (np.asarray(value, np.float32) for value in MOMENTS[case.dim][end])
    constant = -jnp.sum(params["square"] * (mean**2 + variance) + params["linear"] * mean)
    return params | {"constant": constant}


def noise(key, n, dim):
    return 1.5 * jax.random.normal(key, (n, dim))


def half_step(case, loss, *, backward, **options):
    """A half-step of the affine process; both ends offer all they have."""
    source, target = case.ends
    size = options.pop("buffer_size", 256)
    explorer = Particles(size, None, 1, 0.0, functools.partial(noise, dim=case.dim))
    defaults = {
        "loss": loss,
        "trained": process(case, backward=backward),
        "opposite": process(case, backward=not backward),
        "reference": kernels.reference_process(case.law, case.grid),
        "law": case.law,
        "grid": case.grid,
        "start": target if backward else source,
        "goal": source if backward else target,
        "potential": quadratic,
        "particles": (explorer, explorer),
        "batch_size": 32,
        "num_paths": 4,
        "num_anchors": 64,
        "reanchor": False,
        "off_policy_ratio": optax.constant_schedule(0.5),
        "reuse_path": True,
        "inverse_temperature": optax.constant_schedule(1.0),
    }
    return HalfStep(**(defaults | options))


def buffers(key, case, size=256):
    """Particles at both ends, drawn from the ends themselves."""
    filled = []
    for end, own_key in zip(case.ends, jax.random.split(key), strict=True):
        empty = replay_buffer.init(size, case.dim)
        filled.append(replay_buffer.add(empty, end.sample(own_key, size)))
    return tuple(filled)


def inputs(params, opposite, particles, *, average=None, step=0, opposite_step=0):
    average = params if average is None else average
    steps = jnp.asarray(step, jnp.int32), jnp.asarray(opposite_step, jnp.int32)
    return Inputs(params, average, opposite, particles, *steps)


def z_scores(samples):
    """Means of `(n, ...)` leaves in units of their standard errors, in one vector."""
    rows = np.concatenate(
        [
            np.asarray(leaf, np.float64).reshape(len(leaf), -1)
            for leaf in jax.tree.leaves(samples)
        ],
        axis=1,
    )
    return rows.mean(axis=0) / (rows.std(axis=0, ddof=1) / np.sqrt(len(rows)))


def largest(tree):
    """The largest magnitude in a tree."""
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))
