"""Images of any size with boxes around what is in them, as a detector learns them and is judged by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data import image_files
from data.geometry import Size
from data.kinds import DECODE_ONCE, Examples, Fields, Pixels, iter_blocks
from data.progress import Tick, silent
from errors import UsageError

SLACK = 0.01  # pixels by which a box may leave its image without a note: rounding of what an annotator wrote
NAMES_SHOWN = 3  # images that a note names


class BoxAnnotations(NamedTuple):
    """The boxes of one image: corners (left, top, right, bottom) in its pixels [m 4], classes [m], and whether each
    stands for a crowd, as COCO has it [m], or is difficult, as VOC has it [m].
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray

    @property
    def is_valid(self) -> np.ndarray:
        """Which boxes count [m]: a crowd or a difficult one is no example, and finding it neither right nor wrong."""
        return ~(self.crowd | self.difficult)


class AnnotatedImage(NamedTuple):
    """An image as it was annotated: its name, rows and columns, and its boxes, which may be amiss."""

    name: str
    size: Size
    annotations: BoxAnnotations


@dataclass(frozen=True)
class RaggedAnnotations:
    """The boxes of all images, image after image, those of image i from `starts[i]`; and the images' sizes."""

    boxes: np.ndarray  # float32 [all 4], corners in pixels
    labels: np.ndarray  # int32 [all]
    crowd: np.ndarray  # bool [all]
    difficult: np.ndarray  # bool [all]
    starts: np.ndarray  # int64 [n + 1]
    sizes: np.ndarray  # int32 [n 2], rows and columns

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> BoxAnnotations:
        """The boxes of image i."""
        own = slice(self.starts[i], self.starts[i + 1])
        return BoxAnnotations(self.boxes[own], self.labels[own], self.crowd[own], self.difficult[own])

    def size(self, i: int) -> Size:
        """Rows and columns of image i."""
        y, x = self.sizes[i].tolist()
        return y, x


@dataclass(frozen=True)
class DetectionReader:
    """From rows to fields: image as an object array [n] of uint8 [y x 3], boxes padded to `most` an image.

    boxes float32 [n M 4] as centre and size in shares of the image, kinds int32 [n M], there float32 [n M]: 1 a box, 0
    padding. Boxes that do not count are left out, and of more than `most` the last.
    """

    decode: Callable[[int], Pixels]
    annotations: RaggedAnnotations
    max_boxes: int

    def __call__(self, rows: np.ndarray) -> Fields:
        """The fields of some rows, in their order."""
        image, shape = np.empty(len(rows), object), (len(rows), self.max_boxes)
        boxes, kinds, there = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            image[i], truth = self.decode(int(row)), self.annotations[row]
            kept = np.flatnonzero(truth.is_valid)[: self.max_boxes]
            boxes[i, : len(kept)] = to_relative_cxcywh(truth.boxes[kept], self.annotations.size(int(row)))
            kinds[i, : len(kept)], there[i, : len(kept)] = truth.labels[kept], 1
        return {"image": image, "boxes": boxes, "box_labels": kinds, "box_mask": there}


@dataclass(frozen=True, kw_only=True)
class DetectionDataset(Examples):
    """Images with boxes: fields as of `DetectionReader`; all boxes as they were annotated; `notes` say what was mended.

    `paths` are the images' files, one a row, where they lie in files.
    """

    annotations: RaggedAnnotations
    paths: tuple[str, ...] = ()

    @property
    def max_boxes(self) -> int:
        """Boxes of a row."""
        return self.shapes["boxes"][0]

    def with_max_boxes(self, max_boxes: int) -> "DetectionDataset":
        """The same with at most so many boxes a row, and padding up to them."""
        assert isinstance(self.fields, DetectionReader)
        return replace(self, fields=replace(self.fields, max_boxes=max_boxes))


def to_relative_cxcywh(corners: np.ndarray, size: Size) -> np.ndarray:
    """Corners in pixels [... 4], rows and columns of the image -> centre and size in shares of it [... 4]."""
    y, x = size
    low, high = corners[..., :2] / (x, y), corners[..., 2:] / (x, y)
    return np.concatenate([(low + high) / 2, high - low], -1)


def to_pixel_xyxy(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Centre and size in shares of an image [... 4], its rows and columns -> corners in pixels [... 4]."""
    y, x = size
    middle, half = boxes[..., :2] * (x, y), boxes[..., 2:] * (x / 2, y / 2)
    return np.concatenate([middle - half, middle + half], -1)


def make_detection_dataset(
    name: str,
    split: str,
    images: Sequence[AnnotatedImage],
    classes: Sequence[str],
    decode: Callable[[int], Pixels],
    identity: dict[str, Any],
    notes: tuple[str, ...] = (),
) -> DetectionDataset:
    """A source of annotated images; a box that leaves its image is cut, one without area left out, and its notes say
    so after `notes`.

    What is small when decoded is decoded now. Raises UsageError where there is no image or no class, or a box is
    of another class or no number.
    """
    if not images:
        raise UsageError(f"{name}: its split {split!r} holds no image")
    if not classes:
        raise UsageError(f"{name}: its annotations name no class")
    mended = [_repair_boxes(image, len(classes)) for image in images]
    parts = [truth for truth, _, _ in mended]
    starts = np.cumsum([0, *(len(t.labels) for t in parts)])
    sizes = np.array([image.size for image in images], np.int32)
    boxes, kinds, crowd, difficult = (np.concatenate(part) for part in zip(*parts, strict=True))
    truths = RaggedAnnotations(boxes, kinds, crowd, difficult, starts, sizes)
    named = [image.name for image in images]
    cut = _repair_note(f"{name} {split}", "cut to the image", [m[1] for m in mended], named)
    left = _repair_note(f"{name} {split}", "without area left out", [m[2] for m in mended], named)
    if 3 * int(sizes.prod(1, dtype=np.int64).sum()) <= DECODE_ONCE:
        decode = [decode(i) for i in range(len(images))].__getitem__
    most = max(1, *(int(t.is_valid.sum()) for t in parts))
    reading = DetectionReader(decode, truths, most)
    return DetectionDataset(
        reading, len(images), identity, len(classes), tuple(classes), annotations=truths, notes=notes + cut + left
    )


def _repair_boxes(image: AnnotatedImage, classes: int) -> tuple[BoxAnnotations, int, int]:
    """Boxes within their image and with an area, how many were cut for it, and how many left out."""
    y, x = image.size
    corners = np.asarray(image.annotations.boxes, np.float64).reshape(-1, 4)
    kinds = np.asarray(image.annotations.labels, np.int32)
    crowd, difficult = (np.asarray(mark, bool) for mark in (image.annotations.crowd, image.annotations.difficult))
    if not np.isfinite(corners).all():
        raise UsageError(f"{image.name}: a box has a corner that is no finite number: {corners.tolist()}")
    if len(kinds) and not 0 <= kinds.min() <= kinds.max() < classes:
        raise UsageError(f"{image.name}: a box is of class {kinds[(kinds < 0) | (kinds >= classes)][0]} of {classes}")
    inside = np.clip(corners, 0, (x, y, x, y)).astype(np.float32)
    real = (inside[:, 2:] > inside[:, :2]).all(1)
    cut = real & (np.abs(inside - corners).max(1, initial=0) > SLACK)
    truth = BoxAnnotations(inside[real], kinds[real], crowd[real], difficult[real])
    return truth, int(cut.sum()), int((~real).sum())


def _repair_note(where: str, what: str, counts: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    """A line on boxes that were mended, with the first images that have some; none where there are none."""
    some = [name for count, name in zip(counts, names, strict=True) if count]
    if not some:
        return ()
    more = f" and {len(some) - NAMES_SHOWN} more images" if len(some) > NAMES_SHOWN else ""
    return (f"{where}: {sum(counts)} box{'es' * (sum(counts) > 1)} {what}, of {', '.join(some[:NAMES_SHOWN])}{more}",)


def note(where: str, what: str, names: Sequence[str]) -> tuple[str, ...]:
    """A line on some images or files, with the first names; none where there are none."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (f"{where}: {what} ({len(names)}): {', '.join(names[:NAMES_SHOWN])}{more}",) if names else ()


def decode_rgb(file: bytes | Path, name: str, upright: bool = False) -> Pixels:
    """An image file, or its bytes, as uint8 [y x 3], as it is stored or `upright` by EXIF, as its boxes are.

    Raises UsageError where it cannot be read, or is too deep.
    """
    return image_files.decode(file, name, upright=upright)


@dataclass(frozen=True)
class _TfdsDecoder:
    """Decodes the images of a prepared set, which are read as the bytes of their files."""

    rows: Any
    name: str

    def __call__(self, i: int) -> Pixels:
        return decode_rgb(self.rows.__getitems__([i])[0]["image"], f"{self.name}, image {i}")


def from_tfds(
    rows: Any, objects: Any, shape: Sequence[int | None], identity: dict[str, Any], tick: Tick = silent
) -> DetectionDataset:
    """A set prepared by TFDS: rows with the files' bytes as image, the features of one of its objects, and the shape
    of all images, None where they differ.

    Boxes are the BBoxFeature, classes the ClassLabel, of several that called `label`, crowds those of `is_crowd`, and
    difficult ones those of `is_difficult`. Raises UsageError where one is missing, or an image cannot be read.
    """
    of_type = lambda kind: [k for k, f in objects.items() if type(f).__name__ == kind]  # noqa: E731
    boxes, labels = of_type("BBoxFeature"), sorted(of_type("ClassLabel"), key=lambda k: k != "label")
    set_name = str(identity["name"])
    if len(boxes) != 1 or not labels or (len(labels) > 1 and labels[0] != "label"):  # they come in any order
        has = ", ".join(sorted(objects))
        raise UsageError(
            f"{set_name}: its objects need a BBoxFeature and a ClassLabel, or one called label; they have {has}"
        )
    images: list[AnnotatedImage] = []
    askew = []
    for row in (row for block in iter_blocks(len(rows), tick) for row in rows.__getitems__(block)):
        got, name = row["objects"], row.get("image/filename", b"")
        name = (name.decode() if isinstance(name, bytes) else str(name)).strip() or f"image {len(images)}"
        (y, x), turned = _image_size(row["image"], shape, f"{set_name}, image {len(images)}")
        askew += [name] * turned
        corners = np.array(got[boxes[0]], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]  # TFDS has rows before columns
        kinds, none = np.array(got[labels[0]], np.int32), np.zeros(len(corners), bool)
        marks = (np.array(got.get(key, none), bool) for key in ("is_crowd", "is_difficult"))
        images.append(AnnotatedImage(name, (y, x), BoxAnnotations(corners * (x, y, x, y), kinds, *marks)))
    notes = note(f"{set_name} {identity['split']}", "images whose EXIF orientation is not applied", askew)
    return make_detection_dataset(
        set_name, identity["split"], images, objects[labels[0]].names, _TfdsDecoder(rows, set_name), identity, notes
    )


def _image_size(data: bytes, shape: Sequence[int | None], name: str) -> tuple[Size, bool]:
    """Rows and columns of an image, those of all or by the header of its file; and whether EXIF has it turned."""
    y, x, *_ = shape
    if y is not None and x is not None:
        return (y, x), False
    with image_files.open_image(data, name) as header:
        return (header.height, header.width), image_files.orientation(header) > 1
