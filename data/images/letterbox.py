"""Letterbox and augmentation for images with boxes: pixels and boxes are transformed together.

All geometry is one `LetterboxTransform`, so an image is resampled once. Each row has a random generator of its own,
keyed by (seed, step, row).
Source: Redmon et al. 2016, "You only look once", arXiv:1506.02640, section 2.2: `jitter:0.2`, `saturation:1.5` and
`exposure:1.5`; hue and the grey border are Darknet's. What jitter moves in from outside the image is grey too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.fields import Rng, generator
from data.images.detection import to_pixel_xyxy, to_relative_cxcywh
from data.images.resize import Size
from errors import UsageError, unknown
from pairs import parse_pairs

FILL = 0.5  # the border's grey, as in Darknet
MIN_VISIBLE = 0.25  # a box with a smaller visible fraction of its area is dropped


class LetterboxTransform(NamedTuple):
    """`source_box` of an image, in its pixels, is resampled to `target_box` of the network's image, in whole pixels.

    Both are corners (left, top, right, bottom). `flip` then mirrors the whole network's image left to right, border
    included.
    """

    source_box: tuple[float, float, float, float]
    target_box: tuple[int, int, int, int]
    flip: bool = False


def letterbox(original: Size, size: Size) -> LetterboxTransform:
    """The transform that fits the whole image into `size`, centred, with its aspect ratio kept."""
    (y, x), (rows, columns) = original, size
    if columns * y < rows * x:
        height, width = max(1, y * columns // x), columns
    else:
        height, width = rows, max(1, x * rows // y)
    left, top = (columns - width) // 2, (rows - height) // 2
    return LetterboxTransform((0.0, 0.0, float(x), float(y)), (left, top, left + width, top + height))


def _scale_and_shift(transform: LetterboxTransform) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift (x, y) from pixels of the image to pixels of the network's image."""
    source, target = np.array(transform.source_box), np.array(transform.target_box, np.float64)
    scale = (target[2:] - target[:2]) / (source[2:] - source[:2])
    return scale, target[:2] - source[:2] * scale


def transform_boxes(corners: np.ndarray, transform: LetterboxTransform, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Corners [m 4] -> corners in the network's image, clipped to its target [m 4]; each box's visible fraction [m]."""
    scale, shift = _scale_and_shift(transform)
    whole = corners.reshape(-1, 2, 2) * scale + shift
    left, top, right, bottom = transform.target_box
    clipped = np.clip(whole, (left, top), (right, bottom))
    visible = np.prod(clipped[:, 1] - clipped[:, 0], -1) / np.maximum(np.prod(whole[:, 1] - whole[:, 0], -1), 1e-12)
    if transform.flip:
        clipped[..., 0] = size[1] - clipped[:, ::-1, 0]
    return clipped.reshape(-1, 4), visible


def to_original(boxes: np.ndarray, size: Size, original: Size) -> np.ndarray:
    """Centre and size relative to a letterboxed image [... 4] -> corners in pixels of the original [... 4]."""
    scale, shift = _scale_and_shift(letterbox(original, size))
    corners = (to_pixel_xyxy(boxes, size) - np.tile(shift, 2)) / np.tile(scale, 2)
    return np.clip(corners, 0, (original[1], original[0], original[1], original[0]))


def transform_image(
    image: np.ndarray, transform: LetterboxTransform, size: Size, colour: dict[str, float] | None = None
) -> np.ndarray:
    """An image uint8 [y x 3] -> the network's image, bilinear with antialiasing: float32 [Y X 3] in [0, 1]."""
    left, top, right, bottom = transform.target_box
    patch = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BILINEAR, transform.source_box)
    pixels = np.asarray(patch, np.float32) / 255
    whole = np.full((*size, 3), FILL, np.float32)
    whole[top:bottom, left:right] = jitter_hsv(pixels, **colour) if colour else pixels
    return whole[:, ::-1] if transform.flip else whole


def jitter_hsv(image: np.ndarray, hue: float = 0.0, saturation: float = 1.0, exposure: float = 1.0) -> np.ndarray:
    """Rotate the hue by a fraction of the circle, multiply saturation and value, by HSV: float32 [Y X 3] -> same.

    With V the largest channel and C its distance from the smallest, a channel is V - C s. s depends on the distance of
    the hue from the hue opposite to the channel: 1 up to a sixth of the circle, then falling, 0 from two sixths on.
    """
    red, green, blue = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    high = np.maximum(np.maximum(red, green), blue)
    chroma = high - np.minimum(np.minimum(red, green), blue)
    of_red, of_green = high == red, high == green
    slope = np.where(of_red, green - blue, np.where(of_green, blue - red, red - green))
    sixths = slope / np.where(chroma > 0, chroma, 1) + np.where(of_red, 0, np.where(of_green, 2, 4)).astype(np.float32)
    mixed = np.empty_like(image)
    for i, opposite in enumerate((3, 5, 1)):
        away = sixths + (6 * hue - opposite)
        away -= 6 * np.rint(away / 6)
        mixed[..., i] = exposure * (high - saturation * chroma * np.clip(2 - np.abs(away), 0, 1))
    return np.clip(mixed, 0, 1)


def _flip(transform: LetterboxTransform, rng: Rng, amount: float) -> LetterboxTransform:
    return transform._replace(flip=bool(rng.random() < 0.5) != transform.flip)


def _jitter(transform: LetterboxTransform, rng: Rng, amount: float) -> LetterboxTransform:
    """Move each edge of the source in or out by up to `amount` of the side; what remains fills the same target."""
    source, target = np.array(transform.source_box), np.array(transform.target_box)
    side, target_side = np.tile(source[2:] - source[:2], 2), np.tile(target[2:] - target[:2], 2)
    window = source + rng.uniform(-amount, amount, 4) * side
    inside = np.concatenate([np.maximum(window[:2], source[:2]), np.minimum(window[2:], source[2:])])
    low, extent = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    box = np.tile(target[:2], 2) + np.rint((inside - low) / extent * target_side).astype(int)
    box[2:] = np.maximum(box[2:], box[:2] + 1)
    return transform._replace(source_box=tuple(inside.tolist()), target_box=tuple(box.tolist()))


def _random_shift(rng: Rng, amount: float) -> float:
    return rng.uniform(-amount, amount)


def _random_factor(rng: Rng, amount: float) -> float:
    factor, inverse = rng.uniform(1, amount), rng.random() < 0.5
    return 1 / factor if inverse else factor


GEOMETRY: dict[str, Callable[[LetterboxTransform, Rng, float], LetterboxTransform]] = {
    "flip": _flip,
    "jitter": _jitter,
}
COLOUR: dict[str, Callable[[Rng, float], float]] = {
    "hue": _random_shift,
    "saturation": _random_factor,
    "exposure": _random_factor,
}
AMOUNTS = {  # operation -> what it does, least and greatest amount
    "flip": ("left to right with probability 1/2", 0.0, 0.0),
    "jitter": ("each edge in or out by up to this fraction of the side", 0.0, 0.45),
    "hue": ("rotated by up to this fraction of the circle either way", 0.0, 0.5),
    "saturation": ("multiplied or divided by up to X", 1.0, 10.0),
    "exposure": ("brightness multiplied or divided by up to X", 1.0, 10.0),
}


@dataclass(frozen=True)
class DetectionPipeline:
    """Transforms images with boxes to `size` (rows, columns): the letterbox and, in training, the operations."""

    seed: int
    size: Size
    operations: tuple[tuple[str, float], ...] = ()

    def __call__(self, batch: dict[str, np.ndarray], step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The batch with image, an object array [B] of uint8 [y x 3], and its boxes transformed: float32 [B Y X 3].

        Boxes keep their order. Those with less than MIN_VISIBLE of their area visible become padding, at the end.
        """
        image = np.empty((len(rows), *self.size, 3), np.float32)
        boxes, labels, mask = (np.zeros_like(batch[name]) for name in ("boxes", "box_labels", "box_mask"))
        for i, row in enumerate(rows):
            original, own = batch["image"][i], batch["box_mask"][i] > 0
            corners = to_pixel_xyxy(batch["boxes"][i, own].astype(np.float64), original.shape[:2])
            transform, colour = self._draw_transform(original.shape[:2], step, int(row))
            image[i] = transform_image(original, transform, self.size, colour)
            corners, visible = transform_boxes(corners, transform, self.size)
            kept = visible >= MIN_VISIBLE
            count = int(kept.sum())
            boxes[i, :count] = to_relative_cxcywh(corners[kept], self.size)
            mask[i, :count] = 1
            labels[i, :count] = batch["box_labels"][i, own][kept]
        return {**batch, "image": image, "boxes": boxes, "box_labels": labels, "box_mask": mask}

    def _draw_transform(self, original: Size, step: int, row: int) -> tuple[LetterboxTransform, dict[str, float]]:
        rng = generator(self.seed, step, row)
        transform = letterbox(original, self.size)
        colour = dict[str, float]()
        for name, amount in self.operations:
            if name in GEOMETRY:
                transform = GEOMETRY[name](transform, rng, amount)
            else:
                colour[name] = COLOUR[name](rng, amount)
        return transform, colour


def parse(text: str | None) -> tuple[tuple[str, float], ...]:
    """`flip,jitter:0.2` -> (("flip", 0.0), ("jitter", 0.2)). Raises UsageError for an unknown operation or amount."""
    operations: dict[str, float] = {}
    for name, amount in parse_pairs(text, "data.augment", "NAME or NAME:NUMBER"):
        if name not in AMOUNTS:
            raise unknown("augmentation of images with boxes", name, AMOUNTS)
        effect, low, high = AMOUNTS[name]
        number = _parse_float(amount) if amount else 0.0 if name == "flip" else None
        if number is None or not low <= number <= high or (name == "flip" and amount):
            syntax = f"{name}:X, X from {low:g} to {high:g}" if high else name
            raise UsageError(f"augmentation {f'{name}:{amount}' if amount else name!r}: write {syntax}: {effect}")
        if name in operations:
            raise UsageError(f"augmentation {name!r} is given twice")
        operations[name] = number
    return tuple(operations.items())


def _parse_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
