"""How far something long is, as it is reported to a callback: no function of a library writes to a terminal."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
Tick = Callable[[str, int, int], None]  # (what is being done, how many are done, of how many)


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def track(items: Sequence[T], what: str, tick: Tick, then: str = "") -> Iterator[T]:
    """The items, reported one by one; `then` is what their reader does when it has all of them."""
    tick(what, 0, len(items))
    for i, item in enumerate(items, 1):
        yield item
        tick(what, i, len(items))
    if then:
        tick(then, 0, 1)
