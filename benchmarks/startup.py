"""Seconds from the command to the first update and to the last line of small runs, with an empty and a filled cache.

    python -m benchmarks.startup [--before=CHECKOUT] [--rounds=7] [--out=benchmarks/results/startup.json]

Each run is a fresh process of `launch.py train` with a fresh workdir. The first start of a round has an empty
compilation cache, the second the cache that the first has filled. Rounds are interleaved over the configs and, with
`--before`, over two source trees: this one and a checkout of another commit. Figures are medians over the rounds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks import record

ROOT = Path(__file__).parents[1]
CONFIGS = ("mlp.py:moons", "gpt.py:quick", "cnn.py:digits")


class Seconds(NamedTuple):
    """Seconds from the command to the line of the first update, and to the end of the process."""

    first_update: float
    end: float


def start(tree: Path, config: str, workdir: Path, cache: Path) -> Seconds:
    """Train in a fresh process. Raises RuntimeError if it fails or prints no update."""
    command = [sys.executable, "-u", "launch.py", "train", f"--config=configs/{config}"]
    command += [f"--workdir={workdir}", f"--cache={cache}"]
    begun = time.perf_counter()
    with subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        updates = [time.perf_counter() - begun for line in run.stdout if line.startswith("step 1/")]
    end = time.perf_counter() - begun
    if run.returncode or not updates:
        raise RuntimeError(f"{config} in {tree} ended with exit code {run.returncode}, {len(updates)} first updates")
    return Seconds(updates[0], end)


def measure(trees: dict[str, Path], configs: tuple[str, ...], rounds: int) -> dict[str, dict[str, list[Seconds]]]:
    """Seconds by config, then by `TREE first` and `TREE second`, one entry a round."""
    found: dict[str, dict[str, list[Seconds]]] = {config: {} for config in configs}
    for n in range(rounds):
        for config in configs:
            for name, tree in list(trees.items())[:: -1 if n % 2 else 1]:
                with tempfile.TemporaryDirectory() as folder:
                    for which in ("first", "second"):
                        seconds = start(tree, config, Path(folder) / which, Path(folder) / "cache")
                        found[config].setdefault(f"{name} {which}", []).append(seconds)
    return found


def medians(rounds: list[Seconds]) -> dict[str, float]:
    """The median of each field over the rounds."""
    values = zip(*rounds, strict=True)
    return {field: round(statistics.median(v), 3) for field, v in zip(Seconds._fields, values, strict=True)}


def main() -> None:
    """Measure, print a line per config and start, and write JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--out", default="benchmarks/results/startup.json")
    flags = parser.parse_args()
    trees = {"after": ROOT} if flags.before is None else {"before": flags.before.resolve(), "after": ROOT}
    found = measure(trees, tuple(flags.configs.split(",")), flags.rounds)
    seconds = {config: {name: medians(rounds) for name, rounds in rows.items()} for config, rows in found.items()}
    for config, rows in seconds.items():
        for name, row in rows.items():
            print(f"{config:<16} {name:<14} first update {row['first_update']:6.2f} s   end {row['end']:6.2f} s")
    commits = {name: git_commit(tree) for name, tree in trees.items()}
    record.write(flags.out, ("jax", "numpy"), rounds=flags.rounds, commits=commits, seconds=seconds)


def git_commit(tree: Path) -> str:
    """The commit of a source tree."""
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
