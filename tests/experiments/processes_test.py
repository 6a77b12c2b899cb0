"""Two processes of two devices each train together, stop together and go on together."""

import signal
import socket
import time

import numpy as np
import pytest

from d2ejax.parallel import BACKENDS
from experiments import checkpoints, run, workdir
from tests.experiments.conftest import CONFIG

SMALL = (
    "--config.ipf.forward_steps=10",
    "--config.ipf.backward_steps=10",
    "--config.loop.checkpoint_every=10",
    "--config.loop.steps_per_dispatch=5",
    "--config.evaluate.num_paths=64",
    "--config.evaluate.num_samples=64",
    "--config.evaluate.plots=False",
)
TOTAL_STEPS = 40


def start_two(command, directory, *flags):
    """Both processes, of which the second writes nothing."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = (f"--coordinator=localhost:{port}", "--num_processes=2")
    flags = (*SMALL, *flags, *together)
    return [command.start(directory, *flags, f"--process_id={i}") for i in range(2)]


def wait_for(processes):
    said = [process.communicate(timeout=300) for process in processes]
    return said, [process.returncode for process in processes]


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_stop_and_go_on_as_one_process_never_stopped(backend, command, tmp_path):
    directory, flag = tmp_path / "two", f"--config.parallel.backend={backend}"
    processes = start_two(command, directory, flag)
    try:
        deadline = time.monotonic() + 300
        while workdir.latest_step(directory / workdir.CHECKPOINTS) is None:
            assert time.monotonic() < deadline and processes[1].poll() is None
            time.sleep(0.05)
        # Asked of one that is not the first, all of them stop.
        processes[1].send_signal(signal.SIGTERM)
        said, statuses = wait_for(processes)
        assert statuses == [143, 143], said
        stopped = workdir.latest_step(directory / workdir.CHECKPOINTS)
        assert 10 <= stopped < TOTAL_STEPS and stopped % 5 == 0
        processes = start_two(command, directory, flag)
        said, statuses = wait_for(processes)
    finally:
        for process in processes:
            process.kill()
    assert statuses == [0, 0], said
    assert workdir.is_finished(directory)
    assert f"resumed at step {stopped}/{TOTAL_STEPS}" in said[0][0]
    # The first alone speaks, but for what the collectives of a CPU say of themselves.
    assert all(line.startswith("[Gloo]") for line in said[1][0].splitlines())

    alone = tmp_path / "one"
    assert command(alone, *SMALL, "--config.parallel.cpu_devices=4")[0] == 0
    found, expected = (
        checkpoints.read(path / workdir.CHECKPOINTS) for path in (directory, alone)
    )
    assert found.step == expected.step == TOTAL_STEPS
    assert found.arrays.keys() == expected.arrays.keys()
    for name, leaf in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[name], leaf, rtol=1e-3, atol=1e-4, err_msg=name)
    steps = [record["step"] for record in workdir.read_records(directory, TOTAL_STEPS)]
    assert steps == sorted(set(steps)) and steps[-1] == TOTAL_STEPS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--coordinator=localhost:1",), "--num_processes: missing: must be given with"),
        (("--process_id=1",), "--coordinator: missing: must be given with --process_id"),
        (("--cluster", "--process_id=1"), "--process_id: must not be given with --cluster"),
        (
            ("--coordinator=localhost:1", "--num_processes=2", "--process_id=2"),
            "--process_id=2: must be from 0 to 1",
        ),
        (
            ("--cluster", "--mode=evaluate"),
            "--cluster=True: must not be given with --mode=eval",
        ),
    ],
)
def test_bad_processes_are_refused(flags, message, capsys, tmp_path):
    assert run.main(["run", f"--config={CONFIG}", f"--workdir={tmp_path}/run", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
