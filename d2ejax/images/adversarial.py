"""Generative adversarial networks: their losses, and the training of a small DCGAN.

Goodfellow et al. (2014, arXiv:1406.2661), with the generator's loss that does not saturate, and
the discriminator's gradient penalised at real images (R1: Mescheder, Geiger & Nowozin 2018,
arXiv:1801.04406), without which the game need not converge.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.endpoints import options
from d2ejax.images import networks, training
from d2ejax.images.datasets import Images
from d2ejax.typing import Array, Key, Params


class Game(NamedTuple):
    """The state of both players.

    Attributes:
        generator: What makes images.
        discriminator: What tells them from real ones.
    """

    generator: training.Descending
    discriminator: training.Descending


def discriminator_loss(real: Array, fake: Array) -> Array:
    """-log D(real) - log(1 - D(fake)), D the logistic function of the logits, in nats.

    At the best discriminator its mean is log 4 - 2 JS, with JS the Jensen-Shannon divergence of
    real from generated images.

    Args:
        real: The discriminator's logit of a real image, a scalar.
        fake: That of a generated image, a scalar.

    Returns:
        A scalar.
    """
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def generator_loss(fake: Array) -> Array:
    """-log D(fake), whose gradient does not vanish where the discriminator is sure.

    Args:
        fake: The discriminator's logit of a generated image, a scalar.

    Returns:
        In nats, a scalar.
    """
    return jax.nn.softplus(-fake)


def r1_penalty(discriminate: Callable[[Array], Array], images: Array) -> Array:
    """½ |∇ logit|² of each of a batch of images.

    Args:
        discriminate: Maps `(n, ...)` images to logits `(n,)`, each of its own image alone.
        images: `(n, ...)`.

    Returns:
        `(n,)`.
    """
    gradients = jax.grad(lambda images: jnp.sum(discriminate(images)))(images)
    return 0.5 * jnp.sum(jnp.square(gradients), axis=tuple(range(1, images.ndim)))


def train_gan(
    key: Key,
    images: Images,
    *,
    latent_dim: int = 20,
    num_steps: int = 3000,
    batch_size: int = 64,
    width: int = 16,
    kind: str = "conv",
    learning_rate: float = 1e-3,
    penalty: float = 10.0,
    penalty_every: int = 4,
    shift: int = 0,
    decay: float = 0.998,
    report: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> tuple[Params, dict[str, np.ndarray]]:
    """Trains a small DCGAN: each step one of the discriminator, then one of the generator.

    Args:
        key: A typed key.
        images: To train on.
        latent_dim: Size of the latent, of which the prior is N(0, I).
        num_steps: Gradient steps of each player.
        batch_size: Real images, and generated ones, a step.
        width: Of both networks, see `networks.adversary`.
        kind: Of generator, "conv" or "mlp".
        learning_rate: The highest.
        penalty: Weight of `r1_penalty`.
        penalty_every: Steps from one penalty to the next, which is weighted accordingly; it
            costs as much as the rest of a step (Karras et al. 2020, arXiv:1912.04958).
        shift: The most pixels that real images are moved by, see `training.draw`.
        decay: Of the average of the generator's parameters, which is what is returned.
        report: See `training.fit`.

    Returns:
        The parameters, described by `networks.adversary` of the same options, and the metrics
        of all steps: "loss" and "penalty" of the discriminator, "generator_loss".

    Raises:
        ValueError: If an option is out of its range.
        FloatingPointError: If the loss is not finite.
    """
    description = networks.adversary(
        images.pixels.shape[1:], latent_dim=latent_dim, width=width, kind=kind
    )
    penalty = options.positive("penalty", penalty)
    penalty_every = options.integer("penalty_every", penalty_every, minimum=1)
    # The usual momentum of 0.9 makes the players circle each other.
    optimiser = training.adam(learning_rate, num_steps, b1=0.5)
    init, play = _game(description, optimiser, decay, penalty, penalty_every)

    def step(state: Game, key: Key, data: training.Data) -> tuple[Game, training.Metrics]:
        draw_key, latent_key = jax.random.split(key)
        real, _ = training.draw(draw_key, data, batch_size, shift=shift)
        return play(state, real, jax.random.normal(latent_key, (batch_size, latent_dim)))

    data = training.on_device(images)
    state, metrics = training.fit(init, step, num_steps, key, data, report=report)
    params = {
        "generator": state.generator.average,
        "discriminator": state.discriminator.params,
    }
    return params, metrics


def _game(
    description: networks.Description,
    optimiser: Any,
    decay: float,
    penalty: float,
    penalty_every: int,
) -> tuple[Callable[[Key], Game], Callable[..., tuple[Game, training.Metrics]]]:
    """The init of both players, and one move of each on real images and latents."""
    modules = networks.build(description)
    shape, latent_dim = description["shape"], description["latent_dim"]

    def generate(params: Params, latents: Array) -> Array:
        return jnp.tanh(0.5 * modules["generator"].apply(params, latents))

    def loss_of_discriminator(
        params: Params, real: Array, fake: Array, is_penalised: Array
    ) -> tuple[Array, training.Metrics]:
        def discriminate(images: Array) -> Array:
            return modules["discriminator"].apply(params, images)

        logits = discriminate(jnp.concatenate([real, fake]))
        losses = jax.vmap(discriminator_loss)(*jnp.split(logits, 2))
        # Half the batch is enough for the penalty; where there is none nothing is computed.
        penalised = jax.lax.cond(
            is_penalised,
            lambda: jnp.mean(r1_penalty(discriminate, real[: (len(real) + 1) // 2])),
            lambda: jnp.float32(0.0),
        )
        total = jnp.mean(losses) + penalty * penalty_every * penalised
        return total, {"penalty": penalised}

    def loss_of_generator(
        params: Params, latents: Array, opponent: Params
    ) -> tuple[Array, training.Metrics]:
        logits = modules["discriminator"].apply(opponent, generate(params, latents))
        return jnp.mean(jax.vmap(generator_loss)(logits)), {}

    first = training.descent(loss_of_discriminator, optimiser, decay=decay)
    second = training.descent(loss_of_generator, optimiser, decay=decay)

    def init(key: Key) -> Game:
        generator_key, discriminator_key = jax.random.split(key)
        generator = modules["generator"].init(generator_key, jnp.zeros(latent_dim))
        discriminator = modules["discriminator"].init(discriminator_key, jnp.zeros(shape))
        return Game(second.init(generator), first.init(discriminator))

    def play(state: Game, real: Array, latents: Array) -> tuple[Game, training.Metrics]:
        fake = generate(state.generator.params, latents)
        is_penalised = state.discriminator.taken % penalty_every == 0
        discriminator, metrics = first.step(state.discriminator, real, fake, is_penalised)
        generator, others = second.step(state.generator, latents, discriminator.params)
        return Game(generator, discriminator), metrics | {"generator_loss": others["loss"]}

    return init, play
