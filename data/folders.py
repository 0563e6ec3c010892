"""Images in class folders, perhaps below a folder a split; decoded as they are read."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from data.geometry import Size
from data.kinds import Examples, Fields, Pixels, checksum, of_any_size
from errors import UsageError, unknown

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
SPLITS = ("train", "test", "val", "validation")
HASHED = 2**28  # bytes: of a split no larger than this the contents are in its checksum, else names and lengths only
GREY = ("1", "L", "LA")
DEEP = ("I", "F")  # first letters of Pillow's modes of more than 8 bits a channel
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap rows and columns
ORIENTATION = 0x0112


class File(NamedTuple):
    """An image file below the root: its path there, its length in bytes, and when it was changed."""

    path: str
    length: int
    changed: int


class Folder(NamedTuple):
    """What lies in a folder: files by split and class, and the classes' names."""

    splits: dict[str, dict[str, list[File]]]
    names: tuple[str, ...]


def walk(root: str) -> Iterator[str]:
    """The files below a folder, by path, without those that are hidden."""
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = sorted(n for n in below if not n.startswith("."))
        yield from (os.path.join(folder, n) for n in sorted(names) if not n.startswith("."))


def is_image(path: str) -> bool:
    """Whether a file is an image, by the end of its name."""
    return path.lower().endswith(ENDINGS)


def load(name: str, split: str) -> Examples:
    """The images of a split with their classes. Raises UsageError for what cannot be read, or has no classes."""
    files = _files(name)
    folder = _sorted_out(name, files)
    if split not in folder.splits:
        raise unknown(f"split of {name}", split, folder.splits)
    channels, size = _survey(name, files)
    groups = [folder.splits[split].get(c, []) for c in folder.names]
    chosen = [f for group in groups for f in group]
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    digest = [repr((folder.names, [(f.path, f.length) for f in chosen])).encode()]
    if sum(f.length for f in chosen) <= HASHED:
        digest += [checksum(Path(name, f.path).read_bytes()).encode() for f in chosen]
    identity = {"name": Path(name).resolve().name, "split": split, "count": len(chosen), "checksum": checksum(*digest)}
    read = Reading(name, tuple(f.path for f in chosen), labels, channels, size)
    return Examples(read, len(chosen), identity, len(folder.names), folder.names)


def splits_of(name: str) -> tuple[str, ...]:
    """The splits of a folder: its own, or where it has class folders only `train` and `test`."""
    return tuple(_sorted_out(name, _files(name)).splits)


@dataclass(frozen=True)
class Reading:
    """Rows -> fields, decoded anew each time: image uint8 [n Y X C], or objects [n] where sizes differ, and label."""

    root: str
    paths: tuple[str, ...]
    labels: np.ndarray
    channels: int
    size: Size | None  # of all images

    def __call__(self, rows: np.ndarray) -> Fields:
        """The fields of some rows. Raises UsageError for a file that is damaged, or not as it was."""
        images = [self._one(os.path.join(self.root, self.paths[int(row)])) for row in rows]
        return {"image": of_any_size(images) if self.size is None else np.stack(images), "label": self.labels[rows]}

    def _one(self, path: str) -> Pixels:
        image = decode(path, self.channels)
        if self.size not in (None, image.shape[:2]):
            raise _damaged(path, f"its header told {self.size}, it is {image.shape[:2]}")
        return image


def decode(path: str, channels: int) -> Pixels:
    """An image file as grey or RGB, upright as EXIF tells, any transparency dropped -> [Y X C].

    Raises UsageError for a file that is damaged.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            plain = image.convert("RGBA") if image.mode == "P" else image  # a palette may have transparent entries
            found = np.asarray(plain.convert("RGB" if channels == 3 else "L"))
    except UNREADABLE as error:
        raise _damaged(path, error) from None
    return found if channels == 3 else found[..., None]


def _damaged(path: str, error: Exception | str) -> UsageError:
    first = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(f"{path} cannot be read as an image ({first}): mend it or take it away")


def _files(root: str) -> tuple[File, ...]:
    found = []
    for path in filter(is_image, walk(root)):
        try:
            status = os.stat(path)
        except OSError as error:  # a link to nowhere
            raise _damaged(path, error) from None
        found.append(File(Path(path).relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _sorted_out(root: str, files: tuple[File, ...]) -> Folder:
    """Files by split and class.

    Where no folder is named as a split, the last tenth of each class's files by name is the split `test`: one at least,
    if the class has two. Raises UsageError where there are no class folders.
    """
    parts = {f: f.path.split("/") for f in files}
    apart = any(len(p) > 2 and p[0] in SPLITS for p in parts.values())
    classes: dict[str, dict[str, list[File]]] = defaultdict(lambda: defaultdict(list))
    for f, p in parts.items():
        if apart and p[0] in SPLITS and len(p) > 2:
            classes[p[0]][p[1]].append(f)
        elif not apart and len(p) > 1:
            classes["train"][p[0]].append(f)
    names = sorted({c for split in classes.values() for c in split})
    if not names or set(names) <= set(SPLITS):
        raise UsageError(f"{root} holds images, but none in class folders: put each in a folder named as its class")
    if not apart:
        held = {c: min(max(1, len(group) // 10), len(group) - 1) for c, group in classes["train"].items()}
        classes["test"] = {c: group[len(group) - held[c] :] for c, group in classes["train"].items()}
        classes["train"] = {c: group[: len(group) - held[c]] for c, group in classes["train"].items()}
    return Folder({s: classes[s] for s in SPLITS if s in classes}, tuple(names))


@lru_cache(maxsize=2)
def _survey(root: str, files: tuple[File, ...]) -> tuple[int, Size | None]:
    """Channels that all images can have, 1 where all are grey, else 3; and their size where they have one.

    By the files' headers, about 0.05 ms each. Raises UsageError for a file that is no image, or deeper than 8 bits.
    """
    grey, sizes = True, set()
    for file in files:
        path = os.path.join(root, file.path)
        try:
            with Image.open(path) as image:
                turned = "exif" in image.info and image.getexif().get(ORIENTATION) in TURNED
                mode, (columns, rows) = image.mode, image.size
        except UNREADABLE as error:
            raise _damaged(path, error) from None
        if mode.startswith(DEEP):
            raise UsageError(f"{path} has more than 8 bits a channel: convert it first")
        grey &= mode in GREY
        sizes.add((columns, rows) if turned else (rows, columns))
    return 1 if grey else 3, sizes.pop() if len(sizes) == 1 else None
