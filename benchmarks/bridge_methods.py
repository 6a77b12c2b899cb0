"""The methods that `benchmarks.exact_bridges` compares; a new one joins by one line."""

from collections.abc import Callable
from typing import Any, NamedTuple

_ITERATIONS = 5


class Method(NamedTuple):
    """One line of the table.

    Attributes:
        source: What it sees of the source, "samples" or "energy".
        target: What it sees of the target.
        overrides: Values of dotted keys of the configuration.
        spend: Maps a number of gradient steps to the values of keys that spend them.
    """

    source: str
    target: str
    overrides: dict[str, Any]
    spend: Callable[[float], dict[str, Any]]


def _ipf(forward_share: float) -> Callable[[float], dict[str, Any]]:
    """Gradient steps shared out over the half-steps of IPF."""

    def spend(steps: float) -> dict[str, Any]:
        return {
            "ipf.iterations": _ITERATIONS,
            "ipf.forward_steps": max(1, round(steps * forward_share / _ITERATIONS)),
            "ipf.backward_steps": max(1, round(steps * (1 - forward_share) / _ITERATIONS)),
        }

    return spend


def _matching(steps: float) -> dict[str, Any]:
    return {"matching.num_steps": max(1, round(steps))}


def _light(steps: float) -> dict[str, Any]:
    half = max(1, round(steps / 2))
    return {"light.steps": half, "light.backward_steps": half}


def _from_samples(
    method: str, spend: Callable[[float], dict[str, Any]], **overrides: Any
) -> Method:
    return Method("samples", "samples", {"method": method, **overrides}, spend)


def _fitted_by_likelihood(*directions: str) -> dict[str, Any]:
    return {
        **{f"ipf.{direction}_loss": "likelihood" for direction in directions},
        # What has been measured of them was without it.
        "network.affine": False,
    }


# A likelihood is as hard to learn in either direction; an energy asks for more than that.
_EVEN, _FORWARD, _BACKWARD = _ipf(1 / 2), _ipf(2 / 3), _ipf(1 / 3)

METHODS = {
    "ipf D2D": Method("samples", "samples", {}, _EVEN),
    "ipf D2D likelihood": Method(
        "samples", "samples", _fitted_by_likelihood("forward", "backward"), _EVEN
    ),
    "ipf D2E": Method("samples", "energy", {}, _FORWARD),
    # With the opposite process learned as it was published.
    "ipf D2E hybrid": Method(
        "samples",
        "energy",
        {"ipf.forward_loss": "hybrid", **_fitted_by_likelihood("backward")},
        _FORWARD,
    ),
    "ipf D2E log-variance": Method(
        "samples",
        "energy",
        {"ipf.forward_loss": "log_variance", **_fitted_by_likelihood("backward")},
        _FORWARD,
    ),
    "ipf E2D": Method("energy", "samples", {}, _BACKWARD),
    "ipf E2D likelihood": Method(
        "energy", "samples", _fitted_by_likelihood("forward"), _BACKWARD
    ),
    "ipf E2E": Method("energy", "energy", {}, _FORWARD),
    # Published as methods of a fixed diffusion coefficient.
    "dsb": _from_samples("dsb", _EVEN, learn_variance=False, **{"ipf.reanchor": "none"}),
    "sde": _from_samples(
        "sde",
        _EVEN,
        learn_variance=False,
        **{"ipf.reanchor": "none", "ipf.divergence": "hutchinson"},
    ),
    "dsbm": _from_samples(
        "dsbm", _EVEN, learn_variance=False, **{"ipf.first_coupling": "independent"}
    ),
    "sf2m": _from_samples("sf2m", _matching, learn_variance=False),
    "eot": _from_samples("eot", _matching),
    "lightsb": _from_samples("lightsb", _light),
}
"""The defaults of the library, but for what stands here."""

FLOWS = {"cfm": _from_samples("cfm", _matching, learn_variance=False)}
"""Methods without noise: no bridge, but an end that can be told from the target."""

VARIANTS = frozenset(
    name for name in METHODS if name.endswith(("likelihood", "hybrid", "log-variance"))
)
"""Lines with another loss than the default: in the tables alone, not in the figures."""
