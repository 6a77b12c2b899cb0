"""The generator of DCGAN (Radford et al. 2016, arXiv:1511.06434) as PyTorch's examples have it.

Transposed convolutions of 4×4, the first from a single pixel and each of the others to twice
the size, with batch norm and ReLU between them and tanh at the end: `main.0` (convolution),
`main.1` (batch norm), `main.3`, `main.4` ... Five of them make 64×64 images, four 32×32. Some
files of 32×32 have a fifth, of 1×1, at the end.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from d2ejax.images.published import state_dicts
from d2ejax.typing import Array

_KERNEL = 4


class Generator(nn.Module):
    """Latents to images, in evaluation.

    Attributes:
        widths: Channels of the hidden images, of sizes 4, 8, 16 ...
        num_channels: Channels of the images.
        last_kernel: Size of the last kernel: 4, which doubles the image, or 1.
        use_bias: Whether the convolutions add one.
    """

    widths: tuple[int, ...] = (512, 256, 128, 64)
    num_channels: int = 3
    last_kernel: int = _KERNEL
    use_bias: bool = False

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps `(n, num_latents)` to `(n, size, size, num_channels)` in [-1, 1]."""
        hidden = latents[:, None, None, :]
        for i, width in enumerate(self.widths):
            hidden = self._conv(width, _KERNEL, stride=2 if i else 1, name=f"conv_{i}")(hidden)
            norm = nn.BatchNorm(use_running_average=True, name=f"norm_{i}")
            hidden = nn.relu(norm(hidden))
        stride = 2 if self.last_kernel == _KERNEL else 1
        last = f"conv_{len(self.widths)}"
        return jnp.tanh(
            self._conv(self.num_channels, self.last_kernel, stride=stride, name=last)(hidden)
        )

    def _conv(self, width: int, kernel: int, *, stride: int, name: str) -> nn.ConvTranspose:
        # Of the image with zeros between its pixels: its size s becomes
        # stride (s - 1) + 1 + 2 padding - (kernel - 1).
        padding = kernel - 1 if stride == 1 else kernel - 2
        return nn.ConvTranspose(
            width,
            (kernel, kernel),
            strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            use_bias=self.use_bias,
            name=name,
        )


def from_state_dict(state_dict: Mapping[str, Any]) -> state_dicts.Imported:
    """The generator of a state dict.

    Args:
        state_dict: With the names of PyTorch's examples; spectral norm, where there is any, is
            folded in.

    Returns:
        A `Generator` of as many layers and channels, and its variables.

    Raises:
        ValueError: Naming the arrays that do not belong.
    """
    arrays = state_dicts.plain(state_dict, output_axis=1)
    num_latents, _, _, _ = state_dicts.shape(arrays, "main.0.weight", 4)
    found = [re.fullmatch(r"main\.(\d+)\.weight", name) for name in arrays]
    num_convs = max(int(match[1]) for match in found if match) // 3 + 1
    shapes = [state_dicts.shape(arrays, f"main.{3 * i}.weight", 4) for i in range(num_convs)]
    layers = []
    for i in range(num_convs):
        layers.append(state_dicts.conv_transpose(f"main.{3 * i}", f"conv_{i}"))
        if i < num_convs - 1:
            layers.append(state_dicts.batch_norm(f"main.{3 * i + 1}", f"norm_{i}"))
    module = Generator(
        widths=tuple(out for _, out, _, _ in shapes[:-1]),
        num_channels=shapes[-1][1],
        last_kernel=1 if shapes[-1][2] == 1 else _KERNEL,
        use_bias="main.0.bias" in arrays,
    )
    return state_dicts.fill(arrays, layers, module, jnp.zeros((1, num_latents)))
