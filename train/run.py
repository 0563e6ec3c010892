"""The composition root of training: from a config to a trained model in a workdir."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from data import sampler
from data.images.detection import DetectionDataset, note
from data.sources import intact, splits
from data.types import Examples, ParallelText, Source
from errors import UsageError, raise_with
from train import checkpoint, loop, resume, together
from train.evaluate import evaluate
from train.evaluate.variables import evaluate_variables
from train.plan import flops
from train.plots import curves
from train.record import metrics, profile, summary
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.saving import Saver
from train.setup import inputs
from train.setup.facts import Unread
from train.setup.setup import (
    Config,
    Setup,
    dataset_names,
    dataset_title,
    load_source,
    make_eval_set,
    set_up,
    training_rows,
)
from train.sharding import device_batches, mesh
from train.update import optim, schedules, step

CHECK_SECONDS = 10.0  # time limit for reading small data sets before a run, to find unreadable files


def train(
    cfg: Config,
    config_json: str,
    workdir: str,
    runtime: Runtime,
    changes: Sequence[str] = (),
    unread: Unread = lambda facts: [],
) -> str | None:
    """Train in a workdir, resuming from its newest restorable checkpoint -> the signal that ended it early, or None.

    `changes` describes this run's changes to the previous schedule; `unread` is that of `set_up`.
    """
    wrong = [*schedules.find_problems(cfg.schedule, cfg.train.steps), *optim.find_problems(cfg.optim), *unread({})]
    with raise_with(wrong):  # these problems are reported together with any later one
        traced = profile.parse_window(cfg.log.profile, cfg.train.steps)
        ticker = Ticker(runtime)
        corpora = [load_source(cfg, runtime, name, cfg.data.split, ticker) for name in dataset_names(cfg)]
        held_out = load_source(cfg, runtime, dataset_names(cfg)[0], cfg.eval.split, ticker)
        parts = [(name, cfg.data.split) for name in dataset_names(cfg)] + [(dataset_names(cfg)[0], cfg.eval.split)]
        together.check_same_data(
            runtime, {part: s.identity for part, s in zip(parts, [*corpora, held_out], strict=True)}
        )
        setup = set_up(cfg, runtime, corpora[0], resume.find_tokenizer(cfg, workdir), unread=unread)
    rate = schedules.make(cfg.schedule, cfg.optim.lr, cfg.train.steps)
    device_batches.check_batch(cfg.train.batch, cfg.train.accumulate, setup.place, setup.context)
    if cfg.log.wandb:
        metrics.import_wandb()
    if getattr(held_out, "names", None) != getattr(corpora[0], "names", None):
        raise UsageError(f"{cfg.data.name}: splits {cfg.eval.split!r} and {cfg.data.split!r} have different classes")
    tx = optim.make(cfg.optim, setup.model.specs["params"])
    phases, mix = (resume.first_phase(cfg),), inputs.mixup_transform(cfg, setup.task)
    augment = inputs.train_transform(cfg, setup.task.target_field == "boxes", inputs.image_channels(cfg, setup.model))
    batches = sampler.BatchSampler(_training_sources(setup, corpora), phases, cfg.seed, augment, mix)
    until = runtime.monotonic() + CHECK_SECONDS
    intact.check_readable((*corpora, held_out), lambda: runtime.monotonic() < until)
    identity = [source.identity for source in corpora]
    task = setup.task.with_extras(label_smoothing=cfg.train.label_smoothing, z_loss=cfg.train.z_loss)
    if cfg.train.gradient != "autodiff" and (cfg.train.label_smoothing or cfg.train.z_loss or mix):
        extras = "train.label_smoothing, train.z_loss, mixup nor cutmix"
        raise UsageError(f"train.gradient = {cfg.train.gradient!r} supports neither {extras}")
    update = step.make_step(setup.model, task, tx, rate, setup.place, setup.options)
    if not checkpoint.steps(workdir):  # trace first, so that an error of the update leaves no folder
        jax.eval_shape(update, resume.abstract_state(setup, tx), _batch_shapes(setup, batches, 0))

    try:
        checkpoint.prepare(workdir)
    except UsageError:
        newest = next(iter(checkpoint.readable_manifests(workdir)), 0)
        if newest < cfg.train.steps:
            raise
        _say_complete(setup, workdir, newest)  # nothing needs to be written
        return None
    with checkpoint.lock(workdir):
        together.check_shared_workdir(workdir, runtime)
        state, resume_point = resume.resume_or_init(setup, tx, workdir, identity, list(changes))
        batches, start = dataclasses.replace(batches, phases=resume_point.phases), resume_point.start
        if start >= cfg.train.steps and (resume_point.evaluated or not len(held_out)):
            _draw_curve(setup, workdir)
            _say_complete(setup, workdir, start)
            return None
        if jax.process_index() == 0:
            checkpoint.write_atomic(epath.Path(workdir) / "config.json", config_json)
        batch = _batch_shapes(setup, batches, start)
        cost = _print_summary(setup, corpora, held_out, update, state, batch, batches, start, workdir)
        if cfg.log.hlo and jax.process_index() == 0:
            profile.write_programs(update, state, batch, Path(workdir) / "hlo")
        if traced and traced[1] <= start:
            runtime.say(f"no profile: updates {cfg.log.profile} are already done")
        with profile.profile_steps(update, start, traced, str(Path(workdir) / "profile")) as update:
            return _train(setup, update, state, batches, resume_point, held_out, workdir, identity, cost)


def _training_sources(setup: Setup, corpora: list[Source]) -> tuple[sampler.EpochSource, ...]:
    cfg = setup.cfg
    absent = set.intersection(*(set(getattr(source, "absent", ())) for source in corpora))
    if absent:
        raise UsageError(
            f"{cfg.data.name}: split {cfg.data.split!r} has no example of the class {' or '.join(sorted(absent))}, "
            f"which other splits have"
        )
    labelled = setup.task.target_field in ("label", "labels", "boxes")
    types = {(type(s).__name__, getattr(s, "classes", None) if labelled else None) for s in corpora}
    names = {getattr(s, "names", None) for s in corpora} if labelled else set()
    if len(names) > 1 and len(types) == 1:
        differ = " and ".join(", ".join(n or ("numbers",)) for n in sorted(names, key=str))
        raise UsageError(
            f"data sets in a mixture must have the same classes; data.name = {cfg.data.name!r} has {differ}"
        )
    if len(types) > 1:
        what = " and ".join(f"{kind}{f' of {n} classes' if n else ''}" for kind, n in sorted(types, key=str))
        raise UsageError(f"data sets in a mixture must have the same type; data.name = {cfg.data.name!r} has {what}")
    if len(corpora) > 1 and cfg.data.max_length is None and any(isinstance(source, ParallelText) for source in corpora):
        raise UsageError(
            f"config key 'data.max_length' must be set for a mixture of parallel texts, {cfg.data.name!r}: "
            f"the tokens of a row, such as {setup.context}, not None"
        )
    most = max((source.max_boxes for source in corpora if isinstance(source, DetectionDataset)), default=0)
    corpora = [source.with_max_boxes(most) if isinstance(source, DetectionDataset) else source for source in corpora]
    if cfg.train.stateful and ("carried" not in setup.model.traits or setup.task.trait != "language_model"):
        raise UsageError("train.stateful = True needs a recurrent network and loss next_token")
    if cfg.train.stateful and len(corpora) > 1:
        raise UsageError(f"train.stateful = True needs one data set, not the mixture {cfg.data.name!r}")
    return tuple(training_rows(setup, source) for source in corpora)


def _describe_size(source: Source, corpus: sampler.EpochSource) -> str:
    """A source's name and size, with its number of tokens or dropped pairs."""
    what = "examples" if isinstance(source, Examples) else "pairs" if isinstance(source, ParallelText) else "documents"
    more = f", {len(corpus) * corpus.context:,} tokens" if hasattr(corpus, "context") else ""
    if isinstance(source, ParallelText) and len(corpus) < len(source):
        more = f", {len(source) - len(corpus):,} of them too long or empty"
    return f"{source.identity['name']} ({len(source):,} {what}{more})"


def _overlap_notes(trained: Source, held_out: Source) -> tuple[str, ...]:
    """A note if held-out rows are trained on too, as with `train[:90%]` and `train[80%:]`.

    Splits of images with boxes may also list the same files.
    """
    ours, theirs = trained.identity["split"], held_out.identity["split"]
    if shared := splits.overlap(ours, theirs):
        return (f"        held-out rows of {shared!r} are trained on too: {ours} and {theirs} overlap",)
    both = set(getattr(trained, "paths", ())).intersection(getattr(held_out, "paths", ()))
    return note("        held out", "images that are trained on too", sorted(both))


def _shortened_note(length: int | None, context: int | None) -> list[str]:
    """A note if the model's context is shorter than the config's row length."""
    if length is None or context is None or length <= context:
        return []
    return [f"        rows have {context:,} tokens, the model's context, and not data.max_length = {length:,}"]


def _tokens_per_row(setup: Setup, batches: sampler.BatchSampler, start: int) -> int:
    """Predicted tokens per row; for translations, whose lengths differ, the mean over a batch."""
    if setup.task.target_field != "source":
        return setup.context or 0
    return round(float(batches.batch(start)["weight"].sum(1).mean()))


def _batch_shapes(setup: Setup, batches: sampler.BatchSampler, start: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of update `start` as ShapeDtypeStructs."""
    rows, row = batches.phase(start).batch_size, batches.batch(start, [0])
    device_batches.check_sequence_lengths(row, setup.place)
    sharding = lambda k, v: setup.place.sharding(mesh.batch_axes(k, v.ndim))  # noqa: E731
    return {k: jax.ShapeDtypeStruct((rows, *v.shape[1:]), v.dtype, sharding=sharding(k, v)) for k, v in row.items()}


def _print_summary(
    setup: Setup,
    corpora: list[Source],
    held_out: Source,
    update: Callable[..., Any],
    state: step.State,
    batch: dict[str, jax.ShapeDtypeStruct],
    batches: sampler.BatchSampler,
    start: int,
    workdir: str,
) -> int:
    """Print the run's summary -> FLOPs of an update; 0 in processes other than 0, which print nothing."""
    if jax.process_index():
        return 0
    cfg, runtime, model = setup.cfg, setup.runtime, setup.model
    if cfg.log.table:
        runtime.say(*summary.parameter_table(model, setup.place, setup.dtype), "")
    rows = batches.phase(start).batch_size
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    try:
        cost = flops.count(update, shapes, batch)
    except (TypeError, ValueError) as error:
        if not cfg.rules:
            raise
        first = str(error).splitlines()[0]
        raise UsageError(f"the rules {cfg.rules.to_dict()} cannot shard this model: {first}") from error
    size = ", ".join(map(_describe_size, corpora, batches.sources))
    size_name = f", size {cfg.model.size}" if cfg.model.size else ""
    coupled = "; batch_coupled: accumulation changes its statistics" if "batch_coupled" in model.traits else ""
    frozen = sum(
        s.size
        for s, f in zip(*map(jax.tree.leaves, (model.specs["params"], setup.options.freeze_mask)), strict=True)
        if f
    )
    caveat = (
        ", but for the inside of attention" if getattr(model.config, "attention", "") in ("cudnn", "splash") else ""
    )
    still = f", {frozen:,} of them frozen" if frozen else ""
    runtime.say(
        f"model   {model.family}{size_name}: {summary.parameter_counts(model)}{still}, {cfg.train.precision}{coupled}",
        f"data    {size}, split {cfg.data.split}; held out: {cfg.eval.split} ({len(held_out):,})",
        f"batch   {rows:,} rows per update, {cfg.train.accumulate} microbatch(es); {cfg.train.steps:,} updates in all",
        *_overlap_notes(corpora[0], held_out),
        *_shortened_note(cfg.data.max_length, setup.context),
        *dict.fromkeys(f"        {note}" for source in (*corpora, held_out) for note in getattr(source, "notes", ())),
        f"mesh    {summary.describe_mesh(setup.place)}",
        f"cost    {summary.format_quantity(cost, 'FLOP')} an update{caveat}",
        f"files   {workdir}/{{config.json, metrics.jsonl, events/, plots/, checkpoints/}}",
        "",
    )
    return cost


def _train(
    setup: Setup,
    update: Callable[..., Any],
    state: step.State,
    batches: sampler.BatchSampler,
    resume_point: resume.ResumePoint,
    held_out: Source,
    workdir: str,
    identity: list[dict[str, Any]],
    cost: int,
) -> str | None:
    cfg, runtime, main, start = setup.cfg, setup.runtime, jax.process_index() == 0, resume_point.start
    recorder = (
        metrics.Recorder(workdir, runtime, start, cfg.log.wandb, cfg.to_dict()) if main else metrics.NullRecorder()
    )
    store = checkpoint.Store(workdir, cfg.checkpoint.keep, cfg.checkpoint.keep_best)
    eval_set = make_eval_set(setup, held_out)
    eval_step = evaluate.make_eval_step(setup.model, setup.task, setup.place)
    size = lambda n: batches.phase(n).batch_size  # noqa: E731
    tokens = _tokens_per_row(setup, batches, start)
    limits = cfg.log.every, cfg.train.steps, size, tokens, cfg.train.max_skipped
    devices = tuple(setup.place.mesh.devices.flat)
    progress = loop.Progress(runtime, recorder, *limits, main, cost, devices, consecutive_skipped=resume_point.skipped)
    ticker = Ticker(runtime)
    lockstep = together.Lockstep(runtime)
    saver = Saver(setup, store, resume_point, identity, progress, lockstep, start)
    if recorder.continues:
        changed = [
            change for entry in resume_point.history if entry["from_step"] == start for change in entry["changes"]
        ]
        recorder.write("event", start, {}, note="; ".join([f"resumed from update {start}", *changed]))

    def measure(n: int, state: step.State) -> evaluate.Scores:
        """Evaluate and record, after the last update on the whole split -> the scores that checkpoints compare."""
        views = step.eval_variables(state, cfg.optim)
        measured = partial(evaluate_variables, setup, eval_step, views, eval_set, should_stop=should_stop, tick=ticker)
        compared = measured(cfg.eval.limit)
        scores = measured(None) if cfg.eval.limit and n == cfg.train.steps else compared
        recorder.write("eval", n, scores.metrics, split=cfg.eval.split, stderr=scores.stderr)
        progress.say(f"step {n:,}  {cfg.eval.split}: {evaluate.format_scores(scores)}")
        return compared

    def should_stop() -> bool:
        """Whether an evaluation must stop early; several processes always finish it."""
        return jax.process_count() == 1 and runtime.signals() is not None

    def stop_signal(n: int) -> str | None:
        """The signal that requests a stop, or None. Several processes agree on it whenever they log metrics.

        Raises SaveError if a pending save has failed.
        """
        store.check()
        pending = runtime.signals()
        if jax.process_count() == 1:
            return pending
        if n % cfg.log.every:
            return None
        votes = multihost_utils.process_allgather(np.asarray([pending is not None]))
        return (pending or "a signal to another process") if votes.any() else None

    reading = device_batches.train_batches(
        batches, setup.place, start, cfg.train.steps, workers=cfg.data.workers, prefetch=cfg.data.prefetch
    )
    with closing(recorder), closing(store):
        try:
            if not resume_point.evaluated and loop.is_due(
                start, cfg.eval.every, cfg.train.steps
            ):  # a signal had come before it
                checkpoint.add_metrics(workdir, start, measure(start, state).primary_metrics)
            _, signal = loop.run(
                state,
                ticker.report_compile(update),
                lockstep.batches(reading),
                progress,
                start,
                cfg.train.steps,
                measure,
                saver.save,
                saver.rescue,
                cfg.eval.every,
                cfg.checkpoint.every,
                stop_signal,
            )
        except evaluate.Interrupted:  # before the first update: a checkpoint already exists
            signal = runtime.signals()
    _draw_curve(setup, workdir)
    if progress.skipped:
        runtime.say(f"{progress.skipped:,} updates were skipped: loss, gradient or optimizer step was not finite")
    return signal


def _say_complete(setup: Setup, workdir: str, made: int) -> None:
    setup.runtime.say(
        f"{workdir} is complete: {made:,} of {setup.cfg.train.steps:,} updates. "
        f"To continue: --config.train.steps={2 * made} --config.resume=extend"
    )


def _draw_curve(setup: Setup, workdir: str) -> None:
    """Draw the loss curve of a local workdir, and print its path and the newest checkpoint."""
    if jax.process_index() or "://" in workdir:
        return
    try:
        picture = curves.draw_loss(workdir, f"{setup.model.family} on {dataset_title(setup.cfg)}", setup.task.unit)
        where = f"curve in {picture}, " if picture else ""
    except Exception as error:  # a plotting error must not fail a run
        where = f"no curve drawn: {checkpoint.reason(error)}; "
    setup.runtime.say(f"{where}checkpoint {checkpoint.steps(workdir)[-1]:,} in {workdir}/checkpoints")


def saved_config(workdir: str) -> str | None:
    """The config of the newest readable checkpoint as JSON, or None if there is no checkpoint."""
    return next((json.dumps(manifest["config"]) for manifest in checkpoint.readable_manifests(workdir).values()), None)
