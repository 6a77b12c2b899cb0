"""Mixtures and the bridges made of them, against closed forms, quadrature and Sinkhorn."""

import numpy as np
import pytest
from scipy import special, stats

from d2ejax.exact import Mixture, gaussian_bridge, grid_bridge, mixture_bridge, plan_bridge
from d2ejax.references import brownian, ornstein_uhlenbeck
from tests.reference_cases import REFERENCES, T_MAX, every_reference

OU = ornstein_uhlenbeck(1.0, 0.7)


def make(seed, size, dim, *, spread=1.5, std=0.5):
    rng = np.random.default_rng(seed)
    return Mixture(
        rng.normal(size=size),
        spread * rng.normal(size=(size, dim)),
        std**2 * np.exp(rng.uniform(-0.6, 0.6, size=(size, dim))),
    )


@pytest.fixture(scope="module")
def planar():
    """Three components against four in the plane, over an OU process."""
    return mixture_bridge(make(1, 3, 2), make(2, 4, 2), OU, 1.2)


def in_errors(values, expected, errors=4.5):
    """The mean of `(n, ...)` draws lies within some standard errors of what is expected."""
    spread = values.std(axis=0) / np.sqrt(len(values))
    assert np.all(np.abs(values.mean(axis=0) - expected) < errors * spread)


def covariances(x):
    """Products whose mean is the covariance, `(n, dim, dim)`."""
    centred = x - x.mean(axis=0)
    return centred[:, :, None] * centred[:, None, :]


def test_density_score_and_moments():
    mixture = make(0, 3, 4)
    x = np.random.default_rng(1).normal(size=(20, 4))
    density = sum(
        np.exp(w) * stats.multivariate_normal(m, np.diag(v)).pdf(x)
        for w, m, v in zip(*mixture, strict=True)
    )
    np.testing.assert_allclose(mixture.log_density(x), np.log(density), rtol=1e-10)
    step = 1e-5
    slopes = [
        (mixture.log_density(x + step * e) - mixture.log_density(x - step * e)) / (2 * step)
        for e in np.eye(4)
    ]
    np.testing.assert_allclose(mixture.score(x), np.stack(slopes, axis=1), atol=1e-6)
    np.testing.assert_allclose(mixture.log_mass, np.log(np.exp(mixture.log_weights).sum()))
    assert abs(mixture.normalised().log_mass) < 1e-12

    draws = mixture.sample(np.random.default_rng(2), 50_000)
    mean, covariance = mixture.mean_and_covariance()
    in_errors(draws, mean)
    in_errors(covariances(draws), covariance)


def test_observation_is_bayes_rule():
    prior, scale, variance = make(3, 3, 1), 0.6, 0.3
    x, step = np.linspace(-8, 8, 4001, retstep=True)
    y = np.array([-1.0, 0.4, 2.5])
    joint = np.exp(prior.log_density(x[:, None])) * stats.norm(scale * x, variance**0.5).pdf(
        y[:, None]
    )
    mass = joint.sum(axis=1) * step
    mean = joint @ x * step / mass
    second = joint @ x**2 * step / mass
    seen = prior.push(scale, variance).log_density(y[:, None])
    np.testing.assert_allclose(np.exp(seen), mass, rtol=1e-8)
    posterior = prior.observe(y[:, None], scale, variance)
    for ours in (posterior.mean_and_variance(), posterior.mean_and_covariance()):
        np.testing.assert_allclose(ours[0][:, 0], mean, rtol=1e-8)
        np.testing.assert_allclose(ours[1].ravel(), second - mean**2, rtol=1e-8)
    many = np.full((20_000, 1), y[1])
    for draws in (
        prior.observe(many, scale, variance).sample(np.random.default_rng(0))[0],
        prior.sample_posterior(np.random.default_rng(0), many, scale, variance),
    ):
        in_errors(np.hstack([draws, draws**2]), [mean[1], second[1]])


@every_reference
def test_one_component_each_is_the_gaussian_bridge(reference):
    phi, psi = make(4, 1, 2), make(5, 1, 2)
    bridge = mixture_bridge(phi, psi, reference, T_MAX)
    ends = (*bridge.source.mean_and_covariance(), *bridge.target.mean_and_covariance())
    exact = gaussian_bridge(*ends, reference, T_MAX)
    np.testing.assert_allclose(bridge.path_kl, exact.path_kl, rtol=1e-8)
    np.testing.assert_allclose(bridge.transport_cost, exact.transport_cost, rtol=1e-8)
    x = np.random.default_rng(0).normal(size=(10, 2))
    for ours, theirs in zip(
        bridge.log_potentials(x, -x), exact.log_potentials(x, -x), strict=True
    ):
        # The share of the constant that each takes is a Monte Carlo estimate.
        np.testing.assert_allclose(ours, theirs, atol=0.02)
    both = [sum(b.log_potentials(x, -x)) for b in (bridge, exact)]
    np.testing.assert_allclose(*both, rtol=1e-8, atol=1e-8)
    for t in (0.0, 0.3 * T_MAX, 0.99 * T_MAX):
        np.testing.assert_allclose(bridge.drift(x, t), exact.drift(x, t), atol=1e-7)
        for t_next in (0.5 * (t + T_MAX), T_MAX):
            pair = bridge.step_moments(x, t, t_next), exact.step_moments(x, t, t_next)
            np.testing.assert_allclose(*pair, atol=1e-8)
            back = bridge.backward_drift(x, t_next), exact.backward_drift(x, t_next)
            np.testing.assert_allclose(*back, atol=1e-7)
        for ours, theirs in zip(
            bridge.marginal(t).mean_and_covariance(), exact.marginal(t), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-8)


def assert_solved_alike(bridge, solved, x, t_max):
    np.testing.assert_allclose(bridge.path_kl, solved.path_kl, atol=5e-3)
    assert abs(bridge.path_kl - solved.path_kl) < 4.5 * bridge.path_kl_error + 1e-5
    np.testing.assert_allclose(bridge.transport_cost, solved.transport_cost, atol=1e-5)
    both = [sum(b.log_potentials(x, 0.7 * x)) for b in (bridge, solved)]
    np.testing.assert_allclose(*both, atol=1e-4)
    for t in (0.0, 0.5 * t_max, 0.95 * t_max):
        np.testing.assert_allclose(bridge.drift(x, t), solved.drift(x, t), atol=1e-4)
        for t_next in (0.2 * t + 0.8 * t_max, t_max):
            pair = bridge.step_moments(x, t, t_next), solved.step_moments(x, t, t_next)
            np.testing.assert_allclose(*pair, atol=1e-5)


@pytest.mark.parametrize("reference", [brownian(0.8), OU], ids=["brownian", "ou"])
def test_sinkhorn_finds_the_same_bridge_on_a_line(reference):
    bridge = mixture_bridge(make(6, 3, 1), make(7, 2, 1), reference, 0.9)
    solved = grid_bridge(
        bridge.source.log_density,
        bridge.target.log_density,
        reference,
        0.9,
        dim=1,
        extents=((-8.0, 8.0), (-8.0, 8.0)),
        num_points=320,
    )
    assert_solved_alike(bridge, solved, np.linspace(-2, 2, 9)[:, None], 0.9)


def test_sinkhorn_finds_the_same_bridge_in_the_plane(planar):
    solved = grid_bridge(
        planar.source.log_density,
        planar.target.log_density,
        OU,
        1.2,
        dim=2,
        extents=((-7.0, 7.0), (-7.0, 7.0)),
        num_points=120,
    )
    x = np.random.default_rng(0).normal(size=(20, 2))
    assert_solved_alike(planar, solved, x, 1.2)


def test_ends_are_the_products_of_potentials(planar):
    x = 2.0 * np.random.default_rng(0).normal(size=(30, 2))
    for end, product in (
        (planar.source, planar.phi.log_density(x) + planar.log_psi_0(x)),
        (planar.target, planar.psi.log_density(x) + planar.log_phi_T(x)),
    ):
        assert abs(end.log_mass) < 1e-12
        np.testing.assert_allclose(end.log_density(x), product, atol=1e-9)
    step = 1e-5
    slopes = [
        (planar.log_phi_T(x + step * e) - planar.log_phi_T(x - step * e)) / (2 * step)
        for e in np.eye(2)
    ]
    np.testing.assert_allclose(planar.corrector(x), np.stack(slopes, axis=1), atol=1e-6)


@pytest.mark.parametrize("t", [0.2, 0.7, 1.1])
def test_drifts_add_up_to_the_score_of_the_marginal(t, planar):
    # g = 1; the references' own drifts cancel.
    x = np.random.default_rng(0).normal(size=(10, 2))
    total = planar.drift(x, t) + planar.backward_drift(x, t)
    np.testing.assert_allclose(total, planar.marginal(t).score(x), atol=1e-9)


def test_draws_of_the_plan(planar):
    rng = np.random.default_rng(0)
    n = 40_000
    x_0, x_1 = planar.sample_plan(rng, n)
    for draws, law in ((x_0, planar.source), (x_1, planar.target)):
        mean, covariance = law.mean_and_covariance()
        in_errors(draws, mean)
        in_errors(covariances(draws), covariance)
    in_errors(np.sum((x_1 - x_0) ** 2, axis=1), planar.transport_cost)
    in_errors(planar.log_psi_0(x_0), 0.0)
    in_errors(sum(planar.log_potentials(x_0, x_1)), planar.path_kl)
    # Given x_1 the start is redrawn: the pair keeps its law.
    again = planar.sample_starts(rng, x_1)
    in_errors(np.sum((x_1 - again) ** 2, axis=1), planar.transport_cost)
    assert stats.ks_2samp(again[:, 0], x_0[:, 0]).pvalue > 1e-3


def test_conditional_plan_has_the_moments_of_the_last_step(planar):
    x = np.random.default_rng(0).normal(size=(6, 2))
    mean, covariance = planar.conditional_moments(x)
    plan = planar.conditional_plan(x)
    np.testing.assert_allclose(plan.mean(), mean)
    step_mean, variance = planar.step_moments(x, 0.0, 1.2)
    np.testing.assert_allclose(step_mean, mean)
    np.testing.assert_allclose(np.einsum("nii->ni", covariance), variance)
    draws = planar.conditional_plan(np.repeat(x[:1], 40_000, axis=0)).sample(
        np.random.default_rng(1)
    )[0]
    in_errors(draws, mean[0])
    in_errors(covariances(draws), covariance[0])


def chain_law(bridge, times, seen):
    """The exact mean and covariance of x_t given x_s by the precision matrix of a whole path.

    Args:
        bridge: Over `OU`, with T = 1.2.
        times: s and t.
        seen: x_s, `(dim,)`.
    """
    nodes = np.unique([0.0, *times, 1.2])
    given, asked = np.searchsorted(nodes, times)
    log_masses, means, variances = [], [], []
    for i, j in np.ndindex(len(bridge.phi.means), len(bridge.psi.means)):
        log_mass = bridge.phi.log_weights[i] + bridge.psi.log_weights[j]
        mean, variance = np.empty(2), np.empty(2)
        for axis in range(2):
            precision, linear = np.zeros((len(nodes),) * 2), np.zeros(len(nodes))
            for at, part, k in ((0, bridge.phi, i), (-1, bridge.psi, j)):
                m, v = part.means[k, axis], part.variances[k, axis]
                precision[at, at] += 1.0 / v
                linear[at] += m / v
                log_mass -= 0.5 * (m**2 / v + np.log(2.0 * np.pi * v))
            for k, step in enumerate(np.diff(nodes)):
                row = np.zeros(len(nodes))
                row[k], row[k + 1] = -np.exp(-0.7 * step), 1.0
                v = (1.0 - np.exp(-1.4 * step)) / 1.4
                precision += np.outer(row, row) / v
                log_mass -= 0.5 * np.log(2.0 * np.pi * v)
            cov = np.linalg.inv(precision)
            centre = cov @ linear
            log_mass += 0.5 * linear @ centre
            log_mass += 0.5 * np.linalg.slogdet(2.0 * np.pi * cov)[1]
            marginal = stats.norm(centre[given], cov[given, given] ** 0.5)
            log_mass += marginal.logpdf(seen[axis])
            slope = cov[asked, given] / cov[given, given]
            mean[axis] = centre[asked] + slope * (seen[axis] - centre[given])
            variance[axis] = cov[asked, asked] - slope * cov[given, asked]
        log_masses.append(log_mass)
        means.append(mean)
        variances.append(variance)
    weights = special.softmax(log_masses)
    mean = weights @ np.array(means)
    second = sum(
        w * (np.outer(m, m) + np.diag(v))
        for w, m, v in zip(weights, means, variances, strict=True)
    )
    return mean, second - np.outer(mean, mean)


@pytest.mark.parametrize("times", [(0.0, 0.3), (0.4, 0.9), (0.7, 1.2), (0.0, 1.2)])
def test_step_laws_are_those_of_the_whole_chain(times, planar):
    x = np.random.default_rng(0).normal(size=(5, 2))
    forward, backward = (
        planar.step_law(x, *times),
        planar.backward_step_law(x, *reversed(times)),
    )
    for law, pair in ((forward, times), (backward, times[::-1])):
        expected = [chain_law(planar, pair, row) for row in x]
        for ours, theirs in zip(law, zip(*expected, strict=True), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-8)
        # No product of axes: the components of a mixture tie them.
        assert np.abs(law[1][:, 0, 1]).max() > 1e-3
    mean, variance = planar.step_moments(x, *times)
    np.testing.assert_allclose(forward[0], mean, atol=1e-12)
    np.testing.assert_allclose(np.einsum("nii->ni", forward[1]), variance, atol=1e-12)


def test_a_plan_bridge_has_the_same_step_law(planar):
    bridge = plan_bridge(planar.source, planar.psi, OU, 1.2)
    x = np.random.default_rng(0).normal(size=(5, 2))
    for ours, theirs in zip(
        bridge.step_law(x, 0.2, 0.5), planar.step_law(x, 0.2, 0.5), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("times", [(0.5, 0.5), (0.3, 0.5), (1.4, 0.5), (0.5, -0.1)])
def test_backward_steps_go_back(times, planar):
    with pytest.raises(ValueError, match=rf"\(t, t_previous\) is \({times[0]}, {times[1]}\)"):
        planar.backward_step_law(np.zeros((1, 2)), *times)


def test_integer_times_are_times_like_others():
    bridge = mixture_bridge(make(1, 2, 1), make(2, 2, 1), brownian(2**0.5), 2)
    x = np.array([[-0.5], [1.0]])
    for t in (0, 1):
        np.testing.assert_array_equal(bridge.drift(x, t), bridge.drift(x, float(t)))
        for ours, theirs in zip(
            bridge.step_law(x, t, t + 1), bridge.step_law(x, float(t), t + 1.0), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(bridge.backward_drift(x, 2), bridge.backward_drift(x, 2.0))


def test_moments_of_the_target_are_the_callers_own(planar):
    for bridge in (planar, plan_bridge(planar.source, planar.psi, OU, 1.2)):
        first = [part.copy() for part in bridge.target_moments()]
        for part in bridge.target_moments():
            part[:] = np.nan
        for ours, theirs in zip(bridge.target_moments(), first, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_starts_of_ends_that_are_not_finite_are_refused(planar):
    bridge = plan_bridge(planar.source, planar.psi, OU, 1.2)
    ends = np.zeros((3, 2))
    for value in (np.nan, np.inf):
        ends[1, 0] = value
        with pytest.raises(ValueError, match=rf"x_1\[1\] is \[{value}  ?0\.\]"):
            bridge.sample_starts(np.random.default_rng(0), ends)


def test_a_plan_bridge_needs_no_second_potential(planar):
    # The same bridge, told only where it starts and what ψ is.
    bridge = plan_bridge(planar.source.scaled(2.0), planar.psi.scaled(-1.0), OU, 1.2)
    assert abs(bridge.path_kl - planar.path_kl) < 4.5 * bridge.path_kl_error
    assert bridge.path_kl_error < 0.01 * planar.path_kl
    np.testing.assert_allclose(bridge.transport_cost, planar.transport_cost, rtol=0.01)
    for ours, theirs in zip(bridge.target_moments(), planar.target_moments(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.015)
    rng = np.random.default_rng(0)
    x_0, x_1 = bridge.sample_plan(rng, 20_000)
    in_errors(x_1, planar.target_moments()[0])
    in_errors(np.sum((x_1 - x_0) ** 2, axis=1), planar.transport_cost)

    # By rejection, one law of x_0 for each of two ends.
    for end in x_1[:2]:
        ends = np.repeat(end[None], 20_000, axis=0)
        drawn = bridge.sample_starts(rng, ends)
        exact = planar.phi.observe(end[None], *REFERENCE_STEP).mean_and_covariance()
        in_errors(drawn, exact[0][0])
        in_errors(covariances(drawn), exact[1][0])


# The scale and the variance of the OU process from 0 to 1.2.
REFERENCE_STEP = (np.exp(-0.84), (1.0 - np.exp(-1.68)) / 1.4)


def test_many_dimensions_cost_little_and_stay_finite():
    bridge = mixture_bridge(
        make(8, 4, 512, spread=0.2), make(9, 4, 512, spread=0.2), REFERENCES["brownian"], T_MAX
    )
    x_0, x_1 = bridge.sample_plan(np.random.default_rng(0), 500)
    in_errors(sum(bridge.log_potentials(x_0, x_1)), bridge.path_kl)
    assert bridge.path_kl_error < 1e-3 * bridge.path_kl
    for values in (bridge.drift(x_1, 0.99 * T_MAX), bridge.corrector(x_1)):
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (make(0, 2, 3), "dimension 3"),
        (make(0, 2, 2)._replace(log_weights=np.zeros(3)), "shapes"),
        (make(0, 2, 2)._replace(variances=np.zeros((2, 2))), "positive"),
        (make(0, 2, 2)._replace(means=np.full((2, 2), np.nan)), "finite"),
        (Mixture(np.zeros(0), np.zeros((0, 2)), np.ones((0, 2))), r"\(0, 2\).*one component"),
        (Mixture(np.zeros(2), np.zeros((2, 0)), np.ones((2, 0))), r"\(2, 0\).*one axis"),
    ],
)
@pytest.mark.parametrize("build", [mixture_bridge, plan_bridge])
def test_malformed_mixtures_are_refused(build, broken, message):
    with pytest.raises(ValueError, match=rf"psi.*{message}"):
        build(make(0, 2, 2), broken, OU, 1.0)


@pytest.mark.parametrize("build", [mixture_bridge, plan_bridge])
@pytest.mark.parametrize("t_max", [0.0, -1.0, np.nan, np.inf])
def test_horizons_are_positive(build, t_max):
    # Named before anything else is looked at.
    with pytest.raises(ValueError, match=f"t_max is {t_max}; it must be positive and finite"):
        build(make(0, 2, 2), make(0, 2, 3), OU, t_max)
