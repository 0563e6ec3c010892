"""Load a model from a checkpoint or a Hugging Face folder onto any devices."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

import models
from configs import reader
from configs.knobs import RunConfig
from data.images.detection import AnnotatedImage, BoxAnnotations, DetectionDataset, make_detection_dataset
from data.source import Source
from data.text import tokenizer_reader
from data.types import Examples, Texts
from errors import UsageError
from models import pretrained
from models.pretrained import class_names
from train import checkpoint, resume
from train.record import summary
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.setup import checks, inputs
from train.setup.facts import Unread
from train.setup.published import default_loss, normalise_names, with_preprocessing
from train.setup.setup import (
    Setup,
    compute_fields,
    dataset_names,
    load_source,
    set_up,
)
from train.tasks import get_task
from train.update import optim, step
from train.update.precision import PRECISIONS

FOLDER_TOKENIZER = "own"  # value of `data.tokenizer` for the folder's own tokenizer
DEFAULT_SIDE = 224  # pixels, of an image for a network that takes any size


@dataclass(frozen=True)
class LoadedModel:
    """A model with its parameters on devices."""

    name: str  # for messages
    setup: Setup
    eval_variables: dict[str, Any]  # variables by metric prefix; the last entry is the one to use

    @property
    def variables(self) -> Any:
        """The variables to use: the last of `eval_variables`."""
        return list(self.eval_variables.values())[-1]


def restore_state(setup: Setup, workdir: str, n: int) -> step.State:
    """Restore the parts of a checkpoint's state that evaluation needs, and verify their digests.

    The optimizer's state is included only for schedule_free.
    """
    config = setup.config.optim
    wanted = {"params", "stats", "ema"} | ({"opt"} if config.name == "schedule_free" else set())
    target = resume.abstract_state(setup, optim.make(config, setup.model.specs["params"]))
    return checkpoint.restore(workdir, n, {part: target[part] for part in wanted})


def open_checkpoint(
    config: RunConfig,
    workdir: str,
    n: int,
    runtime: Runtime,
    example: Source,
    devices: list[jax.Device] | None = None,
    unread: Unread = lambda config, facts: [],
) -> LoadedModel:
    """Load a checkpoint onto devices (None: all), for data like `example`. `unread` as in `set_up`.

    Raises UsageError for a config that does not fit the data, the devices or the checkpoint, and CorruptCheckpoint.
    """
    checks.check(config)
    manifest = checkpoint.load_manifest(workdir, n)
    config = with_inputs(config, manifest)
    setup = set_up(config, runtime, example, checkpoint.load_tokenizer(workdir, n), devices, unread=unread)
    exactly = "classes" not in config.model.fields  # set there if the model comes from a pretrained folder
    _check_class_names(workdir, manifest.get("classes"), setup, runtime, exactly=exactly)
    with setup.activate():
        variables = step.eval_variables(restore_state(setup, workdir, n), setup.config.optim)
    return LoadedModel(f"checkpoint {n:,} of {workdir}", setup, variables)


def config_reader(workdir: str, runtime: Runtime) -> Callable[[int], RunConfig]:
    """A function from n to checkpoint n's config, on all devices of this machine and without a limit to evaluations.

    It runs each of the user's config files once. Raises CorruptCheckpoint, and UsageError for a file that fails.
    """
    ran: set[str] = set()

    def read(n: int) -> RunConfig:
        manifest = checkpoint.load_manifest(workdir, n)
        config, named = reader.from_manifest(manifest), manifest.get("named_code") or {}
        reader.run_code({path: digest for path, digest in config.code.items() if path not in ran}, runtime.say)
        reader.say_changes({path: digest for path, digest in named.items() if path not in ran}, runtime.say)
        ran.update(config.code, named)
        # the training run's mesh may not fit this machine, and its limit is for evaluations during training only
        return config.replace({"mesh": "dp:*", "eval.limit": None})

    return read


def open_without_data(
    config: RunConfig,
    workdir: str,
    n: int,
    runtime: Runtime,
    devices: list[jax.Device] | None = None,
    unread: Unread = lambda config, facts: [],
) -> LoadedModel:
    """Load a checkpoint as `open_checkpoint` does, without its data: sizes come from the manifest.

    Raises UsageError and CorruptCheckpoint as `open_checkpoint`, and UsageError for data of images whose shape the
    manifest lacks, and which do not exist.
    """
    manifest = checkpoint.load_manifest(workdir, n)
    config = with_inputs(config, manifest)
    if (rows := manifest.get("rows")) and not get_task(config.loss).has_boxes:
        row = _blank_row(config.data.name, **rows)
        return open_checkpoint(config, workdir, n, runtime, row, devices, unread)
    head, inputs = manifest["table"].get("params/head/bias"), config.model.fields.get("inputs")
    classes = head["shape"][-1] if head else len(manifest.get("classes") or ())
    classes = classes or cast("int | None", config.model.fields.get("classes"))
    blank = dummy_source(config, runtime, config.model.family, config.loss, classes, inputs)
    return open_checkpoint(config, workdir, n, runtime, blank, devices, unread)


def _blank_row(
    name: str, shapes: Mapping[str, Sequence[int]], classes: int | None, vocab: int | None = None
) -> Examples:
    """A source of one row of zeros, of the shapes that a manifest has."""
    dtypes = {"image": np.uint8, "label": np.int32, "tokens": np.int32}
    fields = {key: np.zeros((1, *shape), dtypes.get(key, np.float32)) for key, shape in shapes.items()}
    return Examples(fields, 1, {"name": name}, classes, vocab=vocab)


def with_inputs(config: RunConfig, manifest: dict[str, Any]) -> RunConfig:
    """The config with an image classifier's input shape from a manifest, if it left that to the data."""
    inputs, family = manifest.get("inputs"), models.FAMILIES[config.model.family]
    has_boxes = get_task(config.loss).has_boxes
    if inputs and "inputs" not in config.model.fields and family.INPUT == "image" and not has_boxes:
        return config.replace({"model.inputs": tuple(inputs) if isinstance(inputs, list) else inputs})
    return config


def open_pretrained(
    config: RunConfig,
    folder: str,
    runtime: Runtime,
    example: Source,
    devices: list[jax.Device] | None = None,
    ignore: Iterable[str] = (),
    given: Container[str] = (),
    unread: Unread = lambda config, facts: [],
) -> LoadedModel:
    """Load a Hugging Face folder onto devices (None: all), and print what was loaded.

    `config.model.fields` override the folder's.
    `ignore` lists keys of its config.json to ignore, `given` the knobs that the user has set, which override the
    folder's image preprocessing. A `config.data.tokenizer` other than FOLDER_TOKENIZER replaces the folder's tokenizer.
    `unread` as in `set_up`. Raises UsageError for a folder that cannot be read, and for a network without a task.
    """
    checks.check(config)
    compute, dtype, _ = PRECISIONS[config.train.precision]
    model = pretrained.read_config(folder, ignore, compute=compute, **config.model.fields)
    model = replace(model, config=replace(model.config, **compute_fields(config, model.family)))
    config = config.replace({"loss": default_loss(model, folder), "model.family": model.family})
    if model.module.INPUT == "image":
        config = with_preprocessing(config, folder, model, runtime, given)
    tokenizer = None
    if not example.row_type().shapes and config.data.tokenizer == FOLDER_TOKENIZER:
        tokenizer = tokenizer_reader.read_tokenizer(folder).description()
        config = config.replace({"data.tokenizer": "subword"})
    setup = set_up(config, runtime, example, tokenizer, devices, model, unread)
    have, count = getattr(model.config, "classes", 0), example.classes or 0
    if 0 < count < have:
        runtime.say(f"classes the {count} classes of {config.data.name} are taken as the first of the network's {have}")
    named = class_names.read(folder)
    _check_class_names(folder, named, setup, runtime)
    if not named:
        _check_numbered_classes(folder, setup)
    found = pretrained.find(model, folder)
    found.check()
    runtime.say(f"{folder}: {model.family}, {summary.parameter_counts(model)}; {found.summary}")
    with setup.activate():
        variables = found.variables(setup.place.shardings(model.specs), jnp.dtype(dtype).name)
    return LoadedModel(folder, setup, {"": {"stats": {}, **variables}})


def _check_class_names(
    where: str, theirs: Sequence[str] | None, setup: Setup, runtime: Runtime, *, exactly: bool = False
) -> None:
    """Print a note if the network's class names differ from the data's, ignoring case and punctuation.

    Raises UsageError if one of the names has another index, and if `exactly` for any difference.
    """
    if not theirs or not setup.class_names:
        return
    network, ours = normalise_names(theirs), normalise_names(setup.class_names)
    if (network if exactly else network[: len(ours)]) == ours:
        return
    shown = [", ".join(names[:4]) + (", …" if len(names) > 4 else "") for names in (theirs, setup.class_names)]
    data = setup.config.data.name
    if exactly or any(name in network and network.index(name) != i for i, name in enumerate(ours)):
        raise UsageError(f"{where} has the classes {shown[0]}; {data!r} has {shown[1]}: names and order must be equal")
    runtime.say(f"classes the network's are {shown[0]}, those of {data} are {shown[1]}: matched by index")


def _check_numbered_classes(where: str, setup: Setup) -> None:
    """Raise UsageError if the data's class names are numbers with gaps, for a network without class names."""
    names = setup.class_names or ()
    if names and all(name.isdecimal() for name in names) and int(names[-1]) - int(names[0]) >= len(names):
        raise UsageError(
            f"the class names of {setup.config.data.name!r} are numbers from {names[0]} to {names[-1]} with gaps, and "
            f"{where} does not name its classes, so they cannot be matched; add id2label to its config.json"
        )


def open_language_model(
    config: RunConfig,
    runtime: Runtime,
    name: str,
    n: int | None = None,
    ignore: Iterable[str] = (),
    unread: Unread = lambda config, facts: [],
) -> LoadedModel:
    """Load a language model onto one device: checkpoint n of a workdir, or a Hugging Face folder if n is None.

    `unread` as in `set_up`. Raises UsageError for a model that does not generate text.
    """
    config = config.replace({"mesh": "dp:1"})
    one, blank = jax.local_devices()[:1], empty_texts(config, "next_token")
    if n is None:
        model = pretrained.read_config(name, ignore)
        if "cached" not in model.traits:
            raise UsageError(f"{name} contains a {model.family}, which does not generate text")
        return open_pretrained(config, name, runtime, blank, one, ignore, unread=unread)
    if checkpoint.load_tokenizer(name, n) is None or not get_task(config.loss).is_language_model:
        raise UsageError(
            f"{name} is a {config.model.family} trained with loss {config.loss}; it does not generate text"
        )
    return open_checkpoint(config, name, n, runtime, blank, one, unread)


def empty_texts(config: RunConfig, loss: str, classes: int | None = None) -> Texts:
    """An empty text source, with labels of `classes` if the loss needs them, to set up a model without its data."""
    shapes = {"label": (0,), "labels": (0, classes or 1)}
    field = get_task(loss).target_field
    labels = np.zeros(shapes[field], np.int32) if field in shapes else None
    return Texts((), {"name": config.data.name}, labels, None if labels is None else classes)


def dummy_source(
    config: RunConfig, runtime: Runtime, family: str, loss: str, classes: int | None, inputs: Any = None
) -> Source:
    """A dummy source to set up a model without its data: no text, or one black image of the model's input shape.

    If the input shape is unknown, it loads the data, which must then exist.
    """
    if models.FAMILIES[family].INPUT != "image":
        return empty_texts(config, loss, classes)
    if get_task(loss).has_boxes:
        return _dummy_detection_source(config, classes)
    if inputs is None:
        return load_source(config, runtime, dataset_names(config)[0], config.eval.split, Ticker(runtime))
    shape = (DEFAULT_SIDE, DEFAULT_SIDE, inputs) if isinstance(inputs, int) else tuple(inputs)
    several = get_task(loss).is_multilabel
    label = {"labels": np.zeros((1, classes or 1), np.float32)} if several else {"label": np.zeros(1, np.int32)}
    fields = {"image": np.zeros((1, *shape), np.uint8), **label}
    return Examples(fields, 1, {"name": config.data.name}, classes)


def _dummy_detection_source(config: RunConfig, classes: int | None) -> DetectionDataset:
    """A detection data set of one black image without boxes."""
    size, name = inputs.detection_size(config), config.data.name
    nothing = BoxAnnotations(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool))
    black, numbers = np.zeros((*size, 3), np.uint8), [str(i) for i in range(classes or 1)]
    return replace(
        make_detection_dataset(name, "", [AnnotatedImage("", size, nothing)], numbers, lambda i: black, {"name": name}),
        names=None,
    )
