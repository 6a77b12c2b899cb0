"""Errors that end a run with one line on stderr and no traceback."""

import errno
import os

_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class InputError(Exception):
    """What was given cannot be run: names the field, its value and what is allowed."""


class NonFiniteError(Exception):
    """Too many gradient steps in a row were not finite."""


class StorageError(Exception):
    """A file could not be written: names the cause and the directory."""


class Stopped(Exception):
    """A signal asked the run to stop, and its state has been saved.

    Attributes:
        signum: Of that signal.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def cause_in_storage(error: BaseException) -> str | None:
    """What the system says of a disk that is full or broken, None for any other error.

    Libraries that write in C++ hand on the words and not the number.
    """
    text = str(error)
    return next((os.strerror(code) for code in _OF_STORAGE if os.strerror(code) in text), None)


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message of an error without its line breaks, cut to `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
