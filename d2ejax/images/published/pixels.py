"""The scale of pixels that the published classifiers were trained on."""

import jax.numpy as jnp
import numpy as np

from d2ejax.typing import Array

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of each channel of CIFAR-10's training images, in [0, 1]."""

CIFAR10_STD = (0.2471, 0.2435, 0.2616)
"""Its standard deviation over all pixels."""

KUANGLIU_STD = (0.2023, 0.1994, 0.2010)
"""The mean over images of each one's own standard deviation, as kuangliu's code has it."""


def standardise(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """From `(n, height, width, channels)` in [-1, 1] to mean zero and deviation one.

    Args:
        images: The images.
        mean: Of each channel, for pixels in [0, 1].
        std: Likewise.
    """
    centre, scale = (
        np.asarray(value, np.float32)[None, None, None, :] for value in (mean, std)
    )
    return ((images + 1) / 2 - jnp.asarray(centre)) / jnp.asarray(scale)
