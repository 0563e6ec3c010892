"""Conversion between checkpoints and Hugging Face folders.

For a detector the folder has Darknet's two files.
"""

import dataclasses
import shutil
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.knobs import RunConfig
from data.text import tokenizer_writer
from errors import UsageError
from models import Model, pretrained
from models.pretrained import class_names, preprocessing
from train import checkpoint, companions, resume
from train.record import summary
from train.runtime import Runtime
from train.saving import make_manifest
from train.setup import inputs, published, tuning
from train.setup.facts import Unread
from train.verbs import load_model


def import_pretrained(
    config: RunConfig,
    folder: str,
    workdir: str,
    runtime: Runtime,
    ignore: Iterable[str] = (),
    given: Container[str] = (),
    unread: Unread = lambda config, facts: [],
) -> None:
    """Import a Hugging Face folder into a new workdir as checkpoint 0: parameters and tokenizer only.

    Raises UsageError for a workdir that has checkpoints, and as `load_model.open_pretrained`.
    """
    if Path(workdir).is_file():
        raise UsageError(f"--workdir={workdir} is a file; it must be a folder")
    if checkpoint.steps(workdir):
        raise UsageError(f"--workdir={workdir} has checkpoints already; give a folder without any")
    model = pretrained.read_config(folder, ignore, **config.model.fields)
    classes, inputs = (getattr(model.config, name, None) for name in ("classes", "inputs"))
    named = tuning.matching_size(model, folder) if "detector" in model.traits else None
    if named and config.data.size is None:
        config = config.replace({"data.size": model.config.inputs[:2]})
    blank = load_model.dummy_source(
        config, runtime, model.family, published.default_loss(model, folder), classes, inputs
    )
    opened = load_model.open_pretrained(config, folder, runtime, blank, None, ignore, given, unread)
    config = dataclasses.replace(opened.setup.config, model=tuning.model_section(opened.setup.model, folder))
    setup = dataclasses.replace(opened.setup, config=config)
    zero = {
        "step": np.zeros((), np.int32),
        "seed": np.zeros((), np.uint32),
        "opt": {},
        "ema": {},
        "carry": {},
    }
    state = {**jax.device_put(zero, setup.place.replicated), **opened.variables}
    checkpoint.prepare(workdir)
    store = checkpoint.Store(workdir, keep=1, keep_best=0)
    files = companions.from_folder(folder, setup.tokenizer_fingerprint)
    origin = resume.ResumePoint(0, (resume.first_phase(setup.config),), files=files)
    with_names = dataclasses.replace(setup, class_names=class_names.read(folder))
    store.save(state, make_manifest(with_names, 0, origin, [], None), setup.tokenizer_description)
    store.close()
    runtime.say(f"checkpoint 0 in {workdir}/checkpoints; to train from it: --config.init_from={workdir}")


def export_pretrained(
    config: RunConfig, workdir: str, n: int, to: str, runtime: Runtime, unread: Unread = lambda config, facts: []
) -> None:
    """Export a checkpoint and its tokenizer as a Hugging Face folder; the averaged parameters if the run has them.

    The folder appears when it is complete. Raises UsageError for a family or config that the format cannot express, and
    for a folder that is not empty.
    """
    folder = Path(to).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--export={to} exists and is not an empty folder; give another")
    pretrained.folder_layout(config.model.family)  # raises if the family has none
    manifest = checkpoint.load_manifest(workdir, n)
    opened = load_model.open_without_data(config, workdir, n, runtime, unread=unread)
    config = opened.setup.config
    model, tokenizer = opened.setup.model, opened.setup.tokenizer
    subwords = tokenizer_writer.as_subwords(tokenizer) if tokenizer else None
    ids = tokenizer_writer.special_ids(subwords) if subwords and {"causal", "language_model"} <= model.traits else {}
    files = manifest.get("files") or {}
    ids = companions.bos_and_eos(files, ids)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a killed conversion
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--export={to} cannot be created: {error}") from None
    try:
        pixels = _preprocessing(config, model)
        several = config.loss == "sigmoid" and "id2label" in pretrained.folder_layout(model.family).config(model.config)
        keys = {**ids, **({"problem_type": "multi_label_classification"} if several else {})}
        pretrained.save_pretrained(
            model, opened.variables, part, classes=_class_names(manifest, model), images=pixels, **keys
        )
        sized = preprocessing.is_expressible(pixels) or not (part / preprocessing.FILE).exists()
        if subwords:
            tokenizer_writer.write_tokenizer(subwords, part)
        companions.write(files, part, ids, preprocessing.from_folder(part))
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    more = " and its tokenizer" if subwords else ""
    without = "; its word tokenizer has no equivalent there" if tokenizer and not subwords else ""
    without += "" if sized else f"; resizing to cover {pixels['size']} has no equivalent there"
    runtime.say(f"{opened.name}: {summary.parameter_counts(model)}{more} in {to}{without}")


def _class_names(manifest: dict[str, Any], model: Model) -> Sequence[str]:
    """The class names of a classifier or detector, if all are known."""
    names = manifest.get("classes") or ()
    has_classes = {"classifier", "detector"} & model.traits
    return names if has_classes and len(names) == model.config.classes else ()


def _preprocessing(config: RunConfig, model: Model) -> dict[str, Any]:
    """The image preprocessing of a network; {} for a network without images, and for a detector, which has none."""
    if model.module.INPUT != "image" or "detector" in model.traits:
        return {}
    settings = {name: getattr(config.data, name) for name in published.PREPROCESSING_KNOBS} | {
        "size": inputs.image_size(config)
    }
    return {name: value for name, value in settings.items() if value is not None}
