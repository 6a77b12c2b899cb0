"""The ends of a bridge in eager PyTorch, and particles that explore one known by its energy."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict

LogDensity = Callable[[torch.Tensor], torch.Tensor]
"""Maps points `(n, dim)` to their log-densities `(n,)`, up to a constant."""


class End(NamedTuple):
    """One end of a bridge, or what training may see of it.

    Attributes:
        dim: Number of coordinates of a point.
        sample: Draws `(n, dim)` points; None where the end is known by its energy.
        log_density: -E(x) of each row, up to a constant; None where it is known by samples.
    """

    dim: int
    sample: Callable[[int], torch.Tensor] | None = None
    log_density: LogDensity | None = None

    def restrict(self, access: str) -> "End":
        """Only what training sees by "samples" or by "energy"."""
        if access == "samples":
            return self._replace(log_density=None)
        return self._replace(sample=None)


def gaussian(std: float, dim: int) -> End:
    """A Gaussian about the origin, by samples and by its energy."""
    return End(
        dim,
        lambda n: std * torch.randn(n, dim),
        lambda x: -0.5 * (x / std).square().sum(-1),
    )


def pool(points: np.ndarray) -> End:
    """An end known by points `(m, dim)` that were drawn from it, many more than a batch."""
    drawn = torch.tensor(points, dtype=torch.float32)
    return End(drawn.shape[1], lambda n: drawn[torch.randint(len(drawn), (n,))])


def mixture(centres: np.ndarray, std: float) -> End:
    """Equal isotropic Gaussians about centres `(m, dim)`, by their energy."""
    middles = torch.tensor(centres, dtype=torch.float32)

    def log_density(x: torch.Tensor) -> torch.Tensor:
        squares = (x[:, None] - middles).square().sum(-1)
        return torch.logsumexp(squares / (-2 * std**2), 1)

    return End(middles.shape[1], log_density=log_density)


class Particles:
    """A buffer of points of an energy, refreshed by Langevin steps and restarts from noise."""

    def __init__(self, log_density: LogDensity, dim: int, config: ConfigDict):
        given = self._given = config.exploration
        self._log_density, self._draws = log_density, 0
        self._move = {"mala": _mala, "averaged_ula": _averaged_ula}[given.refresh_method]
        self.points = given.restart_std * torch.randn(given.buffer_size, dim)

    def draw(self, n: int) -> torch.Tensor:
        """Some of the points, after a refresh where one is due."""
        if self._draws % self._given.refresh_every == 0:
            self._refresh()
        self._draws += 1
        return self.points[torch.randint(len(self.points), (n,))]

    def add(self, points: torch.Tensor) -> None:
        """Puts points in the place of the oldest."""
        self.points = torch.cat([self.points[len(points) :], points])

    def _refresh(self) -> None:
        given = self._given
        noise = given.restart_std * torch.randn_like(self.points)
        restarted = torch.rand(len(noise), 1) < given.restart_fraction
        points = torch.where(restarted, noise, self.points)
        self.points = self._move(
            points, self._log_density, given.refresh_step_size, given.refresh_steps
        )


def _slope(log_density: LogDensity, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-densities `(n,)` and their gradients `(n, dim)`."""
    x = x.detach().requires_grad_()
    value = log_density(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def _mala(x: torch.Tensor, log_density: LogDensity, size: float, moves: int) -> torch.Tensor:
    def drifted(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = _slope(log_density, y)
        return value, y + size * slope

    for _ in range(moves):
        value, mean = drifted(x)
        proposed = mean + math.sqrt(2 * size) * torch.randn_like(x)
        new_value, new_mean = drifted(proposed)
        there = (proposed - mean).square().sum(-1) / (4 * size)
        back = (x - new_mean).square().sum(-1) / (4 * size)
        accepted = torch.rand_like(value).log() < new_value - value + there - back
        x = torch.where(accepted[:, None], proposed, x)
    return x


def _averaged_ula(
    x: torch.Tensor, log_density: LogDensity, size: float, moves: int
) -> torch.Tensor:
    """Langevin steps with the noise averaged over two of them, see `exploration.langevin`."""
    slope = _slope(log_density, x)[1]
    # At stationarity x remembers its last noise.
    noise = torch.randn_like(x) - math.sqrt(size / 2) * slope
    for _ in range(moves):
        new_noise = torch.randn_like(x)
        x = x + size * slope + math.sqrt(size / 2) * (noise + new_noise)
        noise, slope = new_noise, _slope(log_density, x)[1]
    return x
