"""Data sets of images with boxes: annotations in pixels, padded batches for training and evaluation of detectors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from data.fields import DECODE_ONCE, Fields, Identity, Pixels, iter_blocks
from data.images import decode
from data.images.resize import Size
from data.progress import Tick, silent
from data.source import Part, RowType, Source, gather_notes
from data.types import Examples
from errors import UsageError

SLACK = 0.01  # pixels by which a box may leave its image without a note: rounding in the annotation file
NAMES_SHOWN = 3  # images that a note lists by name


class BoxAnnotations(NamedTuple):
    """The boxes of one image: corners (left, top, right, bottom) in pixels [m 4], class labels [m], and for each box
    whether it is a crowd (COCO's `iscrowd`) [m] and whether it is difficult (VOC's `difficult`) [m].
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray

    @property
    def is_valid(self) -> np.ndarray:
        """Whether a box is trained on and scored [m]; detections of crowds and of difficult boxes are ignored."""
        return ~(self.crowd | self.difficult)


class AnnotatedImage(NamedTuple):
    """An image's name, its rows and columns, and its boxes as annotated, before they are checked and clipped."""

    name: str
    size: Size
    annotations: BoxAnnotations


@dataclass(frozen=True)
class RaggedAnnotations:
    """The boxes of all images, concatenated; those of image i begin at `starts[i]`. And the images' sizes."""

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

    @classmethod
    def of(cls, parts: Sequence[BoxAnnotations], sizes: Sequence[Size]) -> "RaggedAnnotations":
        """Of the boxes of each image, and the images' sizes."""
        starts = np.cumsum([0, *(len(part.labels) for part in parts)])
        boxes, labels, crowd, difficult = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return cls(boxes, labels, crowd, difficult, starts, np.array(sizes, np.int32))

    @property
    def max_boxes(self) -> int:
        """The most valid boxes of an image, and at least one."""
        return max(1, *(int(self[i].is_valid.sum()) for i in range(len(self))))

    def size(self, i: int) -> Size:
        """Rows and columns of image i."""
        y, x = self.sizes[i].tolist()
        return y, x


@dataclass(frozen=True)
class DetectionReader:
    """Rows -> fields: image as an object array [n] of uint8 [y x 3], boxes padded to M = `max_boxes` an image.

    boxes float32 [n M 4], centre and size relative to the image; box_labels int32 [n M]; box_mask float32 [n M], 1 for
    a box, 0 for padding. Boxes that are not valid are left out, and so are those after the first `max_boxes`.
    """

    decode: Callable[[int], Pixels]
    annotations: RaggedAnnotations
    max_boxes: int

    def __call__(self, rows: np.ndarray) -> Fields:
        """The fields of some rows, in their order."""
        image = np.empty(len(rows), object)
        shape = (len(rows), self.max_boxes)
        boxes = np.zeros((*shape, 4), np.float32)
        labels = np.zeros(shape, np.int32)
        mask = np.zeros(shape, np.float32)
        for i, row in enumerate(rows):
            image[i] = self.decode(int(row))
            own = self.annotations[row]
            kept = np.flatnonzero(own.is_valid)[: self.max_boxes]
            boxes[i, : len(kept)] = to_relative_cxcywh(own.boxes[kept], self.annotations.size(int(row)))
            labels[i, : len(kept)] = own.labels[kept]
            mask[i, : len(kept)] = 1
        return {"image": image, "boxes": boxes, "box_labels": labels, "box_mask": mask}


@dataclass(frozen=True, kw_only=True)
class DetectionDataset(Examples):
    """Images with boxes: the fields of `DetectionReader`, and the annotations of all images.

    `notes` list the boxes that were clipped or dropped. `paths` are the image files, one per row, if there are any.
    """

    annotations: RaggedAnnotations
    paths: tuple[str, ...] = ()

    def row_type(self) -> RowType:
        """Images with boxes."""
        return replace(super().row_type(), kind="boxes")

    @property
    def max_boxes(self) -> int:
        """Boxes a row, padding included."""
        return self.shapes["boxes"][0]

    def with_max_boxes(self, max_boxes: int) -> "DetectionDataset":
        """The data set with `max_boxes` boxes a row: further ones are dropped, missing ones padded."""
        assert isinstance(self.fields, DetectionReader)
        return replace(self, fields=replace(self.fields, max_boxes=max_boxes))

    def gather(self, parts: Sequence[Part], identity: Identity) -> "DetectionDataset":
        """Images of several sets with their boxes."""
        own = [(s, int(row)) for s, rows in parts if isinstance(s, DetectionDataset) for row in rows]
        annotations = RaggedAnnotations.of([s.annotations[i] for s, i in own], [s.annotations.size(i) for s, i in own])
        decoders = [(s.fields.decode, i) for s, i in own if isinstance(s.fields, DetectionReader)]
        reader = DetectionReader(_Decoder(tuple(decoders)), annotations, annotations.max_boxes)
        paths = tuple(s.paths[i] for s, i in own if s.paths)
        changed = replace(self, fields=reader, count=len(own), identity=identity, notes=gather_notes(parts))
        return replace(changed, annotations=annotations, paths=paths)


@dataclass(frozen=True)
class _Decoder:
    """Decodes images of several sets."""

    rows: tuple[tuple[Callable[[int], Pixels], int], ...]

    def __call__(self, i: int) -> Pixels:
        """Image i."""
        decode, row = self.rows[i]
        return decode(row)


def align_boxes(sources: Sequence[Source]) -> list[Source]:
    """The sources of a mixture; those with boxes have the same number of them a row."""
    most = max((source.max_boxes for source in sources if isinstance(source, DetectionDataset)), default=0)
    return [source.with_max_boxes(most) if isinstance(source, DetectionDataset) else source for source in sources]


def to_relative_cxcywh(corners: np.ndarray, size: Size) -> np.ndarray:
    """Corners in pixels [... 4], the image's (rows, columns) -> centre and size relative to the image [... 4]."""
    y, x = size
    low, high = corners[..., :2] / (x, y), corners[..., 2:] / (x, y)
    return np.concatenate([(low + high) / 2, high - low], -1)


def to_pixel_xyxy(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Centre and size relative to an image [... 4], its (rows, columns) -> corners in pixels [... 4]."""
    y, x = size
    middle, half = boxes[..., :2] * (x, y), boxes[..., 2:] * (x / 2, y / 2)
    return np.concatenate([middle - half, middle + half], -1)


def make_detection_dataset(
    name: str,
    split: str,
    images: Sequence[AnnotatedImage],
    classes: Sequence[str],
    decode: Callable[[int], Pixels],
    identity: Identity,
    notes: tuple[str, ...] = (),
) -> DetectionDataset:
    """A DetectionDataset of annotated images. Boxes are clipped to their image, and those without area are dropped;
    notes on both are appended to `notes`.

    Decodes all images now if they take at most DECODE_ONCE bytes. Raises UsageError if there is no image or no class,
    or if a box has an unknown class or a corner that is not finite.
    """
    if not images:
        raise UsageError(f"{name}: split {split!r} has no images")
    if not classes:
        raise UsageError(f"{name}: the annotations name no classes")
    repaired = [_repair_boxes(image, len(classes)) for image in images]
    annotations = RaggedAnnotations.of([boxes for boxes, _, _ in repaired], [image.size for image in images])
    image_names = [image.name for image in images]
    clipped = _repair_note(f"{name} {split}", "clipped to the image", [r[1] for r in repaired], image_names)
    dropped = _repair_note(f"{name} {split}", "without area dropped", [r[2] for r in repaired], image_names)
    if 3 * int(annotations.sizes.prod(1, dtype=np.int64).sum()) <= DECODE_ONCE:
        decode = [decode(i) for i in range(len(images))].__getitem__
    reader = DetectionReader(decode, annotations, annotations.max_boxes)
    notes = notes + clipped + dropped
    return DetectionDataset(
        reader, len(images), identity, len(classes), tuple(classes), annotations=annotations, notes=notes
    )


def _repair_boxes(image: AnnotatedImage, classes: int) -> tuple[BoxAnnotations, int, int]:
    """The boxes of an image, clipped to it and without empty ones -> boxes, how many were clipped, how many dropped."""
    y, x = image.size
    corners = np.asarray(image.annotations.boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(image.annotations.labels, np.int32)
    crowd, difficult = (np.asarray(flags, bool) for flags in (image.annotations.crowd, image.annotations.difficult))
    if not np.isfinite(corners).all():
        raise UsageError(f"{image.name}: a box has a corner that is not finite: {corners.tolist()}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise UsageError(f"{image.name}: a box is of class {wrong}; classes are 0 to {classes - 1}")
    inside = np.clip(corners, 0, (x, y, x, y)).astype(np.float32)
    keep = (inside[:, 2:] > inside[:, :2]).all(1)
    clipped = keep & (np.abs(inside - corners).max(1, initial=0) > SLACK)
    boxes = BoxAnnotations(inside[keep], labels[keep], crowd[keep], difficult[keep])
    return boxes, int(clipped.sum()), int((~keep).sum())


def _repair_note(where: str, what: str, counts: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    """A note on boxes that were clipped or dropped, with the first images that have some; () if there are none."""
    some = [name for count, name in zip(counts, names, strict=True) if count]
    if not some:
        return ()
    more = f" and {len(some) - NAMES_SHOWN} more images" if len(some) > NAMES_SHOWN else ""
    return (f"{where}: {sum(counts)} box{'es' * (sum(counts) > 1)} {what}, of {', '.join(some[:NAMES_SHOWN])}{more}",)


def note(where: str, what: str, names: Sequence[str]) -> tuple[str, ...]:
    """A note on some images or files, with the first names; () if there are none."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (f"{where}: {what} ({len(names)}): {', '.join(names[:NAMES_SHOWN])}{more}",) if names else ()


def decode_rgb(file: bytes | Path, name: str, upright: bool = False) -> Pixels:
    """Decode an image file, or its bytes, to uint8 [y x 3]: as stored, or `upright` by its EXIF orientation.

    The boxes must be annotated in the same orientation. Raises UsageError if it cannot be read, or has more than 8 bits
    a channel.
    """
    return decode.decode(file, name, upright=upright)


class Rows(Protocol):
    """The rows of a TFDS data set, each a dict of its features."""

    def __len__(self) -> int:
        """The number of rows."""

    def __getitems__(self, rows: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Some rows."""


@dataclass(frozen=True)
class _TfdsDecoder:
    """Decodes the images of a TFDS data set, which are read as the bytes of their files."""

    rows: Rows
    name: str

    def __call__(self, i: int) -> Pixels:
        return decode_rgb(self.rows.__getitems__([i])[0]["image"], f"{self.name}, image {i}")


def from_tfds(
    rows: Rows, objects: Mapping[str, Any], shape: Sequence[int | None], identity: Identity, tick: Tick = silent
) -> DetectionDataset:
    """A DetectionDataset of a TFDS data set: `rows` with images as the bytes of their files, the features of one of its
    `objects`, and the `shape` of all images, with None for sizes that differ.

    Boxes come from the BBoxFeature, classes from the ClassLabel (if there are several, the one called `label`), crowd
    flags from `is_crowd` and difficult flags from `is_difficult`. Raises UsageError if boxes or classes are missing, or
    an image cannot be read.
    """
    of_type = lambda name: [k for k, f in objects.items() if type(f).__name__ == name]  # noqa: E731
    boxes, labels = of_type("BBoxFeature"), sorted(of_type("ClassLabel"), key=lambda k: k != "label")
    set_name = str(identity["name"])
    if len(boxes) != 1 or not labels or (len(labels) > 1 and labels[0] != "label"):  # the features have no fixed order
        has = ", ".join(sorted(objects))
        raise UsageError(
            f"{set_name}: its objects need one BBoxFeature and one ClassLabel (or one called label); they have {has}"
        )
    images: list[AnnotatedImage] = []
    not_upright = []
    for row in (row for block in iter_blocks(len(rows), tick) for row in rows.__getitems__(block)):
        values, name = row["objects"], row.get("image/filename", b"")
        name = (name.decode() if isinstance(name, bytes) else str(name)).strip() or f"image {len(images)}"
        (y, x), has_orientation = _image_size(row["image"], shape, f"{set_name}, image {len(images)}")
        not_upright += [name] * has_orientation
        corners = np.array(values[boxes[0]], np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]  # TFDS: rows before columns
        classes = np.array(values[labels[0]], np.int32)
        none = np.zeros(len(corners), bool)
        flags = (np.array(values.get(key, none), bool) for key in ("is_crowd", "is_difficult"))
        images.append(AnnotatedImage(name, (y, x), BoxAnnotations(corners * (x, y, x, y), classes, *flags)))
    notes = note(f"{set_name} {identity['split']}", "images whose EXIF orientation is not applied", not_upright)
    return make_detection_dataset(
        set_name, identity["split"], images, objects[labels[0]].names, _TfdsDecoder(rows, set_name), identity, notes
    )


def _image_size(data: bytes, shape: Sequence[int | None], name: str) -> tuple[Size, bool]:
    """(rows, columns) of an image, from `shape` or the file's header; and whether it has an EXIF orientation."""
    y, x, *_ = shape
    if y is not None and x is not None:
        return (y, x), False
    with decode.open_image(data, name) as header:
        return (header.height, header.width), decode.orientation(header) > 1
