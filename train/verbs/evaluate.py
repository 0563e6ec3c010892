"""The verb `eval`: the held-out data, the scores of an opened model on them, and their figures."""

from collections.abc import Iterable
from pathlib import Path

import jax

from configs import unread
from configs.knobs import RunConfig
from data import sources
from data.eval_set import EvalSet
from data.images.detection import DetectionDataset
from data.source import Source
from data.sources import multiple_choice, splits
from data.types import ParallelText
from errors import UsageError
from train import checkpoint
from train.evaluate import callbacks, coco_map, evaluate, lm_eval, translation
from train.evaluate.variables import evaluate_variables
from train.plots import classification, detection
from train.plots import translation as translation_plots
from train.record import events
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.setup.facts import Unread
from train.setup.setup import dataset_names, load_source, make_eval_set
from train.tasks import get_task
from train.verbs.load_model import LoadedModel, empty_texts, open_checkpoint


def eval_source(config: RunConfig, runtime: Runtime, requested: str | None) -> tuple[str, Source]:
    """The evaluation task and the held-out source; for multiple choice an empty text source, which sets up the model.

    Raises UsageError for a task that the data does not support.
    """
    kind = multiple_choice.eval_kind(requested, config.data.name, runtime.environ.get("TFDS_DATA_DIR"))
    if kind == "multiple_choice":
        return kind, empty_texts(config, "next_token")
    return kind, load_source(config, runtime, dataset_names(config)[0], config.eval.split, Ticker(runtime))


def default_split(config: RunConfig, runtime: Runtime) -> str:
    """The split to evaluate on: the config's, or if the data lacks it test, else validation, else the data's last."""
    name, data_dir = dataset_names(config)[0], runtime.environ.get("TFDS_DATA_DIR")
    if multiple_choice.is_question_file(name):
        return config.eval.split
    known = sources.splits_of(name, data_dir, config.data.field) or (
        config.eval.split,
    )  # () of a function without `splits`
    wanted = (config.eval.split, "test", "validation")
    return next((split for split in wanted if set(splits.split_names(split)) <= set(known)), known[-1])


def find_unread(config: RunConfig, kind: str, given: Iterable[str]) -> Unread:
    """The function that lists those of the knobs `given` that an evaluation of a kind does not read."""
    views = "two views" if get_task(config.loss).two_views else "one view"
    return unread.unread_by("eval", given, exam=kind, views=views)


def evaluate_checkpoint(
    config: RunConfig,
    workdir: str,
    n: int,
    runtime: Runtime,
    devices: list[jax.Device] | None = None,
    given: Iterable[str] = (),
) -> evaluate.Scores:
    """Load a checkpoint onto devices (None: all) and evaluate it on the held-out split.

    Raises as `open_checkpoint`, and UsageError for data that cannot be loaded, for a held-out split without rows, and
    for a knob of `given` that has no effect.
    """
    kind, held_out = eval_source(config, runtime, "perplexity")
    opened = open_checkpoint(config, workdir, n, runtime, held_out, devices, find_unread(config, kind, given))
    return evaluate_model(opened, held_out, workdir, n)[1]


def evaluate_model(
    opened: LoadedModel, held_out: Source, workdir: str | None = None, n: int = 0
) -> tuple[EvalSet, evaluate.Scores]:
    """Evaluate a loaded model, checkpoint n of a workdir, on a held-out source -> (evaluation set, scores).

    Callbacks are called, and their metrics are among the scores. Raises UsageError for no rows, and for a callback
    that cannot be called or returns no metrics.
    """
    setup, eval_set = opened.setup, make_eval_set(opened.setup, held_out)
    if not len(eval_set):
        raise UsageError(
            f"{setup.config.data.name}: split {setup.config.eval.split!r} has no document of two tokens or more: "
            f"nothing to evaluate"
        )
    found = callbacks.find_callbacks(setup.config.eval.callbacks, setup.model)
    ticker = Ticker(setup.runtime)
    eval_step = ticker.report_compile(evaluate.make_eval_step(setup.model, setup.task, setup.place))
    with setup.activate():
        scores = evaluate_variables(
            setup, eval_step, opened.eval_variables, eval_set, setup.config.eval.limit, tick=ticker
        )
        of_run = setup.config, setup.runtime.say, workdir, setup.tokenizer, setup.class_names
        evaluation = callbacks.Evaluation(setup.model, opened.variables, n, scores, eval_set, *of_run)
        own = callbacks.call(found, evaluation)
    return eval_set, evaluate.with_metrics(scores, own)


def evaluate_questions(opened: LoadedModel, held_out: Source, kind: str) -> evaluate.Scores:
    """Evaluate a language model on multiple-choice questions, or on the last words of texts."""
    setup = opened.setup
    if not setup.task.is_language_model or setup.tokenizer is None:
        raise UsageError(f"{opened.name} is not a language model; --task={kind} needs one")
    config, data_dir = setup.config, setup.runtime.environ.get("TFDS_DATA_DIR")
    if kind == "multiple_choice":
        items = multiple_choice.load(config.data.name, config.eval.split, data_dir)
    else:
        items = multiple_choice.last_words(held_out)
    ticker = Ticker(setup.runtime)
    eval_step = ticker.report_compile(evaluate.make_eval_step(setup.model, setup.task, setup.place))
    rows = config.eval.batch or config.train.batch
    if config.eval.limit is not None:
        items = items.first(rows * config.eval.limit)
    with setup.activate():
        return lm_eval.score_questions(
            setup.model, setup.tokenizer, eval_step, opened.variables, setup.place, items, rows, ticker
        )


def report(opened: LoadedModel, held_out: Source, kind: str, workdir: str | None = None, n: int = 0) -> None:
    """Evaluate a loaded model, print its scores, and draw plots into a local workdir."""
    config, runtime = opened.setup.config, opened.setup.runtime
    where = f"{opened.name} on {config.data.name}, {config.eval.split}"
    if kind != "perplexity":
        scores = evaluate_questions(opened, held_out, kind)
        what = {"multiple_choice": "choices", "lambada": "last words"}[kind]
        runtime.say(f"{where}, {what}: {evaluate.format_scores(scores)}")
        return
    eval_set, scores = evaluate_model(opened, held_out, workdir, n)
    runtime.say(f"{where}: {evaluate.format_scores(scores)}")
    evaluate.check_finite_scores(opened.name, scores)
    if isinstance(held_out, ParallelText):
        translations = translation.Translations(opened.setup, opened.variables, held_out)
        runtime.say(*map(str, translations.scores))
    if isinstance(held_out, DetectionDataset):
        runtime.say(coco_map.format_class_ap(scores, held_out.names or ()))
    if scores.rows is None or workdir is None or jax.process_index() or "://" in workdir:
        return
    try:
        if isinstance(held_out, ParallelText):
            files = translation_plots.draw(translations, workdir, n)
        elif isinstance(held_out, DetectionDataset):
            files = detection.draw(opened.setup, held_out, scores.rows, workdir, n)
        else:
            files = classification.draw(opened.setup, held_out, eval_set, scores.rows, workdir, n)
    except Exception as error:  # the workdir may be read-only, or matplotlib may fail
        runtime.say(f"nothing drawn: {checkpoint.reason(error)}")
        return
    if not files:
        return
    runtime.say(f"to look at, in {files[0].parent}: {', '.join(path.name for path in files)}")
    try:
        events.write_files(files, Path(workdir, "events", "eval"), n, runtime.clock())
    except OSError as error:
        runtime.say(f"not among the events: {error}")
