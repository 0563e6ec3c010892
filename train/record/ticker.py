"""Progress output of long operations: progress and remaining time, or that something compiles."""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import ParamSpec, TypeVar

import jax

from train.record.summary import format_duration
from train.runtime import Runtime

P = ParamSpec("P")
T = TypeVar("T")
QUIET = 2.0  # seconds before the first output: shorter operations print nothing
LIVE, APART = 0.2, 10.0  # seconds between outputs, on a terminal and elsewhere


class Ticker:
    """Shows progress: one live line on a terminal, elsewhere a line every 10 s. Only process 0 prints.

    It is called as a `data.progress.Tick`: (what, done, total), from done = 0 to total, which clears the live line.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._live = runtime, runtime.stdout.isatty()
        self._what, self._begun, self._next = "", 0.0, 0.0
        self._first = 0, 0.0  # the first nonzero count and its time, from which the remaining time is estimated

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the progress, if it is time."""
        now = self._runtime.monotonic()
        was_long = self._next > self._begun + QUIET  # the previous operation, so this may be too
        if what != self._what and was_long:
            self._show("", live_only=True)
            if not jax.process_index():
                self._runtime.say(f"{what} …")
        if not done or what != self._what:
            self._what = what
            self._begun = now
            self._next = now + QUIET
            self._first = 0, now
        if done >= total:
            self._show("", live_only=True)
            return
        count, since = self._first
        if not count:
            self._first = done, now
        elif now >= self._next:
            left = (now - since) * (total - done) / max(done - count, 1)
            self._show(f"{what}: {done:,} of {total:,}, {format_duration(left)} left")
            self._next = now + (LIVE if self._live else APART)

    def report_compile(self, function: Callable[P, T]) -> Callable[P, T]:
        """Wrap a jitted function: its first call shows that it compiles, then prints the time."""
        first = True

        def call(*args: P.args, **more: P.kwargs) -> T:
            nonlocal first
            if not first:
                return function(*args, **more)
            first = False
            self._show("compiling …")
            begun = self._runtime.monotonic()
            made = function(*args, **more)
            self._show("", live_only=True)
            if not jax.process_index():
                self._runtime.say(f"compiled in {self._runtime.monotonic() - begun:.1f} s")
            return made

        return call

    def show_until_first(self, items: Iterator[T]) -> Iterator[T]:
        """The items; a terminal shows `compiling …` until the first one arrives."""
        if self._live:
            self._show("compiling …")
        try:
            first = list(islice(items, 1))
        finally:
            self._show("", live_only=True)
        return chain(first, items)

    def _show(self, line: str, live_only: bool = False) -> None:
        if jax.process_index():
            return
        if self._live:
            self._runtime.stdout.write(f"\r\033[K{line}")
            self._runtime.stdout.flush()
        elif not live_only:
            self._runtime.say(line)
