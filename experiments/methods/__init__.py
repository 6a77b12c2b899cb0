"""The methods of the runner, by the name that a config gives them."""

from collections.abc import Callable

from ml_collections import ConfigDict

from experiments.methods import ipf
from experiments.wiring import Method, Room

METHODS: dict[str, Callable[[ConfigDict, Room], Method]] = {"ipf": ipf.build}
"""Each maps a validated config and what is to be joined to the method, wired."""
