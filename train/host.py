"""The outside world as one value: only the launcher makes it, everything below takes it as an argument."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Host:
    """Clock, environment, terminal and pending signal of this process."""

    clock: Callable[[], float]  # unix seconds
    environ: Mapping[str, str]
    stdout: Any  # a text stream
    signals: Callable[[], str | None] = lambda: None  # the name of a signal that asks for a stop, once it came
    revision: str | None = None  # the commit of this code

    def say(self, *lines: str) -> None:
        """Print lines at once."""
        for line in lines:
            print(line, file=self.stdout, flush=True)
