"""The host's side of training, and nothing else: batches in, updates dispatched, metrics out.

Update n is dispatched before the metrics of n-1 are fetched, so that the device never waits for the host; before an
evaluation or a save the metrics of every dispatched update are in, so that nothing unseen is ever written.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from train.evaluate.evaluate import Interrupted
from train.record import speed
from train.record.metrics import NullRecorder, Recorder, flatten_metrics
from train.record.summary import format_duration, format_quantity
from train.runtime import Runtime

State = dict[str, Any]


class Diverged(RuntimeError):
    """A run whose updates no longer change its parameters, as they are not finite."""


@dataclass
class Progress:
    """Fetches each update's metrics, records and shows every `every`-th, and stops a run that no longer learns.

    The very first is recorded too, and the first of this process shown.
    """

    runtime: Runtime
    recorder: Recorder | NullRecorder
    every: int
    last: int  # the run's last update
    rows: Callable[[int], int]  # rows of the batch of an update
    tokens: int  # a row's tokens; 0 where rows are no text
    max_skipped: int
    verbose: bool = True
    flops: int = 0  # FLOP of an update, on all devices
    devices: Sequence[Any] = ()  # jax.Device, of the mesh
    _pending: list[tuple[int, dict[str, jax.Array]]] = field(default_factory=list)
    skipped: int = 0  # updates in all
    consecutive_skipped: int = 0  # of them up to now, those before the run was taken up again too
    _mark: tuple[int, float] | None = None  # step and time from which the rate is counted
    _waited: float = 0.0  # seconds since then that the loop waited for data
    _compiled: bool = False

    def start_clock(self, step: int) -> None:
        """Start the clock at a step."""
        self._mark, self._waited = (step, self.runtime.monotonic()), 0.0

    def next_batch(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time that it takes to come is counted."""
        begun = self.runtime.monotonic()
        batch = next(batches)
        self._waited += self.runtime.monotonic() - begun
        return batch

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Note a dispatched update, now `step` in number, and settle the one before it."""
        self._pending.append((step, metrics))
        self.flush(keep=1)

    def flush(self, keep: int = 0) -> None:
        """Fetch the metrics of all dispatched updates but the newest `keep`. Raises Diverged where too many in a row
        were not finite.
        """
        while len(self._pending) > keep:
            step, arrays = self._pending.pop(0)
            values = flatten_metrics(jax.device_get(arrays))
            self._check_finite(step, values)
            first, self._compiled = not self._compiled, True
            if first:  # its time is the compiler's
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
        """A line of its own, above the live one."""
        if self.verbose:
            self.runtime.say(("\r\033[K" if self.runtime.stdout.isatty() else "") + line)


def has_stalled(consecutive_skipped: int, step: int, max_skipped: int, last: int) -> bool:
    """Whether a run is to stop after so many skipped updates in a row: more than `most`, or all that there were."""
    return consecutive_skipped > max_skipped or (step >= last and 0 < step <= consecutive_skipped)


def describe_non_finite(values: dict[str, float]) -> str:
    """What was not finite in an update that was skipped, and the verb."""
    found = [what for what, name in (("loss", "loss"), ("gradient", "grad_norm")) if not math.isfinite(values[name])]
    if len(found) == 2:
        return "loss and gradient were"
    return f"the {found[0] if found else 'step that the optimizer makes of the gradient'} was"


def is_due(step: int, every: int | None, last: int) -> bool:
    """Whether something that happens every so many updates, and at the end, happens now."""
    return step == last or (every is not None and step % every == 0)


def run(
    state: State,
    update: Callable[[State, Any], tuple[State, dict[str, jax.Array]]],
    batches: Iterator[Any],
    progress: Progress,
    start: int,
    stop: int,
    evaluate: Callable[[int, State], Any],
    save: Callable[[int, State, Any], None],
    rescue: Callable[[State, BaseException], None],
    eval_every: int | None,
    save_every: int | None,
    stop_signal: Callable[[int], str | None],
) -> tuple[State, str | None]:
    """Updates `start` to `stop` -> the last state, and the name of the signal that ended it early, or None.

    Where an error ends it, `rescue` gets the state in hand before the error is raised.
    """
    progress.start_clock(start)
    try:
        for n in range(start, stop):
            state, metrics = update(state, progress.next_batch(batches))
            progress.add(n + 1, metrics)
            signal = stop_signal(n + 1) if n + 1 < stop else None  # the end comes as soon, and is measured
            evaluating, saving = is_due(n + 1, eval_every, stop), is_due(n + 1, save_every, stop) or signal is not None
            if evaluating or saving:
                progress.flush()
                scores = None
                if evaluating and signal is None:
                    try:
                        scores = evaluate(n + 1, state)
                    except Interrupted:
                        signal = stop_signal(n + 1)
                if saving or signal is not None:
                    save(n + 1, state, scores)
                progress.start_clock(n + 1)
            if signal is not None:
                return state, signal
    except BaseException as error:
        rescue(state, error)
        raise
    return state, None
