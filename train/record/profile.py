"""Profiling: a profiler trace of some updates, and the update's compiled program."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import jax

from errors import UsageError
from models.core.types import Tree
from train.update.step import Update

S = TypeVar("S")  # a state
B = TypeVar("B")  # a batch
T = TypeVar("T")


def parse_window(text: str | None, steps: int) -> tuple[int, int] | None:
    """`10:15` -> (10, 15): updates 10, 11, ... 14 of a run's `steps`, counted from 0. Raises UsageError."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UsageError(f"config key 'log.profile' must be FIRST:LAST, two updates in order, as 10:15, not {text!r}")
    if int(last) > steps:
        raise UsageError(f"config key 'log.profile' must end at update {steps}, the last, or before, not {text!r}")
    return int(first), int(last)


@contextmanager
def profile_steps(
    update: Callable[[S, B], T], start: int, updates: tuple[int, int] | None, folder: str
) -> Iterator[Callable[[S, B], T]]:
    """The update function, tracing the updates of the window into `folder`, for TensorBoard's profile tab or xprof.

    The trace starts when all earlier updates are done, and ends when its last update or the run is done.
    """
    if updates is None or updates[1] <= start:
        yield update
        return
    first, last = updates
    count, on = start, False

    def run(state: S, batch: B) -> T:
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


def write_programs(update: Update, state: Tree, batch: dict[str, jax.ShapeDtypeStruct], folder: Path) -> None:
    """Write the update's program before and after XLA's passes: `update.stablehlo.txt` and `update.hlo.txt`."""
    lowered = update.lower(state, batch)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "update.stablehlo.txt").write_text(lowered.as_text())
    (folder / "update.hlo.txt").write_text(lowered.compile().as_text() or "")
