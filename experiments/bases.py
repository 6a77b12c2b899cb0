"""The base of a fine-tuning: a finished run, and what it and the fine-tuning have to share."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import validation, workdir
from experiments.errors import InputError, one_line

_SHARED = ("source", "target", "pair", "snapshots", "reference", "grid", "network.prediction")
"""Keys and sections: what a path is, and what the numbers of a step mean."""


def read(config: ConfigDict) -> ConfigDict:
    """The configuration of the base that a fine-tuning names.

    Args:
        config: A validated config with the method "fine_tuning".

    Returns:
        That of its base, validated.

    Raises:
        InputError: If that is no finished run, one without noise, one of other ends, another
            reference or another grid, one that remembers what the loss or the evaluation takes
            for forgotten, or if its content is not what `base_digest` says.
    """
    given = config.fine_tuning.base
    named, directory = f"fine_tuning.base = {given!r}", Path(given)
    if not (directory / workdir.CONFIG).is_file():
        raise InputError(f"{named}: no such run: must be the workdir of a finished run")
    try:
        found = validation.validate(workdir.read_config(directory))
    except InputError as error:
        raise InputError(f"{named}: its configuration: {one_line(error)}") from error
    if not workdir.is_finished(directory):
        raise InputError(
            f"{named}: not finished: must be the workdir of a finished run; the command that "
            "began it goes on"
        )
    if found.method == "cfm":
        raise InputError(
            f"{named}: of the method 'cfm', a flow without noise: must be a run of another one"
        )
    if config.fine_tuning.noise < 1 and found.method != "diffusion":
        raise InputError(
            f"fine_tuning.noise = {config.fine_tuning.noise}: must be 1 with a base of the "
            f"method {found.method!r}: of a diffusion model alone is the score known"
        )
    if found.method != "diffusion":
        _check_memory(config, found.method)
    there = dict(validation.flatten(found))
    for name, value in validation.flatten(config):
        if _is_shared(name) and _plain(value) != _plain(there[name]):
            allowed = f"{json.loads(_plain(there[name]))!r}, as in {named}"
            raise validation.refusal(name, value, allowed)
    given_digest, now = config.fine_tuning.base_digest, digest(config)
    if given_digest not in ("", now):
        allowed = f"{now!r}, that of {named}, which is not the base that this one began with"
        raise validation.refusal("fine_tuning.base_digest", given_digest, allowed)
    return found


def pinned(config: ConfigDict) -> ConfigDict:
    """A copy of a validated config that says what its base holds; refused as by `read`."""
    read(config)
    found = config.copy_and_resolve_references()
    found.fine_tuning.base_digest = digest(config)
    return found


def digest(config: ConfigDict) -> str:
    """Sixteen hexadecimal digits of the files of the base's newest checkpoint.

    Args:
        config: A validated config with the method "fine_tuning".

    Raises:
        InputError: If the base has no checkpoint.
    """
    given = config.fine_tuning.base
    checkpoints = Path(given) / workdir.CHECKPOINTS
    step = workdir.latest_step(checkpoints)
    if step is None:
        raise InputError(
            f"fine_tuning.base = {given!r}: has no checkpoint: must be the workdir of a "
            "finished run"
        )
    folder, found = checkpoints / str(step), hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        # With the lengths no two lists of files are one text.
        found.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()[:16]


def _check_memory(config: ConfigDict, method: str) -> None:
    """What is asked of a fine-tuning whose base is no diffusion model.

    Such a base remembers where its paths began, and keeps its source.

    Raises:
        InputError: If what is asked for is right without memory alone.
    """
    if config.fine_tuning.loss == "relative_trajectory_balance":
        raise validation.refusal(
            "fine_tuning.loss",
            config.fine_tuning.loss,
            f"another one, as 'log_variance', with a base of the method {method!r}: log Z is "
            "another for each start, and it learns one for all",
        )
    if config.evaluate.smc:
        raise validation.refusal(
            "evaluate.smc",
            True,
            f"false with a base of the method {method!r}, tilted by which the reversal is not "
            "known",
        )


def _is_shared(name: str) -> bool:
    return any(name == shared or name.startswith(f"{shared}.") for shared in _SHARED)


def _plain(value: Any) -> str:
    """As JSON, which cannot tell tuples from lists."""
    return json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value)
