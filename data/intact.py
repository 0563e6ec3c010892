"""Which files and rows of a data set cannot be read: each is read once, several at a time."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from data.kinds import Examples, Source
from data.progress import Tick, silent
from errors import UsageError

T = TypeVar("T")
PART = 64  # items between two reports
SMALL = 1000  # examples, of a set that is read whole before a run


def refusals(
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
        for start in range(0, len(items), PART):
            if not go_on():
                break
            found += filter(None, pool.map(refusal, items[start : start + PART]))
            tick(what, min(start + PART, len(items)), len(items))
    return found


def rows_refused(source: Source, **how: Any) -> list[str]:
    """What is wrong with those rows of a source that cannot be read; `how` as of `refusals`."""
    if not isinstance(source, Examples) or not callable(source.fields):
        return []
    return refusals(lambda row: source.__getitems__([row]), range(len(source)), **how)


def hold_intact(sources: Iterable[Source], go_on: Callable[[], bool]) -> None:
    """Read sets of SMALL or fewer examples. Raises UsageError for rows that cannot be read, before a run meets them."""
    for source in sources:
        wrong = rows_refused(source, go_on=go_on) if len(source) <= SMALL else []
        if wrong:
            more = f"; {len(wrong) - 1:,} more of its files: launch.py doctor --data=… names all" if wrong[1:] else ""
            raise UsageError(f"{wrong[0]}{more}")
