"""Images in class folders, perhaps below a folder a split; decoded as they are read."""

import os
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.files import find
from data.geometry import Size
from data.image_files import ENDINGS, damaged, decode, identity, opened
from data.kinds import Examples, Fields, Pixels, of_any_size
from errors import UsageError, unknown

UNREAD = tuple(
    f".{end}" for end in "heic heif avif jxl jp2 tga psd exr dcm dng cr2 cr3 nef arw".split()
)  # pictures too
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")  # in any case
GREY = ("1", "L", "LA")
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap rows and columns
ORIENTATION = 0x0112
TURNING = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks for it


class File(NamedTuple):
    """An image file below the root: its path there, its length in bytes, and when it was changed."""

    path: str
    length: int
    changed: int


class Folder(NamedTuple):
    """What lies in a folder: files by split and class, and the classes' names."""

    splits: dict[str, dict[str, list[File]]]
    names: tuple[str, ...]


def load(name: str, split: str) -> Examples:
    """The images of a split with their classes. Raises UsageError for what cannot be read, no classes, or no image."""
    files = _files(name)
    folder = _sorted_out(name, files)
    if split not in folder.splits:
        raise unknown(f"split of {name}", split, folder.splits)
    groups = [folder.splits[split].get(c, []) for c in folder.names]
    chosen = [f for group in groups for f in group]
    if not chosen:  # one image a class, say
        raise UsageError(f"{name}: its split {split!r} holds no image")
    channels, size = _survey(name, files)
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    told = repr((folder.names, [(f.path, f.length) for f in chosen])).encode()
    known = identity(name, split, told, [Path(name, f.path) for f in chosen], sum(f.length for f in chosen))
    read = Reading(name, tuple(f.path for f in chosen), labels, channels, size)
    return Examples(read, len(chosen), known, len(folder.names), folder.names)


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
        image = decode(path, path, self.channels)
        if self.size not in (None, image.shape[:2]):
            raise damaged(path, f"its header told {self.size}, it is {image.shape[:2]}")
        return image


def _files(root: str) -> tuple[File, ...]:
    """The images below a folder. Raises UsageError for pictures of a form that is not read, which would be missed."""
    paths = find(root, ENDINGS + UNREAD)
    unread = [path for path in paths if path.suffix.lower() in UNREAD]
    if unread:
        more = f" and {len(unread) - 1:,} more" if len(unread) > 1 else ""
        raise UsageError(f"{unread[0]}{more} cannot be read as an image; convert to one of {', '.join(ENDINGS)}")
    status = ((path, path.stat()) for path in paths)
    return tuple(File(p.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns) for p, s in status)


def _sorted_out(root: str, files: tuple[File, ...]) -> Folder:
    """Files by split and class.

    Where no folder is named as a split, the last tenth of each class's files by name is the split `test`: one at least,
    if the class has two. Raises UsageError where there are no class folders, or some beside those of splits.
    """
    parts = {f: f.path.split("/") for f in files}
    apart = any(len(p) > 2 and p[0].lower() in SPLITS for p in parts.values())
    beside = sorted({p[0] for p in parts.values() if len(p) > 1 and p[0].lower() not in SPLITS})
    if apart and beside:
        raise UsageError(
            f"{root} has folders of splits, and beside them {', '.join(beside)}: "
            f"a split is called {', '.join(SPLITS[:-1])} or {SPLITS[-1]}; rename it or take it away"
        )
    classes: dict[str, dict[str, list[File]]] = defaultdict(lambda: defaultdict(list))
    for f, p in parts.items():
        if apart and len(p) > 2:
            classes[p[0].lower()][p[1]].append(f)
        elif not apart and len(p) > 1:
            classes["train"][p[0]].append(f)
    names = sorted({c for split in classes.values() for c in split})
    if not names or {name.lower() for name in names} <= set(SPLITS):
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
        with opened(path, path) as image:
            turned = any(key in image.info for key in TURNING) and image.getexif().get(ORIENTATION) in TURNED
            mode, (columns, rows) = image.mode, image.size
        grey &= mode in GREY
        sizes.add((columns, rows) if turned else (rows, columns))
    return 1 if grey else 3, sizes.pop() if len(sizes) == 1 else None
