"""The residual generator of SN-GAN for images of 32×32 (Miyato et al. 2018, arXiv:1802.05957).

A dense layer makes an image of 4×4, three residual blocks double its size, and batch norm,
ReLU, a convolution and tanh end it (table 4 of the paper; 256 channels, 128 latents).

Its files come under three namings:

    l1, block2 ... block4 with b1, c1, b2, c2, c_sc, then b5, c5
        the names of the authors' Chainer code: sngan.pytorch, AutoGAN, mimicry
    linear, blocks.0 ... blocks.2 with residual.0, .3, .4, .6 and shortcut.1, then
    blocks.3, blocks.5, or output.0, output.2
        pytorch-gan-collections, in two of its versions

Mimicry interpolates linearly between pixels where all others repeat them, and no array of the
file tells: say `upsampling="bilinear"` for its files.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.images.published import state_dicts
from d2ejax.typing import Array

UPSAMPLING = ("nearest", "bilinear")
_SIZE = 4
_NUM_BLOCKS = 3
_PARTS = ("norm_0", "conv_0", "norm_1", "conv_1", "shortcut")

# The first layer, the parts of each block, and the norm and convolution of the last stage.
_CHAINER = (
    "l1",
    [[f"block{i}.{part}" for part in ("b1", "c1", "b2", "c2", "c_sc")] for i in (2, 3, 4)],
    ("b5", "c5"),
)
_COLLECTIONS_BLOCKS = [
    [f"blocks.{i}.residual.{j}" for j in (0, 3, 4, 6)] + [f"blocks.{i}.shortcut.1"]
    for i in range(_NUM_BLOCKS)
]
_NAMINGS = (
    _CHAINER,
    ("linear", _COLLECTIONS_BLOCKS, ("blocks.3", "blocks.5")),
    ("linear", _COLLECTIONS_BLOCKS, ("output.0", "output.2")),
)


class Generator(nn.Module):
    """Latents to images, in evaluation.

    Attributes:
        width: Channels of every hidden image.
        num_channels: Channels of the images.
        upsampling: "nearest" or "bilinear".
    """

    width: int = 256
    num_channels: int = 3
    upsampling: str = "nearest"

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps `(n, num_latents)` to `(n, 32, 32, num_channels)` in [-1, 1]."""
        hidden = nn.Dense(_SIZE**2 * self.width, name="dense")(latents)
        hidden = hidden.reshape(-1, _SIZE, _SIZE, self.width)
        for i in range(_NUM_BLOCKS):
            hidden = _Block(self.width, self.upsampling, name=f"block_{i}")(hidden)
        hidden = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(hidden))
        return jnp.tanh(nn.Conv(self.num_channels, (3, 3), name="conv")(hidden))


class _Block(nn.Module):
    """Doubles the size of an image by two convolutions, and by one of 1×1 that passes them."""

    width: int
    upsampling: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = x
        for i in range(2):
            norm = nn.BatchNorm(use_running_average=True, name=f"norm_{i}")
            hidden = nn.relu(norm(hidden))
            hidden = hidden if i else _twice(hidden, self.upsampling)
            hidden = nn.Conv(self.width, (3, 3), name=f"conv_{i}")(hidden)
        return hidden + nn.Conv(self.width, (1, 1), name="shortcut")(_twice(x, self.upsampling))


def _twice(x: Array, upsampling: str) -> Array:
    n, height, width, channels = x.shape
    return jax.image.resize(x, (n, 2 * height, 2 * width, channels), upsampling)


def from_state_dict(
    state_dict: Mapping[str, Any], *, upsampling: str = "nearest"
) -> state_dicts.Imported:
    """The generator of a state dict.

    Args:
        state_dict: Under one of the three namings; spectral norm, where there is any, is folded
            in. Class-conditional generators are not read.
        upsampling: "nearest", or "bilinear" for the files of mimicry.

    Returns:
        A `Generator` and its variables.

    Raises:
        ValueError: If upsampling is unknown, or naming the arrays that do not belong.
    """
    if upsampling not in UPSAMPLING:
        raise ValueError(f"upsampling = {upsampling!r}: must be one of {', '.join(UPSAMPLING)}")
    arrays = state_dicts.plain(state_dict)
    first, blocks, last = _naming_of(arrays)
    num_latents = state_dicts.shape(arrays, f"{first}.weight", 2)[1]
    num_channels, width, _, _ = state_dicts.shape(arrays, f"{last[1]}.weight", 4)
    layers = [
        state_dicts.linear_to_image(first, "dense", _SIZE),
        state_dicts.batch_norm(last[0], "norm"),
        state_dicts.conv(last[1], "conv"),
    ]
    for i, block in enumerate(blocks):
        for theirs, part in zip(block, _PARTS, strict=True):
            kind = state_dicts.batch_norm if part.startswith("norm") else state_dicts.conv
            layers.append(kind(theirs, f"block_{i}/{part}"))
    module = Generator(width, num_channels, upsampling)
    return state_dicts.fill(arrays, layers, module, jnp.zeros((1, num_latents)))


def _naming_of(arrays: Mapping[str, np.ndarray]) -> Any:
    """The naming of which both ends are there."""
    for naming in _NAMINGS:
        if f"{naming[0]}.weight" in arrays and f"{naming[2][1]}.weight" in arrays:
            return naming
    ends = "; ".join(f"{naming[0]} ... {naming[2][1]}" for naming in _NAMINGS)
    raise ValueError(
        f"state dict of sn_gan.Generator: first and last layers must be one of {ends}: it has "
        f"{', '.join(list(arrays)[:4])} ..."
    )
