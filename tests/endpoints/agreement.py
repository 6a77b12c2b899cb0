"""Checks that every planar endpoint with samples and a log-density must pass."""

import jax
import jax.numpy as jnp
import numpy as np


def grid_density(endpoint, spacing):
    """Cell centres `(n, 2)` over the extent, and the mass `(n,)` of each by its density."""
    low, high = endpoint.extent
    cells = int(np.ceil((high - low) / spacing))
    axis = low + (np.arange(cells) + 0.5) * (high - low) / cells
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    rows = jnp.asarray(points, jnp.float32).reshape(cells, cells, 2)
    log_p = jax.jit(lambda x: jax.lax.map(jax.vmap(endpoint.log_density), x))(rows)
    mass = np.exp(np.asarray(log_p, np.float64)).ravel() * ((high - low) / cells) ** 2
    return points, mass


def assert_samples_follow_density(endpoint, key, *, std, n=60_000):
    """Mass, moments and Stein's identities; `std` is the finest scale of the density."""
    x = endpoint.sample(key, n)
    assert x.shape == (n, 2) and x.dtype == jnp.float32
    low, high = endpoint.extent
    assert bool(jnp.all((x > low) & (x < high)))

    # The rule on equal cells is spectrally accurate for Gaussians wider than a cell.
    points, mass = grid_density(endpoint, 0.9 * std)
    np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-3)
    draws = np.asarray(x, np.float64)

    def features(z):
        return np.stack([z[:, 0], z[:, 1], z[:, 0] ** 2, z[:, 1] ** 2, z[:, 0] * z[:, 1]], -1)

    assert_mean_in_errors(features(draws), mass @ features(points))
    # A test at the scale of the noise, which second moments hardly see.
    wave = 1.0 / std
    assert_mean_in_errors(np.cos(wave * draws), mass @ np.cos(wave * points))

    # E[∇log p] = 0 and E[x ∇log pᵀ] = -I hold only if p is the density of the samples.
    score = np.asarray(jax.jit(jax.vmap(jax.grad(endpoint.log_density)))(x), np.float64)
    assert_mean_in_errors(score, np.zeros(2))
    products = (draws[:, :, None] * score[:, None, :]).reshape(n, 4)
    assert_mean_in_errors(products, -np.eye(2).ravel())


def assert_mean_in_errors(values, expected, *, errors=4.5):
    """The mean of `(n, m)` is within some standard errors of `(m,)`."""
    standard_error = values.std(axis=0) / np.sqrt(len(values))
    z = (values.mean(axis=0) - expected) / standard_error
    assert np.abs(z).max() < errors, z


def assert_gradient_sound(endpoint, key, *, std):
    """Dtypes, jit and vmap, finite differences, and a finite inward gradient far away."""
    x = endpoint.sample(key, 20) + 2.0 * std * jax.random.normal(key, (20, 2))
    step = 0.02 * std
    shifts = [step * np.eye(2, dtype=np.float32)[axis][None, :] for axis in range(2)]
    low, high = endpoint.extent
    away = 100.0 * (high - low) * np.float32([[1.0, 0.5], [-1.0, 0.0], [0.3, -1.0]])
    # One batch, because compiling costs more than all else here.
    batch = [x, *(x + shift for shift in shifts), *(x - shift for shift in shifts)]
    points = jnp.concatenate([*batch, jnp.asarray(0.5 * (low + high) + away)])
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(endpoint.log_density)))(points)
    assert value.shape == (103,) and value.dtype == jnp.float32 == gradient.dtype
    single = endpoint.log_density(x[0])
    assert single.shape == ()
    np.testing.assert_allclose(single, value[0], rtol=1e-5, atol=1e-5)

    ups, downs = np.asarray(value[20:60]), np.asarray(value[60:100])
    slopes = ((ups - downs) / (2.0 * step)).reshape(2, 20).T
    np.testing.assert_allclose(slopes * std, gradient[:20] * std, rtol=1e-2, atol=1e-2)

    assert np.isfinite(value[100:]).all() and np.isfinite(gradient[100:]).all()
    assert ((gradient[100:] * away).sum(axis=-1) < 0.0).all()


def assert_stein_identities(endpoint, key, *, scale=None, n=20_000):
    """E[g(x_i) ∂_j log p + δ_ij g'(x_i)] = 0 in any dimension, and E[∇log p] = 0.

    They hold only if p is the density of the samples. g is the identity, or tanh(x / scale)
    where the tails have no moments.
    """
    x = endpoint.sample(key, n)
    assert x.shape == (n, endpoint.dim) and x.dtype == jnp.float32
    score = np.asarray(jax.jit(jax.vmap(jax.grad(endpoint.log_density)))(x), np.float64)
    assert_mean_in_errors(score, np.zeros(endpoint.dim))
    draws = np.asarray(x, np.float64)
    values, slopes = draws, np.ones_like(draws)
    if scale is not None:
        values = np.tanh(draws / scale)
        slopes = (1.0 - values**2) / scale
    products = values[:, :, None] * score[:, None, :]
    products[:, range(endpoint.dim), range(endpoint.dim)] += slopes
    # Of dim² means the largest is farther out than any one of them.
    assert_mean_in_errors(products.reshape(n, -1), 0.0, errors=5.0)


def assert_sound(endpoint, points, *, key):
    """Dtypes, jit and vmap, and a finite inward gradient far away, in any dimension."""
    low, high = endpoint.extent
    away = 100.0 * (high - low) * jax.random.normal(key, (3, endpoint.dim))
    batch = jnp.concatenate([points, 0.5 * (low + high) + away])
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(endpoint.log_density)))(batch)
    assert value.shape == (len(batch),) and gradient.shape == batch.shape
    assert value.dtype == jnp.float32 == gradient.dtype
    single = endpoint.log_density(points[0])
    assert single.shape == ()
    np.testing.assert_allclose(single, value[0], rtol=1e-5, atol=1e-5)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    assert ((gradient[-3:] * away).sum(axis=-1) < 0.0).all()
