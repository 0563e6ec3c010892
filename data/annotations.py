"""What the forms of annotated images have in common: boxes, classes, files, and how they become a source."""

import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data.detection import AnnotatedImage, BoxAnnotations, DetectionDataset, decode_rgb, make_detection_dataset, note
from data.geometry import Size
from data.image_files import display_name, identity, open_image, orientation, upright_size
from data.kinds import Pixels, checksum
from data.progress import Tick, silent, track
from documents import read_lines
from errors import UsageError, quote

T = TypeVar("T")
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")  # in any case
PARALLEL_FOLDERS = (
    "images",
    "jpegimages",
    "labels",
    "annotations",
    "xmls",
)  # folders that part images from their annotations


class Box(NamedTuple):
    """A box as it was annotated: corners (left, top, right, bottom), class, and whether it is a crowd, or difficult."""

    corners: tuple[float, ...]
    label: int
    crowd: bool = False
    difficult: bool = False


class ImageRecord(NamedTuple):
    """An image file, its boxes, and the file that says so, perhaps with rows and columns of the image."""

    path: Path
    name: str
    boxes: Sequence[Box]
    file: Path
    size: tuple[float, float] | None = None


class _Header(NamedTuple):
    stored: Size
    upright: Size
    transposed: bool  # whether EXIF has the pixels turned or mirrored


@dataclass(frozen=True)
class _FileDecoder:
    """Decodes the images of a folder, each upright or as it is stored."""

    paths: tuple[Path, ...]
    upright: tuple[bool, ...]

    def __call__(self, i: int) -> Pixels:
        return decode_rgb(self.paths[i], str(self.paths[i]), self.upright[i])


class Annotations(NamedTuple):
    """A split as its files describe it; corners are in pixels, or `relative`, in shares of the image."""

    root: Path
    split: str
    images: Sequence[ImageRecord]
    classes: Sequence[str]
    relative: bool = False
    notes: Sequence[str] = ()


SplitReader = tuple[
    Callable[[str], Annotations], tuple[str, ...]
]  # what reads the annotations of a split, and the splits


def assemble(found: Annotations, tick: Tick = silent) -> DetectionDataset:
    """The source of annotated images.

    An image with an EXIF orientation is turned, or stays as it is stored, by the size in its annotation; where
    that leaves both, it is turned unless another image of the split is annotated as it is stored. A note says so.
    Raises UsageError where an image is missing or cannot be read, or has another size than its annotation says, and for
    boxes in pixels that all lie in the first one: they are shares of the image.
    """
    root, split, images, classes, relative, notes = found
    ends = [max(box.corners) for image in images for box in image.boxes]
    if not relative and ends and max(ends) <= 1:
        file = next(image.file for image in images if image.boxes)
        raise UsageError(f"{file}: all boxes end within the first pixel; write pixels, not shares")
    headers = [_header(image) for image in track(images, "reading headers of images", tick)]
    as_stored = [h.transposed and h.upright != h.stored == i.size for h, i in zip(headers, images, strict=True)]
    upright = [
        h.transposed and not stored and (h.upright == i.size != h.stored or not any(as_stored))
        for h, i, stored in zip(headers, images, as_stored, strict=True)
    ]
    marked = []
    for image, header, turned in zip(images, headers, upright, strict=True):
        size = y, x = header.upright if turned else header.stored
        if image.size not in (None, size):
            raise UsageError(
                f"{image.path} has {y} rows and {x} columns, {image.file} says {image.size[0]:g} and {image.size[1]:g}"
            )
        marked.append(AnnotatedImage(image.name, size, _box_annotations(image.boxes, (x, y, x, y) if relative else 1)))
    where = f"{display_name(root)} {split}"
    left = [i.name for i, h, turned in zip(images, headers, upright, strict=True) if h.transposed and not turned]
    notes = (
        *notes,
        *note(where, "images turned upright by EXIF, as their boxes are", _names_where(images, upright)),
        *note(where, "images not turned by EXIF, as annotated by the size that is stored", left),
    )
    paths = [image.path for image in images]
    lengths = [path.stat().st_size for path in paths]
    rows = [(m.name, *m.size, len(m.annotations.labels), length) for m, length in zip(marked, lengths, strict=True)]
    fields = (field for m in marked for field in m.annotations)
    turns = (repr(upright).encode(),) if any(upright) else ()
    described = checksum(repr(([*classes], rows)).encode(), *fields, *turns).encode()
    known = identity(root, split, described, paths, sum(lengths), tick)
    made = make_detection_dataset(
        display_name(root), split, marked, classes, _FileDecoder(tuple(paths), tuple(upright)), known, notes
    )
    return replace(made, paths=tuple(map(str, paths)))


def _header(image: ImageRecord) -> _Header:
    if not os.path.lexists(image.path):
        raise UsageError(f"{image.file}: its image {image.path} is missing")
    with open_image(image.path, str(image.path)) as found:
        return _Header((found.height, found.width), upright_size(found), orientation(found) > 1)


def _names_where(images: Sequence[ImageRecord], which: Sequence[bool]) -> list[str]:
    return [image.name for image, chosen in zip(images, which, strict=True) if chosen]


def _box_annotations(boxes: Sequence[Box], scale: Any) -> BoxAnnotations:
    corners, kinds, crowd, difficult = zip(*boxes, strict=True) if boxes else ((),) * 4
    pixels = np.array(corners, np.float64).reshape(-1, 4) * scale
    return BoxAnnotations(pixels, np.array(kinds, np.int32), np.array(crowd, bool), np.array(difficult, bool))


def require_unique(names: Iterable[Any], what: str) -> None:
    """Raises UsageError for a name that stands twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{what} {quote(name)} is there twice")
        seen.add(name)


def parse_numbers(values: Any, what: str, count: int = 4) -> tuple[float, ...]:
    """A list of so many finite numbers. Raises UsageError for anything else: a text, a truth value, infinity."""
    try:
        found = tuple(float(x) for x in values if type(x) in (int, float)) if isinstance(values, list | tuple) else ()
    except OverflowError:
        found = ()
    if len(found) != count or len(values) != count or not all(map(math.isfinite, found)):
        raise UsageError(f"{what} is {quote(values)}, not {count} numbers")
    return found


def parse_number(text: str | None) -> float | str | None:
    """The number that a text stands for, else the text."""
    try:
        return float(text) if text and "_" not in text else text  # Python's own digit groups are nobody else's
    except ValueError:
        return text


def check_class_name(name: Any, where: str) -> str:
    """The name of a class as text. Raises UsageError where it is none, empty, or holds what cannot be printed."""
    text = str(name) if type(name) in (str, int, float) else ""
    if not text.strip() or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise UsageError(f"{where}: {quote(name)} is no name of a class")
    return text


def read_class_names(file: Path) -> tuple[str, ...]:
    """The names of classes in a file, one a line. Raises UsageError."""
    lines = [line.strip() for line in read_lines(file)]
    while lines and not lines[-1]:
        lines.pop()
    names = tuple(check_class_name(line, f"{file}: line {n}") for n, line in enumerate(lines, 1))
    if not names:
        raise UsageError(f"{file} names no class")
    require_unique(names, f"{file}: the class")
    return names


def key(path: Path, root: Path) -> tuple[str, ...]:
    """What an image and its annotation have in common: the path below the root without its ending.

    The last folder called images, labels or the like does not count.
    """
    *folders, _ = path.relative_to(root).parts
    aside = [i for i, folder in enumerate(folders) if folder.lower() in PARALLEL_FOLDERS]
    return (*(f for i, f in enumerate(folders) if i not in aside[-1:]), path.stem)


def by_key(paths: Iterable[Path], root: Path) -> dict[tuple[str, ...], Path]:
    """Files by their keys. Raises UsageError for two of one key: annotations could belong to either."""
    found: dict[tuple[str, ...], Path] = {}
    for path in paths:
        other = found.setdefault(key(path, root), path)
        if other != path:
            raise UsageError(f"{other} and {path} are called alike: keep one, or name them apart")
    return found


def is_split(name: str) -> bool:
    """Whether a name is that of a split, in any case, perhaps with a year, as train2017."""
    return name.lower().rstrip("0123456789_-") in SPLITS


def by_split(images: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Images by the split that a folder is named as; where none is, the last tenth by name is the split `test`.

    Raises UsageError where some lie in folders of splits and others do not.
    """
    found: dict[str, list[Path]] = {}
    for image in images:
        split = next((folder for folder in image.relative_to(root).parts[:-1] if is_split(folder)), "")
        found.setdefault(split.lower(), []).append(image)
    if "" not in found:
        return found
    if len(found) > 1:
        raise UsageError(
            f"{root} has folders of splits, and images outside of them, as {found[''][0].relative_to(root)}: "
            f"a split is called {', '.join(SPLITS)}"
        )
    return last_tenth(images)


def last_tenth(items: Sequence[T]) -> dict[str, list[T]]:
    """The splits `train` and `test`, the last tenth: one at least, if there are two."""
    first = len(items) - min(max(1, len(items) // 10), len(items) - 1)
    return {"train": [*items[:first]], "test": [*items[first:]]}
