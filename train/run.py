"""The composition root of training: from a config to a trained model in a workdir."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from configs import reader, unread
from configs.knobs import RunConfig
from data import sampler
from data.images.detection import DetectionDataset, note
from data.sources import intact, splits
from data.types import Examples, ParallelText, Source
from errors import UsageError, raise_with
from train import checkpoint, init_from, loop, resume, together
from train.evaluate import evaluate
from train.evaluate.variables import evaluate_variables
from train.plan import flops
from train.plots import curves
from train.record import metrics, profile, summary
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.saving import Saver
from train.setup import checks, inputs
from train.setup.facts import Unread
from train.setup.setup import (
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
    config: RunConfig,
    workdir: str,
    runtime: Runtime,
    unread: Unread = unread.unread,
) -> str | None:
    """Train in a workdir, resuming from its newest restorable checkpoint -> the signal that ended it early, or None.

    `unread` lists the knobs of the config that have no effect.
    """
    saved = saved_config(workdir)
    config = init_from.with_vocab_size(config, saved)
    changes = reader.refuse_other_run(workdir, saved, config) if saved is not None else []
    with raise_with([*checks.find_problems(config), *unread(config, {})]):  # reported together with any later problem
        checks.check_choices(config)
        traced = profile.parse_window(config.log.profile, config.train.steps)
        ticker = Ticker(runtime)
        corpora = [load_source(config, runtime, name, config.data.split, ticker) for name in dataset_names(config)]
        held_out = load_source(config, runtime, dataset_names(config)[0], config.eval.split, ticker)
        parts = [(name, config.data.split) for name in dataset_names(config)] + [
            (dataset_names(config)[0], config.eval.split)
        ]
        together.check_same_data(
            runtime, {part: s.identity for part, s in zip(parts, [*corpora, held_out], strict=True)}
        )
        setup = set_up(config, runtime, corpora[0], resume.find_tokenizer(config, workdir), unread=unread)
    rate = schedules.make(config.schedule, config.optim.lr, config.train.steps)
    device_batches.check_batch(config.train.batch, config.train.accumulate, setup.place, setup.context)
    if config.log.wandb:
        metrics.import_wandb()
    if getattr(held_out, "names", None) != getattr(corpora[0], "names", None):
        raise UsageError(
            f"{config.data.name}: splits {config.eval.split!r} and {config.data.split!r} have different classes"
        )
    tx = optim.make(config.optim, setup.model.specs["params"])
    phases, mix = (resume.first_phase(config),), inputs.mixup_transform(config, setup.task)
    augment = inputs.train_transform(
        config, setup.task.target_field == "boxes", inputs.image_channels(config, setup.model)
    )
    batches = sampler.BatchSampler(_training_sources(setup, corpora), phases, config.seed, augment, mix)
    until = runtime.monotonic() + CHECK_SECONDS
    intact.check_readable((*corpora, held_out), lambda: runtime.monotonic() < until)
    identity = [source.identity for source in corpora]
    task = setup.task.with_extras(label_smoothing=config.train.label_smoothing, z_loss=config.train.z_loss)
    if config.train.gradient != "autodiff" and (config.train.label_smoothing or config.train.z_loss or mix):
        extras = "train.label_smoothing, train.z_loss, mixup nor cutmix"
        raise UsageError(f"train.gradient = {config.train.gradient!r} supports neither {extras}")
    update = step.make_step(setup.model, task, tx, rate, setup.place, setup.options)
    if not checkpoint.steps(workdir):  # trace first, so that an error of the update leaves no folder
        jax.eval_shape(update, resume.abstract_state(setup, tx), _batch_shapes(setup, batches, 0))

    try:
        checkpoint.prepare(workdir)
    except UsageError:
        newest = next(iter(checkpoint.readable_manifests(workdir)), 0)
        if newest < config.train.steps:
            raise
        _say_complete(setup, workdir, newest)  # nothing needs to be written
        return None
    with checkpoint.lock(workdir):
        together.check_shared_workdir(workdir, runtime)
        state, resume_point = resume.resume_or_init(setup, tx, workdir, identity, changes)
        batches, start = dataclasses.replace(batches, phases=resume_point.phases), resume_point.start
        if start >= config.train.steps and (resume_point.evaluated or not len(held_out)):
            _draw_curve(setup, workdir)
            _say_complete(setup, workdir, start)
            return None
        if jax.process_index() == 0:
            checkpoint.write_atomic(epath.Path(workdir) / "config.json", config.to_json())
        batch = _batch_shapes(setup, batches, start)
        cost = _print_summary(setup, corpora, held_out, update, state, batch, batches, start, workdir)
        if config.log.hlo and jax.process_index() == 0:
            profile.write_programs(update, state, batch, Path(workdir) / "hlo")
        if traced and traced[1] <= start:
            runtime.say(f"no profile: updates {config.log.profile} are already done")
        with profile.profile_steps(update, start, traced, str(Path(workdir) / "profile")) as update:
            return _train(setup, update, state, batches, resume_point, held_out, workdir, identity, cost)


def _training_sources(setup: Setup, corpora: list[Source]) -> tuple[sampler.EpochSource, ...]:
    config = setup.config
    absent = set.intersection(*(set(getattr(source, "absent", ())) for source in corpora))
    if absent:
        raise UsageError(
            f"{config.data.name}: split {config.data.split!r} has no example of the class "
            f"{' or '.join(sorted(absent))}, which other splits have"
        )
    labelled = setup.task.target_field in ("label", "labels", "boxes")
    types = {(type(s).__name__, getattr(s, "classes", None) if labelled else None) for s in corpora}
    names = {getattr(s, "names", None) for s in corpora} if labelled else set()
    if len(names) > 1 and len(types) == 1:
        differ = " and ".join(", ".join(n or ("numbers",)) for n in sorted(names, key=str))
        raise UsageError(
            f"data sets in a mixture must have the same classes; data.name = {config.data.name!r} has {differ}"
        )
    if len(types) > 1:
        what = " and ".join(f"{kind}{f' of {n} classes' if n else ''}" for kind, n in sorted(types, key=str))
        raise UsageError(f"data sets in a mixture must have the same type; data.name = {config.data.name!r} has {what}")
    if (
        len(corpora) > 1
        and config.data.max_length is None
        and any(isinstance(source, ParallelText) for source in corpora)
    ):
        raise UsageError(
            f"config key 'data.max_length' must be set for a mixture of parallel texts, {config.data.name!r}: "
            f"the tokens of a row, such as {setup.context}, not None"
        )
    most = max((source.max_boxes for source in corpora if isinstance(source, DetectionDataset)), default=0)
    corpora = [source.with_max_boxes(most) if isinstance(source, DetectionDataset) else source for source in corpora]
    if config.train.stateful and ("carried" not in setup.model.traits or setup.task.trait != "language_model"):
        raise UsageError("train.stateful = True needs a recurrent network and loss next_token")
    if config.train.stateful and len(corpora) > 1:
        raise UsageError(f"train.stateful = True needs one data set, not the mixture {config.data.name!r}")
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
    config, runtime, model = setup.config, setup.runtime, setup.model
    if config.log.table:
        runtime.say(*summary.parameter_table(model, setup.place, setup.dtype), "")
    rows = batches.phase(start).batch_size
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    try:
        cost = flops.count(update, shapes, batch)
    except (TypeError, ValueError) as error:
        if not config.rules:
            raise
        first = str(error).splitlines()[0]
        raise UsageError(f"the rules {dict(config.rules)} cannot shard this model: {first}") from error
    size = ", ".join(map(_describe_size, corpora, batches.sources))
    size_name = f", size {config.model.size}" if config.model.size else ""
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
    train = config.train
    runtime.say(
        f"model   {model.family}{size_name}: {summary.parameter_counts(model)}{still}, {train.precision}{coupled}",
        f"data    {size}, split {config.data.split}; held out: {config.eval.split} ({len(held_out):,})",
        f"batch   {rows:,} rows per update, {train.accumulate} microbatch(es); {train.steps:,} updates in all",
        *_overlap_notes(corpora[0], held_out),
        *_shortened_note(config.data.max_length, setup.context),
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
    config, runtime, main, start = setup.config, setup.runtime, jax.process_index() == 0, resume_point.start
    recorder = (
        metrics.Recorder(workdir, runtime, start, config.log.wandb, config.to_dict())
        if main
        else metrics.NullRecorder()
    )
    store = checkpoint.Store(workdir, config.checkpoint.keep, config.checkpoint.keep_best)
    eval_set = make_eval_set(setup, held_out)
    eval_step = evaluate.make_eval_step(setup.model, setup.task, setup.place)
    size = lambda n: batches.phase(n).batch_size  # noqa: E731
    tokens = _tokens_per_row(setup, batches, start)
    limits = config.log.every, config.train.steps, size, tokens, config.train.max_skipped
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
        views = step.eval_variables(state, config.optim)
        measured = partial(evaluate_variables, setup, eval_step, views, eval_set, should_stop=should_stop, tick=ticker)
        compared = measured(config.eval.limit)
        scores = measured(None) if config.eval.limit and n == config.train.steps else compared
        recorder.write("eval", n, scores.metrics, split=config.eval.split, stderr=scores.stderr)
        progress.say(f"step {n:,}  {config.eval.split}: {evaluate.format_scores(scores)}")
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
        if n % config.log.every:
            return None
        votes = multihost_utils.process_allgather(np.asarray([pending is not None]))
        return (pending or "a signal to another process") if votes.any() else None

    reading = device_batches.train_batches(
        batches, setup.place, start, config.train.steps, workers=config.data.workers, prefetch=config.data.prefetch
    )
    with closing(recorder), closing(store):
        try:
            if not resume_point.evaluated and loop.is_due(
                start, config.eval.every, config.train.steps
            ):  # a signal had come before it
                checkpoint.add_metrics(workdir, start, measure(start, state).primary_metrics)
            _, signal = loop.run(
                state,
                ticker.report_compile(update),
                lockstep.batches(reading),
                progress,
                start,
                config.train.steps,
                measure,
                saver.save,
                saver.rescue,
                config.eval.every,
                config.checkpoint.every,
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
        f"{workdir} is complete: {made:,} of {setup.config.train.steps:,} updates. "
        f"To continue: --config.train.steps={2 * made} --config.resume=extend"
    )


def _draw_curve(setup: Setup, workdir: str) -> None:
    """Draw the loss curve of a local workdir, and print its path and the newest checkpoint."""
    if jax.process_index() or "://" in workdir:
        return
    try:
        picture = curves.draw_loss(workdir, f"{setup.model.family} on {dataset_title(setup.config)}", setup.task.unit)
        where = f"curve in {picture}, " if picture else ""
    except Exception as error:  # a plotting error must not fail a run
        where = f"no curve drawn: {checkpoint.reason(error)}; "
    setup.runtime.say(f"{where}checkpoint {checkpoint.steps(workdir)[-1]:,} in {workdir}/checkpoints")


def saved_config(workdir: str) -> RunConfig | None:
    """The config of the newest readable checkpoint, or None if there is no checkpoint."""
    saved = next(iter(checkpoint.readable_manifests(workdir).values()), None)
    return None if saved is None else reader.from_json(json.dumps(saved["config"]))
