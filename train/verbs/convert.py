"""Networks carried over: a folder of the Hugging Face hub made a checkpoint, and a checkpoint made such a folder.

A detector's folder has Darknet's two files.
"""

import dataclasses
import shutil
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
from train.setup.setup import Config
from train.verbs import load_model


def import_pretrained(
    cfg: Config,
    folder: str,
    workdir: str,
    runtime: Runtime,
    ignore: Iterable[str] = (),
    given: Container[str] = (),
    unread: Unread = lambda facts: [],
) -> None:
    """Write a folder of the hub into a new workdir, as its checkpoint 0: parameters and tokenizer, no more.

    Raises UsageError for a workdir that has checkpoints, and as `load_model.open_pretrained`.
    """
    if Path(workdir).is_file():
        raise UsageError(f"{workdir} is a file, and no folder")
    if checkpoint.steps(workdir):
        raise UsageError(f"{workdir} holds checkpoints already; give a folder without any")
    model = pretrained.read_config(folder, ignore, **published.model_fields(cfg))
    classes, inputs = (getattr(model.config, name, None) for name in ("classes", "inputs"))
    named = tuning.matching_size(model, folder) if "detector" in model.traits else None
    if named and cfg.data.size is None:
        cfg.data.size = model.config.inputs[:2]
    blank = load_model.dummy_source(cfg, runtime, model.family, published.default_loss(model, folder), classes, inputs)
    opened = load_model.open_pretrained(cfg, folder, runtime, blank, None, ignore, given, unread)
    setup = opened.setup
    tuning.set_model_fields(setup.cfg, setup.model, folder)
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
    origin = resume.ResumePoint(0, (resume.first_phase(setup.cfg),), files=files)
    told = dataclasses.replace(setup, class_names=class_names.read(folder))
    store.save(state, make_manifest(told, 0, origin, [], None), setup.tokenizer_description)
    store.close()
    runtime.say(f"checkpoint 0 in {workdir}/checkpoints; to train from it: --config.init_from={workdir}")


def export_pretrained(
    cfg: Config, workdir: str, n: int, to: str, runtime: Runtime, unread: Unread = lambda facts: []
) -> None:
    """Write a checkpoint as a folder of the hub, with its tokenizer; of a run with a running mean, that.

    The folder appears when it is whole. Raises UsageError for a family or a config that has no place there, and for a
    folder that is not empty.
    """
    folder = Path(to).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{to} is there already, and no empty folder; give another --export")
    pretrained.folder_layout(cfg.model.family)  # raises where there is none
    manifest = checkpoint.load_manifest(workdir, n)
    load_model.set_inputs(cfg, manifest)
    head, inputs = manifest["table"].get("params/head/bias"), cfg.model.get("inputs")
    classes = head["shape"][-1] if head else len(manifest.get("classes") or ()) or cfg.model.get("classes")
    blank = load_model.dummy_source(cfg, runtime, cfg.model.family, cfg.loss, classes, inputs)
    opened = load_model.open_checkpoint(cfg, workdir, n, runtime, blank, unread=unread)
    model, tokenizer = opened.setup.model, opened.setup.tokenizer
    made = tokenizer_writer.as_subwords(tokenizer) if tokenizer else None
    ids = tokenizer_writer.special_ids(made) if made and {"causal", "language_model"} <= model.traits else {}
    files = manifest.get("files") or {}
    ids = companions.bos_and_eos(files, ids)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a conversion that was killed
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--export={to} cannot be made a folder: {error}") from None
    try:
        pixels = _preprocessing(cfg, model)
        several = cfg.loss == "sigmoid" and "id2label" in pretrained.folder_layout(model.family).config(model.config)
        keys = {**ids, **({"problem_type": "multi_label_classification"} if several else {})}
        pretrained.save_pretrained(
            model, opened.variables, part, classes=_class_names(manifest, model), images=pixels, **keys
        )
        sized = preprocessing.is_expressible(pixels) or not (part / preprocessing.FILE).exists()
        if made:
            tokenizer_writer.write_tokenizer(made, part)
        companions.write(files, part, ids, preprocessing.from_folder(part))
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    more = " and its tokenizer" if made else ""
    without = "; its tokenizer, of words, has no form there" if tokenizer and not made else ""
    without += "" if sized else f"; a size of {pixels['size']} that is covered has no form there"
    runtime.say(f"{opened.name}: {summary.parameter_counts(model)}{more} in {to}{without}")


def _class_names(manifest: dict[str, Any], model: Model) -> Sequence[str]:
    """Of the classes that a network tells apart, where all are known."""
    names = manifest.get("classes") or ()
    told = {"classifier", "detector"} & model.traits
    return names if told and len(names) == model.config.classes else ()


def _preprocessing(cfg: Config, model: Model) -> dict[str, Any]:
    """How images are made ready for a network that sees them; {} for another, and for a detector, whose are whole."""
    if model.module.INPUT != "image" or "detector" in model.traits:
        return {}
    told = {name: cfg.data[name] for name in published.PREPROCESSING_KNOBS} | {"size": inputs.image_size(cfg)}
    return {name: value for name, value in told.items() if value is not None}
