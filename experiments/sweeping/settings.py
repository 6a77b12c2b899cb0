"""The command line of a sweep: which settings, which seeds, and where each run lives."""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from experiments import arguments, fields, validation, workdir
from experiments.arguments import Arguments, HelpRequested
from experiments.errors import InputError, one_line

USAGE = """python -m experiments.sweep --config=FILE --seeds=0,1,2 [--vary=KEY=VALUE,VALUE ...]
                           [--config.KEY=VALUE ...] [flags]

Trains every setting with every seed, the seeds of a setting together on one device, and writes
a table and a figure of what they come to. The same command again resumes."""

_OPENING, _CLOSING = "([{", ")]}"


class Run(NamedTuple):
    """One seed of one setting.

    Attributes:
        seed: The seed.
        config: Of the run, validated.
        directory: Its workdir.
    """

    seed: int
    config: ConfigDict
    directory: Path


class Setting(NamedTuple):
    """One choice of the values that vary.

    Attributes:
        changes: What it sets: dotted keys to values.
        name: The same in words that can name a directory; empty if nothing varies.
        command: The flags that the runner would be given, but for the seed and the workdir.
        args: What the runner reads from them.
        directory: Where its runs live.
    """

    changes: dict[str, Any]
    name: str
    command: tuple[str, ...]
    args: Arguments
    directory: Path

    def run(self, seed: int) -> Run:
        """The run of one seed."""
        config = self.args.config.copy_and_resolve_references()
        with config.unlocked():
            config.seed = seed
        return Run(seed, config, self.directory / f"seed_{seed}")


class Sweep(NamedTuple):
    """A checked command line.

    Attributes:
        settings: What to train, each with every seed.
        seeds: The seeds.
        directory: Where all of it lives.
        processes: How many processes train at the same time.
        seeds_at_once: Most seeds to train together, 0 for as many as fit.
        sharers: Zero, or in a process that another sweep has started how many of these share
            the memory; it then trains and writes no table.
        environment: Of the processes.
    """

    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    directory: Path
    processes: int
    seeds_at_once: int
    sharers: int
    environment: dict[str, str]


def parse(argv: Sequence[str]) -> Sweep:
    """Reads and checks a command line, the name of the program first.

    With several processes this one is kept to the CPU from here on.

    Raises:
        InputError: If anything in it is not allowed, in any of the settings.
        HelpRequested: On --help.
    """
    values, hidden = _define(), _define_hidden()
    try:
        rest = hidden(values(list(argv), known_only=True), known_only=True)
    except flags.Error as error:
        raise InputError(one_line(error)) from error
    if values.help:
        raise HelpRequested(f"{USAGE}\n\n{values.get_help().strip()}")
    environment = dict(os.environ)
    if values.processes > 1:
        # Before jax is imported, to check the settings: accelerators are for the processes.
        os.environ["JAX_PLATFORMS"] = "cpu"
    seeds = _seeds(values.seeds)
    given = [match.group(1) for arg in rest if (match := re.match(r"--?config\.([^=]+)", arg))]
    if "seed" in given:
        raise InputError("--config.seed: must not be given: the seeds are those of --seeds")
    varied = [_varied(text, given) for text in values.vary]
    _check_different([name for name, _ in varied], "--vary", "keys")
    if values.workdir is not None and not values.workdir.strip():
        raise InputError("--workdir='': must be a directory that can be written")
    directory = Path(values.workdir) if values.workdir else None
    settings = tuple(
        _setting(rest, dict(chosen), directory)
        for chosen in itertools.product(*([(key, v) for v in vs] for key, vs in varied))
    )
    _check_different([setting.name for setting in settings], "--vary", "settings")
    sweep = Sweep(
        settings,
        seeds,
        directory or _default(settings[0]),
        values.processes,
        values.seeds_at_once,
        hidden.sharers,
        environment,
    )
    for setting, seed in itertools.product(settings, seeds):
        run = setting.run(seed)
        workdir.check(run.directory, run.config)
    return sweep


def _define() -> flags.FlagValues:
    """Flags of their own, as in `experiments.arguments`; what is left is for the runner."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    module: Any = {"flag_values": values, "module_name": "experiments.sweep"}
    flags.DEFINE_string("seeds", "", "Seeds between commas.", **module)
    flags.DEFINE_multi_string(
        "vary",
        [],
        "KEY=VALUE,VALUE...: trains with each; given twice, with every pair.",
        **module,
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory of the sweep; default runs/sweep_<name of the file>.",
        **module,
    )
    flags.DEFINE_integer(
        "processes",
        1,
        "Processes that train different settings, or seeds, at the same time.",
        lower_bound=1,
        **module,
    )
    flags.DEFINE_integer(
        "seeds_at_once",
        0,
        "Most seeds trained together; 0: as many as there is memory for.",
        lower_bound=0,
        **module,
    )
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", **module)
    return values


def _define_hidden() -> flags.FlagValues:
    """What a sweep says to the processes that it starts itself."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    module: Any = {"flag_values": values, "module_name": "experiments.sweep"}
    flags.DEFINE_integer("sharers", 0, "", lower_bound=0, **module)
    return values


def _seeds(text: str) -> tuple[int, ...]:
    rule, parts = fields.FIELDS["seed"], [part.strip() for part in text.split(",")]
    seeds = [int(part) if re.fullmatch(r"\d+", part) else None for part in parts]
    if not all(rule.holds(seed) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(
            f"--seeds={text}: must be different seeds between commas, each {rule.allowed}: "
            "e.g. --seeds=0,1,2"
        )
    return tuple(seed for seed in seeds if seed is not None)


def _varied(text: str, given: Sequence[str]) -> tuple[str, list[str]]:
    """A key and its values."""
    key, _, values = text.partition("=")
    key, split = key.strip(), [value.strip() for value in split_values(values)]
    if not key or not all(split):
        raise InputError(
            f"--vary={text}: must be KEY=VALUE,VALUE,...: "
            "e.g. --vary=optimiser.learning_rate=1e-2,3e-3"
        )
    validation.check_known(key)
    if key == "seed":
        raise InputError(
            f"--vary={text}: must not be the seed: its values are those of --seeds"
        )
    if key == "parallel.cpu_devices":
        raise InputError(f"--vary={text}: the CPU is cut into devices once, for all settings")
    if key in given:
        raise InputError(f"--vary={text}: must not be given as --config.{key} as well")
    return key, split


def split_values(text: str) -> list[str]:
    """Splits at the commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _setting(rest: Sequence[str], changes: dict[str, str], directory: Path | None) -> Setting:
    for flag in rest[1:]:
        if re.match(r"--?(coordinator|num_processes|process_id|cluster)\b", flag):
            raise InputError(f"{flag}: must not be given to a sweep, which has --processes")
    command = [*rest[1:], *(f"--config.{key}={value}" for key, value in changes.items())]
    args = arguments.parse(["experiments.run", *command])
    if args.mode != "train":
        raise InputError(f"--mode={args.mode}: must be train: a sweep trains")
    typed = {key: _plain(validation.get(args.config, key)) for key in changes}
    name = ",".join(f"{key}={value}" for key, value in typed.items())
    setting = Setting(typed, name, tuple(command), args, Path())
    safe = re.sub(r"[^\w.,=+-]", "_", name)
    return setting._replace(directory=(directory or _default(setting)) / safe)


def _default(setting: Setting) -> Path:
    return setting.args.workdir.with_name(f"sweep_{setting.args.workdir.name}")


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _check_different(names: Sequence[str], flag: str, what: str) -> None:
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise InputError(f"{flag}: {double[0]} is given twice: must be different {what}")


def groups(seeds: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """Cuts seeds into so many groups that are as even as can be, none of them empty."""
    count = min(count, len(seeds))
    for i in range(count):
        yield tuple(seeds[i * len(seeds) // count : (i + 1) * len(seeds) // count])
