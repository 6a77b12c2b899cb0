"""Trains, evaluates and samples a bridge: `python -m experiments.run --help`."""

import os
import signal
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

from experiments import arguments, signals, workdir
from experiments.arguments import Arguments
from experiments.errors import InputError, NonFiniteError, Stopped, StorageError, one_line

# See arguments.USAGE.
_FAILED = 1
_BAD_INPUT = 2
_NOT_WRITTEN = 3


def main(argv: list[str]) -> int:
    """Runs a command line and returns its exit status."""
    start = time.perf_counter()
    try:
        parsed = arguments.parse(argv)
        workdir.check(parsed.workdir, parsed.config)
        {"train": _train, "evaluate": _evaluate, "sample": _sample}[parsed.mode](parsed, start)
    except arguments.HelpRequested as help_text:
        print(help_text)
    except (InputError, NonFiniteError, StorageError) as error:
        if arguments.wants_debug(argv):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        statuses = {InputError: _BAD_INPUT, StorageError: _NOT_WRITTEN}
        return statuses.get(type(error), _FAILED)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return signals.status(stopped.signum)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return signals.status(signal.SIGINT)
    return 0


def _train(args: Arguments, process_start: float) -> None:
    from d2ejax import parallel

    first = parallel.is_first()
    if workdir.is_finished(args.workdir):
        _say(
            first,
            f"{args.workdir}: this run is finished: see {args.workdir / workdir.SUMMARY}, or "
            "give --mode=evaluate or --mode=sample",
        )
        return
    # Imported once everything given has been checked: jax is slow to start.
    import jax

    from experiments import checkpoints, events, loop
    from experiments.judge import Judge
    from experiments.progress import Progress

    events.check(args.config.loop.tensorboard)
    saved_in = args.workdir / workdir.CHECKPOINTS
    saved = checkpoints.read(saved_in, fall_back=True) if workdir.steps(saved_in) else None
    experiment, trainer = build_trainer(args)
    judge = Judge(experiment)
    if first:
        workdir.create(args.workdir, args.config)
        _pin_networks(args)
    parallel.wait()
    begun = 0 if saved is None else saved.step
    _check_same(args, begun)
    settings = args.config.loop
    plan = loop.make_plan(experiment, settings)
    _say(first, f"{args.workdir}: compiling the training step")
    with (
        Progress(plan.total_steps, shown=first) as progress,
        events.writer(args.workdir, settings.tensorboard and first, begun) as listener,
    ):
        result = loop.train(
            trainer,
            plan,
            key=jax.random.key(args.config.seed),
            saved=saved,
            directory=args.workdir,
            keep=settings.keep,
            keep_best=settings.keep_best,
            progress=progress,
            probe=judge.probe,
            process_start=process_start,
            agree=parallel.agreed,
            listener=listener,
            writes=first,
        )
    if first:
        _report(args, judge, result, process_start)
    # Who leaves takes the others along.
    parallel.wait()


def _check_same(args: Arguments, begun: int) -> None:
    """Raises InputError unless all processes train the same run from the same step."""
    from d2ejax import parallel

    if not parallel.same(zlib.crc32(f"{begun} {args.config.to_json()}".encode()) >> 1):
        raise InputError(
            f"--workdir={args.workdir}: the processes have different configurations, or find "
            "different checkpoints there: must be the same command in all, and a workdir that "
            "all of them see"
        )


def _say(aloud: bool, text: str) -> None:
    if aloud:
        print(text, flush=True)


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
    state, judge = parallel.unreplicate(result.state), Judge(experiment)
    with workdir.writing(args.output.parent):
        report.write_samples(
            args.config, judge, state, args.num_samples, args.output, along=args.along
        )
    print(f"{args.num_samples} paths after {result.step} gradient steps: {args.output}")


def build_trainer(args: Arguments) -> tuple[Any, Any]:
    """The experiment of a configuration and its trainer; nothing is compiled yet."""
    from d2ejax import parallel
    from experiments import build, ends

    _keep_compiled()
    if args.config.target.name == ends.IMAGE_CLASS:
        # Imported here: its networks are slow to import, and most runs have none.
        from experiments import image_models

        if parallel.is_first():
            image_models.prepare_for(args.config, args.workdir)
        parallel.wait()
    try:
        experiment = build.build(args.config)
        trainer = parallel.data_parallel(
            experiment.algorithm,
            backend=args.config.parallel.backend,
            num_shards=args.config.parallel.shards,
        )
    except ValueError as error:
        raise InputError(one_line(error)) from error
    return experiment, trainer


def _pin_networks(args: Arguments) -> None:
    """Writes down which networks stand behind a class of images."""
    from experiments import ends

    if args.config.target.name == ends.IMAGE_CLASS:
        from experiments import image_models

        with workdir.writing(args.workdir):
            found = image_models.digests(args.config.target.options.folder)
            workdir.write_json(args.workdir / image_models.NETWORKS, found)


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
    """The experiment and the state of the checkpoint asked for."""
    from experiments import checkpoints, loop

    saved = checkpoints.read(args.workdir / workdir.CHECKPOINTS, which=args.checkpoint)
    experiment, trainer = build_trainer(args)
    state = checkpoints.to_judge(saved, trainer, args.config.seed)
    return experiment, loop.Result(state, saved.step, loop.Times(**saved.metadata["times"]))


def _report(args: Arguments, judge: Any, result: Any, process_start: float) -> None:
    """Evaluates, writes what comes of it, and prints the table."""
    from d2ejax import parallel
    from experiments import memory, summary

    print("evaluating", flush=True)
    state = parallel.unreplicate(result.state)
    # The training program alone holds 300 MB.
    memory.release()
    wall = result.times.wall + time.perf_counter() - process_start
    times = result.times._replace(wall=wall)
    written = conclude(args.config, args.workdir, judge, state, result.step, times)
    print(summary.table(written))
    print(f"report: {args.workdir / workdir.REPORT}")
    if args.config.evaluate.plots:
        print(f"plots: {args.workdir / workdir.PLOTS}")


def conclude(
    config: Any,
    directory: Path,
    judge: Any,
    state: Any,
    step: int,
    times: Any,
    **also: Any,
) -> dict[str, Any]:
    """Evaluates a run, writes the bridge and the page, and summary.json, which ends it, last.

    Args:
        config: Of the run.
        directory: Its workdir.
        judge: Of its experiment.
        state: The trained state, of one device.
        step: Gradient steps taken.
        times: Seconds spent on it, those up to here.
        also: What else the summary is to hold.

    Returns:
        The summary.
    """
    from d2ejax import parallel
    from experiments import export, report, report_page, summary

    begun = time.perf_counter()
    with workdir.writing(directory):
        metrics = report.evaluate(config, judge, state, directory)
    total_steps = judge.experiment.total_steps
    found = summary.compose(
        metrics | also,
        step=step,
        times=times._replace(wall=times.wall + time.perf_counter() - begun),
        devices=parallel.describe_devices(),
        # Whichever checkpoint it is that has been evaluated.
        finished=workdir.latest_step(directory / workdir.CHECKPOINTS) == total_steps,
    )
    with workdir.writing(directory):
        bridge = export.write(judge.experiment, state, directory)
        report_page.write(directory, config, found, bridge)
        workdir.write_json(directory / workdir.SUMMARY, found)
    return found


def _leave(status: int) -> None:
    """Ends the process; where others still train, not by the barrier that waits for them."""
    jax = sys.modules.get("jax")
    if status in (_BAD_INPUT, _NOT_WRITTEN) and jax and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    with signals.at_once():  # Training defers them.
        _status = main(sys.argv)
    _leave(_status)
