"""VGG with batch norm (Simonyan & Zisserman 2015, arXiv:1409.1556) as a CIFAR-10 classifier.

Stages of 3×3 convolutions, each with batch norm and ReLU and each stage with max-pooling at its
end; then dense layers on the mean over what is left of the image. The sizes are read off the
state dict: VGG11, 13, 16, 19 and others. Two namings of the end are known:

    classifier.0, classifier.3, classifier.6   two hidden layers: huyvnphan/PyTorch_CIFAR10
                                               (`vgg13_bn` ...), chenyaofo/pytorch-cifar-models
    classifier                                 none: kuangliu/pytorch-cifar

Files whose first dense layer sees 7×7 pixels, as for ImageNet, are refused.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from d2ejax.images.published import pixels, state_dicts
from d2ejax.typing import Array


class Classifier(nn.Module):
    """Images to logits, in evaluation.

    Attributes:
        stages: Channels of the convolutions of each stage.
        hidden: Sizes of the hidden dense layers.
        num_classes: Number of classes.
        mean: Of the pixels in [0, 1] that it was trained on.
        std: Their standard deviation.
    """

    stages: tuple[tuple[int, ...], ...]
    hidden: tuple[int, ...] = (4096, 4096)
    num_classes: int = 10
    mean: tuple[float, ...] = pixels.CIFAR10_MEAN
    std: tuple[float, ...] = pixels.CIFAR10_STD

    def setup(self) -> None:
        """Names the layers."""
        widths = [width for stage in self.stages for width in stage]
        self.conv = [nn.Conv(width, (3, 3)) for width in widths]
        self.norm = [nn.BatchNorm(use_running_average=True) for _ in widths]
        self.dense = [nn.Dense(size) for size in (*self.hidden, self.num_classes)]

    def features(self, images: Array) -> Array:
        """Maps `(n, height, width, 3)` in [-1, 1] to what the last layer sees, `(n, size)`."""
        x = pixels.standardise(images, self.mean, self.std)
        layers = iter(zip(self.conv, self.norm, strict=True))
        for stage in self.stages:
            for _ in stage:
                conv, norm = next(layers)
                x = nn.relu(norm(conv(x)))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.mean(x, axis=(1, 2))
        for dense in self.dense[:-1]:
            x = nn.relu(dense(x))
        return x

    def __call__(self, images: Array) -> Array:
        """Maps `(n, height, width, 3)` in [-1, 1] to logits, `(n, num_classes)`."""
        return self.dense[-1](self.features(images))


def from_state_dict(
    state_dict: Mapping[str, Any],
    *,
    mean: tuple[float, ...] = pixels.CIFAR10_MEAN,
    std: tuple[float, ...] | None = None,
) -> state_dicts.Imported:
    """The classifier of a state dict.

    Args:
        state_dict: Under one of the two namings.
        mean: Of the pixels in [0, 1] that it was trained on; CIFAR-10's.
        std: Their standard deviation; by default what the repository of that naming divides by.

    Returns:
        A `Classifier` and its variables.

    Raises:
        ValueError: Naming the arrays that do not belong.
    """
    arrays = state_dicts.plain(state_dict)
    indices = sorted(
        int(match[1])
        for name, array in arrays.items()
        if (match := re.fullmatch(r"features\.(\d+)\.weight", name)) and array.ndim == 4
    )
    dense = ["classifier"]
    if "classifier.weight" not in arrays:
        dense = [f"classifier.{i}" for i in (0, 3, 6)]
        std = std or pixels.CIFAR10_STD
    sizes = [state_dicts.shape(arrays, f"{name}.weight", 2)[0] for name in dense]
    layers = [
        layer
        for i, index in enumerate(indices)
        for layer in (
            state_dicts.conv(f"features.{index}", f"conv_{i}"),
            state_dicts.batch_norm(f"features.{index + 1}", f"norm_{i}"),
        )
    ]
    layers += [state_dicts.linear(name, f"dense_{i}") for i, name in enumerate(dense)]
    module = Classifier(
        stages=_stages(arrays, indices),
        hidden=tuple(sizes[:-1]),
        num_classes=sizes[-1],
        mean=mean,
        std=std or pixels.KUANGLIU_STD,
    )
    return state_dicts.fill(arrays, layers, module, jnp.zeros((1, 32, 32, len(mean))))


def _stages(
    arrays: Mapping[str, np.ndarray], indices: list[int]
) -> tuple[tuple[int, ...], ...]:
    """A convolution, its norm and its ReLU count for three, the pooling for one more."""
    stages: list[list[int]] = [[]]
    for i, index in enumerate(indices):
        gap = index - indices[i - 1] if i else index + 3
        if gap not in (3, 4):
            raise ValueError(
                f"features.{index}.weight: must be 3 or 4 after the convolution before it, as "
                f"with batch norm, not {gap}"
            )
        if gap == 4:
            stages.append([])
        stages[-1].append(arrays[f"features.{index}.weight"].shape[0])
    return tuple(tuple(stage) for stage in stages)
