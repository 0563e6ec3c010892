"""Fine-tuning: a run that takes network, tokenizer, loss and image preprocessing from a Hugging Face folder."""

import dataclasses
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any

import models
from configs.knobs import ModelConfig, RunConfig, get
from data.source import Source
from errors import UsageError
from models import Model, pretrained
from models.pretrained import class_names
from train.runtime import Runtime
from train.setup.facts import COMPUTE_KNOBS
from train.setup.published import PREPROCESSING_KNOBS, default_loss, normalise_names, with_preprocessing
from train.setup.setup import dataset_names, load_source
from train.tasks import get_task

DEFAULTS: dict[str, Any] = {  # without a config file: the defaults of transformers' Trainer
    **{"optim.lr": 5e-5, "optim.clip_norm": 1.0, "schedule.name": "linear", "train.batch": 8}
}
FOLDER_KNOBS = (
    "loss",
    "data.tokenizer",
    "data.vocab_size",
    *(f"data.{name}" for name in PREPROCESSING_KNOBS),
    "init_fresh",
)
CLASSIFIER = {"head": "classes", "pool": "first", "pooler": True}  # fields of a headless network, for data with labels
HEADS = ("head", "pooler")  # parts that are initialised afresh if the folder has none that fit


def configure(
    config: RunConfig,
    folder: str,
    runtime: Runtime,
    ignore: Iterable[str] = (),
    given: Container[str] = (),
    saved: RunConfig | None = None,
) -> RunConfig:
    """The config that fine-tunes a folder's network: its model, loss, tokenizer, image preprocessing, fresh leaves.

    `ignore` lists keys of config.json to ignore, `given` the knobs that the user has set, which stay as they are.
    `saved` is the config of the run's checkpoints: if given, it replaces the folder, which may be gone.
    Raises UsageError for a folder that cannot be read, and for a network without a task.
    """
    for key in ("model.family", "model.size", "init_from"):
        if key in given:
            raise UsageError(f"config key {key!r} cannot be set: --pretrained={folder} determines it")
    chosen = {name: value for name, value in config.model.fields.items() if f"model.{name}" in given}
    config = config.replace({"init_from": folder})
    if saved is not None:
        section = replace(saved.model, fields={**saved.model.fields, **chosen})
        kept = {key: get(saved, key) for key in FOLDER_KNOBS if key not in given}
        return replace(config, model=section).replace(kept)
    source = load_source(config, runtime, dataset_names(config)[0], config.data.split)
    model, whole = _read_networks(config, folder, ignore, chosen, source)
    if "loss" not in given:
        config = config.replace({"loss": _training_loss(model, folder, source)})
    if model.module.INPUT == "image":
        config = with_preprocessing(config, folder, model, runtime, given)
    elif "data.tokenizer" not in given:
        config = config.replace({"data.tokenizer": "subword", "data.vocab_size": None})
    found = pretrained.find(model, folder)
    for name in found.unused:
        if says := found.tie_hint(name):
            raise UsageError(f"{folder}: tensor {name!r} is not part of this network{says}")
    if "init_fresh" not in given:
        config = config.replace({"init_fresh": ",".join(_fresh_parts(found, whole, folder, source)) or None})
    return replace(config, model=model_section(model, folder, leave=() if "classes" in chosen else ("classes",)))


def model_section(model: Model, folder: str, leave: Container[str] = ()) -> ModelConfig:
    """The section `model` of a config for a folder's network, without the fields to `leave` to the data."""
    named = matching_size(model, folder) if "detector" in model.traits else None
    skipped = (
        "compute",
        *COMPUTE_KNOBS,
        *(("layers",) if named else ()),
    )  # compute and COMPUTE_KNOBS are the trainer's
    fields = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(model.config)}
    kept = {name: value for name, value in fields.items() if name not in skipped and name not in leave}
    return ModelConfig(model.family, named, kept)


def matching_size(model: Model, folder: str) -> str:
    """The size with a detector's layers, since a config cannot list layers. Raises UsageError if there is none."""
    sizes = models.FAMILIES[model.family].SIZES
    found = [name for name, fields in sizes.items() if fields["layers"] == model.config.layers]
    if not found:
        known = f"the sizes of {model.family}, {', '.join(sizes)}"
        raise UsageError(f"{folder}: its layers match none of {known}; a checkpoint needs one of them")
    return found[0]


def _read_networks(
    config: RunConfig, folder: str, ignore: Iterable[str], chosen: dict[str, Any], source: Source
) -> tuple[Model, Model]:
    """The network to train (for data with labels, a classifier of its classes), and the folder's own network."""
    whole = model = pretrained.read_config(folder, ignore, **chosen)
    fields, classes = {f.name for f in dataclasses.fields(model.config)}, source.classes
    if classes is None or {"detector", "causal"} & model.traits:
        return model, whole
    if "head" in fields and "head" not in chosen and model.config.head != "classes":
        chosen = {**{name: value for name, value in CLASSIFIER.items() if name in fields}, **chosen}
    single = get_task(config.loss).single_score
    return pretrained.read_config(folder, ignore, **{"classes": 1 if single else classes, **chosen}), whole


def _training_loss(model: Model, folder: str, source: Source) -> str:
    """The loss of a run: for a classifier, by whether the data has one label or several per row."""
    if "classifier" not in model.traits:
        return default_loss(model, folder)
    return "sigmoid" if "labels" in source.row_type().target_fields else "softmax"


def _fresh_parts(found: pretrained.PretrainedTensors, whole: Model, folder: str, source: Source) -> list[str]:
    """The parts of a classifier that the folder lacks, or that it has for other classes."""
    if "classifier" not in found.model.traits:
        return []
    amiss = {path.split("/")[0] for path in found.names if found.problems(path)}
    theirs, ours = class_names.read(folder), source.names
    renamed = "classifier" in whole.traits and theirs and ours and normalise_names(theirs) != normalise_names(ours)
    return [part for part in HEADS if part in amiss or (renamed and part == "head")]
