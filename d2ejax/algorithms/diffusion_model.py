"""Diffusion models: data from noise, by the reversal of what turns data into noise.

Time 0 is noise and T data. From the data backward runs the reference itself: those of the
library are reversible, so that these steps are known exactly, with the numbers of the forward
ones,

    R(x_k | x_{k+1}) = N(a_k x_{k+1}, v_k I).

The process P_θ that runs forward is fitted to the paths of this one by maximum likelihood.
Between its ends such a path is a bridge of the reference, so that each next state can be
averaged out given the data: the loss is that of bridge matching, for ends that are data and the
noise made of them. With a fixed variance it is denoising score matching with the likelihood's
own weights (Ho et al. 2020, arXiv:2006.11239, eq. 8; Song et al. 2021, arXiv:2101.09258); and
the variance can be learned as well. On the way from noise to data the noise of a step is to
fall: see `references.time_reversed`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from d2ejax import gaussians, kernels, references
from d2ejax.algorithms.base import Algorithm, of_one_model
from d2ejax.algorithms.bridges import ends_objective
from d2ejax.endpoints import base as endpoints
from d2ejax.endpoints.base import Endpoint
from d2ejax.gaussians import Gaussian
from d2ejax.kernels import EmbeddedStep, Process, Step
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, AxisName, Key, Params


class DiffusionModel(NamedTuple):
    """Everything fixed about a diffusion model.

    Attributes:
        process: What is trained, forward in time: from noise to data.
        law: The reference in continuous time, which turns data into noise.
        grid: The time grid.
        data: What offers samples at time T.
        batch_size: Paths in one gradient step, on each device.
    """

    process: Process
    law: Reference
    grid: TimeGrid
    data: Endpoint
    batch_size: int = 128


def diffusion_model(
    given: DiffusionModel,
    *,
    init_params: Callable[[Key], Params],
    optimiser: optax.GradientTransformation,
    ema_decay: float,
    axis_name: AxisName | None = None,
) -> Algorithm:
    """Trains a diffusion model.

    Args:
        given: What is trained, on what.
        init_params: Maps a key to the parameters of the process.
        optimiser: Of the parameters.
        ema_decay: Decay of the parameters' moving average per step.
        axis_name: The mapped axis of devices, over which gradients and metrics are averaged.

    Returns:
        The algorithm; its state is a `base.State`.

    Raises:
        ValueError: If the process runs backward or there are no samples of the data.
    """
    if given.process.backward:
        raise ValueError("process: runs backward: must be a forward process")
    endpoints.sampler(given.data)

    return of_one_model(
        lambda key, _: objective(given, key),
        init_params=init_params,
        optimiser=optimiser,
        ema_decay=ema_decay,
        axis_name=axis_name,
    )


def objective(
    given: DiffusionModel, key: Key
) -> Callable[[Params], tuple[Array, dict[str, Array]]]:
    """Draws the data of one gradient step, and makes noise of it.

    Args:
        given: The diffusion model.
        key: A typed key.

    Returns:
        The loss on it as a function of the parameters, in nats per path, and no metrics.
    """
    data_key, noise_key, path_key = jax.random.split(key, 3)
    data = endpoints.sampler(given.data)(data_key, given.batch_size)

    def noised(x: Array, noise: Array) -> Array:
        # By reversibility the transition from T back to 0 has the numbers of that from 0 to T.
        law = references.transition(given.law, x, given.grid.times[0], given.grid.t_max)
        return gaussians.sample(law, noise)

    starts = jax.vmap(noised)(data, jax.random.normal(noise_key, data.shape, data.dtype))
    return ends_objective(path_key, given.process, given.law, given.grid, starts, data)


def noising(law: Reference, grid: TimeGrid) -> Process:
    """The reference run backward from data, under the measure that it leaves as it is.

    That is a Gaussian N(0, c I) for a reference with a drift, and flat for one without; started
    in it, the reference is this process's reversal.

    Args:
        law: The reference in continuous time.
        grid: The time grid.

    Returns:
        A backward process; its parameters are ignored.
    """
    forward = kernels.reference_process(law, grid, discretisation="exact")
    return forward._replace(steps=forward.steps._replace(time=grid.times[1:]), backward=True)


def with_noise(model: Process, share: float) -> Process:
    """A diffusion model sampled with less noise than its own, and nearly the same marginals.

    The score at x is (a m(x) - x) / v by Tweedie's formula, with the mean m(x) of the model's
    step and the reference's a and v. Of the drift ½(1 - η²) g² times the score is taken off, by
    the step that is exact where the end is known (DDIM, Song et al. 2021, arXiv:2010.02502,
    eq. 12): with ρ the share of v that is left when the end is pinned,

        N(m + λ (x - a m), η² v w),   λ = (√(ρ (1 - η² (1 - a² ρ))) - ρ a) / (1 - a² ρ),

    w being what the model makes of the variance. The last step is the model's own, as what it
    adds nothing takes off again. With η = 1 all steps are, and the end forgets its start; the
    smaller η the more it remembers, and in the limit it is a flow. The marginals are the same
    up to the length of the steps: of 30 with η = 0.3 a Gaussian's end has .91 to .96 of its
    variance.

    Args:
        model: A diffusion model on the reference's exact steps.
        share: η in (0, 1], in units of the model's own noise, a standard deviation.

    Returns:
        The process, with the parameters of the model.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: must be > 0 and ≤ 1")

    def embed(params: Params, step: Step) -> EmbeddedStep:
        return EmbeddedStep((model.embed(params, step), _push(step, share)), step)

    def kernel(params: Params, x: Array, embedded: EmbeddedStep) -> Gaussian:
        (own, push), step = embedded
        mean, log_variance = model.embedded_kernel(params, x, own)
        taken = jnp.where(step.pinned_share > 0, 2.0 * math.log(share), 0.0)
        return Gaussian(mean + push * (x - step.scale * mean), log_variance + taken)

    return model._replace(embed=embed, embedded_kernel=kernel)


def _push(step: Step, share: float) -> Array:
    """λ of `with_noise`."""
    scale, pinned = step.scale, step.pinned_share
    left = scale**2 * pinned
    root = jnp.sqrt(pinned * (1.0 - share**2 * (1.0 - left)))
    return (root - pinned * scale) / (1.0 - left)
