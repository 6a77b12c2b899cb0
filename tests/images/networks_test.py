"""Networks of images: shapes, what one image or latent gives, and their descriptions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from d2ejax.images import networks

SMALL = (8, 8, 1)
SHAPES = (SMALL, (28, 28, 1), (32, 32, 3))


def init_part(description, name, key):
    size = description["shape"]
    if name == "generator":
        size = (description["latent_dim"],)
    return networks.build(description)[name].init(key, jnp.zeros(size))


@pytest.fixture(scope="module")
def classifier():
    description = networks.classifier(SMALL, num_classes=3, width=2)
    params = {
        "classifier": init_part(description, "classifier", jax.random.key(1)),
        "log_temperature": jnp.float32(0.0),
    }
    return description, params


@pytest.mark.parametrize(
    ("shape", "kind"), [*((shape, "conv") for shape in SHAPES), (SMALL, "mlp")], ids=str
)
def test_shapes_of_one_and_of_many(key, shape, kind):
    autoencoder = networks.autoencoder(shape, latent_dim=5, width=4, kind=kind)
    adversary = networks.adversary(shape, latent_dim=5, width=4, kind=kind)
    named = networks.classifier(shape, num_classes=7, width=4)
    expected = {
        (0, "encoder"): (shape, [(5,), (5,)]),
        (0, "generator"): ((5,), [shape]),
        (1, "generator"): ((5,), [shape]),
        (1, "discriminator"): (shape, [()]),
        (2, "classifier"): (shape, [(7,)]),
    }
    seen = set()
    for which, description in enumerate((autoencoder, adversary, named)):
        for name, module in networks.build(description).items():
            size, results = expected[which, name]
            seen.add((which, name))
            for leading in ((), (2, 3)):
                inputs = jax.ShapeDtypeStruct((*leading, *size), jnp.float32)
                params = jax.eval_shape(module.init, key, inputs)
                found = jax.tree.leaves(jax.eval_shape(module.apply, params, inputs))
                assert [leaf.shape for leaf in found] == [(*leading, *r) for r in results]
    assert seen == set(expected)


def test_decode_is_one_latent_of_the_batch_and_differentiates(key):
    description = networks.autoencoder(SMALL, latent_dim=3, width=2)
    params = {"generator": init_part(description, "generator", key)}
    latents = 3.0 * jax.random.normal(key, (4, 3))
    generator = networks.build(description)["generator"]

    @jax.jit
    def compute(params, latents):
        each = jax.vmap(lambda z: networks.decode(description, params, z))
        logits = generator.apply(params["generator"], latents)
        # Of all images, along one direction in each latent: as it is, and as differences.
        images, pull = jax.vjp(each, latents)
        slopes = jnp.sum(pull(jnp.cos(images))[0] * step, axis=1)
        sides = [
            jnp.sum(jnp.sin(each(latents + s * step)), axis=(1, 2, 3)) for s in (0.01, -0.01)
        ]
        return images, 2.0 * jax.nn.sigmoid(logits) - 1.0, slopes, (sides[0] - sides[1]) / 0.02

    step = jnp.asarray([[1.0, -1.0, 0.5]])
    images, expected, slopes, differences = compute(params, latents)
    assert images.shape == (4, *SMALL) and np.abs(images).max() < 1.0
    np.testing.assert_allclose(images, expected, atol=1e-5)
    assert np.abs(slopes).min() > 0.1
    np.testing.assert_allclose(slopes, differences, atol=5e-3)


def test_a_convolutional_generator_has_no_block_of_its_own(key):
    """Every pixel is reached from the neighbourhood, not from its 4 × 4 block alone."""
    shape = (16, 16, 1)
    description = networks.adversary(shape, latent_dim=2, width=2)
    params = init_part(description, "generator", key)
    dense = params["params"]["Dense_1"]
    generator = networks.build(description)["generator"]

    @jax.jit
    def from_bias(bias):
        changed = {**params["params"], "Dense_1": {**dense, "bias": bias}}
        return generator.apply({"params": changed}, jnp.ones(2))[:, :, 0]

    # Channel 0 of the block in row 1, column 2.
    bias = dense["bias"].reshape(4, 4, 2)
    moved = from_bias(bias.at[1, 2, 0].add(1.0).reshape(-1))
    rows, columns = np.nonzero(np.asarray(moved != from_bias(dense["bias"])))
    assert rows.min() <= 3 and rows.max() >= 8
    assert columns.min() <= 7 and columns.max() >= 12


def test_depth_to_space_lays_out_two_by_two():
    x = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 3, 8)
    found = np.asarray(networks.depth_to_space(jnp.asarray(x)))
    assert found.shape == (4, 6, 2)
    for row in range(4):
        for column in range(6):
            within = 2 * (row % 2) + column % 2
            expected = x[row // 2, column // 2, 2 * within : 2 * within + 2]
            np.testing.assert_array_equal(found[row, column], expected)


def test_features_logits_and_log_probabilities_agree(classifier, key):
    description, params = classifier
    image = jax.random.normal(key, SMALL)

    @jax.jit
    def compute(log_temperature):
        hot = params | {"log_temperature": log_temperature}
        return (
            networks.log_probabilities(description, hot, image),
            networks.features(description, hot, image),
        )

    # At a temperature of one half.
    log_probabilities, features = compute(jnp.log(jnp.float32(0.5)))
    assert features.shape == (16,)
    head = params["classifier"]["params"]["head"]
    logits = np.asarray(features, np.float64) @ np.asarray(head["kernel"]) + head["bias"]
    np.testing.assert_allclose(
        log_probabilities, scipy.special.log_softmax(2.0 * logits), atol=1e-5
    )


def test_descriptions_go_through_json():
    for description in (
        networks.autoencoder((8, 8, 1), latent_dim=5, width=3, kind="mlp"),
        networks.adversary((28, 28, 1), latent_dim=50),
        networks.classifier((32, 32, 3), num_classes=10),
    ):
        read = json.loads(json.dumps(description))
        assert read == description
        assert networks.build(read) == networks.build(description)


@pytest.mark.parametrize(
    ("describe", "message"),
    [
        (lambda: networks.autoencoder((8, 8)), r"shape = \(8, 8\) is not allowed"),
        (lambda: networks.autoencoder((10, 8, 1)), "divisible by 4"),
        (lambda: networks.autoencoder(SMALL, latent_dim=0), "latent_dim = 0"),
        (lambda: networks.autoencoder(SMALL, likelihood="bernouli"), "'bernoulli'"),
        (lambda: networks.adversary(SMALL, kind="cnn"), "unknown kind of generator 'cnn'"),
        (lambda: networks.adversary(SMALL, width=1.5), "width = 1.5"),
        (lambda: networks.classifier(SMALL, num_classes=1), "num_classes = 1"),
        (lambda: networks.build({"shape": SMALL}), "unknown network None"),
        (lambda: networks.build({"network": "adversary"}), "needs the option 'shape'"),
        (
            lambda: networks.build(networks.adversary(SMALL) | {"likelihood": "gaussian"}),
            "unknown option",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(describe, message):
    with pytest.raises(ValueError, match=message):
        describe()


def test_a_network_of_another_kind_is_refused(classifier):
    with pytest.raises(ValueError, match="'classifier' is not allowed: must have a generator"):
        networks.decode(*classifier, jnp.zeros(2))
    description = networks.adversary(SMALL)
    for function in (networks.log_probabilities, networks.features):
        with pytest.raises(ValueError, match="must have a classifier"):
            function(description, {}, jnp.zeros(SMALL))
