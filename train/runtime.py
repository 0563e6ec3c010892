"""The process environment as one value: the launcher makes it and passes it down as an argument."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Runtime:
    """Clocks, environment, terminal, pending signals, and communication with the run's other processes."""

    clock: Callable[[], float]  # unix seconds
    environ: Mapping[str, str]
    stdout: Any  # a text stream
    signals: Callable[[], str | None] = lambda: None  # the name of a received signal that requests a stop, or None
    revision: str | None = None  # the commit of this code
    monotonic: Callable[[], float] = lambda: 0.0  # seconds of a monotonic clock, for rates
    any_process: Callable[[bool], bool] = lambda flag: flag  # whether a flag is set in any process; all must call it
    agree: Callable[[dict[str, Any]], None] = lambda facts: None  # raises if a value differs between processes

    def say(self, *lines: str) -> None:
        """Print lines and flush."""
        for line in lines:
            print(line, file=self.stdout, flush=True)
