"""The host side of training: fetch batches, dispatch updates, record metrics.

Update n is dispatched before the metrics of update n - 1 are fetched, so the device never waits for the host. Before an
evaluation or a save, the metrics of all dispatched updates are fetched, so no save contains an unchecked update.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax

from models.core.types import Tree
from train.evaluate.evaluate import Interrupted, Scores
from train.record import speed
from train.record.metrics import NullRecorder, Recorder, flatten_metrics
from train.record.summary import format_duration, format_quantity
from train.runtime import Runtime

B = TypeVar("B")  # a batch
State = Tree  # of the update, as train/update/step.py has it


class Diverged(RuntimeError):
    """Too many consecutive updates were not finite, and so changed no parameters."""


@dataclass
class Progress:
    """Fetches each update's metrics, records and prints every `every`-th, and stops a run that has stalled.

    Update 1 is recorded too, and the first update of this process is printed.
    """

    runtime: Runtime
    recorder: Recorder | NullRecorder
    every: int
    last: int  # the run's last update
    rows: Callable[[int], int]  # update -> rows of its batch
    tokens: int  # tokens per row; 0 if rows are not text
    max_skipped: int
    verbose: bool = True
    flops: int = 0  # FLOPs of an update, over all devices
    devices: Sequence[Any] = ()  # jax.Device of the mesh
    _pending: list[tuple[int, dict[str, jax.Array]]] = field(default_factory=list)
    skipped: int = 0  # updates skipped in total
    consecutive_skipped: int = 0  # newest updates skipped in a row, including those before a resume
    _mark: tuple[int, float] | None = None  # step and time at the start of the current rate measurement
    _waited: float = 0.0  # seconds since the mark in which the loop waited for data
    _compiled: bool = False

    def start_clock(self, step: int) -> None:
        """Start the clock at a step."""
        self._mark, self._waited = (step, self.runtime.monotonic()), 0.0

    def next_batch(self, batches: Iterator[B]) -> B:
        """The next batch. The time spent waiting for it is recorded."""
        begun = self.runtime.monotonic()
        batch = next(batches)
        self._waited += self.runtime.monotonic() - begun
        return batch

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics of a dispatched update, the `step`-th, and flush the updates before it."""
        self._pending.append((step, metrics))
        self.flush(keep=1)

    def flush(self, keep: int = 0) -> None:
        """Fetch the metrics of all dispatched updates except the newest `keep`.

        Raises Diverged if too many consecutive updates were not finite.
        """
        while len(self._pending) > keep:
            step, arrays = self._pending.pop(0)
            values = flatten_metrics(jax.device_get(arrays))
            self._check_finite(step, values)
            first, self._compiled = not self._compiled, True
            if first:  # its time includes compilation
                self.start_clock(step)
            recorded = step == 1 or is_due(step, self.every, self.last)
            if recorded or first:
                self._report(step, values, recorded)

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        if not values["skipped"]:
            self.consecutive_skipped = 0
            return
        self.consecutive_skipped += 1
        self.skipped += 1
        note = f"skipped: {describe_non_finite(values)} not finite"
        self.recorder.write("event", step, {}, note=note)
        if self.consecutive_skipped == 1:
            self.say(f"step {step:,} {note}")
        if has_stalled(self.consecutive_skipped, step, self.max_skipped, self.last):
            first = (
                f"updates {step - self.consecutive_skipped + 1} to {step}"
                if self.consecutive_skipped > 1
                else f"update {step}"
            )
            raise Diverged(
                f"{first} changed no parameter: {describe_non_finite(values)} not finite (loss {values['loss']}, "
                f"gradient norm {values['grad_norm']}). Lower optim.lr or set optim.clip_norm"
            )

    def _report(self, step: int, values: dict[str, float], recorded: bool) -> None:
        start, then = self._mark or (step, self.runtime.monotonic())
        now = self.runtime.monotonic()
        seconds, waited = max(now - then, 1e-9), self._waited
        self._mark, self._waited = (step, now), 0.0
        values |= speed.memory_metrics(self.devices)
        if step > start:
            values["examples_per_second"] = sum(self.rows(n) for n in range(start, step)) / seconds
            if self.tokens:
                values["tokens_per_second"] = values["examples_per_second"] * self.tokens
            values["data_wait"] = waited / seconds
            if self.flops:
                values |= speed.throughput_metrics(self.flops * (step - start), seconds, self.devices)
        if recorded:
            self.recorder.write("train", step, values)
        if not self.verbose:
            return
        rate = values.get("tokens_per_second" if self.tokens else "examples_per_second", 0.0)
        left = (self.last - step) * seconds / max(step - start, 1)
        eta = f"ETA {format_duration(left)}" if step > start else ""
        unit = "tokens/s" if self.tokens else "examples/s"
        accuracy = f"  accuracy {values['accuracy']:.3f}" if "accuracy" in values else ""
        pace = f"  {format_quantity(rate, unit)}" if rate else ""
        line = (
            f"step {step:,}/{self.last:,}  loss {values['loss']:.4f}{accuracy}{pace}{speed.format_speed(values)}  "
            f"{'done' if step == self.last else eta}"
        ).rstrip()
        if self.runtime.stdout.isatty():
            self.runtime.stdout.write(f"\r\033[K{line}" + ("\n" if step == self.last else ""))
            self.runtime.stdout.flush()
        else:
            self.runtime.say(line)

    def say(self, line: str) -> None:
        """Print a line above the live progress line."""
        if self.verbose:
            self.runtime.say(("\r\033[K" if self.runtime.stdout.isatty() else "") + line)


def has_stalled(consecutive_skipped: int, step: int, max_skipped: int, last: int) -> bool:
    """Whether a run must stop: it skipped more than `max_skipped` consecutive updates, or every update of the run."""
    return consecutive_skipped > max_skipped or (step >= last and 0 < step <= consecutive_skipped)


def describe_non_finite(values: dict[str, float]) -> str:
    """The part of a skipped update that was not finite, with its verb: `the loss was`, `loss and gradient were`."""
    found = [what for what, name in (("loss", "loss"), ("gradient", "grad_norm")) if not math.isfinite(values[name])]
    if len(found) == 2:
        return "loss and gradient were"
    return f"the {found[0] if found else 'optimizer step'} was"


def is_due(step: int, every: int | None, last: int) -> bool:
    """Whether an action that runs every `every` updates, and after the last, runs after update `step`."""
    return step == last or (every is not None and step % every == 0)


@runtime_checkable
class Hooks(Protocol):
    """What a run does between its updates; `n` counts those that are made."""

    def stop_signal(self, n: int) -> str | None:
        """The signal that requests a stop, or None."""

    def measure(self, n: int, state: State) -> Scores:
        """Evaluate the state. Raises Interrupted if a signal comes first."""

    def save(self, n: int, state: State, scores: Scores | None) -> None:
        """Start saving the state."""

    def rescue(self, state: State, error: BaseException) -> None:
        """Save what an error would lose, before it ends the run."""


class Span(NamedTuple):
    """The updates of a run, `start` to `stop` - 1, and after how many of them each hook is due."""

    start: int
    stop: int
    eval_every: int | None
    save_every: int | None


def run(
    state: State,
    update: Callable[[State, B], tuple[State, dict[str, jax.Array]]],
    batches: Iterator[B],
    progress: Progress,
    hooks: Hooks,
    span: Span,
) -> tuple[State, str | None]:
    """Run the updates of a span -> (final state, name of the signal that ended it early or None)."""
    progress.start_clock(span.start)
    try:
        for n in range(span.start + 1, span.stop + 1):
            state, metrics = update(state, progress.next_batch(batches))
            progress.add(n, metrics)
            signal = hooks.stop_signal(n) if n < span.stop else None  # the last update is evaluated anyway
            evaluating = is_due(n, span.eval_every, span.stop)
            saving = is_due(n, span.save_every, span.stop) or signal is not None
            if evaluating or saving:
                progress.flush()
                scores = None
                if evaluating and signal is None:
                    try:
                        scores = hooks.measure(n, state)
                    except Interrupted:
                        signal = hooks.stop_signal(n)
                if saving or signal is not None:
                    hooks.save(n, state, scores)
                progress.start_clock(n)
            if signal is not None:
                return state, signal
    except BaseException as error:
        hooks.rescue(state, error)
        raise
    return state, None
