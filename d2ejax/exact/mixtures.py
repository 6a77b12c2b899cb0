"""Mixtures of Gaussians with diagonal covariances, and what Gaussian noise makes of them.

Float64 NumPy on the host. There are no full covariances: with them the bridges built on
these mixtures would stay exact, but every density would cost the cube of the dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from d2ejax.exact.base import HostArray

_LOG_2PI = float(np.log(2.0 * np.pi))


class Mixture(NamedTuple):
    """Σ_i exp(log_weights_i) N(x; means_i, diag(variances_i)), of any mass.

    Attributes:
        log_weights: `(m,)`.
        means: `(m, dim)`.
        variances: `(m, dim)`, positive.
    """

    log_weights: HostArray
    means: HostArray
    variances: HostArray

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.means.shape[1]

    @property
    def log_mass(self) -> float:
        """The logarithm of the integral."""
        return float(logsumexp(self.log_weights))

    def normalised(self) -> Mixture:
        """The same mixture, scaled to mass one."""
        return self.scaled(-self.log_mass)

    def scaled(self, log_factor: float) -> Mixture:
        """The mixture times exp(log_factor)."""
        return self._replace(log_weights=self.log_weights + log_factor)

    def log_components(self, x: HostArray) -> HostArray:
        """The logarithm of every component at x `(n, dim)`, its weight included: `(n, m)`."""
        precisions = 1.0 / self.variances
        # Squares multiplied out are two matrix products; float64 bears the cancellation.
        squares = x**2 @ precisions.T - 2.0 * x @ (self.means * precisions).T
        squares += np.sum(self.means**2 * precisions, axis=1)
        log_norms = 0.5 * np.sum(np.log(self.variances) + _LOG_2PI, axis=1)
        return self.log_weights - log_norms - 0.5 * squares

    def log_density(self, x: HostArray) -> HostArray:
        """The logarithm of the mixture at x `(n, dim)`: `(n,)`."""
        return logsumexp(self.log_components(np.asarray(x, np.float64)), axis=1)

    def score(self, x: HostArray) -> HostArray:
        """∇log of the mixture at x `(n, dim)`: `(n, dim)`."""
        x = np.asarray(x, np.float64)
        shares = np.exp(log_softmax(self.log_components(x), axis=1))
        precisions = 1.0 / self.variances
        return shares @ (self.means * precisions) - x * (shares @ precisions)

    def sample(self, rng: np.random.Generator, n: int) -> HostArray:
        """Draw `(n, dim)` from the mixture scaled to mass one."""
        weights = np.exp(self.log_weights - self.log_mass)
        labels = rng.choice(len(weights), size=n, p=weights / weights.sum())
        noise = rng.standard_normal((n, self.dim))
        return self.means[labels] + np.sqrt(self.variances)[labels] * noise

    def mean_and_covariance(self) -> tuple[HostArray, HostArray]:
        """Mean `(dim,)` and covariance `(dim, dim)` of the mixture scaled to mass one."""
        weights = np.exp(self.log_weights - self.log_mass)
        mean = weights @ self.means
        offsets = self.means - mean
        spread = np.diag(weights @ self.variances)
        return mean, spread + (offsets.T * weights) @ offsets

    def push(self, scale: HostArray | float, variance: HostArray | float) -> Mixture:
        """The law of scale · x + N(0, diag(variance)) noise, per axis where `(dim,)`."""
        return Mixture(
            self.log_weights, scale * self.means, scale**2 * self.variances + variance
        )

    def observe(
        self, y: HostArray, scale: HostArray | float, variance: HostArray | float
    ) -> Posterior:
        """The law of x given y = scale · x + N(0, diag(variance)) noise.

        Args:
            y: `(n, dim)`.
            scale: A number, or one per axis `(dim,)`.
            variance: Likewise.

        Returns:
            One mixture per row of y.
        """
        y = np.asarray(y, np.float64)
        seen = self.push(scale, variance)
        gains = scale * self.variances / seen.variances
        means = self.means + gains * (y[:, None, :] - seen.means)
        spread = self.variances * variance / seen.variances
        return Posterior(log_softmax(seen.log_components(y), axis=1), means, spread)

    def sample_posterior(
        self,
        rng: np.random.Generator,
        y: HostArray,
        scale: HostArray | float,
        variance: HostArray | float,
    ) -> HostArray:
        """One draw of x per row of y, `(n, dim)`, as from `observe`, with less memory."""
        y = np.asarray(y, np.float64)
        seen = self.push(scale, variance)
        labels = draw_labels(rng, seen.log_components(y))
        gains = scale * self.variances / seen.variances
        stds = np.sqrt(self.variances * variance / seen.variances)
        mean = self.means[labels] + gains[labels] * (y - seen.means[labels])
        return mean + stds[labels] * rng.standard_normal(y.shape)


class Posterior(NamedTuple):
    """One normalised mixture per row, with variances shared by all rows.

    Attributes:
        log_weights: `(n, m)`.
        means: `(n, m, dim)`.
        variances: `(m, dim)`.
    """

    log_weights: HostArray
    means: HostArray
    variances: HostArray

    def mean(self) -> HostArray:
        """The mean of each row, `(n, dim)`."""
        return np.einsum("nm,nmd->nd", np.exp(self.log_weights), self.means)

    def mean_and_variance(self) -> tuple[HostArray, HostArray]:
        """Mean and diagonal variance of each row, both `(n, dim)`."""
        weights, mean = np.exp(self.log_weights), self.mean()
        offsets = self.means - mean[:, None, :]
        between = np.einsum("nm,nmd->nd", weights, offsets**2)
        return mean, weights @ self.variances + between

    def mean_and_covariance(self) -> tuple[HostArray, HostArray]:
        """Mean `(n, dim)` and covariance `(n, dim, dim)` of each row."""
        weights, mean = np.exp(self.log_weights), self.mean()
        offsets = self.means - mean[:, None, :]
        cov = np.swapaxes(offsets * weights[:, :, None], 1, 2) @ offsets
        axes = np.arange(mean.shape[1])
        cov[:, axes, axes] += weights @ self.variances
        return mean, cov

    def sample(self, rng: np.random.Generator) -> tuple[HostArray, np.ndarray]:
        """One draw per row, `(n, dim)`, and the component `(n,)` that each came from."""
        labels = draw_labels(rng, self.log_weights)
        rows = np.arange(len(labels))
        noise = rng.standard_normal((len(labels), self.means.shape[2]))
        return self.means[rows, labels] + np.sqrt(self.variances)[labels] * noise, labels


def log_overlaps(first: Mixture, second: Mixture) -> HostArray:
    """The logarithms of ∫ first_i second_j for all pairs of components, `(m, n)`."""
    total = first.variances[:, None, :] + second.variances
    miss = second.means - first.means[:, None, :]
    logs = -0.5 * np.sum(miss**2 / total + np.log(total) + _LOG_2PI, axis=2)
    return first.log_weights[:, None] + second.log_weights + logs


def draw_labels(rng: np.random.Generator, log_weights: HostArray) -> np.ndarray:
    """One index per row of `(n, m)` unnormalised log-weights, `(n,)`."""
    return np.argmax(log_weights + rng.gumbel(size=log_weights.shape), axis=1)


def check_mixture(name: str, mixture: Mixture) -> Mixture:
    """The mixture in float64.

    Raises:
        ValueError: If shapes disagree, there is no component or no axis, a number is not finite
            or a variance not positive.
    """
    checked = Mixture(*(np.asarray(part, np.float64) for part in mixture))
    shapes = tuple(part.shape for part in checked)
    if checked.means.ndim != 2 or shapes[0] != shapes[1][:1] or shapes[2] != shapes[1]:
        raise ValueError(
            f"{name} has log_weights, means and variances of shapes {shapes}; they must be"
            " (m,), (m, dim) and (m, dim)"
        )
    if not checked.means.size:
        raise ValueError(
            f"{name} has means of shape {checked.means.shape}; there must be at least one"
            " component and one axis"
        )
    if not all(np.isfinite(part).all() for part in checked):
        raise ValueError(f"{name} has numbers that are not finite; allowed: finite numbers")
    smallest = checked.variances.min()
    if not smallest > 0.0:
        raise ValueError(f"{name} has the variance {smallest}; variances must be positive")
    return checked
