"""The outside world as one value: only the launcher makes it, everything below takes it as an argument."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Runtime:
    """Clocks, environment, terminal, pending signal and fellow processes of this process."""

    clock: Callable[[], float]  # unix seconds
    environ: Mapping[str, str]
    stdout: Any  # a text stream
    signals: Callable[[], str | None] = lambda: None  # the name of a signal that asks for a stop, once it came
    revision: str | None = None  # the commit of this code
    monotonic: Callable[[], float] = lambda: 0.0  # seconds of a clock that nobody sets, from which rates are counted
    any_process: Callable[[bool], bool] = lambda flag: flag  # whether a flag is set in any process of the run; all ask
    agree: Callable[[dict[str, Any]], None] = lambda facts: None  # refuses what differs between processes of one run

    def say(self, *lines: str) -> None:
        """Print lines at once."""
        for line in lines:
            print(line, file=self.stdout, flush=True)
