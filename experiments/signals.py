"""SIGTERM and SIGINT: at once where nothing is lost, else when it suits the loop.

Python calls a signal handler between two of its own instructions: while a program compiles, or
the device runs, that can take a minute. The system's handler however writes the signal's number
to a pipe at once, and here a thread waits at the other end of it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_END = b"\0"


class Request:
    """A wish to stop.

    Attributes:
        signum: The signal that asked, None for as long as none has.
    """

    signum: int | None = None


def status(signum: int) -> int:
    """The exit status of a process that a signal stopped, as shells have it: 130 or 143."""
    return 128 + signum


@contextmanager
def at_once() -> Iterator[None]:
    """Within it a signal ends the process at once, whatever it is doing."""
    with _watched(_exit):
        yield


@contextmanager
def deferred() -> Iterator[Request]:
    """Within it a signal is only noted; a SIGINT after another signal ends the process at once.

    Outside the main thread, where no handler can be installed, nothing is ever noted.
    """
    request = Request()

    def note(signum: int) -> None:
        if request.signum is None:
            request.signum = signum
            _say(f"{signal.Signals(signum).name}: saving after the steps under way")
        elif signum == signal.SIGINT:
            _exit(signum)

    with _watched(note):
        yield request


@contextmanager
def _watched(react: Callable[[int], None]) -> Iterator[None]:
    """Calls `react`, in a thread of its own, with every signal that comes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while (received := os.read(reader, 1)) != _END:
            # Other signals that have a handler in Python are written as well.
            if received[0] in SIGNALS:
                react(received[0])

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    # Without a handler of Python's own nothing is written.
    handlers = {number: signal.signal(number, _do_nothing) for number in SIGNALS}
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            if handler is not None:  # None: not installed by Python, nor to be put back by it.
                signal.signal(number, handler)
        # What was written before it is still read.
        os.write(writer, _END)
        watcher.join()
        os.close(reader)
        os.close(writer)


def _do_nothing(signum: int, frame: object) -> None:
    pass


def _exit(signum: int) -> None:
    _say(f"{signal.Signals(signum).name}: the same command goes on from the last checkpoint")
    os._exit(status(signum))


def _say(text: str) -> None:
    # Past the lock of sys.stderr, which what is interrupted may hold.
    on_its_own_line = "\n" if os.isatty(2) else ""
    with suppress(OSError):  # Nobody may be there to read it any more.
        os.write(2, f"{on_its_own_line}{text}\n".encode())
