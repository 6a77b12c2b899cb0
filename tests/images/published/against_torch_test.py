"""At the published widths flax computes what PyTorch computes; skipped without PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from d2ejax.images.published import dcgan, resnet, sn_gan, stylegan2, vgg
from tests.images.published import make_fixtures, torch_models
from tests.images.published.architectures_test import arguments, distance, outputs_of

CASES = {
    "sngan.pytorch": (torch_models.ChainerSNGAN, sn_gan.from_state_dict, 128),
    "mimicry": (
        lambda: torch_models.ChainerSNGAN(mode="bilinear"),
        lambda arrays: sn_gan.from_state_dict(arrays, upsampling="bilinear"),
        128,
    ),
    "collections": (torch_models.CollectionsSNGAN, sn_gan.from_state_dict, 128),
    "collections, last stage apart": (
        lambda: torch_models.CollectionsSNGAN(apart=True),
        sn_gan.from_state_dict,
        128,
    ),
    "DCGAN 64": (torch_models.DCGAN, dcgan.from_state_dict, 100),
    "DCGAN 32": (
        lambda: torch_models.DCGAN((256, 128, 64), 256),
        dcgan.from_state_dict,
        256,
    ),
    "VGG13": (torch_models.VGG, vgg.from_state_dict, None),
    "VGG16": (lambda: torch_models.VGG(torch_models.VGG16), vgg.from_state_dict, None),
    "VGG16 of kuangliu": (
        lambda: torch_models.VGG(torch_models.VGG16, ()),
        vgg.from_state_dict,
        None,
    ),
    "ResNet18": (torch_models.ResNet, resnet.from_state_dict, None),
    "ResNet18 without pooling": (
        lambda: torch_models.ResNet(max_pool=False),
        lambda arrays: resnet.from_state_dict(arrays, max_pool=False),
        None,
    ),
    "ResNet18 of kuangliu": (
        lambda: torch_models.ResNet(torchvision=False),
        resnet.from_state_dict,
        None,
    ),
    "ResNet50": (
        lambda: torch_models.ResNet(depths=(3, 4, 6, 3), bottleneck=True),
        resnet.from_state_dict,
        None,
    ),
    "StyleGAN2": (
        torch_models.StyleGAN2,
        lambda arrays: stylegan2.from_state_dict(arrays, truncation=make_fixtures.TRUNCATION),
        512,
    ),
    "StyleGAN2 with classes": (
        lambda: torch_models.StyleGAN2(classes=10),
        lambda arrays: stylegan2.from_state_dict(arrays, truncation=make_fixtures.TRUNCATION),
        512,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_agree_at_the_published_widths(name):
    make, from_state_dict, num_latents = CASES[name]
    model = make()
    fixture = make_fixtures.make(model, 0, 2)
    if num_latents:
        assert fixture.inputs.shape == (2, num_latents)
    # Tensors do as well as arrays.
    imported = from_state_dict(model.state_dict())
    count = sum(x.numel() for x in model.parameters())
    assert sum(x.size for x in jax.tree.leaves(imported.variables["params"])) == count
    ours = outputs_of(imported, fixture)
    assert np.std(fixture.outputs) > 0.03
    assert distance(ours, fixture.outputs) < 1e-5
    assert len(arguments(fixture)[0]) == 2
