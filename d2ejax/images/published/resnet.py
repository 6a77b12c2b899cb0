"""ResNet (He et al. 2016, arXiv:1512.03385) as a CIFAR-10 classifier.

A 3×3 convolution, four stages of residual blocks of which all but the first halve the image,
and a dense layer on the mean over what is left of it. The sizes are read off the state dict:
ResNet18, 34, 50 and others, with blocks of two convolutions or of three. Two namings are known:

    layer2.0.downsample.0, fc       huyvnphan/PyTorch_CIFAR10, torchvision's names; max-pooling
                                    after the first convolution
    layer2.0.shortcut.0, linear     kuangliu/pytorch-cifar; no pooling

No array tells of the pooling: say `max_pool=False` for files under torchvision's names that
were trained without it.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from d2ejax.images.published import pixels, state_dicts
from d2ejax.typing import Array

_ONE = ((1, 1), (1, 1))
_NUM_STAGES = 4


class Shape(NamedTuple):
    """A residual block.

    Attributes:
        kernels: Sizes of the kernels: (3, 3), or (1, 3, 1) for a bottleneck.
        widths: Channels of each of these convolutions' outputs.
        stride: Of the first kernel of 3.
        shortcut: Whether a convolution of 1×1 passes the others by, and not the image itself.
    """

    kernels: tuple[int, ...]
    widths: tuple[int, ...]
    stride: int
    shortcut: bool


class Classifier(nn.Module):
    """Images to logits, in evaluation.

    Attributes:
        width: Channels of the first convolution.
        blocks: The residual blocks.
        max_pool: Whether 3×3 max-pooling halves the image after the first convolution.
        num_classes: Number of classes.
        mean: Of the pixels in [0, 1] that it was trained on.
        std: Their standard deviation.
    """

    width: int
    blocks: tuple[Shape, ...]
    max_pool: bool
    num_classes: int = 10
    mean: tuple[float, ...] = pixels.CIFAR10_MEAN
    std: tuple[float, ...] = pixels.CIFAR10_STD

    def setup(self) -> None:
        """Names the layers."""
        self.conv = nn.Conv(self.width, (3, 3), use_bias=False)
        self.norm = nn.BatchNorm(use_running_average=True)
        self.block = [_Block(shape) for shape in self.blocks]
        self.dense = nn.Dense(self.num_classes)

    def features(self, images: Array) -> Array:
        """Maps `(n, height, width, 3)` in [-1, 1] to what the last layer sees, `(n, size)`."""
        x = pixels.standardise(images, self.mean, self.std)
        x = nn.relu(self.norm(self.conv(x)))
        if self.max_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=_ONE)
        for block in self.block:
            x = block(x)
        return jnp.mean(x, axis=(1, 2))

    def __call__(self, images: Array) -> Array:
        """Maps `(n, height, width, 3)` in [-1, 1] to logits, `(n, num_classes)`."""
        return self.dense(self.features(images))


class _Block(nn.Module):
    shape: Shape

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernels, widths, stride, shortcut = self.shape
        hidden = x
        for i, (kernel, width) in enumerate(zip(kernels, widths, strict=True)):
            hidden = nn.relu(hidden) if i else hidden
            step = stride if i == kernels.index(3) else 1
            hidden = self._norm_of_conv(hidden, width, kernel, step, str(i))
        if shortcut:
            x = self._norm_of_conv(x, widths[-1], 1, stride, "shortcut")
        return nn.relu(hidden + x)

    def _norm_of_conv(self, x: Array, width: int, kernel: int, stride: int, name: str) -> Array:
        conv = nn.Conv(
            width,
            (kernel, kernel),
            strides=(stride, stride),
            # "SAME" would pad strided convolutions on one side only.
            padding=_ONE if kernel == 3 else "VALID",
            use_bias=False,
            name=f"conv_{name}",
        )
        norm = nn.BatchNorm(use_running_average=True, name=f"norm_{name}")
        return norm(conv(x))


def from_state_dict(
    state_dict: Mapping[str, Any],
    *,
    max_pool: bool | None = None,
    mean: tuple[float, ...] = pixels.CIFAR10_MEAN,
    std: tuple[float, ...] | None = None,
) -> state_dicts.Imported:
    """The classifier of a state dict.

    Args:
        state_dict: Under one of the two namings.
        max_pool: Whether max-pooling follows the first convolution; by default as in the
            repository of that naming.
        mean: Of the pixels in [0, 1] that it was trained on; CIFAR-10's.
        std: Their standard deviation; by default what the repository of that naming divides by.

    Returns:
        A `Classifier` and its variables.

    Raises:
        ValueError: Naming the arrays that do not belong.
    """
    arrays = state_dicts.plain(state_dict)
    torchvision = "fc.weight" in arrays
    dense, shortcut = ("fc", "downsample") if torchvision else ("linear", "shortcut")
    num_classes, _ = state_dicts.shape(arrays, f"{dense}.weight", 2)
    layers = [
        state_dicts.conv("conv1", "conv"),
        state_dicts.batch_norm("bn1", "norm"),
        state_dicts.linear(dense, "dense"),
    ]
    blocks: list[Shape] = []
    for name, stride in _names_and_strides(arrays):
        block, its_layers = _block(arrays, name, stride, shortcut, f"block_{len(blocks)}")
        blocks.append(block)
        layers += its_layers
    module = Classifier(
        width=state_dicts.shape(arrays, "conv1.weight", 4)[0],
        blocks=tuple(blocks),
        max_pool=torchvision if max_pool is None else max_pool,
        num_classes=num_classes,
        mean=mean,
        std=std or (pixels.CIFAR10_STD if torchvision else pixels.KUANGLIU_STD),
    )
    return state_dicts.fill(arrays, layers, module, jnp.zeros((1, 32, 32, len(mean))))


def _names_and_strides(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, int]]:
    """Names of the blocks, and by how much each shrinks the image."""
    found = []
    for stage in range(1, _NUM_STAGES + 1):
        pattern = re.compile(rf"layer{stage}\.(\d+)\.")
        numbers = {int(match[1]) for name in arrays if (match := pattern.match(name))}
        found += [
            (f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1) for i in sorted(numbers)
        ]
    return found


def _block(
    arrays: Mapping[str, np.ndarray], name: str, stride: int, shortcut: str, ours: str
) -> tuple[Shape, list[state_dicts.Layer]]:
    """The block of that name, and where its arrays go."""
    kernels = (1, 3, 1) if f"{name}.conv3.weight" in arrays else (3, 3)
    pairs = [(f"conv{i + 1}", f"bn{i + 1}", str(i)) for i in range(len(kernels))]
    shapes = [state_dicts.shape(arrays, f"{name}.{conv}.weight", 4) for conv, _, _ in pairs]
    widths = tuple(outputs for outputs, _, _, _ in shapes)
    has_shortcut = stride > 1 or shapes[0][1] != widths[-1]
    if has_shortcut:
        pairs.append((f"{shortcut}.0", f"{shortcut}.1", "shortcut"))
    layers = []
    for conv, norm, part in pairs:
        layers.append(state_dicts.conv(f"{name}.{conv}", f"{ours}/conv_{part}"))
        layers.append(state_dicts.batch_norm(f"{name}.{norm}", f"{ours}/norm_{part}"))
    return Shape(kernels, widths, stride, has_shortcut), layers
