"""A run that is under way: its parts, and what it does between its updates."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from data import sampler
from models.core.types import Variables
from train import checkpoint, loop, resume, together
from train.evaluate import callbacks, evaluate
from train.evaluate.variables import evaluate_variables
from train.record import metrics
from train.record.ticker import Ticker
from train.saving import Saver
from train.setup.run_data import RunData, tokens_per_row
from train.setup.setup import Setup, make_eval_set
from train.sharding import device_batches
from train.update import step


@dataclass(frozen=True)
class RunResult:
    """What a run has reached."""

    workdir: str
    steps: int  # finished updates
    signal: str | None = None  # that ended it early
    metrics: dict[str, float] = field(default_factory=dict)  # of its newest evaluation, as `loss`
    stderr: dict[str, float] = field(default_factory=dict)  # their standard errors
    evaluated: int | None = None  # updates before that evaluation


class Trainer:
    """Runs the updates of a run from its ResumePoint on, and measures and saves when they are due.

    It is the `loop.Hooks` of its own loop.
    """

    def __init__(
        self,
        setup: Setup,
        data: RunData,
        update: Callable[[step.State, step.Batch], tuple[step.State, dict[str, jax.Array]]],
        batches: sampler.BatchSampler,
        resume_point: resume.ResumePoint,
        workdir: str,
        flops: int = 0,
        called: Mapping[str, callbacks.Callback] | None = None,
    ) -> None:
        config, runtime, start = setup.config, setup.runtime, resume_point.start
        self.setup, self.update, self.batches = setup, update, batches
        self.resume_point, self.workdir, self.callbacks = resume_point, workdir, called or {}
        self.eval_set = make_eval_set(setup, data.held_out)
        self.eval_step = evaluate.make_eval_step(setup.model, setup.task, setup.place)
        self.ticker, self.lockstep = Ticker(runtime), together.Lockstep(runtime)
        self.newest = read_result(workdir, start)
        self.store = checkpoint.Store(workdir, config.checkpoint.keep, config.checkpoint.keep_best)
        main = jax.process_index() == 0
        self.recorder = (
            metrics.Recorder(workdir, runtime, start, config.log.wandb, config.to_dict())
            if main
            else metrics.NullRecorder()
        )
        self.progress = loop.Progress(
            runtime,
            self.recorder,
            every=config.log.every,
            last=config.train.steps,
            rows=lambda n: batches.phase(n).batch_size,
            tokens=tokens_per_row(setup, batches, start),
            max_skipped=config.train.max_skipped,
            verbose=main,
            flops=flops,
            devices=tuple(setup.place.mesh.devices.flat),
            consecutive_skipped=resume_point.skipped,
        )
        self.saver = Saver(setup, self.store, resume_point, data.identity, self.progress, self.lockstep, start)

    def run(self, state: step.State) -> RunResult:
        """Run the updates that are left -> what the run has reached.

        Raises loop.Diverged if too many updates in succession are not finite, checkpoint.SaveError if a checkpoint
        cannot be written, together.OtherProcessFailed, and the errors of reading the data.
        """
        config, start = self.setup.config, self.resume_point.start
        span = loop.Span(start, config.train.steps, config.eval.every, config.checkpoint.every)
        workers, prefetch = config.data.workers, config.data.prefetch
        reading = device_batches.train_batches(
            self.batches, self.setup.place, start, span.stop, workers=workers, prefetch=prefetch
        )
        with closing(self.recorder), closing(self.store):
            self._record_resume()
            try:
                if not self.resume_point.evaluated and loop.is_due(start, span.eval_every, span.stop):
                    scores = self.measure(start, state)  # a signal had come before it
                    checkpoint.add_metrics(self.workdir, start, scores.primary_metrics)
                batches = self.lockstep.batches(reading)
                update = self.ticker.report_compile(self.update)
                state, signal = loop.run(state, update, batches, self.progress, self, span)
            except evaluate.Interrupted:  # before the first update: a checkpoint already exists
                signal = self.setup.runtime.signals()
        if self.progress.skipped:
            what = "loss, gradient or optimizer step was not finite"
            self.setup.runtime.say(f"{self.progress.skipped:,} updates were skipped: {what}")
        return replace(self.newest, steps=int(state["step"]), signal=signal)

    def _record_resume(self) -> None:
        """Record that a run goes on, and which knobs of its schedule have changed."""
        if self.recorder.continues:
            start = self.resume_point.start
            changed = [
                c for entry in self.resume_point.history if entry["from_step"] == start for c in entry["changes"]
            ]
            note = "; ".join([f"resumed from update {start}", *changed])
            self.recorder.write("event", start, {}, note=note)

    def measure(self, n: int, state: step.State) -> evaluate.Scores:
        """Evaluate and record, after the last update on the whole split -> the scores that checkpoints compare."""
        config = self.setup.config
        views = step.eval_variables(state, config.optim)
        measured = partial(
            evaluate_variables,
            self.setup,
            self.eval_step,
            views,
            self.eval_set,
            should_stop=self._should_stop,
            tick=self.ticker,
        )
        compared = measured(config.eval.limit)
        scores = measured(None) if config.eval.limit and n == config.train.steps else compared
        found = self._call_callbacks(n, list(views.values())[-1], scores)
        compared, scores = (evaluate.with_metrics(one, found) for one in (compared, scores))
        self.recorder.write("eval", n, scores.metrics, split=config.eval.split, stderr=scores.stderr)
        self.progress.say(f"step {n:,}  {config.eval.split}: {evaluate.format_scores(scores)}")
        self.newest = RunResult(self.workdir, n, None, scores.metrics, scores.stderr, n)
        return compared

    def _call_callbacks(self, n: int, variables: Variables, scores: evaluate.Scores) -> dict[str, float]:
        """The metrics that callbacks return. Their error, in any process, ends the run in all of them."""
        if not self.callbacks:
            return {}
        setup, say = self.setup, self.progress.say
        of_run = setup.config, say, self.workdir, setup.tokenizer, setup.class_names
        evaluation = callbacks.Evaluation(setup.model, variables, n, scores, self.eval_set, *of_run)
        found, error = dict[str, float](), None
        try:
            found = callbacks.call(self.callbacks, evaluation)
        except Exception as raised:
            error = raised
        self.lockstep.raise_together(error)
        return found

    def save(self, n: int, state: step.State, scores: evaluate.Scores | None) -> None:
        """Start saving the state after n updates. Raises checkpoint.SaveError."""
        self.saver.save(n, state, scores)

    def rescue(self, state: step.State, error: BaseException) -> None:
        """Save the progress since the newest checkpoint, before an error ends the run."""
        self.saver.rescue(state, error)

    def _should_stop(self) -> bool:
        """Whether an evaluation must stop early; several processes always finish it."""
        return jax.process_count() == 1 and self.setup.runtime.signals() is not None

    def stop_signal(self, n: int) -> str | None:
        """The signal that requests a stop, or None. Several processes agree on it whenever they log metrics.

        Raises SaveError if a pending save has failed.
        """
        self.store.check()
        pending = self.setup.runtime.signals()
        if jax.process_count() == 1:
            return pending
        if n % self.setup.config.log.every:
            return None
        votes = multihost_utils.process_allgather(np.asarray([pending is not None]))
        return (pending or "a signal to another process") if votes.any() else None


def read_result(workdir: str, steps: int) -> RunResult:
    """The result of a run with `steps` finished updates, from its metrics.jsonl; without metrics if it has none."""
    if not (epath.Path(workdir) / "metrics.jsonl").exists():
        return RunResult(workdir, steps)
    found = [line for line in metrics.read(workdir) if line["kind"] == "eval" and line["step"] <= steps]
    if not found:
        return RunResult(workdir, steps)
    newest = found[-1]
    values, errors = (_numbers(newest[part]) for part in ("metrics", "stderr"))
    return RunResult(workdir, steps, None, values, errors, newest["step"])


def _numbers(recorded: dict[str, object]) -> dict[str, float]:
    """The numbers of a line of metrics; those that are not finite are texts in it."""
    return {k: float(v) for k, v in recorded.items() if isinstance(v, int | float) or v in ("nan", "inf", "-inf")}
