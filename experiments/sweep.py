"""Trains many settings and seeds of one config: `python -m experiments.sweep --help`.

Every setting with every seed is a run of its own, in a workdir of the usual kind below the
sweep's:

    <setting>/seed_<seed>/    without a setting's name where nothing varies
    results.jsonl             a JSON object for each setting, see experiments.sweeping.results
    results.md                the table
    sweep.png                 the figure
"""

import sys
import traceback

from experiments import arguments, signals
from experiments.errors import InputError, Stopped, StorageError, one_line
from experiments.sweeping import settings
from experiments.sweeping.settings import Sweep

_BAD_INPUT = 2
_FAILED = 1
_NOT_WRITTEN = 3


def main(argv: list[str]) -> int:
    """Runs a command line and returns its exit status.

    It is 0 if every run has been trained to its end and 1 if one of them has not; else that of
    `experiments.run`: 2 for bad input, 3 for a full disk, 130 or 143 after SIGINT or SIGTERM.
    """
    try:
        with signals.at_once():
            return _run(settings.parse(argv))
    except arguments.HelpRequested as help_text:
        print(help_text)
        return 0
    except (InputError, StorageError) as error:
        if arguments.wants_debug(argv):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return _BAD_INPUT if isinstance(error, InputError) else _NOT_WRITTEN
    except Stopped as stopped:
        print(one_line(stopped), file=sys.stderr)
        return signals.status(stopped.signum)


def _run(sweep: Sweep) -> int:
    # Imported once everything given has been checked: jax is slow to start.
    from experiments.sweeping import one_setting, results, workers

    if sweep.processes > 1:
        workers.train(sweep)
    else:
        one_setting.check(sweep)
        for setting in sweep.settings:
            runs = [setting.run(seed) for seed in sweep.seeds]
            if setting.name:
                print(f"{setting.name}: seeds {', '.join(map(str, sweep.seeds))}", flush=True)
            one_setting.finish(
                setting.args, runs, at_once=sweep.seeds_at_once, sharers=sweep.sharers or 1
            )
    records = results.collect(sweep)
    if not sweep.sharers:
        print(results.write(sweep, records))
        print(f"figure: {sweep.directory / results.FIGURE}")
    for record in records:
        for seed, why in record["failed"].items():
            print(f"failed: {record['setting']} seed {seed}: {why}", file=sys.stderr)
    return _FAILED if any(record["failed"] or record["missing"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
