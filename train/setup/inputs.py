"""What a config says of images: in training, in evaluation, and in which shape a network sees them."""

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
    """The knobs of images whose values are out of range, a line each with key, value and range."""
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
    """What happens to images that are evaluated, with boxes or without; `channels` a network has. Raises UsageError."""
    return letterbox.DetectionPipeline(cfg.seed, detection_size(cfg)) if boxes else _image_pipeline(cfg, (), channels)


def train_transform(cfg: Config, boxes: bool = False, channels: int | None = None) -> Augment:
    """What happens to images that are trained on, each by itself; arguments as of `examined`. Raises UsageError."""
    if boxes:
        return letterbox.DetectionPipeline(cfg.seed, detection_size(cfg), letterbox.parse(cfg.data.augment))
    return _image_pipeline(
        cfg, tuple(s for s in augment.parse(cfg.data.augment) if s[0] in augment.OPERATIONS), channels
    )


def image_channels(cfg: Config, model: Model | None = None) -> int | None:
    """Channels of images that a model, else the one that a config describes, has; None where they are the data's."""
    module = models.FAMILIES.get(cfg.model.family) if model is None else model.module
    if module is None or module.INPUT != "image":
        return None
    inputs = module.SIZES.get(cfg.model.size, {}).get("inputs")
    inputs = cfg.model.get("inputs", inputs) if model is None else model.config.inputs
    return inputs[-1] if isinstance(inputs, tuple) and inputs else inputs


def mixup_transform(cfg: Config, task: Task) -> mixup.Mixup | None:
    """What happens to pairs of them; None where nothing does. Raises UsageError for a task that takes no mixed rows."""
    if task.target_field == "boxes":
        return None
    ways = tuple(s for s in augment.parse(cfg.data.augment) if s[0] in mixup.METHODS)
    if ways and "mixing" not in task.extras:
        able = ", ".join(name for name, other in TASKS.items() if "mixing" in other.extras)
        raise UsageError(f"config key 'data.augment': {ways[0][0]} goes with the loss {able} only, not {cfg.loss}")
    return mixup.Mixup(cfg.seed, ways) if ways else None


def transform_example(cfg: Config, example: Source, model: Model | None = None) -> Source:
    """The first row of examples as a network sees it, one that is there or the config's; texts as they are.

    Raises UsageError for sizes or channels that do not fit them.
    """
    if not isinstance(example, Examples):
        return example
    row = example.__getitems__([0])
    boxes = isinstance(example, DetectionDataset)
    train_transform(cfg, boxes)
    prepare = eval_transform(cfg, boxes, image_channels(cfg, model))
    return dataclasses.replace(example, fields=prepare(row, 0, np.zeros(1, np.int64)), count=1)


def image_size(cfg: Config) -> Size | None:
    """Rows and columns that a network sees; None keeps those of the images."""
    return None if cfg.data.size is None else (cfg.data.size[0], cfg.data.size[-1])


def detection_size(cfg: Config) -> Size:
    """The size of images with boxes. Raises UsageError where it is not given, and for knobs that such images lack."""
    size = image_size(cfg)
    if size is None:
        raise UsageError(
            f"config key 'data.size' is None: {cfg.data.name!r} holds images with boxes; give rows, columns"
        )
    for name, unset in {**RESIZE_KNOBS, "size": cfg.data.size, "mean": 0.0, "std": 1.0}.items():
        if cfg.data[name] != unset:
            raise UsageError(
                f"config key 'data.{name}' = {cfg.data[name]}: images with boxes are whole, from 0 to 1, and bilinear"
            )
    return size


def _image_pipeline(
    cfg: Config, operations: tuple[augment.Operation, ...], channels: int | None
) -> augment.ImagePipeline:
    data = cfg.data
    how = (data.mean, data.std, image_size(cfg), data.crop_pct, data.resize_mode, data.interpolation, channels)
    return augment.ImagePipeline(cfg.seed, operations, *how)
