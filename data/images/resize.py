"""Resizing and cropping of images, uint8 [Y X C], on the host, by Pillow."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.fields import Pixels
from errors import UsageError

Size = tuple[int, int]  # rows, columns
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}
RESIZE_MODES = ("cover", "stretch")


class ResizeSpec(NamedTuple):
    """How images are resized: to `size` / `crop_pct`, then a centre crop of `size`."""

    size: Size
    crop_pct: float = 1.0
    resize_mode: str = "cover"
    interpolation: str = "bilinear"


def to_pil(image: Pixels) -> Image.Image:
    """uint8 [Y X C] -> Pillow image. Raises UsageError if C is neither 1 nor 3."""
    if image.shape[-1] not in (1, 3):
        raise UsageError(f"images have {image.shape[-1]} channels; changing colours needs 1 (grey) or 3 (RGB)")
    return Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])


def from_pil(picture: Image.Image) -> Pixels:
    """The inverse of `to_pil`: grey or RGB -> uint8 [Y X C]."""
    found = np.asarray(picture)
    return found if found.ndim == 3 else found[..., None]


def resize(image: Pixels, size: Size, interpolation: str = "bilinear") -> Pixels:
    """Resize an image, with antialiasing, each channel separately: [Y X C] -> [rows columns C]."""
    if image.shape[:2] == size:
        return image
    channels = [image] if image.shape[-1] == 3 else [image[..., i] for i in range(image.shape[-1])]
    found = [Image.fromarray(c).resize(size[::-1], INTERPOLATIONS[interpolation]) for c in channels]
    return np.asarray(found[0]) if image.shape[-1] == 3 else np.stack([np.asarray(f) for f in found], -1)


def center_crop(image: Pixels, size: Size) -> Pixels:
    """The centre of an image: [Y X C] -> [rows columns C]."""
    y, x = (round((have - want) / 2) for have, want in zip(image.shape, size, strict=False))
    return image[y : y + size[0], x : x + size[1]]


def resize_and_crop(image: Pixels, spec: ResizeSpec) -> Pixels:
    """Resize an image to size / crop_pct and crop its centre, as for evaluation: [Y X C] -> [rows columns C].

    `cover` keeps the aspect ratio: for a square size the shorter side becomes side / crop_pct. `stretch` does not.
    """
    y, x = image.shape[:2]
    rows, columns = (math.floor(s / spec.crop_pct + 1e-6) for s in spec.size)
    if spec.resize_mode == "cover":  # the other side is longer than needed
        rows, columns = max(rows, y * columns // x), max(columns, x * rows // y)
    return center_crop(resize(image, (rows, columns), spec.interpolation), spec.size)


def random_resized_crop_box(shape: Size, rng: np.random.Generator, min_area: float) -> tuple[slice, slice]:
    """A random box in an image [Y X], of `min_area` to 1 of its area and sides 3:4 to 4:3 -> slices of rows, columns.

    The first of ten random boxes that lies inside the image, otherwise the largest central box of such sides.
    Source: Szegedy et al. 2015, "Going deeper with convolutions", arXiv:1409.4842, section 6, as in torchvision.
    """
    y, x = shape
    for _ in range(10):
        area = y * x * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height <= y and 0 < width <= x:
            top, left = int(rng.integers(y - height + 1)), int(rng.integers(x - width + 1))
            return slice(top, top + height), slice(left, left + width)
    ratio = min(max(x / y, 3 / 4), 4 / 3)
    height, width = max(1, min(y, round(x / ratio))), max(1, min(x, round(y * ratio)))
    top, left = (y - height) // 2, (x - width) // 2
    return slice(top, top + height), slice(left, left + width)
