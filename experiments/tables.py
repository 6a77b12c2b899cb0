"""Tables in Markdown, and numbers as they stand in them."""

from collections.abc import Iterable, Sequence


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    inner = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [columns, ["---"] * len(columns), *inner]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table, a dash for one that is not defined."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def beside(value: float | None, ideal: float | None, digits: int = 3) -> str:
    """A value with its ideal in brackets."""
    if value is None or ideal is None:
        return number(value, digits)
    return f"{number(value, digits)} ({number(ideal, digits)})"


def with_error(value: float | None, error: float | None, digits: int = 4) -> str:
    """A value with its standard error, where it has one."""
    shown = number(value, digits)
    return shown if value is None or error is None else f"{shown} ± {number(error, digits)}"
