"""Small convolutional networks: from images to numbers, and from latents to images.

Images are float32 `(height, width, channels)` in [-1, 1], height and width divisible by four,
such as 8 × 8 × 1, 28 × 28 × 1 and 32 × 32 × 3; every module takes one, or a batch along leading
axes. They are differentiated at every step of a chain or a path, so they are made to be cheap
on a CPU: no convolution at full resolution, with strides in place of pooling, which would be
eight times as slow.

A trained network is its parameters and a *description*: a dict of JSON types from which `build`
makes the modules. A description says what a network is, not how it was trained.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from d2ejax.endpoints import options
from d2ejax.images import convolutions
from d2ejax.typing import Array, Params

Description = Mapping[str, Any]
"""What `autoencoder`, `adversary` or `classifier` returns; goes through JSON unchanged."""

_Conv = functools.partial(nn.Conv, conv_general_dilated=convolutions.conv_general_dilated)

KINDS = ("mlp", "conv")
LIKELIHOODS = ("bernoulli", "gaussian")


class Trunk(nn.Module):
    """Two strided convolutions and a dense layer.

    Attributes:
        width: Channels of the first convolution; the second has twice as many.
        num_outputs: Size of the output, which is not activated.
        activation: After each convolution.
    """

    width: int
    num_outputs: int
    activation: Callable[[Array], Array] = nn.silu

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `(..., height, width, channels)` to `(..., num_outputs)`."""
        hidden = self.activation(_Conv(self.width, (5, 5), strides=2)(images))
        hidden = self.activation(_Conv(2 * self.width, (3, 3), strides=2)(hidden))
        return nn.Dense(self.num_outputs)(hidden.reshape(*hidden.shape[:-3], -1))


class Encoder(nn.Module):
    """The Gaussian posterior of a variational autoencoder.

    Attributes:
        latent_dim: Size of the latent.
        width: Channels of the first convolution.
    """

    latent_dim: int
    width: int

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Maps images to the mean and the log-variance of each latent coordinate."""
        hidden = nn.silu(Trunk(self.width, 16 * self.width)(images))
        mean, log_variance = jnp.split(nn.Dense(2 * self.latent_dim)(hidden), 2, axis=-1)
        # No variance overflows before anything is learned.
        return mean, jnp.clip(log_variance, -15.0, 15.0)


class Generator(nn.Module):
    """From a latent to the logits of pixels; an image is tanh(logits / 2).

    Attributes:
        shape: Of an image.
        width: "conv": channels at a quarter of the resolution. "mlp": the hidden layers have 16
            and 32 times as many units.
        kind: "conv", a dense layer and two convolutions whose channels are laid out as 2 × 2
            pixels (Shi et al. 2016, arXiv:1609.05158), or "mlp".
    """

    shape: tuple[int, int, int]
    width: int
    kind: str

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps `(..., latent_dim)` to `(..., height, width, channels)`."""
        hidden = nn.silu(nn.Dense(16 * self.width)(latents))
        leading = latents.shape[:-1]
        if self.kind == "mlp":
            hidden = nn.silu(nn.Dense(32 * self.width)(hidden))
            pixels = nn.Dense(self.shape[0] * self.shape[1] * self.shape[2])(hidden)
            return pixels.reshape(*leading, *self.shape)
        rows, columns, channels = self.shape[0] // 4, self.shape[1] // 4, self.shape[2]
        hidden = nn.silu(nn.Dense(rows * columns * self.width)(hidden))
        hidden = hidden.reshape(*leading, rows, columns, self.width)
        hidden = nn.silu(depth_to_space(_Conv(2 * self.width, (3, 3))(hidden)))
        return depth_to_space(_Conv(4 * channels, (3, 3))(hidden))


class Discriminator(nn.Module):
    """Real from generated images, as in DCGAN (Radford et al. 2016, arXiv:1511.06434).

    Without batch normalisation: a gradient penalty keeps it in check, and no image depends on
    the others of its batch.

    Attributes:
        width: Channels of the first convolution.
    """

    width: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps images to the log-odds of being real, `(...,)`."""
        hidden = nn.leaky_relu(Trunk(self.width, 8 * self.width, _leaky_relu)(images), 0.2)
        return nn.Dense(1)(hidden)[..., 0]


class Classifier(nn.Module):
    """Log-probabilities of classes.

    Attributes:
        num_classes: Number of classes.
        width: Channels of the first convolution; there are eight times as many features.
    """

    num_classes: int
    width: int

    def setup(self) -> None:
        """Names the layers."""
        self.trunk = Trunk(self.width, 8 * self.width)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, images: Array) -> Array:
        """Maps images to logits, `(..., num_classes)`."""
        return self.head(self.features(images))

    def features(self, images: Array) -> Array:
        """The activations of the layer before the last, `(..., 8 · width)`."""
        return nn.silu(self.trunk(images))


def _leaky_relu(x: Array) -> Array:
    return nn.leaky_relu(x, 0.2)


def depth_to_space(x: Array) -> Array:
    """Lays out every four channels as 2 × 2 pixels.

    Args:
        x: `(..., height, width, 4 · channels)`.

    Returns:
        `(..., 2 · height, 2 · width, channels)`.
    """
    *leading, height, width, depth = x.shape
    blocks = x.reshape(*leading, height, width, 2, 2, depth // 4)
    return jnp.moveaxis(blocks, -3, -4).reshape(*leading, 2 * height, 2 * width, depth // 4)


def autoencoder(
    shape: Sequence[int],
    *,
    latent_dim: int = 20,
    width: int = 16,
    kind: str = "conv",
    likelihood: str = "bernoulli",
) -> dict[str, Any]:
    """Describes a variational autoencoder: an `Encoder` and a `Generator`.

    Args:
        shape: Of an image.
        latent_dim: Size of the latent.
        width: Channels of the encoder's first convolution and of the generator.
        kind: Of generator, "conv" or "mlp".
        likelihood: "bernoulli": each pixel is white with probability (1 + mean) / 2 and black
            otherwise, and the images are those made of the grey ones by drawing every pixel so
            anew (Salakhutdinov & Murray 2008). "gaussian": around the mean with one learned
            variance for all pixels (Rybkin et al. 2021, arXiv:2006.13202).

    Returns:
        The description. Parameters are a dict of "encoder", "generator" and "log_variance", a
        scalar which "bernoulli" has no use of.

    Raises:
        ValueError: If an option is out of its range.
    """
    options.refuse_unknown("likelihood", likelihood, LIKELIHOODS)
    return {
        "network": "autoencoder",
        **_of_generator(shape, latent_dim, width, kind),
        "likelihood": likelihood,
    }


def adversary(
    shape: Sequence[int], *, latent_dim: int = 20, width: int = 16, kind: str = "conv"
) -> dict[str, Any]:
    """Describes a generative adversarial network: a `Generator` and a `Discriminator`.

    Args:
        shape: Of an image.
        latent_dim: Size of the latent.
        width: Channels of the discriminator's first convolution and of the generator.
        kind: Of generator, "conv" or "mlp".

    Returns:
        The description. Parameters are a dict of "generator" and "discriminator".

    Raises:
        ValueError: If an option is out of its range.
    """
    return {"network": "adversary", **_of_generator(shape, latent_dim, width, kind)}


def classifier(shape: Sequence[int], *, num_classes: int, width: int = 16) -> dict[str, Any]:
    """Describes a `Classifier`.

    Args:
        shape: Of an image.
        num_classes: Number of classes.
        width: Channels of the first convolution.

    Returns:
        The description. Parameters are a dict of "classifier" and "log_temperature", a scalar.

    Raises:
        ValueError: If an option is out of its range.
    """
    return {
        "network": "classifier",
        "shape": _shape(shape),
        "num_classes": options.integer("num_classes", num_classes, minimum=2),
        "width": options.integer("width", width, minimum=1),
    }


_DESCRIBE: dict[str, Callable[..., dict[str, Any]]] = {
    "autoencoder": autoencoder,
    "adversary": adversary,
    "classifier": classifier,
}


def build(description: Description) -> dict[str, Any]:
    """The modules of a network by the names of their parameters.

    Args:
        description: What `autoencoder`, `adversary` or `classifier` returned.

    Returns:
        "encoder" and "generator", "generator" and "discriminator", or "classifier".

    Raises:
        ValueError: If it is none of these.
    """
    rest = dict(description)
    checked = options.build_by_name("network", _DESCRIBE, rest.pop("network", None), (), rest)
    width = checked["width"]
    if checked["network"] == "classifier":
        return {"classifier": Classifier(checked["num_classes"], width)}
    generator = Generator(tuple(checked["shape"]), width, checked["kind"])
    if checked["network"] == "adversary":
        return {"generator": generator, "discriminator": Discriminator(width)}
    return {"encoder": Encoder(checked["latent_dim"], width), "generator": generator}


def decode(description: Description, params: Params, latent: Array) -> Array:
    """The image of one latent: the generator's output, or the mean of the decoder's pixels.

    Args:
        description: Of an autoencoder or an adversarial network.
        params: Their parameters, of which the generator's are enough.
        latent: `(latent_dim,)`.

    Returns:
        `(height, width, channels)` in [-1, 1].

    Raises:
        ValueError: If the network has no generator.
    """
    generator = _part(description, "generator")
    chex.assert_shape(latent, (description["latent_dim"],))
    return jnp.tanh(0.5 * generator.apply(params["generator"], latent))


def log_probabilities(description: Description, params: Params, image: Array) -> Array:
    """The log-probabilities of all classes, at the temperature that was calibrated.

    Args:
        description: Of a classifier.
        params: Its parameters.
        image: `(height, width, channels)` in [-1, 1].

    Returns:
        `(num_classes,)`.

    Raises:
        ValueError: If the network is no classifier.
    """
    module = _part(description, "classifier")
    chex.assert_shape(image, tuple(description["shape"]))
    logits = module.apply(params["classifier"], image)
    return jax.nn.log_softmax(logits * jnp.exp(-params["log_temperature"]))


def features(description: Description, params: Params, image: Array) -> Array:
    """The activations of a classifier's layer before the last.

    Args:
        description: Of a classifier.
        params: Its parameters.
        image: `(height, width, channels)` in [-1, 1].

    Returns:
        `(8 · width,)`.

    Raises:
        ValueError: If the network is no classifier.
    """
    module = _part(description, "classifier")
    chex.assert_shape(image, tuple(description["shape"]))
    return module.apply(params["classifier"], image, method="features")


def _part(description: Description, name: str) -> Any:
    modules = build(description)
    if name not in modules:
        raise ValueError(
            f"network = {description['network']!r} is not allowed: must have a {name}"
        )
    return modules[name]


def _of_generator(
    shape: Sequence[int], latent_dim: int, width: int, kind: str
) -> dict[str, Any]:
    options.refuse_unknown("kind of generator", kind, KINDS)
    return {
        "shape": _shape(shape),
        "latent_dim": options.integer("latent_dim", latent_dim, minimum=1),
        "width": options.integer("width", width, minimum=1),
        "kind": kind,
    }


def _shape(shape: Sequence[int]) -> list[int]:
    """A list, as JSON has it."""
    sizes = [options.integer("shape", size, minimum=1) for size in shape]
    if len(sizes) != 3 or sizes[0] % 4 or sizes[1] % 4:
        raise ValueError(
            f"shape = {tuple(shape)} is not allowed: must be (height, width, channels) with "
            "height and width divisible by 4"
        )
    return sizes
