"""Progress of long operations, reported to a callback: library functions do not write to the terminal."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
Tick = Callable[[str, int, int], None]  # (description, items done, items in all)


def silent(what: str, done: int, total: int) -> None:
    """A Tick that reports nothing."""


def track(items: Sequence[T], what: str, tick: Tick, then: str = "") -> Iterator[T]:
    """Yield the items and report each; `then` describes what the consumer does after the last one."""
    tick(what, 0, len(items))
    for i, item in enumerate(items, 1):
        yield item
        tick(what, i, len(items))
    if then:
        tick(then, 0, 1)
