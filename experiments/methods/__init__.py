"""The methods of the runner, by the name that a config gives them."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments import fields
from experiments.methods import (
    adjoint,
    diffusion,
    enot,
    fine_tuning,
    ipf,
    light,
    matching,
    sampler,
)
from experiments.wiring import Method, Room


class Entry(NamedTuple):
    """How a method is wired.

    Attributes:
        check: Raises ValueError where the batches of a validated config do not suit the
            devices, before anything is computed.
        build: Maps a validated config and what is to be joined to the method, wired.
    """

    check: Callable[[ConfigDict], None]
    build: Callable[[ConfigDict, Room], Method]


_IPF = Entry(ipf.check, ipf.build)
_MATCHING = Entry(matching.check, matching.build)
_ADJOINT = Entry(adjoint.check, adjoint.build)

METHODS: dict[str, Entry] = {
    "ipf": _IPF,
    "lightsb": Entry(light.check, light.build),
    "enot": Entry(enot.check, enot.build),
    "sampler": Entry(sampler.check, sampler.build),
    "diffusion": Entry(diffusion.check, diffusion.build),
    "fine_tuning": Entry(fine_tuning.check, fine_tuning.build),
    **dict.fromkeys(fields.LOSS_OF_METHOD, _IPF),
    **dict.fromkeys(fields.COUPLING_OF_METHOD, _MATCHING),
    **dict.fromkeys(fields.CORRECTORS_OF_METHOD, _ADJOINT),
}
