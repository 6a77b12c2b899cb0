"""What PyTorch computed on narrow networks with random weights, flax computes from them."""

import functools

import jax
import numpy as np
import pytest

from d2ejax.images.published import dcgan, resnet, sn_gan, stylegan2, vgg
from tests.images.published import fixtures

IMPORTERS = {
    "sn_gan_chainer_bilinear": lambda arrays: sn_gan.from_state_dict(
        arrays, upsampling="bilinear"
    ),
    "sn_gan_collections": sn_gan.from_state_dict,
    "dcgan_64": dcgan.from_state_dict,
    "dcgan_32": dcgan.from_state_dict,
    "dcgan_32_last_1x1": dcgan.from_state_dict,
    "vgg13_bn": vgg.from_state_dict,
    "vgg13_linear": vgg.from_state_dict,
    "resnet18": resnet.from_state_dict,
    "resnet_bottleneck": resnet.from_state_dict,
    "stylegan2": lambda arrays: stylegan2.from_state_dict(arrays, truncation=0.7, clamp=1.5),
}


@functools.cache
def imported_of(name):
    return IMPORTERS[name](fixtures.load(name).state_dict)


@functools.cache
def program(module):
    """Compiled once for all weights of one shape."""
    return jax.jit(module.apply)


CLASSIFIERS = ("vgg13_bn", "resnet18")


def arguments(fixture):
    """The inputs as the modules take them."""
    if fixture.inputs.dtype == np.uint8:
        return (fixture.inputs.astype(np.float32) / np.float32(127.5) - np.float32(1),)
    return (fixture.inputs, fixture.labels) if fixture.labels.size else (fixture.inputs,)


def outputs_of(imported, fixture):
    outputs = program(imported.module)(imported.variables, *arguments(fixture))
    return np.asarray(outputs[:, :, :: fixture.column_step] if outputs.ndim == 4 else outputs)


def distance(ours, theirs):
    """The largest difference, of the largest value."""
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


@pytest.mark.parametrize("name", IMPORTERS)
def test_outputs_are_those_of_pytorch(name):
    fixture = fixtures.load(name)
    ours = outputs_of(imported_of(name), fixture)
    assert ours.shape == fixture.outputs.shape
    assert np.std(fixture.outputs) > 0.1
    assert distance(ours, fixture.outputs) < 1e-5


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("sn_gan_collections", "blocks.1.residual.4.running_mean", "blocks.1.residual.4.bias"),
        ("sn_gan_collections", "blocks.3.running_var", "blocks.3.weight"),
        ("vgg13_linear", "features.8.running_mean", "features.8.running_var"),
    ],
)
def test_one_array_in_the_place_of_another_is_seen(name, one, other):
    fixture = fixtures.load(name)
    arrays = {**fixture.state_dict, one: fixture.state_dict[other]}
    arrays[other] = fixture.state_dict[one]
    # A negative variance makes NaN, which is far from everything too.
    ours = outputs_of(IMPORTERS[name](arrays), fixture)
    assert not distance(ours, fixture.outputs) < 1e-3


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_are_the_last_layer_of_the_features(name):
    fixture = fixtures.load(name)
    module, variables = imported_of(name)
    features = jax.jit(lambda x: module.apply(variables, x, method="features"))(
        *arguments(fixture)
    )
    last = max(key for key in variables["params"] if key.startswith("dense"))
    kernel, bias = variables["params"][last]["kernel"], variables["params"][last]["bias"]
    assert distance(features @ kernel + bias[None, :], fixture.outputs) < 1e-5


def test_styles_of_stylegan2_can_be_made_apart_and_noise_left_out():
    fixture = fixtures.load("stylegan2")
    module, variables = imported_of("stylegan2")
    quiet = stylegan2.from_state_dict(
        fixture.state_dict, noise="none", truncation=0.7, clamp=1.5
    )

    @jax.jit
    def both(latents, labels):
        style = module.apply(variables, latents, labels, method="style")
        image = module.apply(variables, style, method="synthesise")
        return image, quiet.module.apply(variables, latents, labels)

    image, without = (x[:, :, ::2] for x in both(*arguments(fixture)))
    assert distance(image, fixture.outputs) < 1e-5
    assert distance(without, fixture.outputs) > 1e-2


def test_no_label_is_a_label_of_zeros():
    fixture = fixtures.load("stylegan2")
    module, variables = imported_of("stylegan2")

    @jax.jit
    def style(labels):
        return module.apply(variables, fixture.inputs, labels, method="style")

    zeros = np.zeros_like(fixture.labels)
    assert distance(style(None), style(zeros)) < 1e-5
    assert distance(style(zeros), style(fixture.labels)) > 1e-3


def test_upsampling_is_what_was_asked_for():
    fixture = fixtures.load("sn_gan_chainer_bilinear")
    nearest = sn_gan.from_state_dict(fixture.state_dict)
    assert distance(outputs_of(nearest, fixture), fixture.outputs) > 1e-3


def test_max_pooling_can_be_left_out():
    fixture = fixtures.load("resnet18")
    assert imported_of("resnet18").module.max_pool
    assert not resnet.from_state_dict(fixture.state_dict, max_pool=False).module.max_pool


def test_both_names_of_the_last_stage_give_the_same():
    arrays = fixtures.load("sn_gan_collections").state_dict
    apart = {
        name.replace("blocks.3.", "output.0.").replace("blocks.5.", "output.2."): value
        for name, value in arrays.items()
    }
    assert not apart.keys() & {"blocks.3.weight", "blocks.5.weight"}
    jax.tree.map(
        np.testing.assert_array_equal,
        sn_gan.from_state_dict(apart).variables,
        imported_of("sn_gan_collections").variables,
    )


def test_sizes_are_read_off_the_state_dict():
    def module(name):
        return imported_of(name).module

    assert module("vgg13_bn").stages == ((4, 4), (5, 5), (6, 6), (7, 7), (8, 8))
    assert module("vgg13_bn").hidden == (9, 11)
    assert module("resnet_bottleneck").blocks[1].kernels == (1, 3, 1)
    assert [block.stride for block in module("resnet_bottleneck").blocks] == [1, 1, 2, 2, 2]
    assert module("dcgan_64").widths == (6, 5, 4, 3)
    assert module("stylegan2").widths == (6, 5, 4, 3)
