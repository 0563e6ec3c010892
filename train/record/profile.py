"""A look inside an update: a profiler's trace of some of them, and the program that XLA made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from errors import UsageError

Update = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]


def parse_window(text: str | None, steps: int) -> tuple[int, int] | None:
    """`10:15` -> (10, 15): updates 10, 11, ... 14 of a run's `steps`, counted from 0. Raises UsageError."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UsageError(f"config key 'log.profile' is FIRST:LAST, as 10:15, two updates in order, not {text!r}")
    if int(last) > steps:
        raise UsageError(f"config key 'log.profile' = {text!r} must end by the last of the {steps} updates")
    return int(first), int(last)


@contextmanager
def profile_steps(update: Update, start: int, updates: tuple[int, int] | None, folder: str) -> Iterator[Update]:
    """The update, of which those in the window are traced into `folder`, for TensorBoard's profile tab or xprof.

    The first is begun when all before it are done, and the trace ends when the last is done, or the run.
    """
    if updates is None or updates[1] <= start:
        yield update
        return
    first, last = updates
    count, on = start, False

    def run(state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
        nonlocal count, on
        if count == max(first, start):
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
            on = True
        made = update(state, batch)
        count += 1
        if count == last:
            jax.block_until_ready(made)
            jax.profiler.stop_trace()
            on = False
        return made

    try:
        yield run
    finally:
        if on:
            jax.profiler.stop_trace()


def write_programs(update: Any, state: Any, batch: Any, folder: Path) -> None:
    """The update's program before and after XLA's passes, as text: `update.stablehlo.txt` and `update.hlo.txt`."""
    lowered = update.lower(state, batch)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "update.stablehlo.txt").write_text(lowered.as_text())
    (folder / "update.hlo.txt").write_text(lowered.compile().as_text() or "")
