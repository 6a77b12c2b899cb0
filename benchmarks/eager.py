"""The half-steps once more in eager PyTorch, from scratch, as an opponent for `against_torch`.

Between two Gaussians, with the network, kernels, exploration and optimiser of the defaults but
for AdamW. Time features are shared by all paths, nothing is logged, and where `at_once` is set
all steps of all paths are scored in one call; otherwise one step after the other, as published
code does.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict

from d2ejax.kernels import Process

_REFRESH_KEYS = ("refresh_every", "refresh_steps", "refresh_step_size")


class Network(torch.nn.Module):
    """The drift and log-variance network of `d2ejax.networks`."""

    def __init__(self, dim: int, width: int, depth: int, num_features: int):
        super().__init__()
        self.time = torch.nn.Linear(num_features, depth * width)
        sizes = [dim, *[width] * depth]
        self.hidden = torch.nn.ModuleList(
            torch.nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)
        )
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(depth))
        self.head = torch.nn.Linear(width, 2 * dim)
        torch.nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps states `(..., batch, dim)` and features `(..., 1, num_features)`."""
        shifts = self.time(features).chunk(len(self.hidden), -1)
        for dense, norm, shift in zip(self.hidden, self.norms, shifts, strict=True):
            x = torch.nn.functional.silu(norm(dense(x) + shift))
        return self.head(x).chunk(2, -1)


class Chain(NamedTuple):
    """A process on its grid; every array has a leading axis of K steps."""

    network: Network
    features: torch.Tensor
    length: torch.Tensor
    log_variance: torch.Tensor
    share: torch.Tensor
    backward: bool

    def kernel(self, x: torch.Tensor, k: int | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of the step k, or of all of them."""
        drift, raw = self.network(x, self.features[k])
        share = self.share[k]
        variance = share + (1 - share) * torch.exp(6.0 * torch.tanh(raw / 6.0))
        return x + self.length[k] * drift, self.log_variance[k] + torch.log(variance)


def chain(process: Process, config: ConfigDict, dim: int) -> Chain:
    """A fresh network around the reference's steps of a process."""
    given = config.network
    frequencies = np.pi * np.arange(1, given.num_frequencies + 1)
    fraction = np.asarray(process.steps.time, np.float64) / config.grid.t_max
    roots = np.sqrt(np.clip(np.stack([fraction, 1 - fraction], 1), 0, 1))
    features = np.cos(roots[:, :, None] * frequencies).reshape(len(fraction), 1, -1)

    def column(values: object) -> torch.Tensor:
        return torch.tensor(np.array(values, np.float32)).reshape(-1, 1, 1)

    steps = process.steps
    return Chain(
        Network(dim, given.width, given.depth, features.shape[-1]),
        torch.tensor(features, dtype=torch.float32),
        column(steps.length),
        column(steps.log_variance),
        column(steps.pinned_share),
        process.backward,
    )


def simulate(process: Chain, x: torch.Tensor) -> torch.Tensor:
    """Paths `(K + 1, batch, dim)` in the order of time."""
    order = range(len(process.length))
    states = [x]
    with torch.no_grad():
        for k in reversed(order) if process.backward else order:
            mean, log_variance = process.kernel(states[-1], k)
            noise = torch.randn_like(mean)
            states.append(mean + torch.exp(0.5 * log_variance) * noise)
    return torch.stack(states[::-1] if process.backward else states)


def score(process: Chain, paths: torch.Tensor, *, at_once: bool) -> torch.Tensor:
    """Log-densities of paths given where the process starts, `(batch,)`, up to a constant."""
    early, late = paths[:-1], paths[1:]
    given, drawn = (late, early) if process.backward else (early, late)

    def log_density(k: int | slice) -> torch.Tensor:
        mean, log_variance = process.kernel(given[k], k)
        deviation = (drawn[k] - mean) ** 2 * torch.exp(-log_variance)
        return -0.5 * (deviation + log_variance).sum(-1)

    if at_once:
        return log_density(slice(None)).sum(0)
    total = torch.zeros(paths.shape[1])
    for k in range(len(process.length)):
        total = total + log_density(k)
    return total


class Particles:
    """A buffer of points of a Gaussian energy, refreshed by MALA."""

    def __init__(self, std: float, dim: int, config: ConfigDict):
        given = config.exploration
        self.std, self.points, self.steps = std, torch.randn(given.buffer_size, dim), 0
        self.every, self.moves, self.size = (given[name] for name in _REFRESH_KEYS)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """-E(x) of each row."""
        return -0.5 * (x / self.std).square().sum(-1)

    def draw(self, n: int) -> torch.Tensor:
        """Some of the points, after a refresh where one is due."""
        if self.steps % self.every == 0:
            for _ in range(self.moves):
                self.points = self._mala(self.points)
        self.steps += 1
        return self.points[torch.randint(len(self.points), (n,))]

    def add(self, points: torch.Tensor) -> None:
        """Puts points in the place of the oldest."""
        self.points = torch.cat([self.points[len(points) :], points])

    def _mala(self, x: torch.Tensor) -> torch.Tensor:
        def drifted(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = y.detach().requires_grad_()
            value = self.log_density(y)
            (slope,) = torch.autograd.grad(value.sum(), y)
            return value.detach(), y.detach() + self.size * slope

        value, mean = drifted(x)
        proposed = mean + (2 * self.size) ** 0.5 * torch.randn_like(x)
        new_value, new_mean = drifted(proposed)
        there = (proposed - mean).square().sum(-1) / (4 * self.size)
        back = (x - new_mean).square().sum(-1) / (4 * self.size)
        log_ratio = new_value - value + there - back
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        return torch.where(accepted[:, None], proposed, x)


def half_step(
    trained: Chain,
    opposite: Chain,
    config: ConfigDict,
    *,
    dim: int,
    stds: tuple[float, float],
    loss: str,
    at_once: bool,
) -> Callable[[], None]:
    """One gradient step of "likelihood" or "log_variance", to be called again and again.

    Args:
        trained: The process that is trained.
        opposite: The process that stands still.
        config: Sizes, exploration and optimiser.
        dim: Dimension of both ends.
        stds: Standard deviations of the end where the trained process starts and of its goal.
        loss: The loss.
        at_once: Whether all steps are scored in one call.
    """
    parameters = list(trained.network.parameters())
    average = [p.detach().clone() for p in parameters]
    given = config.optimiser
    optimiser = torch.optim.AdamW(parameters, given.learning_rate, weight_decay=0.0, fused=True)
    goal = Particles(stds[1], dim, config)
    start = Particles(stds[0], dim, config) if config.source.access == "energy" else None
    objective = {"likelihood": _likelihood, "log_variance": _log_variance}[loss]

    def step() -> None:
        value = objective(trained, opposite, config, (start, goal), stds, dim, at_once)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, given.clip_norm)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - given.ema_decay)

    return step


def _likelihood(trained, opposite, config, ends, stds, dim, at_once):
    del ends
    paths = simulate(opposite, stds[1] * torch.randn(config.batch_size, dim))
    return -score(trained, paths, at_once=at_once).mean()


def _log_variance(trained, opposite, config, ends, stds, dim, at_once):
    start, goal = ends
    num_paths = config.ipf.paths_per_start
    groups = config.batch_size // num_paths
    starts = start.draw(groups) if start else stds[0] * torch.randn(groups, dim)
    first, last = (-1, 0) if trained.backward else (0, -1)
    ratio, found = config.exploration.off_policy_ratio, None
    if ratio:
        off_policy = torch.rand(groups, 1) < ratio
        found = simulate(opposite, goal.draw(groups))
        starts = torch.where(off_policy, found[first], starts)
    paths = simulate(trained, starts.repeat_interleave(num_paths, 0))
    if found is not None and config.exploration.reuse_path:
        paths[:, ::num_paths] = torch.where(off_policy, found, paths[:, ::num_paths])
    goal.add(paths[last, num_paths - 1 :: num_paths])
    with torch.no_grad():
        target = score(opposite, paths, at_once=at_once) + goal.log_density(paths[last])
    log_ratios = score(trained, paths, at_once=at_once) - target
    return log_ratios.reshape(groups, num_paths).var(1).mean()
