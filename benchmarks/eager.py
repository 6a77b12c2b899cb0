"""The half-steps once more in eager PyTorch, from scratch, as an opponent for the library.

With the network, kernels and exploration of the library, over Brownian motion, and AdamW at a
constant rate. Time features are shared by all paths, nothing is logged, and where `at_once` is
set all steps of all paths are scored in one call; otherwise one step after the other, as
published code does.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict

from benchmarks.eager_ends import End, Particles
from d2ejax.kernels import Process
from experiments import relations

# A configuration says by so large a norm that gradients are not clipped.
_UNCLIPPED = 1e6


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
        # Untrained, the process is the reference.
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps states `(..., batch, dim)` and features `(..., 1, num_features)`."""
        shifts = self.time(features).chunk(len(self.hidden), -1)
        for dense, norm, shift in zip(self.hidden, self.norms, shifts, strict=True):
            x = torch.nn.functional.silu(norm(dense(x) + shift))
        return self.head(x).chunk(2, -1)


class Chain(NamedTuple):
    """A process on its grid; arrays have a leading axis of K steps.

    Attributes:
        network: Its drift and log-variance.
        features: Of the time of each step.
        length: Of each step, times the unit of the drift.
        log_variance: Of each step of the reference.
        share: The part of the variance that the network cannot change; None for no part.
        bound: Of the learned log-variance.
        backward: Whether the process starts at the final time.
    """

    network: Network
    features: torch.Tensor
    length: torch.Tensor
    log_variance: torch.Tensor
    share: torch.Tensor | None
    bound: float
    backward: bool

    def kernel(self, x: torch.Tensor, k: int | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of the step k, or of all of them."""
        drift, raw = self.network(x, self.features[k])
        offset = self.bound * torch.tanh(raw / self.bound)
        if self.share is not None:
            share = self.share[k]
            offset = torch.log(share + (1 - share) * torch.exp(offset))
        return x + self.length[k] * drift, self.log_variance[k] + offset


def chain(process: Process, config: ConfigDict, dim: int) -> Chain:
    """A fresh network around the steps of a process over Brownian motion."""
    given, t_max = config.network, config.grid.t_max
    frequencies = np.pi * np.arange(1, given.num_frequencies + 1)
    fraction = np.asarray(process.steps.time, np.float64) / t_max
    roots = np.sqrt(np.clip(np.stack([fraction, 1 - fraction], 1), 0, 1))
    features = np.cos(roots[:, :, None] * frequencies).reshape(len(fraction), 1, -1)

    def column(values: object) -> torch.Tensor:
        return torch.tensor(np.array(values, np.float32)).reshape(-1, 1, 1)

    steps = process.steps
    unit = given.drift_scale * config.reference.sigma / t_max**0.5
    bridge = config.variance.family == "bridge"
    return Chain(
        network=Network(dim, given.width, given.depth, features.shape[-1]),
        features=torch.tensor(features, dtype=torch.float32),
        length=unit * column(steps.length),
        log_variance=column(steps.log_variance),
        share=column(steps.pinned_share) if bridge else None,
        bound=config.variance.bound,
        backward=process.backward,
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
    """Log-densities of paths given where the process starts, `(batch,)`.

    Less the constant -log(2π)/2 for each step and coordinate, which no gradient sees.
    """
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


class HalfStep(NamedTuple):
    """What one half-step reads.

    Attributes:
        trained: The process that is trained.
        opposite: The process that stands still.
        start: What training sees of the end where the trained process starts.
        goal: What it sees of the other end, which is pinned.
        config: Sizes, exploration and optimiser.
        at_once: Whether all steps are scored in one call.
    """

    trained: Chain
    opposite: Chain
    start: End
    goal: End
    config: ConfigDict
    at_once: bool = False


def ipf(
    backward: Chain,
    forward: Chain,
    ends: tuple[End, End],
    config: ConfigDict,
    *,
    at_once: bool = False,
) -> Iterator[int]:
    """Iterative proportional fitting; yields the number of gradient steps after each.

    Args:
        backward: The backward process.
        forward: The forward process.
        ends: What training sees of the source and of the target.
        config: Losses, numbers of steps and all that a half-step reads.
        at_once: Whether all steps of a path are scored in one call.
    """
    source, target = ends
    losses, settings = relations.resolve_losses(config), config.ipf
    halves = (
        HalfStep(backward, forward, target, source, config, at_once),
        HalfStep(forward, backward, source, target, config, at_once),
    )
    steps = [half_step(half, loss) for half, loss in zip(halves, losses, strict=True)]
    numbers = settings.backward_steps, settings.forward_steps
    taken = 0
    for _ in range(settings.iterations):
        for step, number in zip(steps, numbers, strict=True):
            for _ in range(number):
                step()
                taken += 1
                yield taken


def half_step(half: HalfStep, loss: str) -> Callable[[], None]:
    """One gradient step of "likelihood" or "log_variance", to be called again and again."""
    parameters: list[torch.Tensor] = list(half.trained.network.parameters())
    average = [p.detach().clone() for p in parameters]
    given = half.config.optimiser
    optimiser = torch.optim.AdamW(
        parameters,
        given.learning_rate,
        betas=(0.9, given.b2),
        weight_decay=given.weight_decay,
        fused=True,
    )
    objective = {"likelihood": _likelihood, "log_variance": _log_variance}[loss](half)

    def step() -> None:
        value = objective()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        if given.clip_norm < _UNCLIPPED:
            torch.nn.utils.clip_grad_norm_(parameters, given.clip_norm)
        optimiser.step()
        if given.ema_decay:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1 - given.ema_decay)

    return step


def _likelihood(half: HalfStep) -> Callable[[], torch.Tensor]:
    """Minus the likelihood of the opposite process's paths from samples of the goal."""
    config, draw = half.config, half.goal.sample
    if draw is None:
        raise ValueError("likelihood: the goal must be known by samples")
    size = config.ipf.likelihood_batch_size or config.batch_size

    def objective() -> torch.Tensor:
        paths = simulate(half.opposite, draw(size))
        return -score(half.trained, paths, at_once=half.at_once).mean()

    return objective


def _log_variance(half: HalfStep) -> Callable[[], torch.Tensor]:
    """The variance of the log path ratio over paths that share a start."""
    trained, opposite, exploring = half.trained, half.opposite, half.config.exploration
    log_goal, num_paths = half.goal.log_density, half.config.ipf.paths_per_start
    if log_goal is None:
        raise ValueError("log_variance: the goal must be known by its energy")
    goals = Particles(log_goal, half.goal.dim, half.config)
    draw_starts = _starts(half)
    groups = half.config.batch_size // num_paths
    first, last = (-1, 0) if trained.backward else (0, -1)

    def draw() -> torch.Tensor:
        starts, found = draw_starts(groups), None
        if exploring.off_policy_ratio:
            off_policy = torch.rand(groups, 1) < exploring.off_policy_ratio
            found = simulate(opposite, goals.draw(groups))
            starts = torch.where(off_policy, found[first], starts)
        paths = simulate(trained, starts.repeat_interleave(num_paths, 0))
        if found is not None and exploring.reuse_path:
            paths[:, ::num_paths] = torch.where(off_policy, found, paths[:, ::num_paths])
        if exploring.add_ends:
            goals.add(paths[last, num_paths - 1 :: num_paths])
        return paths

    def objective() -> torch.Tensor:
        paths = draw()
        with torch.no_grad():
            target = score(opposite, paths, at_once=half.at_once) + log_goal(paths[last])
        log_ratios = score(trained, paths, at_once=half.at_once) - target
        return log_ratios.reshape(groups, num_paths).var(1).mean()

    return objective


def _starts(half: HalfStep) -> Callable[[int], torch.Tensor]:
    """Draws on-policy starts, of particles where the end is known by its energy alone."""
    start = half.start
    if start.sample is not None:
        return start.sample
    if start.log_density is None:
        raise ValueError("the start must be known by samples or by its energy")
    return Particles(start.log_density, start.dim, half.config).draw
