"""Networks: zero at the start, the energy feature, the clipped score, finite gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d2ejax import networks, time_grids

T_MAX = 2.0


def gaussian_energy(x):
    return -0.5 * jnp.sum(jnp.square(x))


def with_head_bias(params, bias):
    head = {**params["params"]["head"], "bias": jnp.asarray(bias)}
    return {"params": {**params["params"], "head": head}}


@pytest.mark.parametrize("log_density", [None, gaussian_energy], ids=["plain", "energy"])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_drift_network_starts_at_zero(key, log_density, layer_norm):
    network = networks.drift_network(
        3, T_MAX, width=8, depth=2, layer_norm=layer_norm, log_density=log_density
    )
    params = jax.jit(network.init)(key)
    x = jnp.asarray([[0.0, 0.0, 0.0], [1.0, -2.0, 50.0], [-1.0, 2.0, 0.5]])
    times = jnp.asarray([0.0, 0.7, T_MAX])
    drift, log_variance = jax.jit(jax.vmap(network.apply, (None, 0, 0)))(params, x, times)
    np.testing.assert_array_equal(drift, np.zeros((3, 3)))
    np.testing.assert_array_equal(log_variance, np.zeros((3, 3)))


def test_potential_network_starts_at_zero_and_learns(key):
    network = networks.potential_network(2, width=8, depth=2)
    init, apply = map(jax.jit, network)
    params, x = init(key), jnp.asarray([0.5, -1.0])
    assert apply(params, x).shape == () and apply(params, x) == 0.0
    gradient = jax.jit(jax.grad(apply))(params, x)
    moved = jax.tree.map(lambda p, g: p + 0.1 * g, params, gradient)
    assert apply(moved, x) > 0.0


def test_trained_output_depends_on_state_and_time(key):
    network = networks.drift_network(2, T_MAX, width=8, depth=2)
    noise = jax.random.split(key, 1)[0]
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(noise, leaf.shape),
        jax.jit(network.init)(key),
    )
    x, y = jnp.asarray([0.5, -1.0]), jnp.asarray([-0.5, 1.0])
    points, times = jnp.stack([x, y, x]), jnp.asarray([0.3, 0.3, 1.3])
    outputs = np.hstack(jax.jit(jax.vmap(network.apply, (None, 0, 0)))(params, points, times))
    assert np.all(np.abs(outputs[0] - outputs[1]) > 1e-4)
    assert np.all(np.abs(outputs[0] - outputs[2]) > 1e-4)


class Textbook(nn.Module):
    """The same network layer by layer, with nothing folded into its weights."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, x, fraction):
        features = networks.time_features(fraction, 4)
        shifts = nn.Dense(self.depth * self.width, name="time")(features)
        for layer, shift in enumerate(jnp.split(shifts, self.depth)):
            x = nn.Dense(self.width, use_bias=False, name=f"hidden_{layer}")(x) + shift
            x = nn.silu(nn.LayerNorm(name=f"norm_{layer}")(x))
        return nn.Dense(3, name="head")(x)


def test_centred_weights_are_layer_norm(key):
    module = networks.TimeMLP(3, width=8, depth=2, num_frequencies=4, layer_norm=True)
    x, fraction = jnp.asarray([0.5, -1.0]), jnp.float32(0.3)
    params = jax.jit(module.init)(key, x, fraction)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + 0.5 * jax.random.normal(k, leaf.shape)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    params = jax.tree.unflatten(tree, moved)

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_slopes(network, params):
        def apply(params):
            return network.apply(params, x, fraction)

        return apply(params), jax.jacobian(apply)(params)

    found, slopes = output_and_slopes(module, params)
    expected, expected_slopes = output_and_slopes(Textbook(width=8, depth=2), params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(expected).min() > 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        slopes,
        expected_slopes,
    )


def test_gain_multiplies_the_score(key):
    scale = 2.5
    network = networks.drift_network(
        2, T_MAX, width=8, depth=1, log_density=gaussian_energy, drift_scale=scale
    )
    params, apply = jax.jit(network.init)(key), jax.jit(network.apply)
    x, t = jnp.asarray([3.0, -4.0]), jnp.float32(0.3)
    # Head biases: drift, log-variance, gain, two coordinates of each; the score is -x.
    gained = with_head_bias(params, [0.0, 0.0, 0.0, 0.0, 0.5, 2.0])
    drift, log_variance = apply(gained, x, t)
    np.testing.assert_allclose(drift, scale * np.array([-1.5, 8.0]), rtol=1e-6)
    np.testing.assert_array_equal(log_variance, np.zeros(2))
    # The other outputs, each in its own place and unit.
    drift, log_variance = apply(with_head_bias(params, [1.0, -1.0, 0.2, 0.3, 0.0, 0.0]), x, t)
    np.testing.assert_allclose(drift, [scale, -scale], rtol=1e-6)
    np.testing.assert_allclose(log_variance, [0.2, 0.3], rtol=1e-6)


def test_an_affine_part_is_of_time_alone_and_of_each_coordinate(key):
    network = networks.drift_network(2, T_MAX, width=8, depth=1, drift_scale=2.0, affine=True)
    params, apply = jax.jit(network.init)(key), jax.jit(network.apply)
    x, t = jnp.asarray([3.0, -4.0]), jnp.float32(0.3)
    for output in apply(params, x, t):
        np.testing.assert_array_equal(output, np.zeros(2))
    skip = params["params"]["skip"]
    moved = skip | {"bias": jnp.asarray([1.0, 0.5, 0.2, -0.3])}
    changed = {"params": params["params"] | {"skip": moved}}
    drift, log_variance = apply(changed, x, t)
    # Slopes, then offsets.
    np.testing.assert_allclose(drift, 2.0 * np.array([3.2, -2.3]), rtol=1e-6)
    np.testing.assert_array_equal(log_variance, np.zeros(2))
    # It is learned, as a function of time.
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, x, t)[0])))(params)
    assert np.all(np.asarray(gradient["params"]["skip"]["kernel"]) != 0)


def test_gain_sees_the_clipped_score(key):
    network = networks.drift_network(
        2, T_MAX, width=8, depth=1, log_density=gaussian_energy, score_clip=1.0
    )
    gained = with_head_bias(jax.jit(network.init)(key), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    drift, _ = jax.jit(network.apply)(gained, jnp.asarray([30.0, -40.0]), jnp.float32(0.3))
    np.testing.assert_allclose(drift, [-0.6, 0.8], rtol=1e-5)


def test_clipped_score_bounds_the_norm_and_keeps_the_direction(key):
    score = networks.clipped_score(gaussian_energy, 2.0)
    x = 10 ** jax.random.uniform(key, (200, 1), minval=-3.0, maxval=6.0)
    x = x * jax.random.normal(key, (200, 3))
    values, norms = np.asarray(jax.jit(jax.vmap(score))(x)), np.linalg.norm(x, axis=1)
    assert np.all(np.linalg.norm(values, axis=1) <= 2.0 * (1 + 1e-5))
    inside = norms < 2.0
    assert 20 < inside.sum() < 180
    np.testing.assert_allclose(values[inside], -x[inside], rtol=1e-5)
    unit = x[~inside] / norms[~inside, None]
    np.testing.assert_allclose(values[~inside], -2.0 * unit, rtol=1e-5, atol=1e-6)


def test_clipped_score_is_zero_at_a_critical_point():
    score = networks.clipped_score(gaussian_energy, 2.0)
    np.testing.assert_array_equal(score(jnp.zeros(2)), np.zeros(2))


@pytest.mark.parametrize(
    ("log_density", "point"),
    [
        (lambda x: jnp.log(x[0]) + x[1], 0.0),  # gradient +inf
        (lambda x: jnp.sqrt(jnp.abs(x[0])) + x[1], 0.0),  # 0 · inf = NaN or an infinity
        (lambda x: jnp.log(x[0] - 1.0) * 0.0 + x[1], 1.0),  # NaN
    ],
)
def test_clipped_score_is_zero_where_not_finite(log_density, point):
    x = jnp.asarray([point, 0.3])
    assert not np.isfinite(jax.grad(log_density)(x)[0])
    score = networks.clipped_score(log_density, 100.0)(x)
    np.testing.assert_allclose(score, [0.0, 1.0], rtol=1e-6)


def test_gradients_are_finite(key):
    network = networks.drift_network(
        2, T_MAX, width=8, depth=2, log_density=lambda y: jnp.log(jnp.abs(y[0])) - y[1] ** 2
    )
    params = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(network.init)(key))
    # Both ends of time; an energy with a pole at 0; a far point.
    times = jnp.asarray([0.0, 1.0, T_MAX, 0.0, 1.0, T_MAX])
    points = jnp.asarray(
        [[0.0, 0.0], [0.0, 0.0], [1.0, -2.0], [1.0, -2.0], [0.0, 1e4], [0.0, 1e4]]
    )

    def loss(params, x, t):
        drift, log_variance = network.apply(params, x, t)
        return jnp.sum(jnp.square(drift)) + jnp.sum(log_variance)

    gradient = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, points, times)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    assert np.all(np.abs(gradient["params"]["head"]["kernel"]).max((1, 2)) > 0)


def test_time_features_by_hand():
    ones, signs = np.ones(3), np.array([-1.0, 1.0, -1.0])
    start, end = (networks.time_features(jnp.float32(t), 3) for t in (0.0, 1.0))
    np.testing.assert_allclose(start, np.concatenate([ones, signs]), atol=1e-6)
    np.testing.assert_allclose(end, np.concatenate([signs, ones]), atol=1e-6)
    # A quarter passed: the square root of the time passed is a half.
    quarter = networks.time_features(jnp.float32(0.25), 3)[:3]
    np.testing.assert_allclose(quarter, [0.0, -1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("t", [-1e-6, 1.0 + 1e-6])
def test_time_features_survive_round_off(t):
    assert bool(jnp.all(jnp.isfinite(networks.time_features(jnp.float32(t), 8))))


def test_time_features_resolve_the_end_refined_grid():
    fractions = time_grids.end_refined(100, 1.0).times
    features = np.asarray(jax.vmap(lambda t: networks.time_features(t, 8))(fractions))
    gaps = np.linalg.norm(np.diff(features, axis=0), axis=1)
    # The last step is 1e-4 of the interval; features smooth in t would move by as little.
    assert gaps.min() > 0.04


def test_bfloat16_is_for_the_hidden_layers_alone(key):
    single, half = (
        networks.drift_network(2, T_MAX, width=32, depth=3, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), jax.jit(half.init)(key)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x, t = jnp.asarray([0.5, -1.0]), jnp.float32(0.3)

    expected, found = (jnp.stack(jax.jit(n.apply)(params, x, t)) for n in (single, half))
    assert found.dtype == jnp.float32
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.03
    products = [
        equation
        for equation in jax.make_jaxpr(lambda x: half.apply(params, x, t))(x).eqns
        if equation.primitive.name == "dot_general"
    ]
    dtypes = [equation.invars[0].aval.dtype.name for equation in products]
    # Time, the first layer; two more; the head.
    assert dtypes == ["float32"] * 2 + ["bfloat16"] * 3
    gradients = jax.eval_shape(jax.grad(lambda p: jnp.sum(half.apply(p, x, t)[0])), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
