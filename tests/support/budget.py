"""CPU seconds that each test file may take: tests/budget.json, so that suites grow by intention.

`make budget` writes it, from an empty compilation cache, as of a fresh clone. CPU time depends little on what else
runs on the machine, where elapsed time of tests with several processes doubles. A run of a whole suite fails if a
file takes a fifth, and thirty seconds, more than its share. Where all files are slower, as on another machine, all
shares are larger by the median of what they took.
"""

import json
import math
from collections import Counter
from pathlib import Path
from statistics import median

FILE = Path(__file__).parents[1] / "budget.json"
SLACK, FLOOR = 1.2, 30.0  # times the share, and seconds above that
LARGE = 5.0  # seconds of a file that says how fast a machine is


def shares(suite: str) -> dict[str, float]:
    """CPU seconds by test file, of one suite; none where it was never measured."""
    return json.loads(FILE.read_text()).get(suite, {}) if FILE.exists() else {}


def write(suite: str, took: Counter[str]) -> None:
    whole = json.loads(FILE.read_text()) if FILE.exists() else {}
    whole[suite] = {file: math.ceil(seconds) for file, seconds in sorted(took.items())}
    FILE.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


def above(took: dict[str, float], allowed: dict[str, float]) -> list[str]:
    """A line for each file above its share, or without one; nothing for a suite that was never measured."""
    if not allowed:
        return []
    pace = max(1.0, median([took[f] / allowed[f] for f in took if allowed.get(f, 0) >= LARGE] or [1.0]))
    found = []
    for file, seconds in sorted(took.items()):
        share = allowed.get(file, 0)
        if seconds > SLACK * pace * share + FLOOR:
            found.append(
                f"{file}: {seconds:.0f} CPU s, where {share:.0f} are its share (this machine: times {pace:.2f}); "
                "make it cheaper, or `make budget`"
            )
    return found
