"""Event files for TensorBoard, beside metrics.jsonl and from the same records."""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments import workdir
from experiments.errors import InputError

_PACKAGE = "tensorboardX"

Listener = Callable[[Mapping[str, Any]], None]
"""Is told of every record that is added to metrics.jsonl."""


def ignore(record: Mapping[str, Any]) -> None:
    """The listener where there is no TensorBoard."""


def check(wanted: bool) -> None:
    """Refuses `loop.tensorboard` where its package is missing.

    Raises:
        InputError: Naming the extra.
    """
    if wanted and importlib.util.find_spec(_PACKAGE) is None:
        raise InputError(
            f"loop.tensorboard = True: the package {_PACKAGE} is missing: must be installed, "
            'with `pip install ".[tensorboard]"`, or the key be False: metrics.jsonl has '
            "the same numbers"
        )


@contextmanager
def writer(directory: Path, wanted: bool, step: int) -> Iterator[Listener]:
    """Opens the event files of a workdir.

    TensorBoard drops what it has read of steps after the one at which a later file begins: of
    a run that was killed and goes on from its last checkpoint no point is shown twice. Records
    from before there were event files are written first.

    Args:
        directory: The workdir.
        wanted: Whether there are to be any.
        step: Where the run begins, past 0 where it goes on from a checkpoint.

    Yields:
        What is to be told of every record.
    """
    if not wanted:
        yield ignore
        return
    # Slow to import.
    from tensorboardX import SummaryWriter

    folder = directory / workdir.EVENTS
    begun = any(folder.glob("events.*"))
    opened = SummaryWriter(
        str(folder),
        purge_step=step + 1 if begun else None,
        # Else two files that begin in the same second are one.
        filename_suffix=f".from_{step}",
    )

    def write(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            # NaN stands for what does not apply; in a record that is read it is None.
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                opened.add_scalar(name, value, record["step"])
        # It survives a kill of the process from here on, as in metrics.jsonl.
        opened.flush()

    try:
        if not begun:
            for record in workdir.read_records(directory, step):
                write(record)
        yield write
    finally:
        opened.close()
