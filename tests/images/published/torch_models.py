"""The published architectures restated in PyTorch, under the names of their state dicts.

Widths are free, so that fixtures are small. Everything runs in evaluation.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm

MEAN = (0.4914, 0.4822, 0.4465)
HUYVNPHAN_STD = (0.2471, 0.2435, 0.2616)
KUANGLIU_STD = (0.2023, 0.1994, 0.2010)


class Twice(nn.Module):
    """A module on the image doubled in size."""

    def __init__(self, mode):
        super().__init__()
        self.settings = {"mode": mode}
        if mode == "bilinear":
            self.settings["align_corners"] = False

    def forward(self, x):
        return functional.interpolate(x, scale_factor=2, **self.settings)


class ChainerBlock(nn.Module):
    def __init__(self, width, mode):
        super().__init__()
        self.b1, self.b2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        # Both forms of spectral norm, which some of these generators have.
        self.c1 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.c2 = parametrizations.spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.c_sc = nn.Conv2d(width, width, 1)
        self.twice = Twice(mode)

    def forward(self, x):
        hidden = self.c1(self.twice(torch.relu(self.b1(x))))
        return self.c2(torch.relu(self.b2(hidden))) + self.c_sc(self.twice(x))


class ChainerSNGAN(nn.Module):
    def __init__(self, width=256, latents=128, mode="nearest"):
        super().__init__()
        self.num_latents = latents
        self.l1 = nn.Linear(latents, 16 * width)
        self.block2, self.block3, self.block4 = (ChainerBlock(width, mode) for _ in range(3))
        self.b5 = nn.BatchNorm2d(width)
        self.c5 = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z):
        x = self.l1(z).unflatten(1, (-1, 4, 4))
        for block in (self.block2, self.block3, self.block4):
            x = block(x)
        return torch.tanh(self.c5(torch.relu(self.b5(x))))


class CollectionsBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Twice("nearest"),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.shortcut = nn.Sequential(Twice("nearest"), nn.Conv2d(width, width, 1))

    def forward(self, x):
        return self.residual(x) + self.shortcut(x)


class CollectionsSNGAN(nn.Module):
    """With `apart`, the last stage is a module of its own."""

    def __init__(self, width=256, latents=128, apart=False):
        super().__init__()
        self.num_latents = latents
        self.linear = nn.Linear(latents, 16 * width)
        blocks = [CollectionsBlock(width) for _ in range(3)]
        last = [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh()]
        self.blocks = nn.Sequential(*blocks, *([] if apart else last))
        self.output = nn.Sequential(*(last if apart else []))

    def forward(self, z):
        return self.output(self.blocks(self.linear(z).unflatten(1, (-1, 4, 4))))


class DCGAN(nn.Module):
    def __init__(self, widths=(512, 256, 128, 64), latents=100, last_kernel=4, spectral=False):
        super().__init__()
        self.num_latents = latents
        layers, before = [], latents
        for i, width in enumerate(widths):
            stride, padding = (2, 1) if i else (1, 0)
            conv = nn.ConvTranspose2d(before, width, 4, stride, padding, bias=False)
            conv = spectral_norm(conv) if spectral and i else conv
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        stride, padding = (2, 1) if last_kernel == 4 else (1, 0)
        last = nn.ConvTranspose2d(before, 3, last_kernel, stride, padding, bias=False)
        self.main = nn.Sequential(*layers, last, nn.Tanh())

    def forward(self, z):
        return self.main(z[:, :, None, None])


VGG13 = ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2)
VGG16 = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)


class VGG(nn.Module):
    """With `hidden`, the dense layers of huyvnphan/PyTorch_CIFAR10; without, kuangliu's."""

    def __init__(self, stages=VGG13, hidden=(4096, 4096), classes=10):
        super().__init__()
        self.std = HUYVNPHAN_STD if hidden else KUANGLIU_STD
        layers, before = [], 3
        for stage in stages:
            for width in stage:
                conv = nn.Conv2d(before, width, 3, padding=1)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        dense = []
        for size in hidden:
            dense += [nn.Linear(before, size), nn.ReLU(), nn.Dropout()]
            before = size
        last = nn.Linear(before, classes)
        self.classifier = nn.Sequential(*dense, last) if hidden else last

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class ResidualBlock(nn.Module):
    def __init__(self, before, width, stride, bottleneck, torchvision):
        super().__init__()
        after = 4 * width if bottleneck else width
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        sizes = (before, width, width, after) if bottleneck else (before, width, width)
        self.depth = len(kernels)
        for i, kernel in enumerate(kernels):
            step = stride if i == self.depth - 2 else 1
            conv = nn.Conv2d(sizes[i], sizes[i + 1], kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{i + 1}", conv)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(sizes[i + 1]))
        passed = nn.Sequential()
        if stride != 1 or before != after:
            passed.append(nn.Conv2d(before, after, 1, stride, bias=False))
            passed.append(nn.BatchNorm2d(after))
        self.name = "downsample" if torchvision else "shortcut"
        setattr(self, self.name, passed)

    def forward(self, x):
        hidden = x
        for i in range(1, self.depth + 1):
            hidden = torch.relu(hidden) if i > 1 else hidden
            hidden = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(hidden))
        return torch.relu(hidden + getattr(self, self.name)(x))


class ResNet(nn.Module):
    """With `torchvision`, huyvnphan/PyTorch_CIFAR10; without, kuangliu/pytorch-cifar."""

    def __init__(
        self,
        widths=(64, 128, 256, 512),
        depths=(2, 2, 2, 2),
        bottleneck=False,
        torchvision=True,
        max_pool=True,
    ):
        super().__init__()
        self.std = HUYVNPHAN_STD if torchvision else KUANGLIU_STD
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            blocks = nn.Sequential()
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(ResidualBlock(before, width, stride, bottleneck, torchvision))
                before = 4 * width if bottleneck else width
            setattr(self, f"layer{stage}", blocks)
        self.head = "fc" if torchvision else "linear"
        setattr(self, self.head, nn.Linear(before, 10))
        self.max_pool = max_pool and torchvision

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, 2, 1) if self.max_pool else x
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))


class Equalised(nn.Module):
    """A dense layer with equalised learning rate."""

    def __init__(self, before, after, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(after, before))
        self.bias = nn.Parameter(torch.zeros(after))
        self.factor = factor

    def forward(self, x):
        gain = self.factor / math.sqrt(self.weight.shape[1])
        return functional.linear(x, self.weight * gain, self.bias * self.factor)


def blur(x, before, after):
    """Four times the filter [1, 3, 3, 1] ⊗ [1, 3, 3, 1] / 64, on the padded image."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    taps = (4 / 64 * torch.outer(taps, taps)).expand(x.shape[1], 1, 4, 4)
    x = functional.pad(x, (before, after, before, after))
    return functional.conv2d(x, taps, groups=x.shape[1])


def leaky(x):
    return math.sqrt(2) * functional.leaky_relu(x, 0.2)


def unit(x):
    return x / torch.sqrt(x.square().mean(1, keepdim=True) + 1e-8)


def filter_buffer():
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64


class Modulated(nn.Module):
    """The kernels of each example are made and demodulated before they are used."""

    def __init__(self, before, after, styles, size, doubles):
        super().__init__()
        self.affine = Equalised(styles, before)
        self.weight = nn.Parameter(torch.zeros(after, before, 3, 3))
        self.bias = nn.Parameter(torch.zeros(after))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.zeros(size, size))
        self.register_buffer("resample_filter", filter_buffer())
        self.doubles = doubles

    def forward(self, x, style, clamp):
        images = []
        for image, scale in zip(x, self.affine(style), strict=True):
            weight = self.weight * scale[None, :, None, None]
            length = torch.sqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
            weight = weight / length
            if self.doubles:
                turned = weight.transpose(0, 1)
                image = blur(functional.conv_transpose2d(image[None], turned, stride=2), 1, 1)
            else:
                image = functional.conv2d(image[None], weight, padding=1)
            images.append(image)
        x = torch.cat(images) + self.noise_const * self.noise_strength
        return leaky(x + self.bias[:, None, None]).clamp(-clamp, clamp)


class ToImage(nn.Module):
    def __init__(self, before, styles):
        super().__init__()
        self.affine = Equalised(styles, before)
        self.weight = nn.Parameter(torch.zeros(3, before, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x, style, clamp):
        scale = self.affine(style) / math.sqrt(x.shape[1])
        image = functional.conv2d(x * scale[:, :, None, None], self.weight, self.bias)
        return image.clamp(-clamp, clamp)


class SynthesisBlock(nn.Module):
    def __init__(self, before, width, styles, size):
        super().__init__()
        self.register_buffer("resample_filter", filter_buffer())
        if before:
            self.conv0 = Modulated(before, width, styles, size, doubles=True)
        else:
            self.const = nn.Parameter(torch.zeros(width, size, size))
        self.conv1 = Modulated(width, width, styles, size, doubles=False)
        self.torgb = ToImage(width, styles)


class Mapping(nn.Module):
    def __init__(self, latents, classes, styles, depth):
        super().__init__()
        self.depth, self.classes = depth, classes
        if classes:
            self.embed = Equalised(classes, styles)
        before = latents + styles * bool(classes)
        for i in range(depth):
            setattr(self, f"fc{i}", Equalised(before, styles, 0.01))
            before = styles
        self.register_buffer("w_avg", torch.zeros(styles))

    def forward(self, z, labels, truncation):
        x = unit(z)
        x = torch.cat([x, unit(self.embed(labels))], 1) if self.classes else x
        for i in range(self.depth):
            x = leaky(getattr(self, f"fc{i}")(x))
        return self.w_avg.lerp(x, truncation)


class Synthesis(nn.Module):
    def __init__(self, widths, styles):
        super().__init__()
        self.sizes = [4 * 2**i for i in range(len(widths))]
        for size, before, width in zip(self.sizes, (0, *widths), widths, strict=False):
            setattr(self, f"b{size}", SynthesisBlock(before, width, styles, size))

    def forward(self, style, clamp):
        total = None
        for size in self.sizes:
            block = getattr(self, f"b{size}")
            if size == 4:
                x = block.const.expand(len(style), -1, -1, -1)
            else:
                x = block.conv0(x, style, clamp)
                spread = x.new_zeros(len(style), 3, size, size)
                spread[:, :, ::2, ::2] = total
                total = blur(spread, 2, 1)
            x = block.conv1(x, style, clamp)
            image = block.torgb(x, style, clamp)
            total = image if total is None else total + image
        return total


class StyleGAN2(nn.Module):
    def __init__(
        self, widths=(512,) * 4, latents=512, styles=512, depth=2, classes=0, clamp=256.0
    ):
        super().__init__()
        self.num_latents, self.num_classes = latents, classes
        self.mapping = Mapping(latents, classes, styles, depth)
        self.synthesis = Synthesis(widths, styles)
        self.clamp = clamp

    def forward(self, z, labels=None, truncation=1.0):
        return self.synthesis(self.mapping(z, labels, truncation), self.clamp)


KEPT = ("num_batches_tracked", "resample_filter", "weight_u", "weight_v", "_u", "_v")

BEFORE_TANH = ("c5.weight", "blocks.5.weight", "output.2.weight")
"""Small, after a sum of blocks: where tanh is flat a test would see nothing."""


def randomise(model, seed):
    """Random weights of the size that keeps hidden images of size one, random statistics."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape, mean, std):
        return mean + std * torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            last = name.rsplit(".", 1)[-1]
            owner = model.get_submodule(name.rpartition(".")[0])
            if last in KEPT:
                continue
            if last == "running_var":
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif isinstance(owner, Equalised) and last == "weight":
                value.copy_(normal(value.shape, 0, 1 / owner.factor))
            elif isinstance(owner, Equalised):
                value.copy_(normal(value.shape, 0.5, 0.3) / owner.factor)
            elif isinstance(owner, ToImage) and last == "weight":
                value.copy_(normal(value.shape, 0, 0.3))
            elif value.ndim > 1 and last not in ("const", "noise_const"):
                gain = 0.03 if name in BEFORE_TANH else 1.5
                value.copy_(normal(value.shape, 0, math.sqrt(gain / value[0].numel())))
            else:
                is_scale = last == "weight" and value.ndim == 1
                value.copy_(normal(value.shape, 1 if is_scale else 0.2, 0.3))
        for module in model.modules():
            _settle(module)
    return model.eval()


def _settle(module):
    """Singular vectors near those of the weight, by two steps of power iteration."""
    module.train()
    for _ in range(2):
        if hasattr(module, "weight_orig"):
            for hook in module._forward_pre_hooks.values():
                hook(module, None)
        elif hasattr(module, "parametrizations"):
            _ = module.weight
    module.eval()
