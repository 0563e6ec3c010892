"""Augmentation and normalisation of images on the host. Each row has a random generator: (seed, step, global row).

The operations run in the order in which they are written, on pixels from 0 to 255. Then pixels are scaled to [0, 1] and
normalised by mean and std. Then `data/images/mixup.py` mixes rows. Images are resized to `data.size` by
random_resized_crop if that is one of the operations, otherwise before the first operation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data.fields import Fields, Pixels, Rng, generator, object_array
from data.images import randaugment, resize
from data.images.resize import ResizeSpec, Size
from errors import UsageError, unknown
from pairs import parse_pairs

VIEW_SITE = 3  # site of the random generator of an image's second view; see data/images/mixup.py for the others
Operation = tuple[Any, ...]  # an operation with its numbers, as ("crop", 4)


def _flip(image: Pixels, rng: Rng, spec: ResizeSpec) -> Pixels:
    return image[:, ::-1] if rng.random() < 0.5 else image


def _crop(image: Pixels, rng: Rng, spec: ResizeSpec, pad: int) -> Pixels:
    y, x = rng.integers(0, 2 * pad + 1, 2)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return padded[y : y + image.shape[0], x : x + image.shape[1]]


def _random_resized_crop(image: Pixels, rng: Rng, spec: ResizeSpec, min_area: float = 0.08) -> Pixels:
    crop = resize.random_resized_crop_box(image.shape[:2], rng, min_area)
    return resize.resize(image[crop], spec.size, spec.interpolation)


def _erase(image: Pixels, rng: Rng, spec: ResizeSpec, probability: float = 0.5) -> Pixels:
    """Fill a random box with noise: 2 to 40 % of the area, sides 3:10 to 10:3 (Zhong et al. 2017, arXiv:1708.04896)."""
    if rng.random() >= probability:
        return image
    y, x = image.shape[:2]
    for _ in range(100):
        area, ratio = y * x * rng.uniform(0.02, 0.4), math.exp(rng.uniform(-math.log(10 / 3), math.log(10 / 3)))
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height < y and 0 < width < x:
            top, left = rng.integers(y - height + 1), rng.integers(x - width + 1)
            erased, noise = image.copy(), rng.integers(0, 256, (height, width, image.shape[-1]), np.uint8)
            erased[top : top + height, left : left + width] = noise
            return erased
    return image


OPERATIONS: dict[str, Callable[..., Pixels]] = {  # (image, rng, spec, *numbers) -> image
    "flip": _flip,
    "crop": _crop,
    "random_resized_crop": _random_resized_crop,
    "randaugment": lambda image, rng, spec, *numbers: randaugment.randaugment(image, rng, *numbers),
    "jitter": lambda image, rng, spec, *numbers: randaugment.jitter(image, rng, *numbers),
    "erase": _erase,
}


class OpSyntax(NamedTuple):
    """How an operation is written."""

    text: str
    ranges: tuple[tuple[type, float, float], ...] = ()  # type, least and greatest value of each number
    required: int = 0  # how many of the numbers must be given


_ALPHA = "ALPHA mixes two rows by lambda from Beta(ALPHA, ALPHA), 0.01 to 100"
SYNTAX = {
    "flip": OpSyntax("flip mirrors left to right with probability 1/2"),
    "crop": OpSyntax(
        "crop:N pads by N pixels of 0 on each side and crops to the old size at random", ((int, 0, 4096),), 1
    ),
    "random_resized_crop": OpSyntax(
        "random_resized_crop or random_resized_crop:LEAST crops LEAST, 0.01 to 1, to 1 of the area",
        ((float, 0.01, 1),),
    ),
    "randaugment": OpSyntax(
        f"randaugment:N:M applies N operations, 1 to 14, of magnitude M, 0 to {randaugment.MAX_MAGNITUDE}",
        ((int, 1, 14), (int, 0, randaugment.MAX_MAGNITUDE)),
        2,
    ),
    "jitter": OpSyntax("jitter:X changes brightness, contrast and saturation by up to X, 0 to 1", ((float, 0, 1),), 1),
    "erase": OpSyntax("erase or erase:P fills a box with noise with probability P, 0 to 1", ((float, 0, 1),)),
    "mixup": OpSyntax(f"mixup:{_ALPHA}", ((float, 0.01, 100),), 1),
    "cutmix": OpSyntax(f"cutmix:{_ALPHA}", ((float, 0.01, 100),), 1),
}


@dataclass(frozen=True)
class ImagePipeline:
    """Resizes images, applies the operations (of training) and normalises.

    `crop_pct` is the fraction of an image's sides that the centre crop of a resized image keeps; None keeps all.
    `resize_mode` and `interpolation` are those of resize.ResizeSpec. If `channels` is 3, grey images are converted to
    three equal channels first.
    With `two_views` a row has its image twice, `image` and `image_b`, by draws of their own.
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
    two_views: bool = False

    def __call__(self, batch: Fields, step: int, rows: np.ndarray) -> Fields:
        """The batch with image, uint8 [B Y X C] or an object array [B], transformed to float32 [B Y X C].

        With `two_views` also image_b.

        Raises UsageError if image sizes differ and no size is set, or if mean or std has not one entry a channel.
        """
        if "image" not in batch or "boxes" in batch:
            return batch
        found = {**batch, "image": self._transform(batch["image"], step, rows)}
        if self.two_views:
            found["image_b"] = self._transform(batch["image"], step, rows, VIEW_SITE)
        return found

    def _transform(self, images: np.ndarray, step: int, rows: np.ndarray, site: int = 0) -> np.ndarray:
        images = _to_rgb(images) if self.channels == 3 else images
        sizes_differ = images.dtype == object
        if sizes_differ and self.size is None:
            raise UsageError("the images have different sizes: set data.size, as 224 or (rows, columns)")
        if sizes_differ or self.operations or self.crop_pct or self.size not in (None, images.shape[1:3]):
            images = np.stack([self._transform_one(i, step, int(r), site) for i, r in zip(images, rows, strict=True)])
        array = images.astype(np.float32, order="C")
        count, y, x, channels = array.shape
        lines = array.reshape(count, y, x * channels)  # numpy is slow on dims of 3
        lines /= 255
        lines -= np.resize(self._per_channel("mean", channels), x * channels)
        lines /= np.resize(self._per_channel("std", channels), x * channels)
        return array

    def _transform_one(self, image: Pixels, step: int, row: int, site: int) -> Pixels:
        rng = generator(self.seed, step, row, site)
        spec = ResizeSpec(self.size or image.shape[:2], self.crop_pct or 1.0, self.resize_mode, self.interpolation)
        if all(name != "random_resized_crop" for name, *_ in self.operations):
            image = resize.resize_and_crop(image, spec)
        for name, *numbers in self.operations:
            image = OPERATIONS[name](image, rng, spec, *numbers)
        return image

    def _per_channel(self, name: str, channels: int) -> np.ndarray:
        values = np.asarray(getattr(self, name), np.float32)
        if values.ndim and len(values) != channels:
            raise UsageError(
                f"config key 'data.{name}' = {getattr(self, name)}: the images have {channels} channel(s); "
                f"give one number, or one per channel"
            )
        return values


def _to_rgb(images: np.ndarray) -> np.ndarray:
    """Repeat the channel of grey images three times: uint8 [B Y X C], or an object array [B], -> the same type."""
    if images.dtype == object:
        return object_array([_to_rgb(image) for image in images])
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def parse(text: str | None) -> tuple[Operation, ...]:
    """`flip,crop:4` -> (("flip",), ("crop", 4)). Raises UsageError for an unknown operation or wrong numbers."""
    return tuple(
        _parse_op(name, numbers) for name, numbers in parse_pairs(text, "data.augment", "NAME or NAME:NUMBERS")
    )


def _parse_op(name: str, values: str) -> Operation:
    arguments = values.split(":") if values else []
    if name not in SYNTAX:
        raise unknown("augmentation", name, SYNTAX)
    text, ranges, required = SYNTAX[name]
    try:
        numbers = [type_(n) for (type_, _, _), n in zip(ranges, arguments, strict=False)]
    except ValueError:
        numbers = []
    inside = all(low <= n <= high for n, (_, low, high) in zip(numbers, ranges, strict=False))
    if not inside or len(numbers) != len(arguments) or len(arguments) < required:
        raise UsageError(f"augmentation {':'.join([name, *arguments])!r}: {text}")
    return (name, *numbers)
