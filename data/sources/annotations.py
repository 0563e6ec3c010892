"""Common code of the annotation formats (COCO, VOC, YOLO): boxes, class names, files, and the resulting data set."""

import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from data.fields import Pixels, checksum
from data.files import SPLITS
from data.images.decode import display_name, identity, open_image, orientation, upright_size
from data.images.detection import (
    AnnotatedImage,
    BoxAnnotations,
    DetectionDataset,
    decode_rgb,
    make_detection_dataset,
    note,
)
from data.images.resize import Size
from data.progress import Tick, silent, track
from documents import read_lines
from errors import UsageError, quote

T = TypeVar("T")
# Folders that separate images from their annotations.
PARALLEL_FOLDERS = ("images", "jpegimages", "labels", "annotations", "xmls")


class Box(NamedTuple):
    """An annotated box: corners (left, top, right, bottom), class label, and whether it is a crowd or difficult."""

    corners: tuple[float, ...]
    label: int
    crowd: bool = False
    difficult: bool = False


class ImageRecord(NamedTuple):
    """An image file, its boxes, the annotation file, and the image's (rows, columns) if the annotation has them."""

    path: Path
    name: str
    boxes: Sequence[Box]
    file: Path
    size: tuple[float, float] | None = None


class _Header(NamedTuple):
    stored: Size
    upright: Size
    transposed: bool  # whether EXIF rotates or mirrors the image


@dataclass(frozen=True)
class _FileDecoder:
    """Decodes the images of a folder, each upright by EXIF or as stored."""

    paths: tuple[Path, ...]
    upright: tuple[bool, ...]

    def __call__(self, i: int) -> Pixels:
        return decode_rgb(self.paths[i], str(self.paths[i]), self.upright[i])


class Annotations(NamedTuple):
    """The annotations of a split; corners are in pixels, or if `relative`, in fractions of the image's sides."""

    root: Path
    split: str
    images: Sequence[ImageRecord]
    classes: Sequence[str]
    relative: bool = False
    notes: Sequence[str] = ()


SplitReader = tuple[Callable[[str], Annotations], tuple[str, ...]]  # (split -> annotations), and the splits


def assemble(found: Annotations, tick: Tick = silent) -> DetectionDataset:
    """The data set of a split's annotations.

    An image with an EXIF orientation is made upright or kept as stored, whichever has the annotated size. If both have,
    it is made upright unless another image of the split is annotated as stored. Notes list these images.
    Raises UsageError if an image is missing, cannot be read, or differs from the annotated size; and for boxes in
    pixels that all lie within the first pixel: they are fractions of the image.
    """
    root, split, images, classes, relative, notes = found
    ends = [max(box.corners) for image in images for box in image.boxes]
    if not relative and ends and max(ends) <= 1:
        file = next(image.file for image in images if image.boxes)
        raise UsageError(f"{file}: all boxes end within the first pixel; write pixels, not fractions of the image")
    headers = [_header(image) for image in track(images, "reading headers of images", tick)]
    as_stored = [h.transposed and h.upright != h.stored == i.size for h, i in zip(headers, images, strict=True)]
    upright = [
        h.transposed and not stored and (h.upright == i.size != h.stored or not any(as_stored))
        for h, i, stored in zip(headers, images, as_stored, strict=True)
    ]
    annotated = []
    for image, header, make_upright in zip(images, headers, upright, strict=True):
        size = y, x = header.upright if make_upright else header.stored
        if image.size not in (None, size):
            raise UsageError(
                f"{image.path} has {y} rows and {x} columns, {image.file} says {image.size[0]:g} and {image.size[1]:g}"
            )
        boxes = _box_annotations(image.boxes, np.array((x, y, x, y) if relative else 1))
        annotated.append(AnnotatedImage(image.name, size, boxes))
    where = f"{display_name(root)} {split}"
    kept = [h.transposed and not made_upright for h, made_upright in zip(headers, upright, strict=True)]
    notes = (
        *notes,
        *note(where, "images made upright by EXIF, as their boxes are", _names_where(images, upright)),
        *note(where, "images with EXIF orientation kept as stored, as annotated", _names_where(images, kept)),
    )
    paths = [image.path for image in images]
    lengths = [path.stat().st_size for path in paths]
    rows = [(a.name, *a.size, len(a.annotations.labels), length) for a, length in zip(annotated, lengths, strict=True)]
    fields = (field for a in annotated for field in a.annotations)
    turns = (repr(upright).encode(),) if any(upright) else ()
    description = checksum(repr(([*classes], rows)).encode(), *fields, *turns).encode()
    split_identity = identity(root, split, description, paths, sum(lengths), tick)
    decoder = _FileDecoder(tuple(paths), tuple(upright))
    dataset = make_detection_dataset(display_name(root), split, annotated, classes, decoder, split_identity, notes)
    return replace(dataset, paths=tuple(map(str, paths)))


def _header(image: ImageRecord) -> _Header:
    if not os.path.lexists(image.path):
        raise UsageError(f"{image.file}: its image {image.path} is missing")
    with open_image(image.path, str(image.path)) as header:
        return _Header((header.height, header.width), upright_size(header), orientation(header) > 1)


def _names_where(images: Sequence[ImageRecord], which: Sequence[bool]) -> list[str]:
    return [image.name for image, chosen in zip(images, which, strict=True) if chosen]


def _box_annotations(boxes: Sequence[Box], scale: np.ndarray) -> BoxAnnotations:
    corners, labels, crowd, difficult = zip(*boxes, strict=True) if boxes else ((),) * 4
    pixels = np.array(corners, np.float64).reshape(-1, 4) * scale
    return BoxAnnotations(pixels, np.array(labels, np.int32), np.array(crowd, bool), np.array(difficult, bool))


def require_unique(names: Iterable[object], what: str) -> None:
    """Raises UsageError for a name that appears twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{what} {quote(name)} appears twice")
        seen.add(name)


def parse_numbers(values: object, what: str, count: int = 4) -> tuple[float, ...]:
    """A list of `count` finite numbers. Raises UsageError for anything else: texts, booleans, infinity."""
    listed = values if isinstance(values, list | tuple) else ()
    try:
        found = tuple(float(x) for x in listed if type(x) in (int, float))
    except OverflowError:
        found = ()
    if len(found) != count or len(listed) != count or not all(map(math.isfinite, found)):
        raise UsageError(f"{what} is {quote(values)}, not {count} numbers")
    return found


def parse_number(text: str | None) -> float | str | None:
    """The number in a text, otherwise the text itself."""
    try:
        return float(text) if text and "_" not in text else text  # only Python writes digit groups as 1_000
    except ValueError:
        return text


def check_class_name(name: object, where: str) -> str:
    """The name of a class as text. Raises UsageError if it is not text or a number, empty, or not printable."""
    text = str(name) if type(name) in (str, int, float) else ""
    if not text.strip() or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise UsageError(f"{where}: {quote(name)} is not a class name")
    return text


def read_class_names(file: Path) -> tuple[str, ...]:
    """The class names in a file, one per line. Raises UsageError."""
    lines = [line.strip() for line in read_lines(file)]
    while lines and not lines[-1]:
        lines.pop()
    names = tuple(check_class_name(line, f"{file}: line {n}") for n, line in enumerate(lines, 1))
    if not names:
        raise UsageError(f"{file} has no class names")
    require_unique(names, f"{file}: the class")
    return names


def key(path: Path, root: Path) -> tuple[str, ...]:
    """The key that an image shares with its annotation: the path below the root, without its extension.

    The last folder of PARALLEL_FOLDERS is left out.
    """
    *folders, _ = path.relative_to(root).parts
    aside = [i for i, folder in enumerate(folders) if folder.lower() in PARALLEL_FOLDERS]
    return (*(f for i, f in enumerate(folders) if i not in aside[-1:]), path.stem)


def by_key(paths: Iterable[Path], root: Path) -> dict[tuple[str, ...], Path]:
    """Files by their keys. Raises UsageError for two files of one key: an annotation could belong to either."""
    found: dict[tuple[str, ...], Path] = {}
    for path in paths:
        other = found.setdefault(key(path, root), path)
        if other != path:
            raise UsageError(f"{other} and {path} differ only in folder or extension: rename or remove one")
    return found


def is_split(name: str) -> bool:
    """Whether a name is that of a split, in any case, optionally with a year, as train2017."""
    return name.lower().rstrip("0123456789_-") in SPLITS


def by_split(images: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Images by the split that a folder is named after; if there is none, the last tenth by name is the split `test`.

    Raises UsageError if only some images are in folders of splits.
    """
    found: dict[str, list[Path]] = {}
    for image in images:
        split = next((folder for folder in image.relative_to(root).parts[:-1] if is_split(folder)), "")
        found.setdefault(split.lower(), []).append(image)
    if "" not in found:
        return found
    if len(found) > 1:
        raise UsageError(
            f"{root} has folders of splits, and images outside of them, as {found[''][0].relative_to(root)}; "
            f"names of splits are {', '.join(SPLITS)}"
        )
    return last_tenth(images)


def last_tenth(items: Sequence[T]) -> dict[str, list[T]]:
    """The splits `train` and `test`; `test` is the last tenth, at least one item if there are two."""
    first = len(items) - min(max(1, len(items) // 10), len(items) - 1)
    return {"train": [*items[:first]], "test": [*items[first:]]}
