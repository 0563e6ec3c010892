"""The verb `eval`: the held-out data, the scores of an opened model on them, and their figures."""

from pathlib import Path

import jax

from data import sources
from data.eval_set import EvalSet
from data.images.detection import DetectionDataset
from data.sources import multiple_choice, splits
from data.types import ParallelText, Source, Texts
from errors import UsageError
from train import checkpoint
from train.evaluate import coco_map, evaluate, lm_eval, translation
from train.evaluate.variables import evaluate_variables
from train.plots import classification, detection
from train.plots import translation as translation_plots
from train.record import events
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.setup.setup import Config, dataset_names, load_source, make_eval_set
from train.verbs.load_model import LoadedModel, empty_texts, open_checkpoint


def eval_source(cfg: Config, runtime: Runtime, requested: str | None) -> tuple[str, Source]:
    """How the config's data examine, and the held-out ones; where questions are put, no text: a model is set up by it.

    Raises UsageError.
    """
    kind = multiple_choice.eval_kind(requested, cfg.data.name, runtime.environ.get("TFDS_DATA_DIR"))
    if kind == "multiple_choice":
        return kind, empty_texts(cfg, "next_token")
    return kind, load_source(cfg, runtime, dataset_names(cfg)[0], cfg.eval.split, Ticker(runtime))


def default_split(cfg: Config, runtime: Runtime) -> str:
    """Which split of the data examines: the config's, or where they lack it test, validation, or the last they have."""
    name, data_dir = dataset_names(cfg)[0], runtime.environ.get("TFDS_DATA_DIR")
    if multiple_choice.is_question_file(name):
        return cfg.eval.split
    known = sources.splits_of(name, data_dir, cfg.data.field) or (cfg.eval.split,)  # a set not prepared knows none
    wanted = (cfg.eval.split, "test", "validation")
    return next((split for split in wanted if set(splits.split_names(split)) <= set(known)), known[-1])


def evaluate_checkpoint(
    cfg: Config, workdir: str, n: int, runtime: Runtime, devices: list[jax.Device] | None = None
) -> evaluate.Scores:
    """Restore a checkpoint on any devices (all where None) and measure it on the held-out split."""
    held_out = eval_source(cfg, runtime, "perplexity")[1]
    return evaluate_model(open_checkpoint(cfg, workdir, n, runtime, held_out, devices), held_out)[1]


def evaluate_model(opened: LoadedModel, held_out: Source) -> tuple[EvalSet, evaluate.Scores]:
    """The exam that a held-out source gives, and what an opened model makes of it."""
    setup, exam = opened.setup, make_eval_set(opened.setup, held_out)
    if not len(exam):
        raise UsageError(f"{setup.cfg.data.name}, {setup.cfg.eval.split}, holds nothing to predict: no two tokens")
    ticker = Ticker(setup.runtime)
    examine = ticker.report_compile(evaluate.make_eval_step(setup.model, setup.task, setup.place))
    return exam, evaluate_variables(setup, examine, opened.eval_variables, exam, setup.cfg.eval.limit, tick=ticker)


def evaluate_questions(opened: LoadedModel, held_out: Source, kind: str) -> evaluate.Scores:
    """What an opened language model makes of questions: those of a data set, or the last words of texts."""
    setup = opened.setup
    if setup.task.trait != "language_model" or setup.tokenizer is None:
        raise UsageError(f"{opened.name} is no language model, and cannot be asked questions")
    cfg, data_dir = setup.cfg, setup.runtime.environ.get("TFDS_DATA_DIR")
    if kind == "multiple_choice":
        items = multiple_choice.load(cfg.data.name, cfg.eval.split, data_dir)
    else:
        assert isinstance(held_out, Texts)
        items = multiple_choice.last_words(held_out)
    ticker = Ticker(setup.runtime)
    examine = ticker.report_compile(evaluate.make_eval_step(setup.model, setup.task, setup.place))
    rows = cfg.eval.batch or cfg.train.batch
    if cfg.eval.limit is not None:
        items = items.first(rows * cfg.eval.limit)
    return lm_eval.score_questions(
        setup.model, setup.tokenizer, examine, opened.variables, setup.place, items, rows, ticker
    )


def report(opened: LoadedModel, held_out: Source, kind: str, workdir: str | None = None, n: int = 0) -> None:
    """Measure an opened model, say the figures, and draw into a local workdir what they are made of."""
    cfg, runtime = opened.setup.cfg, opened.setup.runtime
    if kind != "perplexity":
        scores, how = (
            evaluate_questions(opened, held_out, kind),
            {"multiple_choice": "choices", "lambada": "last words"}[kind],
        )
        runtime.say(f"{opened.name} on {cfg.data.name}, {cfg.eval.split}, {how}: {evaluate.format_scores(scores)}")
        return
    exam, scores = evaluate_model(opened, held_out)
    runtime.say(f"{opened.name} on {cfg.data.name}, {cfg.eval.split}: {evaluate.format_scores(scores)}")
    evaluate.check_finite_scores(opened.name, scores)
    if isinstance(held_out, ParallelText):
        written = translation.Translations(opened.setup, opened.variables, held_out)
        runtime.say(*map(str, written.scores))
    if isinstance(held_out, DetectionDataset):
        runtime.say(coco_map.format_class_ap(scores, held_out.names or ()))
    if scores.rows is None or workdir is None or jax.process_index() or "://" in workdir:
        return
    try:
        if isinstance(held_out, ParallelText):
            files = translation_plots.draw(written, workdir, n)
        elif isinstance(held_out, DetectionDataset):
            files = detection.draw(opened.setup, held_out, scores.rows, workdir, n)
        else:
            files = classification.draw(opened.setup, held_out, exam, scores.rows, workdir, n)
    except Exception as error:  # another's run may be measured where one must not write, or matplotlib cannot draw
        runtime.say(f"nothing drawn: {checkpoint.reason(error)}")
        return
    if not files:
        return
    runtime.say(f"to look at, in {files[0].parent}: {', '.join(path.name for path in files)}")
    try:
        events.write_files(files, Path(workdir, "events", "eval"), n, runtime.clock())
    except OSError as error:
        runtime.say(f"not among the events: {error}")
