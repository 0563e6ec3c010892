"""Images with boxes brought to the network's size: the letterbox, and augmentation in which boxes go with the pixels.

All geometry is one `LetterboxTransform`, so an image is resampled once. Each row has a random generator of its own,
keyed by (seed, step, row).
Source: Redmon et al. 2016, "You only look once", arXiv:1506.02640, section 2.2: `jitter:0.2`, `saturation:1.5` and
`exposure:1.5`; hue and the grey beside the image are Darknet's. What jitter moves in from outside is grey too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.detection import to_pixel_xyxy, to_relative_cxcywh
from data.geometry import Size
from data.kinds import Draw, generator
from errors import UsageError, unknown

FILL = 0.5  # what is beside an image, as in Darknet
MIN_VISIBLE = 0.25  # share of a box's area that must stay in sight, or the box is dropped


class LetterboxTransform(NamedTuple):
    """What part of an image is seen, in its pixels, at what place of the network's, in whole pixels; left right turned.

    Both are corners (left, top, right, bottom); the whole picture is turned, what is beside the image too.
    """

    source_box: tuple[float, float, float, float]
    target_box: tuple[int, int, int, int]
    flip: bool = False


def letterbox(original: Size, size: Size) -> LetterboxTransform:
    """The whole image as large as the network's allows, its proportions kept, in the middle."""
    (y, x), (rows, columns) = original, size
    if columns * y < rows * x:
        height, width = max(1, y * columns // x), columns
    else:
        height, width = rows, max(1, x * rows // y)
    left, top = (columns - width) // 2, (rows - height) // 2
    return LetterboxTransform((0.0, 0.0, float(x), float(y)), (left, top, left + width, top + height))


def _scale_and_shift(view: LetterboxTransform) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift (x, y) from pixels of the image to those of the network's."""
    part, place = np.array(view.source_box), np.array(view.target_box, np.float64)
    factor = (place[2:] - place[:2]) / (part[2:] - part[:2])
    return factor, place[:2] - part[:2] * factor


def transform_boxes(corners: np.ndarray, view: LetterboxTransform, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Corners [m 4] in the network's image, cut to what is seen, and the share of each box that is: [m 4], [m]."""
    factor, shift = _scale_and_shift(view)
    whole = corners.reshape(-1, 2, 2) * factor + shift
    left, top, right, bottom = view.target_box
    cut = np.clip(whole, (left, top), (right, bottom))
    share = np.prod(cut[:, 1] - cut[:, 0], -1) / np.maximum(np.prod(whole[:, 1] - whole[:, 0], -1), 1e-12)
    if view.flip:
        cut[..., 0] = size[1] - cut[:, ::-1, 0]
    return cut.reshape(-1, 4), share


def to_original(boxes: np.ndarray, size: Size, original: Size) -> np.ndarray:
    """Centre and size in shares of a letterboxed image [... 4] -> corners in pixels of the original [... 4]."""
    factor, shift = _scale_and_shift(letterbox(original, size))
    corners = (to_pixel_xyxy(boxes, size) - np.tile(shift, 2)) / np.tile(factor, 2)
    return np.clip(corners, 0, (original[1], original[0], original[1], original[0]))


def transform_image(
    image: np.ndarray, view: LetterboxTransform, size: Size, colour: dict[str, float] | None = None
) -> np.ndarray:
    """What is seen of an image uint8 [y x 3], resampled bilinearly with antialiasing -> float32 [Y X 3] in [0, 1]."""
    left, top, right, bottom = view.target_box
    patch = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BILINEAR, view.source_box)
    pixels = np.asarray(patch, np.float32) / 255
    whole = np.full((*size, 3), FILL, np.float32)
    whole[top:bottom, left:right] = jitter_hsv(pixels, **colour) if colour else pixels
    return whole[:, ::-1] if view.flip else whole


def jitter_hsv(image: np.ndarray, hue: float = 0.0, saturation: float = 1.0, exposure: float = 1.0) -> np.ndarray:
    """Colours turned by a share of the circle, and times more saturated and bright, by HSV: float32 [Y X 3] -> same.

    With V the largest channel and C its distance from the least, a channel is V - C s. By the distance of the hue from
    the one opposite to the channel, s is 1 up to a sixth of the circle, falls, and is 0 from two sixths on.
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


def _flip(view: LetterboxTransform, draw: Draw, amount: float) -> LetterboxTransform:
    return view._replace(flip=bool(draw.random() < 0.5) != view.flip)


def _jitter(view: LetterboxTransform, draw: Draw, amount: float) -> LetterboxTransform:
    """Each edge of the part moves in or out by up to `amount` of its side; the part stretches over the same place."""
    part, place = np.array(view.source_box), np.array(view.target_box)
    side, room = np.tile(part[2:] - part[:2], 2), np.tile(place[2:] - place[:2], 2)
    window = part + draw.uniform(-amount, amount, 4) * side
    shown = np.concatenate([np.maximum(window[:2], part[:2]), np.minimum(window[2:], part[2:])])
    low, extent = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    spot = np.tile(place[:2], 2) + np.rint((shown - low) / extent * room).astype(int)
    spot[2:] = np.maximum(spot[2:], spot[:2] + 1)
    return view._replace(source_box=tuple(shown.tolist()), target_box=tuple(spot.tolist()))


def _random_shift(draw: Draw, amount: float) -> float:
    return draw.uniform(-amount, amount)


def _random_factor(draw: Draw, amount: float) -> float:
    factor, inverse = draw.uniform(1, amount), draw.random() < 0.5
    return 1 / factor if inverse else factor


GEOMETRY: dict[str, Callable[[LetterboxTransform, Draw, float], LetterboxTransform]] = {
    "flip": _flip,
    "jitter": _jitter,
}
COLOUR: dict[str, Callable[[Draw, float], float]] = {
    "hue": _random_shift,
    "saturation": _random_factor,
    "exposure": _random_factor,
}
AMOUNTS = {  # operation -> what it does, least and greatest amount
    "flip": ("left to right with probability 1/2", 0.0, 0.0),
    "jitter": ("each edge in or out by up to this share of the side", 0.0, 0.45),
    "hue": ("turned by up to this share of the circle either way", 0.0, 0.5),
    "saturation": ("up to so many times as much or as little", 1.0, 10.0),
    "exposure": ("up to so many times as bright or as dark", 1.0, 10.0),
}


@dataclass(frozen=True)
class DetectionPipeline:
    """Bring images with boxes to `size`, rows and columns, by the letterbox; in training by the operations too."""

    seed: int
    size: Size
    operations: tuple[tuple[str, float], ...] = ()

    def __call__(self, batch: dict[str, np.ndarray], step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The batch with image [B] of uint8 [y x 3] made float32 [B Y X 3], and boxes, kinds and there to fit it.

        Boxes stay in their order; those of which less than a quarter of the area is seen become padding, at the end.
        """
        image = np.empty((len(rows), *self.size, 3), np.float32)
        boxes, kinds, there = (np.zeros_like(batch[name]) for name in ("boxes", "box_labels", "box_mask"))
        for i, row in enumerate(rows):
            given, own = batch["image"][i], batch["box_mask"][i] > 0
            marked = to_pixel_xyxy(batch["boxes"][i, own].astype(np.float64), given.shape[:2])
            view, colour = self._draw_transform(given.shape[:2], step, int(row))
            image[i] = transform_image(given, view, self.size, colour)
            corners, share = transform_boxes(marked, view, self.size)
            kept = share >= MIN_VISIBLE
            count = int(kept.sum())
            boxes[i, :count], there[i, :count] = to_relative_cxcywh(corners[kept], self.size), 1
            kinds[i, :count] = batch["box_labels"][i, own][kept]
        return {**batch, "image": image, "boxes": boxes, "box_labels": kinds, "box_mask": there}

    def _draw_transform(self, original: Size, step: int, row: int) -> tuple[LetterboxTransform, dict[str, float]]:
        draw = generator(self.seed, step, row)
        view, colour = letterbox(original, self.size), dict[str, float]()
        for name, amount in self.operations:
            if name in GEOMETRY:
                view = GEOMETRY[name](view, draw, amount)
            else:
                colour[name] = COLOUR[name](draw, amount)
        return view, colour


def parse(text: str | None) -> tuple[tuple[str, float], ...]:
    """`flip,jitter:0.2` -> (("flip", 0.0), ("jitter", 0.2)). Raises UsageError for an unknown operation or amount."""
    operations: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, amount = part.strip().partition(":")
        if name not in AMOUNTS:
            raise unknown("augmentation of images with boxes", name, AMOUNTS)
        does, least, most = AMOUNTS[name]
        number = _parse_float(amount) if amount else 0.0 if name == "flip" else None
        if number is None or not least <= number <= most or (name == "flip" and amount):
            form = f"{name}:X, X from {least:g} to {most:g}" if most else name
            raise UsageError(f"augmentation {part.strip()!r}: write {form}: {does}")
        if name in operations:
            raise UsageError(f"augmentation {name!r} is there twice")
        operations[name] = number
    return tuple(operations.items())


def _parse_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
