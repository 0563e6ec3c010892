"""Models that are there, of checkpoints or of folders of the Hugging Face hub, opened on any devices and measured."""

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from data import questions, sources, splits, tokenizer_reader
from data.detection import AnnotatedImage, BoxAnnotations, DetectionDataset, make_detection_dataset
from data.evaluation import EvalSet
from data.kinds import Examples, ParallelText, Source, Texts
from errors import UsageError, quote, unknown
from models import Model, published
from models.published import labels, preprocessing
from train import begin, checkpoint, detection, evaluate, images, translation
from train import questions as examiner
from train.facts import Unread
from train.host import Host
from train.record import drawn, events, pictures, summary
from train.record.ticker import Ticker
from train.setup import PRECISIONS, Config, Setup, exam_of, how_of, load_source, measure_views, names_of, set_up
from train.update import losses, optim, step

OWN = "own"  # `data.tokenizer` where it is the folder's
PIXELS = (
    "size",
    "crop_pct",
    "resize_mode",
    "interpolation",
    "mean",
    "std",
)  # knobs of `data` that a folder of the hub may tell
SIDE = 224  # pixels, of an image for a network that takes any size


@dataclass(frozen=True)
class Opened:
    """A model with its parameters on devices."""

    name: str  # as the user is told
    setup: Setup
    views: dict[str, Any]  # variables by the prefix of their metrics; the last are those to be used

    @property
    def variables(self) -> Any:
        """Those to be used."""
        return list(self.views.values())[-1]


def restore_state(setup: Setup, workdir: str, n: int) -> step.State:
    """What a checkpoint's state holds to be evaluated, digests verified: all but, mostly, the optimizer's part."""
    cfg = setup.cfg.optim
    wanted = {"params", "stats", "ema"} | ({"opt"} if cfg.name == "schedule_free" else set())
    target = begin.target_of(setup, optim.make(cfg, setup.model.specs["params"]))
    return checkpoint.restore(workdir, n, {part: target[part] for part in wanted})


def open_checkpoint(
    cfg: Config,
    workdir: str,
    n: int,
    host: Host,
    example: Source,
    devices: list[jax.Device] | None = None,
    unread: Unread = lambda facts: [],
) -> Opened:
    """A checkpoint on devices (all where None), for the kind of an example's data; `unread` is that of `set_up`."""
    manifest = checkpoint.load_manifest(workdir, n)
    take_inputs(cfg, manifest)
    setup = set_up(cfg, host, example, checkpoint.load_tokenizer(workdir, n), devices, unread=unread)
    exactly = "classes" not in cfg.model  # told there by a network's folder
    _hold_classes(workdir, manifest.get("classes"), setup, host, exactly=exactly)
    return Opened(
        f"checkpoint {n:,} of {workdir}", setup, step.views(restore_state(setup, workdir, n), setup.cfg.optim)
    )


def take_inputs(cfg: Config, manifest: dict[str, Any]) -> None:
    """Take from a manifest in which shape a classifier of images sees them, where the config left it to the data."""
    inputs, family = manifest.get("inputs"), models.FAMILIES[cfg.model.family]
    if inputs and "inputs" not in cfg.model and family.INPUT == "image" and losses.find(cfg.loss).needs != "boxes":
        with cfg.unlocked():
            cfg.model.inputs = tuple(inputs) if isinstance(inputs, list) else inputs


def open_published(
    cfg: Config,
    folder: str,
    host: Host,
    example: Source,
    devices: list[jax.Device] | None = None,
    ignore: Iterable[str] = (),
    given: Container[str] = (),
    unread: Unread = lambda facts: [],
) -> Opened:
    """A folder of the hub on devices (all where None); says what was loaded. `cfg.model` overrides its fields.

    `ignore` names keys of its config.json to pass over, `given` the knobs that the user has set, which go before what
    the folder says of images. A `cfg.data.tokenizer` other than OWN stands for the folder's. `unread` is that of
    `set_up`.
    Raises UsageError for a folder that cannot be read, and a network that has no task.
    """
    if cfg.train.precision not in PRECISIONS:
        raise unknown("precision", cfg.train.precision, PRECISIONS)
    compute, dtype, _ = PRECISIONS[cfg.train.precision]
    model = published.read_config(folder, ignore, compute=compute, **fields_of(cfg))
    model = replace(model, config=replace(model.config, **how_of(cfg, model.family)))
    cfg.loss, cfg.model.family = loss_of(model, folder), model.family
    if model.module.INPUT == "image":
        take_pixels(cfg, folder, model, host, given)
    tokenizer = None
    if not isinstance(example, Examples) and cfg.data.tokenizer == OWN:
        tokenizer, cfg.data.tokenizer = tokenizer_reader.read_tokenizer(folder).description(), "subword"
    setup = set_up(cfg, host, example, tokenizer, devices, model, unread)
    have, told = getattr(model.config, "classes", 0), getattr(example, "classes", None) or 0
    if 0 < told < have:
        host.say(f"classes {cfg.data.name} has {told}, which are taken for the first of the network's {have}")
    named = labels.read(folder)
    _hold_classes(folder, named, setup, host)
    if not named:
        _hold_numbers(folder, setup)
    found = published.find(model, folder)
    found.check()
    host.say(f"{folder}: {model.family}, {summary.parameters(model)}; {found.summary}")
    variables = found.variables(setup.place.shardings(model.specs), jnp.dtype(dtype).name)
    return Opened(folder, setup, {"": {"stats": {}, **variables}})


def fields_of(cfg: Config) -> dict[str, Any]:
    """The fields of a model's Config that a config sets."""
    return {k: v for k, v in cfg.model.to_dict().items() if k not in ("family", "size")}


def take_pixels(cfg: Config, folder: str, model: Model, host: Host, given: Container[str]) -> None:
    """Take how images are made ready from a folder, but for what the user has given; say what holds."""
    told = {} if "detector" in model.traits else preprocessing.from_folder(folder)
    names = ("size",) if "detector" in model.traits else PIXELS
    inputs = getattr(model.config, "inputs", None)
    fixed = {"size": inputs[:2]} if isinstance(inputs, tuple) else {}
    whole = "data.size" in given and cfg.data.size is None
    for name, value in {**fixed, **told}.items():
        if f"data.{name}" not in given and not (whole and name in images.FRAME):
            with cfg.unlocked(), cfg.ignore_type():
                cfg.data[name] = value
    held = ", ".join(f"data.{name} = {cfg.data[name]}" for name in names)
    host.say(f"images  {held}{'' if told else f' ({folder} does not say how they were made ready)'}")


def _hold_classes(where: str, theirs: Sequence[str] | None, setup: Setup, host: Host, *, exactly: bool = False) -> None:
    """Say where a network's classes have other names than the data's; case and signs do not count.

    Raises UsageError where one of the names stands in another place, and for any difference where `exactly`.
    """
    if not theirs or not setup.names:
        return
    told, ours = plain(theirs), plain(setup.names)
    if (told if exactly else told[: len(ours)]) == ours:
        return
    shown = [", ".join(names[:4]) + (", …" if len(names) > 4 else "") for names in (theirs, setup.names)]
    data = setup.cfg.data.name
    if exactly or any(name in told and told.index(name) != i for i, name in enumerate(ours)):
        raise UsageError(
            f"{where} names the classes {shown[0]}; {data!r} has {shown[1]}: a class is known by its place"
        )
    host.say(f"classes the network's are called {shown[0]}, those of {data} {shown[1]}: taken by their places")


def _hold_numbers(where: str, setup: Setup) -> None:
    """Raises UsageError where the data's classes are numbers with gaps, for a network whose classes have no names."""
    names = setup.names or ()
    if names and all(name.isdecimal() for name in names) and int(names[-1]) - int(names[0]) >= len(names):
        raise UsageError(
            f"{setup.cfg.data.name!r} has classes of the numbers {names[0]} to {names[-1]}, but not all of these, "
            f"and {where} does not name its own: which are which is unknown; give its config.json an id2label"
        )


def plain(names: Sequence[str]) -> list[str]:
    """Names to be compared: letters and digits, where these still tell them apart."""
    plain = [re.sub(r"[\W_]+", " ", name).strip().lower() for name in names]
    return plain if all(plain) and len(set(plain)) == len(plain) else list(names)


def open_to_write(
    cfg: Config,
    host: Host,
    name: str,
    n: int | None = None,
    ignore: Iterable[str] = (),
    unread: Unread = lambda facts: [],
) -> Opened:
    """A language model on one device: checkpoint n of a workdir, or where n is None a folder of the hub.

    `unread` is that of `set_up`. Raises UsageError for what generates no text.
    """
    cfg.mesh, one, blank = "dp:1", jax.local_devices()[:1], no_text(cfg, "next_token")
    if n is None:
        model = published.read_config(name, ignore)
        if "cached" not in model.traits:
            raise UsageError(f"{name} holds a {model.family}, which does not generate text")
        return open_published(cfg, name, host, blank, one, ignore, unread=unread)
    if checkpoint.load_tokenizer(name, n) is None or losses.find(cfg.loss).trait != "language_model":
        raise UsageError(f"{name} holds a {cfg.model.family} trained by loss {cfg.loss}, which does not generate text")
    return open_checkpoint(cfg, name, n, host, blank, one, unread)


def no_text(cfg: Config, loss: str, classes: int | None = None) -> Texts:
    """No text at all, with labels out of `classes` where the loss asks for some: to set a model up without its data."""
    shapes = {"label": (0,), "labels": (0, classes or 1)}
    needs = losses.find(loss).needs
    labels = np.zeros(shapes[needs], np.int32) if needs in shapes else None
    return Texts((), {"name": cfg.data.name}, labels, None if labels is None else classes)


def stand_in(cfg: Config, host: Host, family: str, loss: str, classes: int | None, inputs: Any = None) -> Source:
    """What a model of a family is set up by without its data: no text, or a black image of the inputs that are known.

    Where an image's size is not known, it is the data after all, which must be there.
    """
    if models.FAMILIES[family].INPUT != "image":
        return no_text(cfg, loss, classes)
    if losses.find(loss).needs == "boxes":
        return _no_boxes(cfg, classes)
    if inputs is None:
        return load_source(cfg, host, names_of(cfg)[0], cfg.eval.split, Ticker(host))
    shape = (SIDE, SIDE, inputs) if isinstance(inputs, int) else tuple(inputs)
    several = losses.find(loss).needs == "labels"
    label = {"labels": np.zeros((1, classes or 1), np.float32)} if several else {"label": np.zeros(1, np.int32)}
    fields = {"image": np.zeros((1, *shape), np.uint8), **label}
    return Examples(fields, 1, {"name": cfg.data.name}, classes)


def _no_boxes(cfg: Config, classes: int | None) -> DetectionDataset:
    """A black image with nothing in it."""
    size, name = images.size_for_boxes(cfg), cfg.data.name
    nothing = BoxAnnotations(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool))
    black, told = np.zeros((*size, 3), np.uint8), [str(i) for i in range(classes or 1)]
    return replace(
        make_detection_dataset(name, "", [AnnotatedImage("", size, nothing)], told, lambda i: black, {"name": name}),
        names=None,
    )


def loss_of(model: Model, folder: str) -> str:
    """The loss by which a folder's network is measured. Raises UsageError for one that has none."""
    if "classifier" in model.traits and (problem := labels.problem_type(folder)):
        if problem != "multi_label_classification":
            raise UsageError(
                f"{folder} has problem_type {quote(problem)} by its config.json or its single output; "
                f"single_label_classification and multi_label_classification are measured here"
            )
        return "sigmoid"
    tasks = (("causal language_model", "next_token"), ("classifier", "softmax"), ("detector", "detection"))
    for traits, loss in tasks:
        if set(traits.split()) <= model.traits:
            return loss
    raise UsageError(f"a {model.family} with head {model.config.head!r} has no task; init_from takes its folder")


def exam_source(cfg: Config, host: Host, asked: str | None) -> tuple[str, Source]:
    """How the config's data examine, and the held-out ones; where questions are put, no text: a model is set up by it.

    Raises UsageError.
    """
    kind = questions.eval_kind(asked, cfg.data.name, host.environ.get("TFDS_DATA_DIR"))
    if kind == "multiple_choice":
        return kind, no_text(cfg, "next_token")
    return kind, load_source(cfg, host, names_of(cfg)[0], cfg.eval.split, Ticker(host))


def split_of(cfg: Config, host: Host) -> str:
    """Which split of the data examines: the config's, or where they lack it test, validation, or the last they have."""
    name, data_dir = names_of(cfg)[0], host.environ.get("TFDS_DATA_DIR")
    if questions.is_question_file(name):
        return cfg.eval.split
    known = sources.splits_of(name, data_dir, cfg.data.field) or (cfg.eval.split,)  # a set not prepared knows none
    wanted = (cfg.eval.split, "test", "validation")
    return next((split for split in wanted if set(splits.split_names(split)) <= set(known)), known[-1])


def evaluate_checkpoint(
    cfg: Config, workdir: str, n: int, host: Host, devices: list[jax.Device] | None = None
) -> evaluate.Scores:
    """Restore a checkpoint on any devices (all where None) and measure it on the held-out split."""
    held_out = exam_source(cfg, host, "perplexity")[1]
    return measured(open_checkpoint(cfg, workdir, n, host, held_out, devices), held_out)[1]


def measured(opened: Opened, held_out: Source) -> tuple[EvalSet, evaluate.Scores]:
    """The exam that a held-out source gives, and what an opened model makes of it."""
    setup, exam = opened.setup, exam_of(opened.setup, held_out)
    if not len(exam):
        raise UsageError(f"{setup.cfg.data.name}, {setup.cfg.eval.split}, holds nothing to predict: no two tokens")
    ticker = Ticker(setup.host)
    examine = ticker.compiling(evaluate.make_examiner(setup.model, setup.task, setup.place))
    return exam, measure_views(setup, examine, opened.views, exam, setup.cfg.eval.limit, tick=ticker)


def asked(opened: Opened, held_out: Source, kind: str) -> evaluate.Scores:
    """What an opened language model makes of questions: those of a data set, or the last words of texts."""
    setup = opened.setup
    if setup.task.trait != "language_model" or setup.tokenizer is None:
        raise UsageError(f"{opened.name} is no language model, and cannot be asked questions")
    cfg, data_dir = setup.cfg, setup.host.environ.get("TFDS_DATA_DIR")
    if kind == "multiple_choice":
        items = questions.load(cfg.data.name, cfg.eval.split, data_dir)
    else:
        assert isinstance(held_out, Texts)
        items = questions.last_words(held_out)
    ticker = Ticker(setup.host)
    examine = ticker.compiling(evaluate.make_examiner(setup.model, setup.task, setup.place))
    rows = cfg.eval.batch or cfg.train.batch
    if cfg.eval.limit is not None:
        items = items.first(rows * cfg.eval.limit)
    return examiner.ask(setup.model, setup.tokenizer, examine, opened.variables, setup.place, items, rows, ticker)


def report(opened: Opened, held_out: Source, kind: str, workdir: str | None = None, n: int = 0) -> None:
    """Measure an opened model, say the figures, and draw into a local workdir what they are made of."""
    cfg, host = opened.setup.cfg, opened.setup.host
    if kind != "perplexity":
        scores, how = asked(opened, held_out, kind), {"multiple_choice": "choices", "lambada": "last words"}[kind]
        host.say(f"{opened.name} on {cfg.data.name}, {cfg.eval.split}, {how}: {evaluate.in_words(scores)}")
        return
    exam, scores = measured(opened, held_out)
    host.say(f"{opened.name} on {cfg.data.name}, {cfg.eval.split}: {evaluate.in_words(scores)}")
    evaluate.refuse_not_finite(opened.name, scores)
    if isinstance(held_out, ParallelText):
        written = translation.Written(opened.setup, opened.variables, held_out)
        host.say(*map(str, written.scores))
    if isinstance(held_out, DetectionDataset):
        host.say(detection.by_class(scores, held_out.names or ()))
    if scores.rows is None or workdir is None or jax.process_index() or "://" in workdir:
        return
    try:
        if isinstance(held_out, ParallelText):
            files = written.draw(workdir, n)
        elif isinstance(held_out, DetectionDataset):
            files = drawn.draw(opened.setup, held_out, scores.rows, workdir, n)
        else:
            files = pictures.draw(opened.setup, held_out, exam, scores.rows, workdir, n)
    except Exception as error:  # another's run may be measured where one must not write, or matplotlib cannot draw
        host.say(f"nothing drawn: {checkpoint.reason(error)}")
        return
    if not files:
        return
    host.say(f"to look at, in {files[0].parent}: {', '.join(path.name for path in files)}")
    try:
        events.keep(files, Path(workdir, "events", "eval"), n, host.clock())
    except OSError as error:
        host.say(f"not among the events: {error}")
