"""Densities in the plane as NumPy mixtures, for the tests of this folder."""

import numpy as np


def mixture(centres, std):
    """An equal mixture of isotropic Gaussians."""
    centres = np.asarray(centres, np.float64)

    def log_density(x):
        parts = []
        for chunk in np.array_split(x, max(1, len(x) // 8192)):
            cross = chunk @ centres.T
            square = np.sum(chunk**2, 1)[:, None] + np.sum(centres**2, 1) - 2 * cross
            exponent = -square / (2 * std**2)
            top = exponent.max(axis=1, keepdims=True)
            parts.append(top[:, 0] + np.log(np.exp(exponent - top).mean(axis=1)))
        return np.concatenate(parts) - np.log(2 * np.pi * std**2)

    return log_density


def gaussian(std):
    return mixture(np.zeros((1, 2)), std)


def ring():
    angles = np.arange(8) * np.pi / 4
    return mixture(np.stack([np.cos(angles), np.sin(angles)], axis=-1), 0.1)


def cross():
    return mixture([(0, 0), (0.6, 0.36), (0.6, -0.36), (-0.6, 0.36), (-0.6, -0.36)], 0.1)


def moons(nodes_per_arc=100):
    theta = (np.arange(nodes_per_arc) + 0.5) / nodes_per_arc * np.pi
    outer = np.stack([np.cos(theta), np.sin(theta)], axis=-1)
    return mixture(np.concatenate([outer, [1.0, 0.5] - outer]), 0.05)
