"""What a config says of images: in training, in evaluation, and in which shape a network sees them."""

import dataclasses
from typing import Any

import numpy as np

from data import augment, mixing
from data.geometry import Size
from data.kinds import Examples, Source
from errors import UsageError
from train.update.losses import TASKS, Task

Config = Any  # an ml_collections ConfigDict with the knobs of configs/base.py


def check_values(cfg: Config) -> None:
    """Hold the knobs of images to their ranges. Raises UsageError that names key, value and range."""
    data = cfg.data
    if np.size(data.deviation) == 0 or np.min(data.deviation) <= 0:
        raise UsageError(f"config key 'data.deviation' must be positive, not {data.deviation}")
    if data.size is not None and (len(data.size) not in (1, 2) or min(data.size) < 1):
        raise UsageError(f"config key 'data.size' must be rows and columns of 1 or more, or None, not {data.size}")
    if data.crop is not None and not 0 < data.crop <= 1:
        raise UsageError(f"config key 'data.crop' must be above 0 and at most 1, or None, not {data.crop}")
    if data.crop is not None and data.size is None:
        raise UsageError(f"config key 'data.crop' = {data.crop} goes with data.size, which is None")
    augment.parse(data.augment)


def examined(cfg: Config) -> augment.Images:
    """What happens to images that are evaluated."""
    return _images(cfg, ())


def trained(cfg: Config) -> augment.Images:
    """What happens to images that are trained on, each by itself."""
    return _images(cfg, tuple(s for s in augment.parse(cfg.data.augment) if s[0] in augment.OPERATIONS))


def mixed(cfg: Config, task: Task) -> mixing.Mix | None:
    """What happens to pairs of them; None where nothing does. Raises UsageError for a task that takes no mixed rows."""
    ways = tuple(s for s in augment.parse(cfg.data.augment) if s[0] in mixing.WAYS)
    if ways and "mixing" not in task.extras:
        able = ", ".join(name for name, other in TASKS.items() if "mixing" in other.extras)
        raise UsageError(f"config key 'data.augment': {ways[0][0]} goes with the loss {able} only, not {cfg.loss}")
    return mixing.Mix(cfg.seed, ways) if ways else None


def seen(cfg: Config, example: Source) -> Source:
    """The first row of examples as a network sees it, for its shapes; texts as they are.

    Raises UsageError for knobs of images where there are none, and sizes or channels that do not fit them.
    """
    row = example.__getitems__([0]) if isinstance(example, Examples) else {}
    for name in ("augment", "size", "crop"):
        if "image" not in row and cfg.data[name] is not None:
            raise UsageError(f"config key 'data.{name}' = {cfg.data[name]!r}: {cfg.data.name!r} holds no images")
    if not isinstance(example, Examples):
        return example
    return dataclasses.replace(example, fields=examined(cfg)(row, 0, np.zeros(1, np.int64)), count=1)


def _images(cfg: Config, operations: tuple[augment.Step, ...]) -> augment.Images:
    data = cfg.data
    size: Size | None = None if data.size is None else (data.size[0], data.size[-1])
    return augment.Images(cfg.seed, operations, data.mean, data.deviation, size, data.crop)
