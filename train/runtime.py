"""The process environment as one value: the launcher makes it and passes it down as an argument."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent  # of the repository


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


def find_revision() -> str | None:
    """The commit of this code, followed by `-dirty` if files differ from it; None outside of a git clone."""
    if not shutil.which("git"):
        return None
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    state = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, check=False).stdout.strip()
    return (f"{commit}-dirty" if state else commit) or None
