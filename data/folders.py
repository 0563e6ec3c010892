"""Images in class folders, perhaps below a folder a split; decoded as they are read."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.files import list_files
from data.geometry import Size
from data.image_files import EXTENSIONS, corrupt_error, decode, identity, open_image, upright_size
from data.kinds import Examples, Fields, Pixels, object_array, unknown_split
from data.progress import Tick, silent, track
from errors import UsageError

UNSUPPORTED = tuple(
    f".{end}" for end in "heic heif avif jxl jp2 tga psd exr dcm dng cr2 cr3 nef arw svg ico pcx qoi".split()
)  # pictures too
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")  # in any case
GREY = ("1", "L", "LA")
NUMBER = re.compile(r"[+-]?[0-9]+")
DETECTION_FOLDERS = ("images", "jpegimages")  # folders of images in the layouts of sets with boxes


class ImageFile(NamedTuple):
    """An image file below the root: its path there, its length in bytes, and when it was changed."""

    path: str
    length: int
    changed: int


class ClassFolders(NamedTuple):
    """What lies in a folder: files by split and class, and the classes' names."""

    splits: dict[str, dict[str, list[ImageFile]]]
    names: tuple[str, ...]


def load(name: str, split: str, tick: Tick = silent) -> Examples:
    """The images of a split with their classes, which are those of all splits together.

    Raises UsageError for what cannot be read, less than two classes, or no image.
    """
    files = _files(name)
    folder = _group_by_split_and_class(name, files)
    if split not in folder.splits:
        raise unknown_split(name, split, folder.splits)
    groups = [folder.splits[split].get(c, []) for c in folder.names]
    chosen = [f for group in groups for f in group]
    if not chosen:  # one image a class, say
        raise UsageError(f"{name}: its split {split!r} holds no image")
    channels, size = _common_shape(name, files, tick)
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    described = repr((folder.names, [(f.path, f.length) for f in chosen])).encode()
    known = identity(name, split, described, [Path(name, f.path) for f in chosen], sum(f.length for f in chosen), tick)
    read = FolderReader(name, tuple(f.path for f in chosen), labels, channels, size)
    absent = tuple(c for c, group in zip(folder.names, groups, strict=True) if not group)
    notes = (f"split {split!r} has no image of {', '.join(absent)}",) if absent else ()
    return Examples(
        read, len(chosen), known, len(folder.names), folder.names, absent, (*notes, *_stray_note(files, folder))
    )


def splits_of(name: str) -> tuple[str, ...]:
    """The splits of a folder: its own, or where it has class folders only `train` and `test`."""
    return tuple(_group_by_split_and_class(name, _files(name)).splits)


@dataclass(frozen=True)
class FolderReader:
    """Rows -> fields, decoded anew each time: image uint8 [n Y X C], or objects [n] where sizes differ, and label."""

    root: str
    paths: tuple[str, ...]
    labels: np.ndarray
    channels: int
    size: Size | None  # of all images

    def __call__(self, rows: np.ndarray) -> Fields:
        """The fields of some rows. Raises UsageError for a file that is damaged, or not as it was."""
        images = [self._decode_one(os.path.join(self.root, self.paths[int(row)])) for row in rows]
        return {"image": object_array(images) if self.size is None else np.stack(images), "label": self.labels[rows]}

    def _decode_one(self, path: str) -> Pixels:
        image = decode(path, path, self.channels)
        if self.size not in (None, image.shape[:2]):
            raise corrupt_error(path, f"its header says {self.size}, it is {image.shape[:2]}")
        return image


def _stray_note(files: tuple[ImageFile, ...], folder: ClassFolders) -> tuple[str, ...]:
    """A note of images that lie in no class folder, where there are some."""
    placed = {f for split in folder.splits.values() for group in split.values() for f in group}
    stray = [f.path for f in files if f not in placed]
    more = f" and {len(stray) - 1:,} more" if len(stray) > 1 else ""
    return (f"{stray[0]}{more}: in no class folder, passed over",) if stray else ()


def _files(root: str) -> tuple[ImageFile, ...]:
    """The images below a folder. Raises UsageError for pictures of a form that is not read, which would be missed."""
    paths = list_files(root, EXTENSIONS + UNSUPPORTED)
    unread = [path for path in paths if path.suffix.lower() in UNSUPPORTED]
    if unread:
        more = f" and {len(unread) - 1:,} more" if len(unread) > 1 else ""
        raise UsageError(f"{unread[0]}{more} cannot be read as an image; convert to one of {', '.join(EXTENSIONS)}")
    status = ((path, path.stat()) for path in paths)
    return tuple(ImageFile(p.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns) for p, s in status)


def _group_by_split_and_class(root: str, files: tuple[ImageFile, ...]) -> ClassFolders:
    """Files by split and class.

    Where no folder is named as a split, the last tenth of each class's files by name is the split `test`: one at least,
    if the class has two. Raises UsageError for folders beside those of splits, and as `_class_names`.
    """
    parts = [(f, f.path.split("/")) for f in files]
    apart = any(len(p) > 2 and p[0].lower() in SPLITS for _, p in parts)
    if apart:
        _check_splits(root, {p[0] for _, p in parts if len(p) > 1})
    classes: dict[str, dict[str, list[ImageFile]]] = defaultdict(lambda: defaultdict(list))
    inside: dict[str, set[str]] = defaultdict(set)  # by class, the folders in its folder
    for f, p in parts:
        split, *rest = p if apart else ("train", *p)
        if len(rest) > 1:
            classes[split.lower()][rest[0]].append(f)
            inside[rest[0]].update(rest[1:-1][:1])
    names = _class_names(root, inside, [set(split) for split in classes.values()])
    if not apart:
        for name in names:
            if name.lower() in SPLITS and name.lower() != "train":  # which is a vehicle too
                raise UsageError(
                    f"{root} has a folder {name!r} of images beside {', '.join(n for n in names if n != name)}: "
                    f"a split holds class folders; a class needs another name"
                )
        held = {c: min(max(1, len(group) // 10), len(group) - 1) for c, group in classes["train"].items()}
        classes["test"] = {c: group[len(group) - held[c] :] for c, group in classes["train"].items()}
        classes["train"] = {c: group[: len(group) - held[c]] for c, group in classes["train"].items()}
    return ClassFolders({s: classes[s] for s in SPLITS if s in classes}, names)


def _check_splits(root: str, folders: set[str]) -> None:
    beside = sorted(name for name in folders if name.lower() not in SPLITS)
    if beside:
        raise UsageError(
            f"{root} has folders of splits, and beside them {', '.join(beside)}: "
            f"a split is called {', '.join(SPLITS[:-1])} or {SPLITS[-1]}; rename it or take it away"
        )
    _check_distinct(root, "split", folders, str.lower)


def _class_names(root: str, inside: dict[str, set[str]], together: list[set[str]]) -> tuple[str, ...]:
    """The classes' names in order: by value where all are whole numbers, as 2 and 10, else as text.

    Raises UsageError where there are no classes or one only, for splits below them, and for names that are not UTF-8 or
    stand for one class: of the same number, or alike but for case and spaces and in no split together.
    """
    names = sorted(inside)
    if not names or {name.lower() for name in names} <= set(SPLITS):
        raise UsageError(f"{root} holds images, but none in class folders: put each in a folder named as its class")
    for name in names:
        if name.encode(errors="ignore").decode() != name:
            raise UsageError(f"{root}: the name of the class folder {name!r} is not UTF-8; rename it")
    if len(names) == 1:
        raise UsageError(
            f"{root} has one class folder, {names[0]!r}, where a classifier needs two: {_one_class_hint(root, inside)}"
        )
    splits = [sorted(below for below in inside[name] if below.lower() in SPLITS) for name in names]
    for name, below in zip(names, splits, strict=True):
        if below:
            raise UsageError(
                f"{root} has folders of splits inside those of classes, as {name}/{below[0]}: "
                f"put the split outside, as {below[0]}/{name}, or give {Path(root, name)}"
            )
    if all(NUMBER.fullmatch(name) for name in names):
        _check_distinct(root, "number", names, int)
        return tuple(sorted(names, key=int))
    _check_distinct(root, "class", names, _normalize_name, together)
    return tuple(names)


def _one_class_hint(root: str, inside: dict[str, set[str]]) -> str:
    """Where the classes of a folder with one class folder may be instead."""
    (name, below), *_ = inside.items()
    if below:
        shown = f"in it lie {', '.join(sorted(below)[:4])}{', …' if len(below) > 4 else ''}"
        return f"{shown}; give {Path(root, name)}" if Path(root, name).is_dir() else f"{shown}; move these up"
    if name.lower() in DETECTION_FOLDERS:
        return "a set with boxes has their annotations beside this folder, in a form that is read"
    return "put the images of each class in a folder of its own"


def _check_distinct(
    root: str, kind: str, names: Iterable[str], key: Callable[[str], Any], together: Sequence[set[str]] = ()
) -> None:
    """Raises UsageError for two folders of the same key, unless some split has both, which are two classes then."""
    by_key: dict[Any, set[str]] = defaultdict(set)
    for name in names:
        by_key[key(name)].add(name)
    for group in by_key.values():
        if len(group) > 1 and not any(len(group & split) > 1 for split in together):
            shown = " and ".join(map(repr, sorted(group)))
            raise UsageError(f"{root}: the folders {shown} name one {kind}; give them the same name, or other ones")


def _normalize_name(name: str) -> str:
    """A name without what people see as the same: case, outer spaces, and how Unicode writes its accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()


@lru_cache(maxsize=2)
def _common_shape(root: str, files: tuple[ImageFile, ...], tick: Tick) -> tuple[int, Size | None]:
    """Channels that all images can have, 1 where all are grey, else 3; and their size where they have one.

    By the files' headers, about 0.05 ms each. Raises UsageError for a file that is no image, or deeper than 8 bits.
    """
    grey, sizes = True, set()
    for file in track(files, "reading headers of images", tick):
        path = os.path.join(root, file.path)
        with open_image(path, path) as image:
            grey &= image.mode in GREY
            sizes.add(upright_size(image))
    return 1 if grey else 3, sizes.pop() if len(sizes) == 1 else None
