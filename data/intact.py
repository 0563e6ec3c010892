"""Which files and rows of a data set cannot be read: each is read once, several at a time."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from data.kinds import Examples, Source
from data.progress import Tick, silent
from errors import UsageError

T = TypeVar("T")
CHUNK = 64  # items between two reports
CHECK_UP_TO = 1000  # examples, of a set that is read whole before a run


def read_errors(
    read: Callable[[T], Any],
    items: Sequence[T],
    what: str = "",
    tick: Tick = silent,
    go_on: Callable[[], bool] = lambda: True,
) -> list[str]:
    """What is wrong with those items that cannot be read, in their order; once `go_on` says no, the rest is left."""

    def refusal(item: T) -> str | None:
        try:
            read(item)
        except UsageError as error:
            return str(error)
        return None

    found: list[str] = []
    tick(what, 0, len(items))
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), CHUNK):
            if not go_on():
                break
            found += filter(None, pool.map(refusal, items[start : start + CHUNK]))
            tick(what, min(start + CHUNK, len(items)), len(items))
    return found


def row_errors(source: Source, **how: Any) -> list[str]:
    """What is wrong with those rows of a source that cannot be read; `how` as of `read_errors`."""
    if not isinstance(source, Examples) or not callable(source.fields):
        return []
    return read_errors(lambda row: source.__getitems__([row]), range(len(source)), **how)


def check_readable(sources: Iterable[Source], go_on: Callable[[], bool]) -> None:
    """Read sets of SMALL or fewer examples. Raises UsageError for rows that cannot be read, before a run meets them."""
    for source in sources:
        wrong = row_errors(source, go_on=go_on) if len(source) <= CHECK_UP_TO else []
        if wrong:
            more = f"; {len(wrong) - 1:,} more of its files: launch.py doctor --data=… names all" if wrong[1:] else ""
            raise UsageError(f"{wrong[0]}{more}")
