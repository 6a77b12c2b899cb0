"""Reference chains: log Z and draws of a Gaussian, what the diagnostics see, and the file."""

import jax
import numpy as np
import pytest

from benchmarks import reference_chains
from d2ejax.endpoints import gaussian

SMALL = ["--num_runs=4", "--num_particles=256", "--num_moves=2", "--num_chains=8"]
SMALL += ["--num_warmup=100", "--num_draws=100", "--thinning=1"]
COVARIANCE = [[2.0, 0.6], [0.6, 0.5]]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """The flags, and the folder that they have filled."""
    folder = tmp_path_factory.mktemp("chains")
    options = f'--options={{"mean": [1.0, -2.0], "covariance": {COVARIANCE}}}'
    flags = ["--target=gaussian", f"--folder={folder}", options, *SMALL]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        reference_chains.main(flags)
    return flags, folder


def test_draws_and_log_z_of_a_gaussian(sampled):
    (path,) = sampled[1].iterdir()
    found = np.load(path)
    x = found["samples"].astype(np.float64)
    assert x.shape == (800, 2) and found["energies"].shape == (800,)
    endpoint = gaussian(mean=(1.0, -2.0), covariance=COVARIANCE)
    energies = -jax.jit(jax.vmap(endpoint.log_density))(x.astype(np.float32))
    np.testing.assert_allclose(found["energies"], energies, rtol=1e-5)
    # In standard errors by the diagnostics' own effective sample sizes.
    errors = np.sqrt(np.diag(COVARIANCE) / found["ess"][:2])
    assert np.abs((x.mean(axis=0) - [1.0, -2.0]) / errors).max() < 4.5
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, rtol=0.35)
    assert found["ess"].min() > 100 and found["r_hat"].max() < 1.05
    assert found["log_z_standard_error"] < 0.1
    assert abs(found["log_z"]) < 4.5 * found["log_z_standard_error"] + 0.02


def test_a_file_is_not_sampled_again_and_not_lost(sampled, monkeypatch, capsys):
    flags, _ = sampled

    def forbidden(*_):
        raise AssertionError("sampled again")

    monkeypatch.setattr(reference_chains, "measure", forbidden)
    reference_chains.main(flags)
    text = capsys.readouterr().out
    assert "| log Z, exact | 0.0000 |" in text and "800 of dimension 2" in text
    with pytest.raises(SystemExit, match=r"is of other settings.*--fresh"):
        reference_chains.main([*flags, "--seed=1"])
    with pytest.raises(AssertionError, match="sampled again"):
        reference_chains.main([*flags, "--fresh"])
    with pytest.raises(SystemExit, match="'phi4' 'sides': did you mean 'side'"):
        reference_chains.main(["--target=phi4", '--options={"sides": 4}', *flags[1:2]])


def test_diagnostics_tell_modes_from_proportions():
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.normal(size=(64, 50))
    # No chain leaves its mode: in one column the runs agree on the modes, in one they do not.
    agreed = np.tile([-1.0, 1.0], 32)[:, None] + noise
    biased = np.where(np.arange(64) < 32, -1.0, 1.0)[:, None] + noise
    values = np.stack([noise, agreed, biased], axis=2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        split, nested, ess = reference_chains.diagnose(values.astype(np.float32), num_runs=2)
    assert split[0] < 1.01 and split[1] > 2.0 and split[2] > 2.0
    assert nested[0] < 1.01 and nested[1] < 1.01 and nested[2] > 2.0
    assert ess[0] > 2000 and ess[1] < 100


def test_log_of_a_mean_and_its_error():
    rng = np.random.default_rng(0)
    log_values = 100.0 + 0.1 * rng.normal(size=4000)
    value, error = reference_chains.log_mean(log_values)
    np.testing.assert_allclose(value, 100.005, atol=0.01)
    np.testing.assert_allclose(error, 0.1 / np.sqrt(4000), rtol=0.1)


@pytest.mark.parametrize(
    "target", sorted(set(reference_chains.PLANS) - {"logistic_regression"})
)
def test_every_plan_is_of_a_target(target):
    plan = reference_chains.PLANS[target]
    endpoint = reference_chains.make_endpoint(target, **plan.options)
    low, high = endpoint.extent
    # Wide enough to cover the target, narrow enough for particles to find it.
    assert 0.05 < plan.base_std / (high - low) < 0.6
