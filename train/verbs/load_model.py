"""Models that are there, of checkpoints or of folders of the Hugging Face hub, opened on any devices and measured."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from data.images.detection import AnnotatedImage, BoxAnnotations, DetectionDataset, make_detection_dataset
from data.text import tokenizer_reader
from data.types import Examples, Source, Texts
from errors import UsageError, unknown
from models import pretrained
from models.pretrained import class_names
from train import checkpoint, resume
from train.record import summary
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.setup import inputs
from train.setup.facts import Unread
from train.setup.published import default_loss, model_fields, normalise_names, set_preprocessing
from train.setup.setup import (
    PRECISIONS,
    Config,
    Setup,
    compute_fields,
    dataset_names,
    load_source,
    set_up,
)
from train.tasks import losses
from train.update import optim, step

FOLDER_TOKENIZER = "own"  # `data.tokenizer` where it is the folder's
DEFAULT_SIDE = 224  # pixels, of an image for a network that takes any size


@dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters on devices."""

    name: str  # as the user is told
    setup: Setup
    eval_variables: dict[str, Any]  # variables by the prefix of their metrics; the last are those to be used

    @property
    def variables(self) -> Any:
        """Those to be used."""
        return list(self.eval_variables.values())[-1]


def restore_state(setup: Setup, workdir: str, n: int) -> step.State:
    """What a checkpoint's state holds to be evaluated, digests verified: all but, mostly, the optimizer's part."""
    cfg = setup.cfg.optim
    wanted = {"params", "stats", "ema"} | ({"opt"} if cfg.name == "schedule_free" else set())
    target = resume.abstract_state(setup, optim.make(cfg, setup.model.specs["params"]))
    return checkpoint.restore(workdir, n, {part: target[part] for part in wanted})


def open_checkpoint(
    cfg: Config,
    workdir: str,
    n: int,
    runtime: Runtime,
    example: Source,
    devices: list[jax.Device] | None = None,
    unread: Unread = lambda facts: [],
) -> LoadedModel:
    """A checkpoint on devices (all where None), for the kind of an example's data; `unread` is that of `set_up`."""
    manifest = checkpoint.load_manifest(workdir, n)
    set_inputs(cfg, manifest)
    setup = set_up(cfg, runtime, example, checkpoint.load_tokenizer(workdir, n), devices, unread=unread)
    exactly = "classes" not in cfg.model  # told there by a network's folder
    _check_class_names(workdir, manifest.get("classes"), setup, runtime, exactly=exactly)
    return LoadedModel(
        f"checkpoint {n:,} of {workdir}", setup, step.eval_variables(restore_state(setup, workdir, n), setup.cfg.optim)
    )


def set_inputs(cfg: Config, manifest: dict[str, Any]) -> None:
    """Take from a manifest in which shape a classifier of images sees them, where the config left it to the data."""
    inputs, family = manifest.get("inputs"), models.FAMILIES[cfg.model.family]
    if (
        inputs
        and "inputs" not in cfg.model
        and family.INPUT == "image"
        and losses.get_task(cfg.loss).target_field != "boxes"
    ):
        with cfg.unlocked():
            cfg.model.inputs = tuple(inputs) if isinstance(inputs, list) else inputs


def open_pretrained(
    cfg: Config,
    folder: str,
    runtime: Runtime,
    example: Source,
    devices: list[jax.Device] | None = None,
    ignore: Iterable[str] = (),
    given: Container[str] = (),
    unread: Unread = lambda facts: [],
) -> LoadedModel:
    """A folder of the hub on devices (all where None); says what was loaded. `cfg.model` overrides its fields.

    `ignore` names keys of its config.json to pass over, `given` the knobs that the user has set, which go before what
    the folder says of images. A `cfg.data.tokenizer` other than FOLDER_TOKENIZER stands for the folder's. `unread` is
    that of `set_up`.
    Raises UsageError for a folder that cannot be read, and a network that has no task.
    """
    if cfg.train.precision not in PRECISIONS:
        raise unknown("precision", cfg.train.precision, PRECISIONS)
    compute, dtype, _ = PRECISIONS[cfg.train.precision]
    model = pretrained.read_config(folder, ignore, compute=compute, **model_fields(cfg))
    model = replace(model, config=replace(model.config, **compute_fields(cfg, model.family)))
    cfg.loss, cfg.model.family = default_loss(model, folder), model.family
    if model.module.INPUT == "image":
        set_preprocessing(cfg, folder, model, runtime, given)
    tokenizer = None
    if not isinstance(example, Examples) and cfg.data.tokenizer == FOLDER_TOKENIZER:
        tokenizer, cfg.data.tokenizer = tokenizer_reader.read_tokenizer(folder).description(), "subword"
    setup = set_up(cfg, runtime, example, tokenizer, devices, model, unread)
    have, told = getattr(model.config, "classes", 0), getattr(example, "classes", None) or 0
    if 0 < told < have:
        runtime.say(f"classes {cfg.data.name} has {told}, which are taken for the first of the network's {have}")
    named = class_names.read(folder)
    _check_class_names(folder, named, setup, runtime)
    if not named:
        _check_numbered_classes(folder, setup)
    found = pretrained.find(model, folder)
    found.check()
    runtime.say(f"{folder}: {model.family}, {summary.parameter_counts(model)}; {found.summary}")
    variables = found.variables(setup.place.shardings(model.specs), jnp.dtype(dtype).name)
    return LoadedModel(folder, setup, {"": {"stats": {}, **variables}})


def _check_class_names(
    where: str, theirs: Sequence[str] | None, setup: Setup, runtime: Runtime, *, exactly: bool = False
) -> None:
    """Say where a network's classes have other names than the data's; case and signs do not count.

    Raises UsageError where one of the names stands in another place, and for any difference where `exactly`.
    """
    if not theirs or not setup.class_names:
        return
    told, ours = normalise_names(theirs), normalise_names(setup.class_names)
    if (told if exactly else told[: len(ours)]) == ours:
        return
    shown = [", ".join(names[:4]) + (", …" if len(names) > 4 else "") for names in (theirs, setup.class_names)]
    data = setup.cfg.data.name
    if exactly or any(name in told and told.index(name) != i for i, name in enumerate(ours)):
        raise UsageError(
            f"{where} names the classes {shown[0]}; {data!r} has {shown[1]}: a class is known by its place"
        )
    runtime.say(f"classes the network's are called {shown[0]}, those of {data} {shown[1]}: taken by their places")


def _check_numbered_classes(where: str, setup: Setup) -> None:
    """Raises UsageError where the data's classes are numbers with gaps, for a network whose classes have no names."""
    names = setup.class_names or ()
    if names and all(name.isdecimal() for name in names) and int(names[-1]) - int(names[0]) >= len(names):
        raise UsageError(
            f"{setup.cfg.data.name!r} has classes of the numbers {names[0]} to {names[-1]}, but not all of these, "
            f"and {where} does not name its own: which are which is unknown; give its config.json an id2label"
        )


def open_language_model(
    cfg: Config,
    runtime: Runtime,
    name: str,
    n: int | None = None,
    ignore: Iterable[str] = (),
    unread: Unread = lambda facts: [],
) -> LoadedModel:
    """A language model on one device: checkpoint n of a workdir, or where n is None a folder of the hub.

    `unread` is that of `set_up`. Raises UsageError for what generates no text.
    """
    cfg.mesh, one, blank = "dp:1", jax.local_devices()[:1], empty_texts(cfg, "next_token")
    if n is None:
        model = pretrained.read_config(name, ignore)
        if "cached" not in model.traits:
            raise UsageError(f"{name} holds a {model.family}, which does not generate text")
        return open_pretrained(cfg, name, runtime, blank, one, ignore, unread=unread)
    if checkpoint.load_tokenizer(name, n) is None or losses.get_task(cfg.loss).trait != "language_model":
        raise UsageError(f"{name} holds a {cfg.model.family} trained by loss {cfg.loss}, which does not generate text")
    return open_checkpoint(cfg, name, n, runtime, blank, one, unread)


def empty_texts(cfg: Config, loss: str, classes: int | None = None) -> Texts:
    """No text at all, with labels out of `classes` where the loss asks for some: to set a model up without its data."""
    shapes = {"label": (0,), "labels": (0, classes or 1)}
    needs = losses.get_task(loss).target_field
    labels = np.zeros(shapes[needs], np.int32) if needs in shapes else None
    return Texts((), {"name": cfg.data.name}, labels, None if labels is None else classes)


def dummy_source(
    cfg: Config, runtime: Runtime, family: str, loss: str, classes: int | None, inputs: Any = None
) -> Source:
    """What a model of a family is set up by without its data: no text, or a black image of the inputs that are known.

    Where an image's size is not known, it is the data after all, which must be there.
    """
    if models.FAMILIES[family].INPUT != "image":
        return empty_texts(cfg, loss, classes)
    if losses.get_task(loss).target_field == "boxes":
        return _dummy_detection_source(cfg, classes)
    if inputs is None:
        return load_source(cfg, runtime, dataset_names(cfg)[0], cfg.eval.split, Ticker(runtime))
    shape = (DEFAULT_SIDE, DEFAULT_SIDE, inputs) if isinstance(inputs, int) else tuple(inputs)
    several = losses.get_task(loss).target_field == "labels"
    label = {"labels": np.zeros((1, classes or 1), np.float32)} if several else {"label": np.zeros(1, np.int32)}
    fields = {"image": np.zeros((1, *shape), np.uint8), **label}
    return Examples(fields, 1, {"name": cfg.data.name}, classes)


def _dummy_detection_source(cfg: Config, classes: int | None) -> DetectionDataset:
    """A black image with nothing in it."""
    size, name = inputs.detection_size(cfg), cfg.data.name
    nothing = BoxAnnotations(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool))
    black, told = np.zeros((*size, 3), np.uint8), [str(i) for i in range(classes or 1)]
    return replace(
        make_detection_dataset(name, "", [AnnotatedImage("", size, nothing)], told, lambda i: black, {"name": name}),
        names=None,
    )
