"""What happens to images on the host, each by a generator of its own: (seed, step, global row).

The order: operations as they are written, on pixels 0 to 255; then scaled to [0, 1], and by mean and std; then,
by `data/mixing.py`, rows are mixed. An image takes its size, `data.size`, by random_resized_crop where that is among
the operations, else before the first of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data import distortions, geometry
from data.geometry import ResizeSpec, Size
from data.kinds import Draw, Fields, Pixels, generator, object_array
from errors import UsageError, unknown

Operation = tuple[Any, ...]  # an operation with its numbers, as ("crop", 4)


def _flip(image: Pixels, draw: Draw, frame: ResizeSpec) -> Pixels:
    return image[:, ::-1] if draw.random() < 0.5 else image


def _crop(image: Pixels, draw: Draw, frame: ResizeSpec, by: int) -> Pixels:
    y, x = draw.integers(0, 2 * by + 1, 2)
    padded = np.pad(image, ((by, by), (by, by), (0, 0)))
    return padded[y : y + image.shape[0], x : x + image.shape[1]]


def _random_resized_crop(image: Pixels, draw: Draw, frame: ResizeSpec, least: float = 0.08) -> Pixels:
    part = geometry.random_resized_crop_box(image.shape[:2], draw, least)
    return geometry.resize(image[part], frame.size, frame.interpolation)


def _erase(image: Pixels, draw: Draw, frame: ResizeSpec, chance: float = 0.5) -> Pixels:
    """Noise in a random box of 2 to 40 % of the area, sides 3:10 to 10:3 (Zhong et al. 2017, arXiv:1708.04896)."""
    if draw.random() >= chance:
        return image
    y, x = image.shape[:2]
    for _ in range(100):
        area, ratio = y * x * draw.uniform(0.02, 0.4), math.exp(draw.uniform(-math.log(10 / 3), math.log(10 / 3)))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall < y and 0 < wide < x:
            top, left = draw.integers(y - tall + 1), draw.integers(x - wide + 1)
            erased, noise = image.copy(), draw.integers(0, 256, (tall, wide, image.shape[-1]), np.uint8)
            erased[top : top + tall, left : left + wide] = noise
            return erased
    return image


OPERATIONS: dict[str, Callable[..., Pixels]] = {  # (image, draw, frame that is wanted, *numbers) -> image
    "flip": _flip,
    "crop": _crop,
    "random_resized_crop": _random_resized_crop,
    "randaugment": lambda image, draw, frame, *numbers: distortions.randaugment(image, draw, *numbers),
    "jitter": lambda image, draw, frame, *numbers: distortions.jitter(image, draw, *numbers),
    "erase": _erase,
}


class OpSyntax(NamedTuple):
    """How an operation is written."""

    text: str
    ranges: tuple[tuple[type, float, float], ...] = ()  # of each number type, least and most
    required: int = 0  # how many of them must be given


_ALPHA = "ALPHA mixes two rows by shares of law Beta(ALPHA, ALPHA), 0.01 to 100"
SYNTAX = {
    "flip": OpSyntax("flip mirrors left to right with probability 1/2"),
    "crop": OpSyntax("crop:N pads by N pixels of 0 around and crops the old size anywhere", ((int, 0, 4096),), 1),
    "random_resized_crop": OpSyntax(
        "random_resized_crop or random_resized_crop:LEAST takes LEAST, 0.01 to 1, to all of the area",
        ((float, 0.01, 1),),
    ),
    "randaugment": OpSyntax(
        f"randaugment:N:M does N operations, 1 to 14, of magnitude M, 0 to {distortions.MAX_MAGNITUDE}",
        ((int, 1, 14), (int, 0, distortions.MAX_MAGNITUDE)),
        2,
    ),
    "jitter": OpSyntax("jitter:X changes brightness, contrast and saturation by up to X, 0 to 1", ((float, 0, 1),), 1),
    "erase": OpSyntax("erase or erase:P puts noise in a box with probability P, 0 to 1", ((float, 0, 1),)),
    "mixup": OpSyntax(f"mixup:{_ALPHA}", ((float, 0.01, 100),), 1),
    "cutmix": OpSyntax(f"cutmix:{_ALPHA}", ((float, 0.01, 100),), 1),
}


@dataclass(frozen=True)
class ImagePipeline:
    """Gives images their size, does the operations, which are of training only, and normalises.

    `crop_pct` is the share of an image's sides that is kept where it is resized as a whole; None is all of it.
    `resize_mode` and `interpolation` are those of geometry.Frame. Where `channels` is 3, grey images get three equal
    channels before all else.
    """

    seed: int = 0
    operations: tuple[Operation, ...] = ()
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    size: Size | None = None
    crop_pct: float | None = None
    resize_mode: str = "cover"
    interpolation: str = "bilinear"
    channels: int | None = None

    def __call__(self, batch: Fields, step: int, rows: np.ndarray) -> Fields:
        """The batch with its field image, uint8 [B Y X C] or objects [B], turned into float32 [B Y X C].

        Raises UsageError where sizes differ and none is wanted, or a mean has not one entry a channel.
        """
        if "image" not in batch or "boxes" in batch:
            return batch
        images = _to_rgb(batch["image"]) if self.channels == 3 else batch["image"]
        differ = images.dtype == object
        if differ and self.size is None:
            raise UsageError("the images have different sizes: set data.size, as 224 or (rows, columns)")
        if differ or self.operations or self.crop_pct or self.size not in (None, images.shape[1:3]):
            images = np.stack([self._transform_one(i, step, int(r)) for i, r in zip(images, rows, strict=True)])
        found = images.astype(np.float32, order="C")
        count, y, x, channels = found.shape
        lines = found.reshape(count, y, x * channels)  # numpy is slow on dims of 3
        lines /= 255
        lines -= np.resize(self._per_channel("mean", channels), x * channels)
        lines /= np.resize(self._per_channel("std", channels), x * channels)
        return {**batch, "image": found}

    def _transform_one(self, image: Pixels, step: int, row: int) -> Pixels:
        draw = generator(self.seed, step, row)
        frame = ResizeSpec(self.size or image.shape[:2], self.crop_pct or 1.0, self.resize_mode, self.interpolation)
        if all(name != "random_resized_crop" for name, *_ in self.operations):
            image = geometry.resize_and_crop(image, frame)
        for name, *numbers in self.operations:
            image = OPERATIONS[name](image, draw, frame, *numbers)
        return image

    def _per_channel(self, name: str, channels: int) -> np.ndarray:
        given = np.asarray(getattr(self, name), np.float32)
        if given.ndim and len(given) != channels:
            raise UsageError(
                f"config key 'data.{name}' = {getattr(self, name)}: the images have {channels} channel(s); "
                f"give one number, or one for each"
            )
        return given


def _to_rgb(images: np.ndarray) -> np.ndarray:
    """Images with three channels where they have one, all alike: uint8 [B Y X C], or objects [B], -> the same."""
    if images.dtype == object:
        return object_array([_to_rgb(image) for image in images])
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def parse(text: str | None) -> tuple[Operation, ...]:
    """`flip,crop:4` -> (("flip",), ("crop", 4)). Raises UsageError for an unknown operation or wrong numbers."""
    return tuple(_parse_op(part.strip()) for part in (text or "").split(",") if text)


def _parse_op(part: str) -> Operation:
    name, *given = part.split(":")
    if name not in SYNTAX:
        raise unknown("augmentation", name, SYNTAX)
    text, takes, needs = SYNTAX[name]
    try:
        numbers = [kind(n) for (kind, _, _), n in zip(takes, given, strict=False)]
    except ValueError:
        numbers = []
    inside = all(low <= n <= high for n, (_, low, high) in zip(numbers, takes, strict=False))
    if not inside or len(numbers) != len(given) or len(given) < needs:
        raise UsageError(f"augmentation {part!r}: {text}")
    return (name, *numbers)
