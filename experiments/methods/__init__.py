"""The methods of the runner, by the name that a config gives them."""

from collections.abc import Callable

from ml_collections import ConfigDict

from experiments import fields
from experiments.methods import ipf, light, matching
from experiments.wiring import Method, Room

METHODS: dict[str, Callable[[ConfigDict, Room], Method]] = {
    "ipf": ipf.build,
    "lightsb": light.build,
    **dict.fromkeys(fields.LOSS_OF_METHOD, ipf.build),
    **dict.fromkeys(fields.COUPLING_OF_METHOD, matching.build),
}
"""Each maps a validated config and what is to be joined to the method, wired."""
