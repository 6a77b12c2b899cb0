"""The generator of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958, arXiv:2006.06676).

Dense layers map a latent z to a style w. A constant image of 4×4 is convolved and doubled in
size up to the resolution (32×32 for CIFAR-10), every convolution modulated by w, and the sum of
what each size shows in RGB is the image: the "skip" architecture.

The state dict is that of `G_ema` of stylegan2-ada-pytorch or stylegan3 (`mapping.fc0.weight`,
`synthesis.b4.const`, `synthesis.b8.conv0.affine.weight` ...). Their .pkl files hold classes and
run code when loaded: they are not read here. Where that repository is installed, and for files
that you trust, this leaves the arrays alone:

    with open("stylegan2-cifar10-32x32.pkl", "rb") as file:
        torch.save(pickle.load(file)["G_ema"].state_dict(), "stylegan2-cifar10-32x32.pt")

The factors of the equalised learning rate are multiplied into the weights. Everything is
float32: what theirs computes on a GPU with `force_fp32=True`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.images.published import state_dicts
from d2ejax.typing import Array

NOISE = ("const", "none")
_FIRST = 4
_EPSILON = 1e-8
_TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
_AXES = ("NHWC", "HWIO", "NHWC")


class Generator(nn.Module):
    """Latents to images.

    Attributes:
        widths: Channels of the hidden images, of sizes 4, 8, 16 ...
        mapping: Sizes of the layers from latent to style.
        num_channels: Channels of the images.
        num_classes: Size of the labels; 0 if there are none.
        noise: "const" adds each layer's own noise, as `noise_mode="const"`; "none" adds none.
            Fresh noise for each image is not offered: f(z) is to be a function.
        truncation: ψ: styles are drawn to their mean, w̄ + ψ (w - w̄).
        clamp: Bound of what each convolution gives, which training in float16 had; None for
            networks trained without.
    """

    widths: tuple[int, ...]
    mapping: tuple[int, ...]
    num_channels: int = 3
    num_classes: int = 0
    noise: str = "const"
    truncation: float = 1.0
    clamp: float | None = 256.0

    def setup(self) -> None:
        """Names the layers."""
        if self.num_classes:
            self.embed = nn.Dense(self.mapping[-1])
        self.dense = [nn.Dense(size) for size in self.mapping]
        self.mean_style = self.variable(
            "buffers", "mean_style", jnp.zeros, (self.mapping[-1],), jnp.float32
        )
        initial = (_FIRST, _FIRST, self.widths[0])
        self.const = self.param("const", nn.initializers.normal(1.0), initial)
        conv, image = [], []
        for i, width in enumerate(self.widths):
            size = _FIRST * 2**i
            for doubles in (True, False) if i else (False,):
                conv.append(_Layer(width, size, doubles, self.noise, self.clamp))
            image.append(_ToImage(self.num_channels, self.clamp))
        self.conv, self.image = conv, image

    def __call__(self, latents: Array, labels: Array | None = None) -> Array:
        """Maps `(n, num_latents)` to images.

        Args:
            latents: Standard Gaussian.
            labels: `(n, num_classes)`, one-hot; None for zeros, of no class, and where the
                network has no classes.

        Returns:
            Images, `(n, size, size, num_channels)`, about in [-1, 1] and not clipped to it.
        """
        return self.synthesise(self.style(latents, labels))

    def style(self, latents: Array, labels: Array | None = None) -> Array:
        """Maps latents, `(n, num_latents)`, to styles, `(n, num_styles)`, truncated."""
        style = _normalised(latents)
        if self.num_classes:
            if labels is None:
                labels = jnp.zeros((len(latents), self.num_classes))
            style = jnp.concatenate([style, _normalised(self.embed(labels))], axis=-1)
        for dense in self.dense:
            style = _activated(dense(style))
        mean = self.mean_style.value[None, :]
        return mean + self.truncation * (style - mean)

    def synthesise(self, style: Array) -> Array:
        """Maps styles, `(n, num_styles)`, to images: the same style at every layer."""
        hidden = jnp.broadcast_to(self.const, (len(style), *self.const.shape))
        hidden = self.conv[0](hidden, style)
        total = self.image[0](hidden, style)
        for i, to_image in enumerate(self.image[1:]):
            for conv in self.conv[2 * i + 1 : 2 * i + 3]:
                hidden = conv(hidden, style)
            total = _doubled(total) + to_image(hidden, style)
        return total


class _Layer(nn.Module):
    """A modulated and demodulated 3×3 convolution, noise, bias and leaky ReLU.

    With style s, kernel w of input i and output o: Σ_i s_i w_io * x_i / √(Σ_i s_i² ‖w_io‖²).
    """

    width: int
    size: int
    doubles: bool
    noise: str
    clamp: float | None

    @nn.compact
    def __call__(self, x: Array, style: Array) -> Array:
        fan_in = x.shape[-1]
        scale = nn.Dense(fan_in, name="affine")(style)
        init = nn.initializers.normal(1.0)
        kernel = self.param("kernel", init, (3, 3, fan_in, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        noise = self.variable("buffers", "noise", jnp.zeros, (self.size, self.size))
        square = jnp.square(scale) @ jnp.sum(jnp.square(kernel), axis=(0, 1))
        x = _convolved(x * scale[:, None, None, :], kernel, doubles=self.doubles)
        x = x * jax.lax.rsqrt(square + _EPSILON)[:, None, None, :]
        if self.noise == "const":
            x = x + (strength * noise.value)[None, :, :, None]
        return _clamped(_activated(x + bias[None, None, None, :]), self.clamp)


class _ToImage(nn.Module):
    """A modulated 1×1 convolution to the channels of the image."""

    num_channels: int
    clamp: float | None

    @nn.compact
    def __call__(self, x: Array, style: Array) -> Array:
        scale = nn.Dense(x.shape[-1], name="affine")(style)
        conv = nn.Conv(self.num_channels, (1, 1), name="conv")
        return _clamped(conv(x * scale[:, None, None, :]), self.clamp)


def _normalised(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + _EPSILON)


def _activated(x: Array) -> Array:
    return math.sqrt(2) * nn.leaky_relu(x, 0.2)


def _clamped(x: Array, clamp: float | None) -> Array:
    return x if clamp is None else jnp.clip(x, -clamp, clamp)


def _convolved(x: Array, kernel: Array, *, doubles: bool) -> Array:
    if not doubles:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_AXES)
    # To size 2s + 1 by zeros between the pixels; the filter then takes one off.
    x = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_AXES
    )
    return _filtered(x, padding=1, dilation=1)


def _doubled(x: Array) -> Array:
    """An image of twice the size, interpolated by the filter."""
    return _filtered(x, padding=2, dilation=2)


def _filtered(x: Array, *, padding: int, dilation: int) -> Array:
    # Zeros between the pixels leave a quarter of the light.
    channels = x.shape[-1]
    taps = jnp.asarray(np.repeat(4 * _TAPS[:, :, None, None], channels, axis=-1))
    return jax.lax.conv_general_dilated(
        x,
        taps,
        (1, 1),
        ((padding, padding), (padding, padding)),
        lhs_dilation=(dilation, dilation),
        dimension_numbers=_AXES,
        feature_group_count=channels,
    )


def from_state_dict(
    state_dict: Mapping[str, Any],
    *,
    noise: str = "const",
    truncation: float = 1.0,
    clamp: float | None = 256.0,
    learning_rate_factor: float = 0.01,
) -> state_dicts.Imported:
    """The generator of a state dict of `G_ema`.

    Args:
        state_dict: Of any resolution, with or without classes.
        noise: "const" or "none", see `Generator`.
        truncation: ψ, see `Generator`.
        clamp: See `Generator`; 256 is what the official networks have.
        learning_rate_factor: Of the mapping's layers; 0.01 in the official networks.

    Returns:
        A `Generator` and its variables.

    Raises:
        ValueError: If noise is unknown, or naming the arrays that do not belong: those of
            another filter than [1, 3, 3, 1], of the "resnet" architecture, or of StyleGAN3.
    """
    if noise not in NOISE:
        raise ValueError(f"noise = {noise!r}: must be one of {', '.join(NOISE)}")
    arrays = state_dicts.plain(state_dict)
    sizes, dense, num_classes = _sizes(arrays)
    module = Generator(
        widths=tuple(sizes.values()),
        mapping=tuple(outputs for outputs, _ in dense),
        num_channels=state_dicts.shape(arrays, "synthesis.b4.torgb.weight", 4)[0],
        num_classes=num_classes,
        noise=noise,
        truncation=truncation,
        clamp=clamp,
    )
    layers = [*_mapping_layers(len(dense), learning_rate_factor), *_synthesis_layers(sizes)]
    # The first layer sees the label's embedding, of the size of a style, beside the latent.
    num_latents = dense[0][1] - (module.mapping[-1] if num_classes else 0)
    return state_dicts.fill(arrays, layers, module, jnp.zeros((1, num_latents)))


def _sizes(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[int, int], list[tuple[int, ...]], int]:
    """Channels by size of the image, shapes of the mapping's layers, number of classes."""

    def count(pattern: str) -> int:
        # One is asked for where there is none, and named as missing.
        return max(1, sum(bool(re.fullmatch(pattern, name)) for name in arrays))

    widths = {
        size: state_dicts.shape(arrays, f"synthesis.b{size}.conv1.weight", 4)[0]
        for size in (_FIRST * 2**i for i in range(count(r"synthesis\.b\d+\.conv1\.weight")))
    }
    dense = [
        state_dicts.shape(arrays, f"mapping.fc{i}.weight", 2)
        for i in range(count(r"mapping\.fc\d+\.weight"))
    ]
    embed = "mapping.embed.weight"
    return widths, dense, state_dicts.shape(arrays, embed, 2)[1] if embed in arrays else 0


def _mapping_layers(num_dense: int, factor: float) -> list[state_dicts.Layer]:
    mean = state_dicts.Leaf("w_avg", "buffers", "mean_style", state_dicts.unchanged)
    return [
        _equalised("mapping.embed", "embed"),
        *(_equalised(f"mapping.fc{i}", f"dense_{i}", factor) for i in range(num_dense)),
        state_dicts.Layer("mapping", "", (mean,)),
    ]


def _synthesis_layers(sizes: Iterable[int]) -> list[state_dicts.Layer]:
    const = state_dicts.Leaf("const", "params", "const", lambda x: x.transpose(1, 2, 0))
    layers = [state_dicts.Layer("synthesis.b4", "", (const,))]
    conv = 0
    for i, size in enumerate(sizes):
        block = f"synthesis.b{size}"
        for part in ("conv0", "conv1") if i else ("conv1",):
            layers += _conv_layers(f"{block}.{part}", f"conv_{conv}", flipped=part == "conv0")
            conv += 1
        layers.append(_equalised(f"{block}.torgb.affine", f"image_{i}/affine"))
        # The factor of the 1×1 kernel itself, which theirs applies to the style.
        layers.append(_image_conv(f"{block}.torgb", f"image_{i}/conv"))
        layers.append(state_dicts.Layer(block, "", (_FILTER,)))
    return layers


def _conv_layers(theirs: str, ours: str, *, flipped: bool) -> list[state_dicts.Layer]:
    # A transposed convolution, see `state_dicts.conv_transpose`, of kernels (out, in, ...).
    step = -1 if flipped else 1
    leaves = (
        state_dicts.Leaf(
            "weight",
            "params",
            "kernel",
            lambda weight: weight[:, :, ::step, ::step].transpose(2, 3, 1, 0),
        ),
        state_dicts.Leaf("bias", "params", "bias", state_dicts.unchanged),
        state_dicts.Leaf("noise_strength", "params", "noise_strength", state_dicts.unchanged),
        state_dicts.Leaf("noise_const", "buffers", "noise", state_dicts.unchanged),
        _FILTER,
    )
    return [
        _equalised(f"{theirs}.affine", f"{ours}/affine"),
        state_dicts.Layer(theirs, ours, leaves),
    ]


def _equalised(theirs: str, ours: str, factor: float = 1.0) -> state_dicts.Layer:
    """A dense layer whose weights are to be divided by √(number of inputs)."""
    leaves = (
        state_dicts.Leaf(
            "weight",
            "params",
            "kernel",
            lambda weight: weight.T * np.float32(factor / math.sqrt(weight.shape[1])),
        ),
        state_dicts.Leaf("bias", "params", "bias", lambda bias: bias * np.float32(factor)),
    )
    return state_dicts.Layer(theirs, ours, leaves)


def _image_conv(theirs: str, ours: str) -> state_dicts.Layer:
    leaves = (
        state_dicts.Leaf(
            "weight",
            "params",
            "kernel",
            lambda weight: (
                weight.transpose(2, 3, 1, 0) / np.float32(math.sqrt(weight.shape[1]))
            ),
        ),
        state_dicts.Leaf("bias", "params", "bias", state_dicts.unchanged),
    )
    return state_dicts.Layer(theirs, ours, leaves)


def _known_filter(taps: np.ndarray) -> np.ndarray:
    if taps.shape != _TAPS.shape or not np.allclose(taps, _TAPS, rtol=1e-6):
        raise ValueError("must be the filter [1, 3, 3, 1] ⊗ [1, 3, 3, 1] / 64")
    return taps


_FILTER = state_dicts.Leaf("resample_filter", "buffers", None, _known_filter)
