"""Finds the files and rows of a data set that cannot be read, by reading each once, in parallel threads."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from data.progress import Tick, silent
from data.source import Source
from data.types import Examples
from errors import UsageError

T = TypeVar("T")
CHUNK = 64  # items between two reports of progress
CHECK_UP_TO = 1000  # examples: a set up to this size is read completely before a run


def read_errors(
    read: Callable[[T], object],
    items: Sequence[T],
    what: str = "",
    tick: Tick = silent,
    go_on: Callable[[], bool] = lambda: True,
) -> list[str]:
    """The error messages of items that `read` rejects, in order. Stops early when `go_on` returns False."""

    def read_error(item: T) -> str | None:
        try:
            read(item)
        except UsageError as error:
            return str(error)
        return None

    errors: list[str] = []
    tick(what, 0, len(items))
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), CHUNK):
            if not go_on():
                break
            errors += filter(None, pool.map(read_error, items[start : start + CHUNK]))
            tick(what, min(start + CHUNK, len(items)), len(items))
    return errors


def row_errors(
    source: Source, what: str = "", tick: Tick = silent, go_on: Callable[[], bool] = lambda: True
) -> list[str]:
    """The error messages of rows that cannot be read, as `read_errors` gives them."""
    if not isinstance(source, Examples) or not callable(source.fields):
        return []
    return read_errors(lambda row: source.__getitems__([row]), range(len(source)), what, tick, go_on)


def check_readable(sources: Iterable[Source], go_on: Callable[[], bool]) -> None:
    """Read all rows of sets of up to CHECK_UP_TO examples before a run. Raises UsageError for rows that fail."""
    for source in sources:
        errors = row_errors(source, go_on=go_on) if len(source) <= CHECK_UP_TO else []
        if errors:
            more = f"; {len(errors) - 1:,} more of its files: launch.py doctor --data=… lists all" if errors[1:] else ""
            raise UsageError(f"{errors[0]}{more}")
