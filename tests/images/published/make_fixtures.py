"""Writes the fixtures of these tests; needs PyTorch.

python -m tests.images.published.make_fixtures
"""

import numpy as np
import torch

from tests.images.published import fixtures, torch_models

VGG_STAGES = ((4, 4), (5, 5), (6, 6), (7, 7), (8, 8))
CASES = {
    "sn_gan_chainer_bilinear": lambda: torch_models.ChainerSNGAN(6, 8, "bilinear"),
    "sn_gan_collections": lambda: torch_models.CollectionsSNGAN(6, 8),
    "dcgan_64": lambda: torch_models.DCGAN((6, 5, 4, 3), 8),
    "dcgan_32": lambda: torch_models.DCGAN((7, 5, 4), 8, spectral=True),
    "dcgan_32_last_1x1": lambda: torch_models.DCGAN((6, 5, 4, 3), 7, last_kernel=1),
    "vgg13_bn": lambda: torch_models.VGG(VGG_STAGES, (9, 11)),
    "vgg13_linear": lambda: torch_models.VGG(VGG_STAGES, ()),
    "resnet18": lambda: torch_models.ResNet((4, 5, 6, 7)),
    "resnet_bottleneck": lambda: torch_models.ResNet(
        (2, 3, 4, 5), (2, 1, 1, 1), bottleneck=True, torchvision=False
    ),
    "stylegan2": lambda: torch_models.StyleGAN2((6, 5, 4, 3), 8, 7, classes=3, clamp=1.5),
}
TRUNCATION = 0.7


def inputs_of(model, seed, n):
    """Pixels of classifiers; latents of generators; and labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(0, np.float32)
    if hasattr(model, "std"):
        return rng.integers(0, 256, (n, 32, 32, 3), np.uint8), labels
    if classes := getattr(model, "num_classes", 0):
        labels = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, n)]
    return rng.standard_normal((n, model.num_latents)).astype(np.float32), labels


@torch.no_grad()
def outputs_of(model, inputs, labels):
    """What the network computes, channels last."""
    x = torch.tensor(inputs)
    if hasattr(model, "std"):
        x = (x / 255 - torch.tensor(torch_models.MEAN)) / torch.tensor(model.std)
        return model(x.permute(0, 3, 1, 2)).numpy()
    more = (torch.tensor(labels), TRUNCATION) if hasattr(model, "num_classes") else ()
    return model(x, *more).permute(0, 2, 3, 1).contiguous().numpy()


def make(model, seed, n=1, column_step=1):
    """Random weights and inputs, and the outputs."""
    torch_models.randomise(model, seed)
    inputs, labels = inputs_of(model, seed, n)
    outputs = outputs_of(model, inputs, labels)
    state_dict = {name: value.numpy() for name, value in model.state_dict().items()}
    kept = outputs[:, :, ::column_step] if outputs.ndim == 4 else outputs
    return fixtures.Fixture(state_dict, inputs, labels, kept, column_step)


def main():
    """Writes them all, and shows their sizes and the spread of what they compute."""
    fixtures.FOLDER.mkdir(exist_ok=True)
    for seed, (name, model) in enumerate(CASES.items()):
        n, column_step = 1 if "64" in name else 2, 2 if "gan" in name else 1
        fixture = make(model(), seed, n, column_step)
        path = fixtures.save(name, fixture)
        std, size = fixture.outputs.std(), path.stat().st_size / 1024
        print(f"{name:24} {size:5.1f} KB  outputs {fixture.outputs.shape} std {std:.3f}")


if __name__ == "__main__":
    main()
