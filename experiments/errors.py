"""Errors that end a run with one line on stderr and no traceback."""


class InputError(Exception):
    """What was given cannot be run: names the field, its value and what is allowed."""


class NonFiniteError(Exception):
    """Too many gradient steps in a row were not finite."""


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message of an error without its line breaks, cut to `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
