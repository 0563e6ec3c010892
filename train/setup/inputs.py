"""Image transforms of a config: for training, for evaluation, and the resulting input shape."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

import models
from data.images import augment, letterbox, mixup
from data.images.detection import DetectionDataset
from data.images.resize import INTERPOLATIONS, RESIZE_MODES, Size
from data.sampler import Augment
from data.types import Examples, Source
from errors import UsageError, unknown
from models import Model
from train.tasks.losses import TASKS, Task

RESIZE_KNOBS = {
    "size": None,
    "crop_pct": None,
    "resize_mode": "cover",
    "interpolation": "bilinear",
}  # knobs of how images take a size, unset
MAX_SIDE = 16_384  # rows or columns of an image that a network sees
Config = Any  # an ml_collections ConfigDict with the knobs of configs/base.py


def find_problems(cfg: Config) -> Iterator[str]:
    """One line for each image knob that is out of range, with key, legal range and value."""
    data = cfg.data
    if np.size(data.std) == 0 or np.min(data.std) <= 0:
        yield f"config key 'data.std' must be positive, not {data.std}"
    if data.size is not None and (
        len(data.size) not in (1, 2) or not 1 <= min(data.size) <= max(data.size) <= MAX_SIDE
    ):
        yield f"config key 'data.size' must be rows and columns from 1 to {MAX_SIDE:,}, or None, not {data.size}"
    if data.crop_pct is not None and not 0 < data.crop_pct <= 1:
        yield f"config key 'data.crop_pct' must be above 0 and at most 1, or None, not {data.crop_pct}"
    for name, legal in (("resize_mode", RESIZE_MODES), ("interpolation", INTERPOLATIONS)):
        if data[name] not in legal:
            yield str(unknown(f"data.{name}", data[name], legal))


def eval_transform(cfg: Config, boxes: bool = False, channels: int | None = None) -> Augment:
    """The transform of evaluated images, with or without boxes. `channels` is the network's. Raises UsageError."""
    return letterbox.DetectionPipeline(cfg.seed, detection_size(cfg)) if boxes else _image_pipeline(cfg, (), channels)


def train_transform(cfg: Config, boxes: bool = False, channels: int | None = None) -> Augment:
    """The transform of training images, one at a time. Arguments as `eval_transform`. Raises UsageError."""
    if boxes:
        return letterbox.DetectionPipeline(cfg.seed, detection_size(cfg), letterbox.parse(cfg.data.augment))
    return _image_pipeline(
        cfg, tuple(s for s in augment.parse(cfg.data.augment) if s[0] in augment.OPERATIONS), channels
    )


def image_channels(cfg: Config, model: Model | None = None) -> int | None:
    """Image channels of a model, else of the model that a config describes; None if they follow the data."""
    module = models.FAMILIES.get(cfg.model.family) if model is None else model.module
    if module is None or module.INPUT != "image":
        return None
    inputs = module.SIZES.get(cfg.model.size, {}).get("inputs")
    inputs = cfg.model.get("inputs", inputs) if model is None else model.config.inputs
    return inputs[-1] if isinstance(inputs, tuple) and inputs else inputs


def mixup_transform(cfg: Config, task: Task) -> mixup.Mixup | None:
    """Mixup or CutMix of pairs of rows, or None. Raises UsageError if the task does not support mixed labels."""
    if task.target_field == "boxes":
        return None
    ways = tuple(s for s in augment.parse(cfg.data.augment) if s[0] in mixup.METHODS)
    if ways and "mixing" not in task.extras:
        able = ", ".join(name for name, other in TASKS.items() if "mixing" in other.extras)
        raise UsageError(f"config key 'data.augment': {ways[0][0]} needs the loss {able}, not {cfg.loss}")
    return mixup.Mixup(cfg.seed, ways) if ways else None


def transform_example(cfg: Config, example: Source, model: Model | None = None) -> Source:
    """Examples reduced to their first row, transformed as in evaluation; text is returned unchanged.

    Raises UsageError for sizes or channels that do not fit the images.
    """
    if not isinstance(example, Examples):
        return example
    row = example.__getitems__([0])
    boxes = isinstance(example, DetectionDataset)
    train_transform(cfg, boxes)
    prepare = eval_transform(cfg, boxes, image_channels(cfg, model))
    return dataclasses.replace(example, fields=prepare(row, 0, np.zeros(1, np.int64)), count=1)


def image_size(cfg: Config) -> Size | None:
    """Rows and columns of the network's input; None keeps the images' size."""
    return None if cfg.data.size is None else (cfg.data.size[0], cfg.data.size[-1])


def detection_size(cfg: Config) -> Size:
    """The input size for images with boxes. Raises UsageError if unset, and for resize knobs that detection lacks."""
    size = image_size(cfg)
    if size is None:
        raise UsageError(
            f"config key 'data.size' must be rows and columns for images with boxes ({cfg.data.name!r}), not None"
        )
    for name, unset in {**RESIZE_KNOBS, "size": cfg.data.size, "mean": 0.0, "std": 1.0}.items():
        if cfg.data[name] != unset:
            raise UsageError(
                f"config key 'data.{name}' must be {unset!r} for images with boxes, not {cfg.data[name]!r}: they are "
                f"letterboxed, resized bilinearly and scaled to [0, 1]"
            )
    return size


def _image_pipeline(
    cfg: Config, operations: tuple[augment.Operation, ...], channels: int | None
) -> augment.ImagePipeline:
    data = cfg.data
    how = (data.mean, data.std, image_size(cfg), data.crop_pct, data.resize_mode, data.interpolation, channels)
    return augment.ImagePipeline(cfg.seed, operations, *how)
