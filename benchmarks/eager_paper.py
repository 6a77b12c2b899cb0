"""The published loop between two moons and a ring in eager PyTorch, and its bridge gap."""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks import eager, eager_ends
from benchmarks.eager import Chain
from d2ejax import metrics, rollouts
from d2ejax.endpoints.base import sampler
from d2ejax.metrics import Estimate
from experiments import validation
from experiments.build import Experiment
from experiments.configs import paper_gaussian_to_ring, smoke, two_moons
from experiments.judge import exact_bridge

# The defaults of the endpoint, spelt out because PyTorch has to be told them.
_RING = {"num_modes": 8, "radius": 1.0, "std": 0.1}
_POOL = 100_000
_SIZES = {
    "grid": ("num_steps",),
    "network": ("width", "depth"),
    "ipf": ("iterations", "forward_steps", "backward_steps"),
    "exploration": ("buffer_size", "refresh_every", "refresh_steps"),
}


def configuration(*, quick: bool = False) -> ConfigDict:
    """The published settings between our two ends; `quick`: in seconds, meaning nothing."""
    config = paper_gaussian_to_ring.get_config()
    config.source = two_moons.get_config().source
    config.target.options = ConfigDict(_RING)
    if quick:
        small = smoke.get_config()
        for section, names in _SIZES.items():
            config[section].update({name: small[section][name] for name in names})
    return validation.validate(config)


def source_points(experiment: Experiment, seed: int) -> np.ndarray:
    """Points of the source for PyTorch to draw from, `(n, dim)`."""
    return np.asarray(sampler(experiment.source)(jax.random.key(seed), _POOL))


def train(
    config: ConfigDict, experiment: Experiment, points: np.ndarray, *, at_once: bool = False
) -> Iterator[tuple[int, Chain]]:
    """Trains as it is iterated.

    Args:
        config: The settings.
        experiment: What they build here, for its grid and its target's modes.
        points: Of the source.
        at_once: Whether all steps of a path are scored in one call.

    Yields:
        The number of gradient steps so far, zero first, and the forward process.
    """
    modes = experiment.target.modes
    if modes is None:
        raise ValueError(f"target {experiment.target.name!r}: must be a mixture")
    ends = eager_ends.pool(points), eager_ends.mixture(modes, config.target.options.std)
    backward, forward = (
        eager.chain(process, config, experiment.source.dim)
        for process in (experiment.backward, experiment.forward)
    )
    yield 0, forward
    for steps in eager.ipf(backward, forward, ends, config, at_once=at_once):
        yield steps, forward


def bridge_gap(
    experiment: Experiment, num_paths: int, *, seed: int
) -> Callable[[Chain], Estimate]:
    """Maps a forward process to its bridge gap, as `experiments.judge` measures ours.

    Args:
        experiment: For its ends, its reference and the exact bridge.
        num_paths: Paths that are simulated.
        seed: Of their starts and their noise, the same for every process.

    Raises:
        ValueError: If the exact bridge is not known.
    """
    bridge = exact_bridge(experiment)
    if bridge is None:
        raise ValueError("the exact bridge between these ends is not known")
    drawn = sampler(experiment.source)(jax.random.key(seed), num_paths)
    starts = torch.tensor(np.array(drawn))
    log_reference = jax.jit(lambda x: rollouts.log_density(experiment.reference, None, x))

    def gap(forward: Chain) -> Estimate:
        # Training goes on with the random numbers that it would have had.
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.manual_seed(seed)
            simulated = eager.simulate(forward, starts)
            log_forward = eager.score(forward, simulated, at_once=True).double().numpy()
        paths = simulated.transpose(0, 1).contiguous().numpy()
        # What `eager.score` leaves out.
        log_forward = log_forward - 0.5 * math.log(2 * math.pi) * paths[0, 1:].size
        log_ratios = log_forward - np.asarray(log_reference(paths), np.float64)
        potentials = bridge.log_potentials(paths[:, 0], paths[:, -1])
        return metrics.bridge_gap(log_ratios, *potentials)

    return gap
