"""SIGTERM and SIGINT: noted where that is wanted, at once elsewhere, handlers put back."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments import signals

# In one call of C that no signal cuts short, as a compilation or a step on the device is.
_BUSY = """
import hashlib
from experiments import signals
with signals.{within}():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)
"""


def wait_for(holds):
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.001)
    assert holds()


def busy(within):
    process = subprocess.Popen(
        [sys.executable, "-c", _BUSY.format(within=within)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def settings():
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return wakeup, [signal.getsignal(number) for number in signals.SIGNALS]


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_is_noted_and_handlers_are_put_back(number, capfd):
    before, threads = settings(), threading.active_count()
    with signals.deferred() as request:
        assert request.signum is None
        os.kill(os.getpid(), number)
        wait_for(lambda: request.signum == number)
    assert settings() == before
    assert threading.active_count() == threads
    assert capfd.readouterr().err == f"{number.name}: saving after the steps under way\n"


def test_the_first_signal_counts_and_more_of_sigterm_change_nothing(capfd):
    with signals.deferred() as request:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: request.signum is not None)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert request.signum == signal.SIGINT
    assert capfd.readouterr().err.count("\n") == 1


def test_a_signal_that_comes_last_is_not_lost():
    for _ in range(20):
        with signals.deferred() as request:
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM


def test_what_is_deferred_within_is_at_once_again_after_it():
    with signals.at_once():
        outer = settings()
        with signals.deferred() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: request.signum is not None)
        assert settings() == outer


def test_handlers_put_back_are_those_of_before_after_an_error_too():
    before = settings()
    with pytest.raises(ValueError, match="within"), signals.deferred():
        raise ValueError("within")
    assert settings() == before


def test_other_threads_have_no_signals():
    found = []

    def other():
        with signals.deferred() as request:
            found.append(request.signum)

    before = settings()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [None]
    assert settings() == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_at_once_is_while_c_code_runs_too(number, status):
    process = busy("at_once")
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    assert err == f"{number.name}: the same command goes on from the last checkpoint\n"


def test_a_second_sigint_does_not_wait_for_c_code():
    process = busy("deferred")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "SIGTERM: saving after the steps under way\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
