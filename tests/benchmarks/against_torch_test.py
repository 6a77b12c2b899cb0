"""The opponent in PyTorch computes what this library computes; skipped without PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import against_torch, eager
from d2ejax import rollouts
from experiments import build

SIZE = {"batch_size": 64, "num_steps": 5, "width": 8, "dim": 3}
CASES = {case.name: case for case in against_torch._CASES}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_both_score_a_path_alike(backward, at_once, key):
    config = against_torch.configuration(CASES["D2E off-policy"], SIZE)
    experiment = build.build(config)
    process = experiment.backward if backward else experiment.forward
    chain = eager.chain(process, config, 3)
    torch.manual_seed(0)
    for parameter in chain.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    paths = np.asarray(jax.random.normal(key, (4, 6, 3)))
    theirs = eager.score(chain, torch.tensor(paths).transpose(0, 1), at_once=at_once)
    weights = {name: p.detach().numpy() for name, p in chain.network.named_parameters()}
    params = {
        "time": {"kernel": weights["time.weight"].T, "bias": weights["time.bias"]},
        "head": {"kernel": weights["head.weight"].T, "bias": weights["head.bias"]},
    }
    for i in range(config.network.depth):
        params[f"hidden_{i}"] = {"kernel": weights[f"hidden.{i}.weight"].T}
        params[f"norm_{i}"] = {
            "scale": weights[f"norms.{i}.weight"],
            "bias": weights[f"norms.{i}.bias"],
        }
    ours = rollouts.log_density(process, {"params": params}, paths)
    constant = 0.5 * 5 * 3 * np.log(2 * np.pi)
    np.testing.assert_allclose(theirs.detach().numpy() - constant, ours, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_both_take_gradient_steps_of_every_half_step(name):
    config = against_torch.configuration(CASES[name], SIZE)
    runners = {
        "d2ejax": against_torch.ours(config),
        "at once": against_torch.theirs(config, CASES[name], 3, at_once=True),
    }
    found = against_torch.compare(runners, dict.fromkeys(runners, 2), repeats=1)
    assert all(np.isfinite(value) for value in found.values())
