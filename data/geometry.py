"""Sizes and parts of images: uint8 [Y X C], on the host, resampled by Pillow."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.kinds import Pixels
from errors import UsageError

Size = tuple[int, int]  # rows, columns
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}
RESIZE_MODES = ("cover", "stretch")


class ResizeSpec(NamedTuple):
    """How images take a size: of a resized image's sides the middle `crop_pct` is kept."""

    size: Size
    crop_pct: float = 1.0
    resize_mode: str = "cover"
    interpolation: str = "bilinear"


def to_pil(image: Pixels) -> Image.Image:
    """An image as Pillow has it: uint8 [Y X C] -> picture. Raises UsageError where C is neither 1 nor 3."""
    if image.shape[-1] not in (1, 3):
        raise UsageError(f"images of {image.shape[-1]} channels have no colours to change: 1, grey, or 3 would do")
    return Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])


def from_pil(picture: Image.Image) -> Pixels:
    """The inverse of `to_pil`: grey or RGB -> uint8 [Y X C]."""
    found = np.asarray(picture)
    return found if found.ndim == 3 else found[..., None]


def resize(image: Pixels, size: Size, interpolation: str = "bilinear") -> Pixels:
    """An image in another size, antialiased, each channel by itself: [Y X C] -> [rows columns C]."""
    if image.shape[:2] == size:
        return image
    channels = [image] if image.shape[-1] == 3 else [image[..., i] for i in range(image.shape[-1])]
    found = [Image.fromarray(c).resize(size[::-1], INTERPOLATIONS[interpolation]) for c in channels]
    return np.asarray(found[0]) if image.shape[-1] == 3 else np.stack([np.asarray(f) for f in found], -1)


def center_crop(image: Pixels, size: Size) -> Pixels:
    """The middle of an image: [Y X C] -> [rows columns C]."""
    y, x = (round((have - want) / 2) for have, want in zip(image.shape, size, strict=False))
    return image[y : y + size[0], x : x + size[1]]


def resize_and_crop(image: Pixels, frame: ResizeSpec) -> Pixels:
    """An image as it is evaluated: resized to size / crop_pct, the middle kept: [Y X C] -> [rows columns C].

    `cover` keeps the image's shape, so of a square size the shorter side becomes side / crop_pct; `stretch` does not.
    """
    y, x = image.shape[:2]
    rows, columns = (math.floor(s / frame.crop_pct + 1e-6) for s in frame.size)
    if frame.resize_mode == "cover":  # what is not scarce, rows or columns, is longer
        rows, columns = max(rows, y * columns // x), max(columns, x * rows // y)
    return center_crop(resize(image, (rows, columns), frame.interpolation), frame.size)


def random_resized_crop_box(shape: Size, draw: np.random.Generator, least: float) -> tuple[slice, slice]:
    """A random part of an image [Y X], of a share `least` to 1 of its area and sides 3:4 to 4:3 -> its rows, columns.

    Of ten tries the first that lies inside; else the largest part of such sides about the middle.
    Source: Szegedy et al. 2015, "Going deeper with convolutions", arXiv:1409.4842, section 6, as torchvision has it.
    """
    y, x = shape
    for _ in range(10):
        area = y * x * draw.uniform(least, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= y and 0 < wide <= x:
            top, left = int(draw.integers(y - tall + 1)), int(draw.integers(x - wide + 1))
            return slice(top, top + tall), slice(left, left + wide)
    ratio = min(max(x / y, 3 / 4), 4 / 3)
    tall, wide = max(1, min(y, round(x / ratio))), max(1, min(x, round(y * ratio)))
    top, left = (y - tall) // 2, (x - wide) // 2
    return slice(top, top + tall), slice(left, left + wide)
