"""The command line: absl and ml_collections flags, whose errors become one line each."""

import ast
import difflib
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import bases, fields, validation, workdir
from experiments.errors import InputError, one_line

USAGE = """python -m experiments.run --config=FILE [--config.KEY=VALUE ...] [flags]

Trains a bridge, evaluates it and draws its plots. The same command again resumes.
Keys and defaults: experiments/configs/base.py.

Exit status:
  0    done
  1    too many gradient steps in a row were not finite; or a bug, with its traceback
  2    what was given cannot be run
  3    the disk is full, or failed
  130  stopped by SIGINT (Ctrl-C)
  143  stopped by SIGTERM
After 1, 3, 130 and 143 the same command goes on from the last checkpoint. While it trains, a
signal lets the steps under way end and their state be saved first; a second SIGINT does not."""

_MODES = ("train", "evaluate", "sample")
_CHECKPOINTS = ("newest", "best")
_DEFAULT_NUM_SAMPLES = 1000
_ALONG = ("forward", "backward", "flow")


class Arguments(NamedTuple):
    """A checked command line.

    Attributes:
        config: Of the run, validated.
        mode: "train", "evaluate" or "sample".
        workdir: Where the run lives.
        checkpoint: Which one to evaluate or to sample: "newest" or "best".
        num_samples: Paths to write, in mode "sample".
        along: What these paths are of: "forward", "backward" or "flow".
        output: The .npz file to write them to.
        debug: Show tracebacks.
    """

    config: ConfigDict
    mode: str
    workdir: Path
    checkpoint: Literal["newest", "best"]
    num_samples: int
    along: str
    output: Path
    debug: bool


class HelpRequested(Exception):
    """The user asked for help, which is the message."""


def parse(argv: list[str]) -> Arguments:
    """Reads and checks a command line, the name of the program first.

    Raises:
        InputError: If anything in it is not allowed.
        HelpRequested: On --help.
    """
    values = _define(argv)
    try:
        rest = values(argv)[1:]
    except InputError:
        raise
    except Exception as error:  # whatever a configuration file may raise
        raise _input_error(error, argv) from error
    if values.help:
        raise HelpRequested(f"{USAGE}\n\n{values.get_help().strip()}")
    if rest:
        raise InputError(f"{rest[0]}: unexpected argument: must be --flag=value")
    _check_modes(values)
    _check_processes(values)
    return _arguments(values)


def wants_debug(argv: list[str]) -> bool:
    """Whether --debug was given; for errors in the command line itself."""
    return any(re.fullmatch(r"--?debug(=(true|1))?", arg) for arg in argv)


def _define(argv: list[str]) -> flags.FlagValues:
    """Flags of their own, apart from absl's global ones, so that parsing leaves no trace."""
    values = flags.FlagValues()
    # Unknown keys are let through here: validation knows the nearest right name.
    config_flags.DEFINE_config_file(
        "config",
        None,
        "File, e.g. experiments/configs/two_moons.py; --config.KEY=VALUE sets a key.",
        flag_values=values,
        lock_config=False,
        accept_new_attributes=True,
        sys_argv=argv,
    )
    module: Any = {"flag_values": values, "module_name": "experiments.run"}
    flags.DEFINE_enum("mode", "train", _MODES, "What to do.", **module)
    flags.DEFINE_string(
        "workdir", None, "Directory of the run; default runs/<name of the file>.", **module
    )
    flags.DEFINE_enum(
        "checkpoint",
        None,
        _CHECKPOINTS,
        "Which one --mode=evaluate and --mode=sample take: newest (default), or best, which "
        "loop.keep_best keeps.",
        **module,
    )
    flags.DEFINE_integer(
        "num_samples",
        None,
        f"Paths to write with --mode=sample; default {_DEFAULT_NUM_SAMPLES}.",
        lower_bound=1,
        **module,
    )
    flags.DEFINE_enum(
        "along",
        None,
        _ALONG,
        "Paths of which process --mode=sample writes: forward from the source (default), "
        "backward from the target, or the probability flow from the source, an ODE.",
        **module,
    )
    flags.DEFINE_string(
        "output", None, ".npz file of --mode=sample; default <workdir>/samples.npz.", **module
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port of the first of several processes that train together.",
        **module,
    )
    flags.DEFINE_integer("num_processes", None, "How many.", lower_bound=1, **module)
    flags.DEFINE_integer("process_id", None, "Which of them this is.", lower_bound=0, **module)
    flags.DEFINE_boolean(
        "cluster",
        False,
        "Learn these three from the environment of Slurm, a TPU pod, GKE or Open MPI.",
        **module,
    )
    flags.DEFINE_boolean("debug", False, "Show the traceback of an error.", **module)
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", **module)
    return values


def _check_modes(values: flags.FlagValues) -> None:
    if values.mode == "train" and values["checkpoint"].present:
        raise InputError(
            f"--checkpoint={values.checkpoint}: must not be given with --mode=train, which "
            "goes on from the newest, only with --mode=evaluate or --mode=sample"
        )
    if values.mode != "sample":
        for name in ("num_samples", "along", "output"):
            if values[name].present:
                raise InputError(
                    f"--{name}={values[name].value}: must not be given with "
                    f"--mode={values.mode}, only with --mode=sample"
                )
    begun = values.workdir and (Path(values.workdir) / workdir.CONFIG).exists()
    # A run that has begun knows its own, and what has not says so in the other modes.
    without = begun if values.mode == "train" else values.workdir
    if not values["config"].present and not without:
        raise InputError(
            "--config: missing: must be a file, e.g. experiments/configs/two_moons.py"
        )


_PROCESSES = ("coordinator", "num_processes", "process_id")


def _check_processes(values: flags.FlagValues) -> None:
    given = [name for name in _PROCESSES if values[name].present]
    for name in [*given, *(["cluster"] if values.cluster else [])]:
        if values.mode != "train":
            raise InputError(
                f"--{name}={values[name].value}: must not be given with --mode={values.mode}, "
                "only with --mode=train: one process is enough"
            )
    if given and values.cluster:
        raise InputError(f"--{given[0]}: must not be given with --cluster")
    missing = [name for name in _PROCESSES if name not in given]
    if given and missing:
        raise InputError(f"--{missing[0]}: missing: must be given with --{given[0]}")
    if given and values.process_id >= values.num_processes:
        raise InputError(
            f"--process_id={values.process_id}: must be from 0 to {values.num_processes - 1}"
        )


def _arguments(values: flags.FlagValues) -> Arguments:
    if values.workdir is not None and not values.workdir.strip():
        raise InputError("--workdir='': must be a directory that can be written")
    if values["config"].present:
        flag: Any = values["config"]
        path = flag.config_filename
        if not isinstance(values.config, ConfigDict):
            raise InputError(_not_a_config(path))
        config = _validated(values.config, values)
        directory = Path(values.workdir) if values.workdir else workdir.default(path)
    else:
        directory = Path(values.workdir)
        config = _validated(workdir.read_config(directory), values)
    output = Path(values.output) if values.output else directory / "samples.npz"
    if values.mode == "sample":
        _check_output(output, directory)
    return Arguments(
        config=config,
        mode=values.mode,
        workdir=directory,
        checkpoint="best" if values.checkpoint == "best" else "newest",
        num_samples=values.num_samples or _DEFAULT_NUM_SAMPLES,
        along=values.along or _ALONG[0],
        output=output,
        debug=values.debug,
    )


def _validated(config: ConfigDict, values: flags.FlagValues) -> ConfigDict:
    """A validated configuration, with processes and the CPU's devices as they are asked for.

    To validate its ends is to build them, and then JAX has begun to run.
    """
    devices = validation.check_fields(config).parallel.cpu_devices
    # Imported once every key has been checked: it brings in jax.
    from d2ejax import parallel

    if values.cluster or values.coordinator:
        try:
            parallel.join(
                values.coordinator,
                num_processes=values.num_processes,
                process_id=values.process_id,
            )
        except (RuntimeError, ValueError) as error:
            name = "coordinator" if values.coordinator else "cluster"
            raise InputError(f"--{name}={values[name].value}: {one_line(error)}") from error
    parallel.cut_cpu(devices)
    checked = validation.validate(config)
    return bases.pinned(checked) if checked.method == "fine_tuning" else checked


def _check_output(output: Path, directory: Path) -> None:
    if output.suffix != ".npz":
        raise InputError(f"--output={output}: must end in .npz")
    # Where the workdir itself is missing, so is the checkpoint, and that will be said.
    if output.is_dir() or (
        output.parent != directory and not os.access(output.parent, os.W_OK)
    ):
        raise InputError(
            f"--output={output}: must be a file in a directory that can be written"
        )


def _input_error(error: Exception, argv: list[str]) -> InputError:
    """One line for what absl, ml_collections or the configuration file raised."""
    for path in _config_paths(argv):
        if not Path(path).is_file():
            return InputError(_not_a_config(path))
        raised = _raised_in_file(error, path)
        if raised:
            return raised
    for name, value in _overrides(argv):
        try:
            validation.check_known(name)
        except InputError as unknown:
            return unknown
        if f"--config.{name}={value}:" in str(error):
            rule = fields.FIELDS.get(name)
            if rule:
                return validation.refusal(name, value, rule.allowed)
    return InputError(one_line(error))


def _config_paths(argv: list[str]) -> list[str]:
    """The files given as --config=FILE or --config FILE."""
    joined = [m.group(1) for arg in argv if (m := re.fullmatch(r"--?config=(.*)", arg))]
    apart = [argv[i + 1] for i, a in enumerate(argv[:-1]) if a in ("--config", "-config")]
    # What follows a colon is an argument of get_config.
    return [path.split(":", 1)[0] for path in joined + apart]


def _overrides(argv: list[str]) -> Iterator[tuple[str, str]]:
    for i, arg in enumerate(argv):
        if match := re.match(r"--?(?:no)?config\.([^=]+)(?:=(.*))?$", arg):
            following = argv[i + 1] if i + 1 < len(argv) else ""
            yield match.group(1), following if match.group(2) is None else match.group(2)


def _not_a_config(path: str) -> str:
    file = Path(path)
    if file.is_file():
        return f"--config={path}: its get_config() must return a ConfigDict"
    others = [other.name for other in file.parent.glob("*.py") if other.stem != "__init__"]
    nearest = difflib.get_close_matches(file.name, others, n=1)
    hint = f": did you mean {file.parent / nearest[0]}?" if nearest else ""
    return f"--config={path}: no such file: must be a Python file with a get_config(){hint}"


def _raised_in_file(error: BaseException | None, path: str) -> InputError | None:
    """The error of a line of the configuration file, told by the key and value in that line."""
    while error is not None:
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if Path(frame.filename).absolute() != Path(path).absolute():
                continue
            where = f"{path}, line {frame.lineno}"
            line = frame.line or ""
            refused = _refused_assignment(line, where) if isinstance(error, TypeError) else None
            return refused or InputError(f"{where}: {line}: {_describe(error)}")
        if isinstance(error, SyntaxError):
            return InputError(f"{path}, line {error.lineno}: {_describe(error)}")
        error = error.__cause__ or error.__context__
    return None


def _refused_assignment(line: str, where: str) -> InputError | None:
    match = re.match(r"\w+\.([\w.]+)\s*=\s*([^#]*)", line)
    rule = fields.FIELDS.get(match.group(1)) if match else None
    if not match or not rule:
        return None
    try:
        value = ast.literal_eval(match.group(2).strip())
    except (SyntaxError, ValueError):
        return None
    return InputError(f"{validation.refusal(match.group(1), value, rule.allowed)} ({where})")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
