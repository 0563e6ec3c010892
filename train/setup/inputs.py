"""Image transforms of a config: for training, for evaluation, and the resulting input shape."""

import dataclasses
from collections.abc import Iterator

import numpy as np

import models
from configs.knobs import RunConfig
from data.fields import Augment
from data.images import augment, letterbox, mixup
from data.images.resize import Size
from data.source import Source
from errors import UsageError, join_problems
from models import Model
from train.tasks import TASKS, Task

RESIZE_KNOBS = {
    "size": None,
    "crop_pct": None,
    "resize_mode": "cover",
    "interpolation": "bilinear",
}  # knobs of how images take a size, unset
MAX_SIDE = 16_384  # rows or columns of an image that a network sees


def find_problems(config: RunConfig) -> Iterator[str]:
    """One line for each image knob that is out of range, with key, legal range and value."""
    data = config.data
    if np.size(data.std) == 0 or np.min(data.std) <= 0:
        yield f"config key 'data.std' must be positive, not {data.std}"
    if data.size is not None and (
        len(data.size) not in (1, 2) or not 1 <= min(data.size) <= max(data.size) <= MAX_SIDE
    ):
        yield f"config key 'data.size' must be rows and columns from 1 to {MAX_SIDE:,}, or None, not {data.size}"
    if data.crop_pct is not None and not 0 < data.crop_pct <= 1:
        yield f"config key 'data.crop_pct' must be above 0 and at most 1, or None, not {data.crop_pct}"


def eval_transform(config: RunConfig, task: Task, boxes: bool = False, channels: int | None = None) -> Augment:
    """The transform of evaluated images, with or without boxes. `channels` is the network's. Raises UsageError.

    Two views of an image are drawn as in training, by the image's row in the evaluation set.
    """
    if task.two_views:
        return train_transform(config, task, boxes, channels)
    return (
        letterbox.DetectionPipeline(config.seed, detection_size(config))
        if boxes
        else _image_pipeline(config, (), channels)
    )


def train_transform(config: RunConfig, task: Task, boxes: bool = False, channels: int | None = None) -> Augment:
    """The transform of training images, one at a time. Arguments as `eval_transform`. Raises UsageError."""
    if boxes:
        return letterbox.DetectionPipeline(config.seed, detection_size(config), letterbox.parse(config.data.augment))
    operations = tuple(s for s in augment.parse(config.data.augment) if s[0] in augment.OPERATIONS)
    pipeline = _image_pipeline(config, operations, channels)
    if not task.two_views:
        return pipeline
    if not operations:
        raise UsageError(
            f"config key 'data.augment' must be set for loss {config.loss!r}: two views of an image differ"
        )
    return dataclasses.replace(pipeline, two_views=True)


def image_channels(config: RunConfig, model: Model | None = None) -> int | None:
    """Image channels of a model, else of the model that a config describes; None if they follow the data."""
    module = models.FAMILIES.get(config.model.family) if model is None else model.module
    if module is None or module.INPUT != "image":
        return None
    inputs = module.SIZES.get(config.model.size, {}).get("inputs")
    inputs = config.model.fields.get("inputs", inputs) if model is None else model.config.inputs
    return inputs[-1] if isinstance(inputs, tuple) and inputs else inputs


def mixup_transform(config: RunConfig, task: Task) -> mixup.Mixup | None:
    """Mixup or CutMix of pairs of rows, or None. Raises UsageError if the task does not support mixed labels."""
    if task.has_boxes:
        return None
    ways = tuple(s for s in augment.parse(config.data.augment) if s[0] in mixup.METHODS)
    if ways and not task.mixes_labels:
        able = ", ".join(name for name, other in TASKS.items() if other.mixes_labels)
        raise UsageError(f"config key 'data.augment': {ways[0][0]} needs the loss {able}, not {config.loss}")
    return mixup.Mixup(config.seed, ways) if ways else None


def transform_example(config: RunConfig, task: Task, example: Source, model: Model | None = None) -> Source:
    """Examples reduced to their first row, transformed as in evaluation; text is returned unchanged.

    Raises UsageError for sizes or channels that do not fit the images.
    """
    found = example.row_type()
    if not found.shapes:
        return example
    if wrong := list(find_problems(config)):  # before they are computed with
        raise join_problems(wrong)
    boxes = found.kind == "boxes"
    train_transform(config, task, boxes)
    return example.first_row(eval_transform(config, task, boxes, image_channels(config, model)))


def image_size(config: RunConfig) -> Size | None:
    """Rows and columns of the network's input; None keeps the images' size."""
    return None if config.data.size is None else (config.data.size[0], config.data.size[-1])


def detection_size(config: RunConfig) -> Size:
    """The input size for images with boxes. Raises UsageError if unset, and for resize knobs that detection lacks."""
    size = image_size(config)
    if size is None:
        raise UsageError(
            f"config key 'data.size' must be rows and columns for images with boxes ({config.data.name!r}), not None"
        )
    for name, unset in {**RESIZE_KNOBS, "size": config.data.size, "mean": 0.0, "std": 1.0}.items():
        if (value := getattr(config.data, name)) != unset:
            raise UsageError(
                f"config key 'data.{name}' must be {unset!r} for images with boxes, not {value!r}: they are "
                f"letterboxed, resized bilinearly and scaled to [0, 1]"
            )
    return size


def _image_pipeline(
    config: RunConfig, operations: tuple[augment.Operation, ...], channels: int | None
) -> augment.ImagePipeline:
    data = config.data
    how = (data.mean, data.std, image_size(config), data.crop_pct, data.resize_mode, data.interpolation, channels)
    return augment.ImagePipeline(config.seed, operations, *how)
