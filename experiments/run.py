"""Trains, evaluates and samples a bridge: `python -m experiments.run --help`."""

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from experiments import arguments, workdir
from experiments.arguments import Arguments
from experiments.errors import InputError, NonFiniteError, one_line

_BAD_INPUT = 2
_FAILED = 1
_INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Runs a command line and returns its exit status."""
    start = time.perf_counter()
    try:
        parsed = arguments.parse(argv)
        workdir.check(parsed.workdir, parsed.config)
        {"train": _train, "evaluate": _evaluate, "sample": _sample}[parsed.mode](parsed, start)
    except arguments.HelpRequested as help_text:
        print(help_text)
    except (InputError, NonFiniteError) as error:
        if arguments.wants_debug(argv):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return _BAD_INPUT if isinstance(error, InputError) else _FAILED
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _train(args: Arguments, process_start: float) -> None:
    if workdir.is_finished(args.workdir):
        print(
            f"{args.workdir}: this run is finished: see {args.workdir / workdir.SUMMARY}, or "
            "give --mode=evaluate or --mode=sample"
        )
        return
    # Imported once everything given has been checked: jax is slow to start.
    import jax

    from experiments import checkpoints, loop
    from experiments.judge import Judge
    from experiments.progress import Progress

    saved_in = args.workdir / workdir.CHECKPOINTS
    saved = checkpoints.read(saved_in) if workdir.latest_step(saved_in) is not None else None
    experiment, trainer = build_trainer(args)
    judge = Judge(experiment)
    workdir.create(args.workdir, args.config)
    settings = args.config.loop
    plan = loop.Plan(
        total_steps=experiment.total_steps,
        phase_of=experiment.phase_of,
        steps_per_dispatch=settings.steps_per_dispatch,
        checkpoint_every=settings.checkpoint_every,
        max_consecutive_skipped=settings.max_consecutive_skipped,
    )
    print(f"{args.workdir}: compiling the training step", flush=True)
    with Progress(plan.total_steps) as progress:
        result = loop.train(
            trainer,
            plan,
            key=jax.random.key(args.config.seed),
            saved=saved,
            directory=args.workdir,
            keep=settings.keep,
            progress=progress,
            probe=judge.probe,
            process_start=process_start,
        )
    _report(args, judge, result, process_start)


def _evaluate(args: Arguments, process_start: float) -> None:
    from experiments.judge import Judge

    experiment, result = _restore(args)
    workdir.create(args.workdir, args.config)
    _report(args, Judge(experiment), result, process_start)


def _sample(args: Arguments, process_start: float) -> None:
    from d2ejax import parallel
    from experiments import report
    from experiments.judge import Judge

    experiment, result = _restore(args)
    state = parallel.unreplicate(result.state)
    report.write_samples(
        args.config, Judge(experiment), state, args.num_samples, args.output, along=args.along
    )
    print(f"{args.num_samples} paths after {result.step} gradient steps: {args.output}")


def build_trainer(args: Arguments) -> tuple[Any, Any]:
    """The experiment of a configuration and its trainer; nothing is compiled yet."""
    from d2ejax import parallel
    from experiments import build

    _keep_compiled()
    try:
        experiment = build.build(args.config)
        trainer = parallel.data_parallel(
            experiment.algorithm, backend=args.config.parallel.backend
        )
    except ValueError as error:
        raise InputError(one_line(error)) from error
    return experiment, trainer


def _keep_compiled() -> None:
    """Keeps compiled programs on disk, where JAX has not been told another place for them."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # As it stands, with its tilde, where there is no home: then nothing is kept.
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if not os.path.isabs(home):
            return
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "d2ejax"))
        # The hundred and more small programs of an evaluation as well, not only slow ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _restore(args: Arguments) -> tuple[Any, Any]:
    """The experiment and the state of its newest checkpoint."""
    from experiments import checkpoints, loop

    saved = checkpoints.read(args.workdir / workdir.CHECKPOINTS)
    experiment, trainer = build_trainer(args)
    state = checkpoints.to_judge(saved, trainer, args.config.seed)
    return experiment, loop.Result(state, saved.step, loop.Times(**saved.metadata["times"]))


def _report(args: Arguments, judge: Any, result: Any, process_start: float) -> None:
    """Evaluates, writes summary.json last, and prints the table."""
    from d2ejax import parallel
    from experiments import memory, report, summary

    print("evaluating", flush=True)
    state = parallel.unreplicate(result.state)
    # The training program alone holds 300 MB.
    memory.release()
    metrics = report.evaluate(args.config, judge, state, args.workdir)
    wall = result.times.wall + time.perf_counter() - process_start
    written = summary.write(
        args.workdir,
        metrics,
        step=result.step,
        times=result.times._replace(wall=wall),
        devices=parallel.describe_devices(),
        finished=result.step == judge.experiment.total_steps,
    )
    print(summary.table(written))
    if args.config.evaluate.plots:
        print(f"plots: {args.workdir / workdir.PLOTS}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
