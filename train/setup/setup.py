"""From a config to a model, task, placement and data on this machine."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import models
from configs.knobs import RunConfig
from data import eval_set, sources
from data.fields import Augment
from data.files import expand_home
from data.images.decode import display_name
from data.progress import Tick, silent, track
from data.source import EpochSource, Reading, RowType, Source
from data.text import tokenizers
from errors import UsageError, join_problems, raise_with
from models import Model
from models.core.spec import abstract
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.setup import facts, inputs
from train.setup.facts import COMPUTE_KNOBS, Unread
from train.sharding import mesh
from train.tasks import TASKS, Task, make_task
from train.update import param_groups, step
from train.update.precision import PRECISIONS


@dataclass(frozen=True)
class Setup:
    """A config's model, task, placement and tokenizer on this machine."""

    config: RunConfig
    runtime: Runtime
    model: Model
    task: Task
    place: mesh.Placement
    dtype: Any
    tokenizer: tokenizers.Tokenizer | None
    class_names: tuple[str, ...] | None = None  # the data's, if it has any
    classes: int | None = None  # of the data
    row_type: RowType | None = None  # of the data's rows, as the network sees them

    @contextmanager
    def activate(self) -> Iterator[None]:
        """A block that computes on this mesh, in this precision of products."""
        products = PRECISIONS[self.config.train.precision].products
        with jax.default_matmul_precision(products), jax.set_mesh(self.place.mesh):
            yield

    @property
    def context(self) -> int | None:
        """Tokens per row, if the model reads text, else None."""
        return self.model.config.context if self.tokenizer else None

    @property
    def tokenizer_description(self) -> dict[str, Any] | None:
        """The tokenizer's description, as checkpoints store it."""
        return self.tokenizer.description() if self.tokenizer else None

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """The tokenizer's fingerprint, as manifests store it."""
        return tokenizers.fingerprint(self.tokenizer.description()) if self.tokenizer else None

    @property
    def options(self) -> step.StepOptions:
        """The options of the update."""
        train = self.config.train
        return step.StepOptions(
            dtype=self.dtype,
            accumulate=train.accumulate,
            ema=self.config.optim.ema,
            carry=train.batch if train.stateful else None,
            gradient=train.gradient,
            loss=self.config.loss,
            freeze_mask=param_groups.freeze_mask(self.config.optim.freeze, self.model.specs["params"]),
        )

    @property
    def eval_transform(self) -> Augment:
        """The transform of evaluated images."""
        channels = inputs.image_channels(self.config, self.model)
        return inputs.eval_transform(self.config, self.task, self.task.has_boxes, channels)


def load_source(config: RunConfig, runtime: Runtime, name: str, split: str, tick: Tick = silent) -> Source:
    """Load a split of a data set, with the settings of the config's data section."""
    return sources.load(name, split, field=config.data.field, data_dir=runtime.environ.get("TFDS_DATA_DIR"), tick=tick)


def dataset_names(config: RunConfig) -> list[str]:
    """The data sets of a config: one, or the members of a mixture."""
    return sources.split_names(config.data.name)


def dataset_title(config: RunConfig) -> str:
    """The data sets of a config for the title of a plot: for paths only the last part."""
    paths = ((name, Path(expand_home(name))) for name in dataset_names(config))
    return ", ".join(display_name(path) if path.is_absolute() or path.exists() else name for name, path in paths)


def make_tokenizer(config: RunConfig, runtime: Runtime) -> tokenizers.Tokenizer:
    """The tokenizer of a config. `char` is built from every split, `word` and `bpe` from the training split."""
    if config.data.tokenizer not in ("char", "word", tokenizers.BPE):
        return tokenizers.make(config.data.tokenizer, ())
    corpus: list[str] = []
    for name in dataset_names(config):
        every = sources.splits_of(name, runtime.environ.get("TFDS_DATA_DIR"), config.data.field)
        every = every or (config.data.split, config.eval.split)
        for split in every if config.data.tokenizer == "char" else (config.data.split,):
            source = load_source(config, runtime, name, split)
            corpus += source.documents
    read = track(corpus, "reading documents for the tokenizer", Ticker(runtime), then="choosing tokens")
    return tokenizers.make(config.data.tokenizer, read, config.data.vocab_size)


def set_up(
    config: RunConfig,
    runtime: Runtime,
    example: Source,
    tokenizer: dict[str, Any] | None,
    devices: list[jax.Device] | None = None,
    model: Model | None = None,
    unread: Unread = lambda config, facts: [],
) -> Setup:
    """Set up model, task and placement (on all devices if None) for a config and an example of its data.

    `tokenizer` is a checkpoint's tokenizer description; None makes the config's tokenizer. `model` overrides the
    config's model. `unread` lists assigned knobs that have no effect.

    Raises UsageError for settings that do not fit together.
    """
    compute, dtype, _ = PRECISIONS[config.train.precision]
    task = make_task(config)
    known = facts.data_facts(config, example, task)
    with raise_with(unread(config, known)):
        example = inputs.transform_example(config, task, example, model)
        _check_data_for_task(config, example, task)
    made, row_type = None, example.row_type()
    shapes = row_type.shapes
    if not shapes:
        if tokenizer and tokenizer["kind"] != tokenizers.tokenizer_kind(config.data.tokenizer):
            kinds = f"must be {tokenizer['kind']!r}, as the parameters need, not {config.data.tokenizer!r}"
            raise UsageError(f"config key 'data.tokenizer' {kinds}")
        made = tokenizers.restore(tokenizer) if tokenizer else make_tokenizer(config, runtime)
    sizes = _sizes_from_data(example, task, made)
    model = model or _build_model(config, shapes, {**sizes, "compute": compute})
    if task.is_language_model and "causal" not in model.traits and task.output_kind in model.traits:
        raise UsageError(
            f"loss {config.loss!r} needs a causal model; {model.family} as configured attends to later tokens"
        )
    if task.output_kind not in model.traits:
        raise UsageError(
            f"family {config.model.family!r} does not support loss {config.loss!r} on data {config.data.name!r}"
        )
    for name, value in sizes.items():
        have = getattr(model.config, name, value)
        if have < value:
            whose = f"the {'tokenizer' if made else 'data'}'s {value}{' tokens' if name == 'vocab' else ''}"
            raise UsageError(f"model.{name} = {have} is too small for {whose}")
        if have > value and (name == "outputs" or task.single_score or task.is_multilabel):
            raise UsageError(f"model.{name} = {have} must be {value} for loss {config.loss!r} on {config.data.name!r}")
    if useless := unread(config, {**known, **facts.model_facts(model)}):
        raise join_problems(useless)
    if shapes:
        _check_shapes(model, shapes, config)
    place = mesh.make_placement(mesh.make_mesh(config.mesh, devices), model.specs, config.rules)
    return Setup(config, runtime, model, task, place, dtype, made, example.names, example.classes, row_type)


def _check_data_for_task(config: RunConfig, example: Source, task: Task) -> None:
    """Raise UsageError if the data lacks the task's target field."""
    found = example.row_type()
    if task.target_field not in found.target_fields:
        able = ", ".join(name for name, other in TASKS.items() if other.target_field in found.target_fields)
        has = f"{found.words}, for the losses {able}"
        raise UsageError(f"data set {config.data.name!r} has {has}; the config has {config.loss!r}")


def _sizes_from_data(example: Source, task: Task, tokenizer: tokenizers.Tokenizer | None) -> dict[str, Any]:
    """Model sizes that the data determines, by Config field."""
    vocab = tokenizer.vocab if tokenizer else example.row_type().vocab
    sizes: dict[str, Any] = {"vocab": vocab} if vocab else {}
    if task.has_classes:
        sizes["classes"] = 1 if task.single_score else example.classes
    if task.is_regression:
        sizes["outputs"] = example.row_type().shapes["target"][0]
    return sizes


def _build_model(config: RunConfig, shapes: dict[str, tuple[int, ...]], defaults: dict[str, Any]) -> Model:
    """Build the model, with defaults from data and precision for fields that neither config nor size sets.

    `classes` comes from the data unless the config sets it: a size's `classes` is that of its original data set.
    """
    family = config.model.family
    module = models.FAMILIES[family]
    fields = config.model.fields
    known = {f.name for f in dataclasses.fields(module.Config)}
    defaults = {**defaults, **compute_fields(config, family)}
    for name in ("compute", *COMPUTE_KNOBS):
        if name in fields:
            raise UsageError(f"config key 'model.{name}' is set by train.{'precision' if name == 'compute' else name}")
    if shapes and hasattr(module, "fit"):
        defaults = {**defaults, **module.fit(shapes)}
    given = {*fields, *({*module.SIZES.get(config.model.size, {})} - {"classes"})}
    return models.build(
        family, config.model.size, **fields, **{k: v for k, v in defaults.items() if k in known and k not in given}
    )


def compute_fields(config: RunConfig, family: str) -> dict[str, Any]:
    """The fields of a family's Config that COMPUTE_KNOBS set, restricted to those that the family has."""
    known = {f.name for f in dataclasses.fields(models.FAMILIES[family].Config)}
    how = dict(
        attention=config.train.attention,
        dispatch=config.train.dispatch,
        remat=config.train.remat,
        scan=config.train.scan,
    )
    return {name: value for name, value in how.items() if name in known}


def _check_shapes(model: Model, shapes: dict[str, tuple[int, ...]], config: RunConfig) -> None:
    """Trace the model on an example's shapes, without computing. Raises UsageError if they do not fit."""
    length, context = shapes.get("tokens", (0,))[0], getattr(model.config, "context", None)
    if context is not None and length > context:
        raise UsageError(f"model.context = {context} is too small for the data's rows of {length} tokens")
    row = {k: jax.ShapeDtypeStruct((1, *shape), _ROW_DTYPES.get(k, jnp.float32)) for k, shape in shapes.items()}
    try:
        jax.eval_shape(model.apply, abstract(model.specs), row)
    except UsageError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        has = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"family {config.model.family!r} as configured does not fit {config.data.name!r}, whose rows have {has}: "
            f"{first}"
        ) from error


_ROW_DTYPES = {
    "tokens": jnp.int32,
    "label": jnp.int32,
    "box_labels": jnp.int32,
}  # dtypes of a row's fields as the model receives them; other fields are float32


def make_reading(setup: Setup) -> Reading:
    """How the run reads its sources."""
    config = setup.config
    return Reading(
        tokenizer=setup.tokenizer,
        context=setup.context,
        windows=setup.task.is_language_model,
        streams=config.train.batch if config.train.stateful else None,
        max_length=config.data.max_length,
        parts=setup.place.seq_shards,
        seed=config.seed,
        eval_context=config.eval.context,
        overlap=config.eval.overlap,
        prepare=setup.eval_transform,
        tick=Ticker(setup.runtime),
    )


def training_rows(setup: Setup, source: Source) -> EpochSource:
    """The training rows of a source: windows of text, or examples.

    Raises UsageError if the source has no row for the task, as texts without labels or shorter than a window.
    """
    return source.rows(make_reading(setup))


def make_eval_set(setup: Setup, source: Source) -> eval_set.EvalSet:
    """The evaluation set of a source. Raises UsageError for missing labels, and for a window that does not fit."""
    return source.eval_set(make_reading(setup))
