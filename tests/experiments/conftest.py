"""One uninterrupted run of the smoke configuration, shared by the tests that need one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from benchmarks import kills
from tests.conftest import QUICK_TO_COMPILE

ROOT = Path(__file__).parents[2]
CONFIG = "experiments/configs/smoke.py"
# Without influence on the parameters, see experiments.workdir: many records and checkpoints, so
# that there are moments to kill the run at.
LOOP = kills.FLAGS[1:]


class Command(NamedTuple):
    """The command of the README, as a user types it: in a process of its own.

    Attributes:
        environment: Of the process; its compilation cache is shared by the session.
    """

    environment: dict[str, str]

    def start(self, directory, *args, config=CONFIG):
        command = [sys.executable, "-m", "experiments.run", f"--config={config}"]
        return subprocess.Popen(
            [*command, f"--workdir={directory}", *args],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, directory, *args, config=CONFIG):
        process = self.start(directory, *args, config=config)
        out, err = process.communicate(timeout=500)
        return process.returncode, out, err


class Finished(NamedTuple):
    """A finished run, to be read only: its workdir and what its process said."""

    directory: Path
    status: int
    out: str
    err: str
    life: kills.Life


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """What the runner compiles in this process is not kept in the user's own folder."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    environment = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE}
    # Every process compiles the same programs.
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return Command(environment)


@pytest.fixture(scope="session")
def finished(command, tmp_path_factory):
    directory = tmp_path_factory.mktemp("smoke") / "run"
    life = kills.live(directory, kills.FLAGS, command.environment)
    return Finished(directory, life.status, life.out, life.err, life)


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of its own with room for a few small checkpoints."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)
