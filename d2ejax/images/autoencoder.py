"""Variational autoencoders: the bound, in nats, and their training.

Kingma & Welling (2014, arXiv:1312.6114): with a latent z ~ N(0, I), a likelihood p(x | z) and a
Gaussian q(z | x) of diagonal covariance,

    log p(x) ≥ E_q[log p(x | z)] - KL(q(z | x) || N(0, I)).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.endpoints import options
from d2ejax.images import networks, training
from d2ejax.images.datasets import Images
from d2ejax.typing import Array, Key, Params

_LOG_2PI = math.log(2.0 * math.pi)

Posterior = Callable[[Array], tuple[Array, Array]]
"""Maps `(n, ...)` images to the means and log-variances of q(z | x), both `(n, latent_dim)`."""

LogLikelihood = Callable[[Array, Array], Array]
"""Maps latents `(n, latent_dim)` and images `(n, ...)` to log p(x | z), `(n,)`."""


class Bound(NamedTuple):
    """The parts of the negative bound, in nats, both `(n,)`.

    Attributes:
        reconstruction: -log p(x | z) at one z drawn from q(z | x).
        kl: KL(q(z | x) || N(0, I)).
    """

    reconstruction: Array
    kl: Array


def vae_loss(
    key: Key, images: Array, posterior: Posterior, log_likelihood: LogLikelihood
) -> tuple[Array, Bound]:
    """The negative evidence lower bound of each image, unbiased from one latent.

    Args:
        key: A typed key.
        images: `(n, ...)`; a batch, as the networks take it whole.
        posterior: q(z | x).
        log_likelihood: log p(x | z).

    Returns:
        -ELBO in nats, `(n,)`, and its parts.
    """
    mean, log_variance = posterior(images)
    latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    kl = jax.vmap(kl_from_prior)(mean, log_variance)
    bound = Bound(-log_likelihood(latents, images), kl)
    return bound.reconstruction + bound.kl, bound


def kl_from_prior(mean: Array, log_variance: Array) -> Array:
    """KL(N(mean, diag(exp(log_variance))) || N(0, I)) in nats, a scalar.

    Args:
        mean: `(dim,)`.
        log_variance: `(dim,)`.
    """
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.expm1(log_variance) - log_variance)


def importance_log_evidence(
    key: Key,
    image: Array,
    posterior: Posterior,
    log_likelihood: LogLikelihood,
    *,
    num_samples: int,
) -> Array:
    """An estimate of log p(x): log (1/n) Σ p(x | z_i) p(z_i) / q(z_i | x), z_i ~ q(z | x).

    Below it on average, and the less so the more samples (Burda, Grosse & Salakhutdinov 2016,
    arXiv:1509.00519).

    Args:
        key: A typed key.
        image: One image, of any shape.
        posterior: q(z | x).
        log_likelihood: log p(x | z).
        num_samples: n.

    Returns:
        In nats, a scalar.
    """
    mean, log_variance = posterior(image[None])
    noise = jax.random.normal(key, (num_samples, mean.shape[1]))
    latents = mean + jnp.exp(0.5 * log_variance) * noise
    log_ratios = 0.5 * jnp.sum(jnp.square(noise) + log_variance - jnp.square(latents), axis=-1)
    copies = jnp.broadcast_to(image, (num_samples, *image.shape))
    log_weights = log_likelihood(latents, copies) + log_ratios
    return jax.nn.logsumexp(log_weights) - math.log(num_samples)


def bernoulli(logits: Array, image: Array) -> Array:
    """The expected log-likelihood of an image whose pixels are drawn black or white.

    Each is white with probability its grey level, anew at each look, and is white under the
    model with log-odds `logits`. The expectation is free, as log p is linear in the pixel.

    Args:
        logits: Of any shape.
        image: In [-1, 1], of the same shape.

    Returns:
        In nats, a scalar.
    """
    white = 0.5 * (image + 1.0)
    return jnp.sum(white * logits - jax.nn.softplus(logits))


def gaussian(mean: Array, log_variance: Array, image: Array) -> Array:
    """The log-likelihood log N(image; mean, exp(log_variance) I) in nats, a scalar.

    Args:
        mean: Of any shape.
        log_variance: A scalar.
        image: Of the shape of the mean.
    """
    squares = jnp.square(image - mean) * jnp.exp(-log_variance)
    return -0.5 * jnp.sum(squares + log_variance + _LOG_2PI)


def loss_of(
    description: networks.Description, *, kl_weight: float = 1.0
) -> Callable[[Params, Key, Array], tuple[Array, training.Metrics]]:
    """The mean negative bound of a batch of images under a described autoencoder.

    Args:
        description: What `networks.autoencoder` returned.
        kl_weight: Of the KL divergence, see `train_autoencoder`.

    Returns:
        Maps parameters, a key and images `(n, height, width, channels)` to the loss, in nats an
        image, and its two parts.
    """
    modules = networks.build(description)

    def loss(params: Params, key: Key, images: Array) -> tuple[Array, training.Metrics]:
        posterior, log_likelihood = _functions(modules, description["likelihood"], params)
        losses, bound = vae_loss(key, images, posterior, log_likelihood)
        losses = losses + (kl_weight - 1.0) * bound.kl
        return jnp.mean(losses), {name: jnp.mean(x) for name, x in bound._asdict().items()}

    return loss


def _functions(
    modules: Mapping[str, Any], likelihood: str, params: Params
) -> tuple[Posterior, LogLikelihood]:
    def posterior(images: Array) -> tuple[Array, Array]:
        return modules["encoder"].apply(params["encoder"], images)

    def log_likelihood(latents: Array, images: Array) -> Array:
        logits = modules["generator"].apply(params["generator"], latents)
        if likelihood == "bernoulli":
            return jax.vmap(bernoulli)(logits, images)
        each = jax.vmap(gaussian, in_axes=(0, None, 0))
        return each(jnp.tanh(0.5 * logits), params["log_variance"], images)

    return posterior, log_likelihood


def train_autoencoder(
    key: Key,
    images: Images,
    *,
    latent_dim: int = 20,
    num_steps: int = 4000,
    batch_size: int = 128,
    width: int = 16,
    kind: str = "conv",
    likelihood: str = "bernoulli",
    kl_weight: float = 2.0,
    learning_rate: float = 2e-3,
    shift: int = 0,
    decay: float = 0.998,
    report: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> tuple[Params, dict[str, np.ndarray]]:
    """Trains a variational autoencoder.

    Args:
        key: A typed key.
        images: To train on.
        latent_dim: Size of the latent.
        num_steps: Gradient steps.
        batch_size: Images a step.
        width: Of both networks, see `networks.autoencoder`.
        kind: Of generator, "conv" or "mlp".
        likelihood: "bernoulli" or "gaussian", see `networks.autoencoder`.
        kl_weight: Of the KL divergence in the loss, which is the negative bound at one. At two
            the latents of images fill the prior better, and what is decoded from draws of the
            prior is more often a digit; images are less exact (Higgins et al. 2017, β-VAE).
        learning_rate: The highest.
        shift: The most pixels that images are moved by, see `training.draw`.
        decay: Of the parameters' average, which is what is returned.
        report: See `training.fit`.

    Returns:
        The parameters, described by `networks.autoencoder` of the same options, and the metrics
        of all steps, in nats an image: "loss", and its parts "reconstruction" and "kl" as they
        are without weight.

    Raises:
        ValueError: If an option is out of its range.
        FloatingPointError: If the loss is not finite.
    """
    shape = images.pixels.shape[1:]
    description = networks.autoencoder(
        shape, latent_dim=latent_dim, width=width, kind=kind, likelihood=likelihood
    )
    modules = networks.build(description)
    # Of ±1 pixels, and what of them a mean leaves unexplained at first.
    first_log_variance = jnp.float32(-1.0)

    def init(key: Key) -> training.Descending:
        encoder_key, generator_key = jax.random.split(key)
        return steps.init(
            {
                "encoder": modules["encoder"].init(encoder_key, jnp.zeros(shape)),
                "generator": modules["generator"].init(generator_key, jnp.zeros(latent_dim)),
                "log_variance": first_log_variance,
            }
        )

    def step(state: training.Descending, key: Key, data: training.Data) -> tuple[Any, Any]:
        draw_key, loss_key = jax.random.split(key)
        batch, _ = training.draw(draw_key, data, batch_size, shift=shift)
        return steps.step(state, loss_key, batch)

    loss = loss_of(description, kl_weight=options.positive("kl_weight", kl_weight))
    optimiser = training.adam(learning_rate, num_steps)
    steps = training.descent(loss, optimiser, decay=decay)
    data = training.on_device(images)
    state, metrics = training.fit(init, step, num_steps, key, data, report=report)
    return state.average, metrics


def evaluate_autoencoder(
    key: Key, description: networks.Description, params: Params, images: Images
) -> dict[str, float]:
    """The bound on images that were not trained on.

    Args:
        key: A typed key.
        description: Of the autoencoder.
        params: Its parameters.
        images: To evaluate on.

    Returns:
        Means in nats an image: "elbo", "reconstruction" (its negative part) and "kl".
    """
    modules = networks.build(description)

    @jax.jit
    def bounds(params: Params, key: Key, pixels: Array) -> Bound:
        posterior, log_likelihood = _functions(modules, description["likelihood"], params)
        return vae_loss(key, training.unit(pixels), posterior, log_likelihood)[1]

    pixels = training.on_device(images).pixels
    parts = bounds(params, key, pixels)
    means = {name: float(jnp.mean(values)) for name, values in parts._asdict().items()}
    return {"elbo": -means["reconstruction"] - means["kl"], **means}
