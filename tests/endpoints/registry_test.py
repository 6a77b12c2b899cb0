import os
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from d2ejax.endpoints import ENDPOINTS, make_endpoint

NEEDED = {"gaussian_mixture": {"means": [(0.0, 0.0), (1.0, 1.0)], "stds": 0.1}}

ELSEWHERE = {
    "double_well_particles",
    "double_wells",
    "funnel",
    "lennard_jones",
    "log_gaussian_cox",
    "logistic_regression",
    "many_well",
    "phi4",
}
"""Those that are not in the plane unless told to be."""


@pytest.mark.parametrize("name", ENDPOINTS)
def test_every_name_builds_an_endpoint_of_that_name(name, key):
    endpoint = make_endpoint(name, **NEEDED.get(name, {}))
    assert endpoint.name == name
    assert endpoint.dim == 2 or name in ELSEWHERE
    if endpoint.sample is None:
        assert endpoint.log_density is not None and endpoint.modes is None
    else:
        assert endpoint.sample(key, 5).shape == (5, endpoint.dim)
    low, high = endpoint.extent
    assert low < high


def test_options_reach_the_endpoint_from_a_config():
    config = ml_collections.ConfigDict(
        {"means": [[0, 0], [2.0, 1]], "stds": (0.1, 0.2), "weights": (1, 3)}
    )
    endpoint = make_endpoint("gaussian_mixture", **config)
    np.testing.assert_allclose(endpoint.modes, [(0.0, 0.0), (2.0, 1.0)])
    np.testing.assert_allclose(endpoint.mode_weights, [0.25, 0.75])
    assert make_endpoint("gaussian", dim=3, mean=(1, 2, 3), std=np.float32(0.5)).dim == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("two_moon", {}, r"unknown endpoint 'two_moon': did you mean 'two_moons'\?.*ring"),
        (None, {}, "unknown endpoint None: allowed: checkerboard"),
        ("ring", {"radios": 1.0}, r"'ring' 'radios': did you mean 'radius'\?.*num_modes"),
        ("ring", {"name": "x"}, "option of endpoint 'ring' 'name'.*allowed"),
        ("ring", {"num_modes": 0}, "'ring': num_modes = 0 .* integer >= 1"),
        ("ring", {"num_modes": 8.0}, "num_modes = 8.0 .* integer"),
        ("ring", {"num_modes": True}, "num_modes = True"),
        ("ring", {"radius": "big"}, "radius = 'big' .* finite number"),
        ("ring", {"radius": float("inf")}, "radius = inf"),
        ("cross", {"std": 0.0}, "std = 0.0 .* above zero"),
        ("cross", {"std": None}, "std = None"),
        ("eight_gaussians", {"std": -1.0}, "std = -1.0"),
        ("two_moons", {"noise": -0.1}, "noise = -0.1"),
        ("two_moons", {"noise": 1e-5}, "noise = 1e-05 .* at least 0.001"),
        ("two_moons", {"scale": 0}, "scale = 0 "),
        ("two_moons", {"shift": (1, 2, 3)}, r"shift = \(1, 2, 3\) .* one number or two"),
        ("two_moons", {"shift": "left"}, "shift = 'left'"),
        ("s_curve", {"noise": float("nan")}, "noise = nan"),
        ("swiss_roll", {"noise": [0.1]}, r"noise = \[0.1\]"),
        ("two_circles", {"factor": 1.0}, "factor = 1.0 .* below one"),
        ("checkerboard", {"num_squares": 1}, "num_squares = 1"),
        ("checkerboard", {"half_width": -2}, "half_width = -2"),
        ("gaussian", {"dim": 0}, "dim = 0"),
        ("gaussian", {"dim": 3, "mean": (0, 0)}, r"mean = \(0, 0\) .* dim = 3"),
        ("gaussian", {"mean": [True]}, r"mean = \[True\]"),
        ("gaussian", {"mean": [[1, 2], [3]]}, "mean = .* finite numbers"),
        ("gaussian", {"mean": []}, "mean = "),
        ("gaussian", {"std": 1.0, "covariance": np.eye(2)}, "one of std = 1.0 and covariance"),
        ("gaussian", {"covariance": [[1, 2], [2, 1]]}, "covariance = .* positive definite"),
        ("gaussian", {"covariance": [[1, 0.5], [0, 1]]}, "covariance = .* symmetric"),
        ("gaussian", {"covariance": [[1, 0]]}, r"covariance of shape \(1, 2\)"),
        ("gaussian", {"dim": 3, "covariance": np.eye(2)}, r"\(2, 2\) .* must be \(3, 3\)"),
        ("gaussian_mixture", {}, "'gaussian_mixture' needs the option 'means'"),
        ("gaussian_mixture", {"means": [[0, 0]]}, "one of stds = None and covariances = None"),
        ("gaussian_mixture", {"means": [0, 0], "stds": 1}, r"means = \[0, 0\]"),
        ("gaussian_mixture", {"means": [[0, 0]], "stds": [1, 2]}, r"stds = \[1, 2\] .* 1 of"),
        ("grid_mixture", {"dim": 1}, "dim = 1 .* integer >= 2"),
        ("random_mixture", {"seed": -1}, "seed = -1 .* integer >= 0"),
        ("random_mixture", {"num_mode": 2}, "'num_mode': did you mean 'num_modes'"),
        ("student_mixture", {"df": 0}, "df = 0 .* above zero"),
        ("funnel", {"dim": 1}, "dim = 1 .* integer >= 2"),
        ("funnel", {"std": -3.0}, "std = -3.0 .* above zero"),
        ("many_well", {"dim": 5}, "dim = 5 .* must be even"),
        ("double_wells", {"dim": 2, "num_wells": 3}, "num_wells = 3 .* dim = 2"),
        ("double_wells", {"separation": 101}, "separation = 101 .* at most 100"),
        ("phi4", {"side": 2}, "side = 2 .* integer >= 3"),
        ("phi4", {"coupling": 0.0}, "coupling = 0.0 .* above zero"),
        ("log_gaussian_cox", {"whitened": 1}, "whitened = 1 .* True or False"),
        ("logistic_regression", {"dataset": "iris"}, "dataset 'iris': did you mean 'iris_1_2'"),
        ("double_well_particles", {"num_particles": 1}, "num_particles = 1 .* integer >= 2"),
        ("double_well_particles", {"quartic": 0}, "quartic = 0 .* above zero"),
        ("lennard_jones", {"core": 1.0}, r"core = 1.0 .* in \[0, 1\)"),
        ("lennard_jones", {"oscillator": 0.0}, "oscillator = 0.0 .* above zero"),
        (
            "gaussian_mixture",
            {"means": [[0, 0], [1, 1]], "stds": 1, "weights": (1, 0)},
            r"weights = \(1, 0\) .* positive",
        ),
        (
            "gaussian_mixture",
            {"means": [[0, 0]], "covariances": np.eye(3)},
            r"covariances of shape \(3, 3\) .* \(2, 2\)",
        ),
    ],
)
def test_bad_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_endpoint(name, **options)


def test_building_runs_no_jax_computation():
    # With a platform that does not exist, the first computation would fail.
    program = (
        "from d2ejax.endpoints import ENDPOINTS, make_endpoint, restrict\n"
        f"needed = {NEEDED!r}\n"
        "for name in ENDPOINTS:\n"
        "    endpoint = make_endpoint(name, **needed.get(name, {}))\n"
        "    restrict(endpoint, 'samples' if endpoint.sample else 'energy')\n"
        "import jax.numpy as jnp\n"
        "try:\n"
        "    jnp.zeros(1)\n"
        "except RuntimeError:\n"
        "    print('untouched')\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.stdout == "untouched\n", result.stderr
