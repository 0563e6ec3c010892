"""A look inside an update: a profiler's trace of some of them, and the program that XLA made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from errors import UsageError

Update = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]


def window(text: str | None) -> tuple[int, int] | None:
    """`10:15` -> (10, 15): updates 10, 11, ... 14, counted from 0. Raises UsageError for anything else."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UsageError(f"config key 'log.profile' is FIRST:LAST, as 10:15, two updates in order, not {text!r}")
    return int(first), int(last)


def traced(update: Update, start: int, updates: tuple[int, int], folder: str) -> Update:
    """The update, of which those in the window are traced into `folder`, for TensorBoard's profile tab or xprof.

    The first is begun when all before it are done, and the trace ends when the last is done.
    """
    first, last = updates
    count = start

    def run(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        nonlocal count
        if count == max(first, start):
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
        made = update(state, batch)
        count += 1
        if count == last:
            jax.block_until_ready(made)
            jax.profiler.stop_trace()
        return made

    return run if last > start else update


def write_programs(update: Any, state: Any, batch: Any, folder: Path) -> None:
    """The update's program before and after XLA's passes, as text: `update.stablehlo.txt` and `update.hlo.txt`."""
    lowered = update.lower(state, batch)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "update.stablehlo.txt").write_text(lowered.as_text())
    (folder / "update.hlo.txt").write_text(lowered.compile().as_text() or "")
