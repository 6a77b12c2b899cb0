"""Couplings: marginals kept, optimal by SciPy, entropic by the exact Gaussian plan."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from d2ejax import couplings, exact, references
from tests import gaussian_case
from tests.reference_cases import T_MAX, every_reference


def clouds(key, n=64, dim=2):
    first, second = jax.random.split(key)
    return jax.random.normal(first, (n, dim)), 0.5 + 2.0 * jax.random.normal(second, (n, dim))


def rows(x):
    return {tuple(row) for row in np.asarray(x).tolist()}


COUPLINGS = {
    "independent": couplings.independent,
    "entropic": couplings.entropic(references.brownian(0.8), T_MAX),
    "exact": couplings.exact,
}


@pytest.mark.parametrize("name", COUPLINGS)
def test_both_ends_keep_their_points(key, name):
    x_0, x_1 = clouds(key)
    paired_0, paired_1 = jax.jit(COUPLINGS[name])(key, x_0, x_1)
    np.testing.assert_array_equal(paired_0, x_0)
    assert rows(paired_1) <= rows(x_1)
    assert (rows(paired_1) == rows(x_1)) == (name != "entropic")


def test_an_entropic_partner_is_every_point_of_the_target_on_average(key):
    n, repeats = 16, 4000
    x_0, x_1 = clouds(key, n)
    couple = COUPLINGS["entropic"]
    draw = jax.jit(jax.vmap(lambda k: couple(k, x_0, x_1)[1]))
    drawn = np.asarray(draw(jax.random.split(key, repeats)))
    which = np.argmin(np.sum((drawn[:, :, None] - np.asarray(x_1)) ** 2, axis=-1), axis=-1)
    counts = np.mean(which[..., None] == np.arange(n), axis=0)
    # Each column of the plan sums to 1/n, within the solver's threshold.
    error = np.sqrt(np.sum(counts * (1 - counts), axis=0) / repeats)
    assert np.all(np.abs(counts.sum(axis=0) - 1.0) < 4 * error + n * 1e-3)


@pytest.mark.parametrize(("n", "dim"), [(1, 2), (16, 1), (128, 2), (33, 5)])
def test_exact_is_the_assignment_of_scipy(key, n, dim):
    x_0, x_1 = clouds(key, n, dim)
    _, paired = jax.jit(couplings.exact)(key, x_0, x_1)
    costs = np.sum((np.asarray(x_0)[:, None] - np.asarray(x_1)) ** 2, axis=-1)
    best = costs[linear_sum_assignment(costs)].sum()
    np.testing.assert_allclose(np.sum(np.square(paired - x_0)), best, rtol=1e-5)


def test_entropic_goes_from_the_product_to_the_assignment_as_epsilon_falls(key):
    x_0, x_1 = clouds(key, 32)
    cost = {}
    for scale in (3e-3, 1e-1, 1e4):
        couple = couplings.entropic(references.brownian(1.0), 1.0, epsilon_scale=scale)
        draw = jax.jit(jax.vmap(functools.partial(couple, x_0=x_0, x_1=x_1)))
        paired = draw(jax.random.split(key, 200))[1]
        cost[scale] = float(jnp.mean(jnp.sum(jnp.square(paired - x_0[None]), axis=-1)))
    optimal = float(jnp.mean(jnp.sum(jnp.square(couplings.exact(key, x_0, x_1)[1] - x_0), -1)))
    product = jnp.sum(jnp.square(x_0[:, None] - x_1[None]), axis=-1)
    np.testing.assert_allclose(cost[3e-3], optimal, rtol=1e-2)
    np.testing.assert_allclose(cost[1e4], float(jnp.mean(product)), rtol=0.05)
    assert optimal < cost[1e-1] < float(jnp.mean(product))


SPREADS = (0.8, 0.6)
"""Standard deviations of the Gaussian ends below."""


def correlation(reference, key, n, repeats, **options):
    """Of pairs of minibatches between centred Gaussians, with its standard error."""
    couple = couplings.entropic(reference, T_MAX, **options)

    def one(key):
        draw_key, pair_key = jax.random.split(key)
        x_0, x_1 = jax.random.normal(draw_key, (2, n, 1))
        x_0, x_1 = couple(pair_key, SPREADS[0] * x_0, SPREADS[1] * x_1)
        return jnp.mean(x_0 * x_1) / (SPREADS[0] * SPREADS[1])

    found = np.asarray(
        jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, repeats))
    )
    return found.mean(), found.std(ddof=1) / np.sqrt(repeats)


def true_correlation(reference):
    variances = [np.eye(1) * spread**2 for spread in SPREADS]
    plan = exact.gaussian_bridge(
        [0.0], variances[0], [0.0], variances[1], reference, T_MAX
    ).plan
    return plan.cov[0, 1] / (SPREADS[0] * SPREADS[1])


@every_reference
def test_large_minibatches_have_the_correlation_of_the_exact_plan(key, reference):
    # The bias of 256 points is below .01 here; that of a wrong ε or cost is not, see below.
    found, error = correlation(reference, key, 256, 32)
    assert abs(found - true_correlation(reference)) < 4 * error + 0.01


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_proof_would_notice_a_wrong_epsilon(key, scale):
    # As ‖y - x‖² for ‖y - x‖²/2 would be.
    reference = references.brownian(0.8)
    found, error = correlation(reference, key, 256, 32, epsilon_scale=scale)
    assert abs(found - true_correlation(reference)) > 0.05 + 4 * error


def test_a_coupling_that_starts_later_is_tied_to_what_remains(key):
    # Noise that grows in time: as wide a Brownian motion, neither of as long a time nor of all.
    law = references.variance_exploding(0.1, 2.0, 1.0)
    x_0, x_1 = jax.random.normal(key, (2, 32, 2))
    found = gaussian_case.jit(couplings.entropic(law, 1.0, start=0.9))(key, x_0, x_1)[1]
    sigma = float(law.variance(0.9, 1.0)) ** 0.5
    assert sigma < 0.7 * float(law.variance(0.0, 1.0)) ** 0.5
    plain = couplings.entropic(references.brownian(sigma), 1.0)
    np.testing.assert_allclose(found, gaussian_case.jit(plain)(key, x_0, x_1)[1])


def test_bad_input_is_refused():
    x = jnp.zeros((4, 2))
    for couple in COUPLINGS.values():
        with pytest.raises(ValueError, match=r"x_0 has shape \(4, 2\) and x_1 \(3, 2\): must"):
            couple(jax.random.key(0), x, x[:3])
    for name in ("epsilon_scale", "threshold", "max_iterations"):
        with pytest.raises(ValueError, match=f"{name} = 0: must be > 0"):
            couplings.entropic(references.brownian(1.0), 1.0, **{name: 0})
    with pytest.raises(ValueError, match="t_max = -1: must be > 0"):
        couplings.entropic(references.brownian(1.0), -1)
    for start in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"start = {start}: must be ≥ 0 and < t_max = 1.0"):
            couplings.entropic(references.brownian(1.0), 1.0, start=start)


def test_what_needs_no_solver_does_not_wait_for_its_import():
    program = (
        "import sys, d2ejax, experiments.methods\n"
        "print(sorted({'ott', 'diffrax'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
