"""Images in class folders, optionally below folders of splits; decoded whenever they are read."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.fields import Fields, Pixels, absent_notes, object_array, unknown_split
from data.files import SPLITS, list_files
from data.images.decode import EXTENSIONS, corrupt_error, decode, identity, open_image, upright_size
from data.images.resize import Size
from data.progress import Tick, silent, track
from data.sources.reader import Reader, Request
from data.types import Examples
from errors import UsageError

UNSUPPORTED = tuple(
    f".{end}" for end in "heic heif avif jxl jp2 tga psd exr dcm dng cr2 cr3 nef arw svg ico pcx qoi".split()
)  # image formats that are not read
GREY = ("1", "L", "LA")
NUMBER = re.compile(r"[+-]?[0-9]+")
DETECTION_FOLDERS = ("images", "jpegimages")  # folders of images in the layouts of detection sets


class ImageFile(NamedTuple):
    """An image file: its path relative to the root, its length in bytes, and the time of its last change."""

    path: str
    length: int
    changed: int


class ClassFolders(NamedTuple):
    """The contents of a folder: files by split and class, and the names of the classes."""

    splits: dict[str, dict[str, list[ImageFile]]]
    names: tuple[str, ...]


def find(request: Request) -> Reader | None:
    """The reader of a folder with more images than texts."""
    if request.path_kind != "images":
        return None
    name = request.name
    return Reader(lambda: splits_of(name), lambda split: load(name, split, request.tick))


def load(name: str, split: str, tick: Tick = silent) -> Examples:
    """The images of a split; the classes are those of all splits together.

    Raises UsageError for files that cannot be read, fewer than two classes, or no image.
    """
    files = _files(name)
    folder = _group_by_split_and_class(name, files)
    if split not in folder.splits:
        raise unknown_split(name, split, folder.splits)
    groups = [folder.splits[split].get(c, []) for c in folder.names]
    files_of_split = [f for group in groups for f in group]
    if not files_of_split:  # for example one image per class
        raise UsageError(f"{name}: split {split!r} has no images")
    channels, size = _common_shape(name, files, tick)
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    description = repr((folder.names, [(f.path, f.length) for f in files_of_split])).encode()
    split_identity = identity(
        name,
        split,
        description,
        [Path(name, f.path) for f in files_of_split],
        sum(f.length for f in files_of_split),
        tick,
    )
    reader = FolderReader(name, tuple(f.path for f in files_of_split), labels, channels, size)
    absent = tuple(c for c, group in zip(folder.names, groups, strict=True) if not group)
    return Examples(
        reader,
        len(files_of_split),
        split_identity,
        len(folder.names),
        folder.names,
        absent,
        (*absent_notes(split, absent, "image of"), *_stray_note(files, folder)),
        labels=labels,
        sorted_by_class=True,
    )


def splits_of(name: str) -> tuple[str, ...]:
    """The splits of a folder: its own, or `train` and `test` if it has class folders only."""
    return tuple(_group_by_split_and_class(name, _files(name)).splits)


@dataclass(frozen=True)
class FolderReader:
    """Rows -> fields, decoded on each call: label; image uint8 [n Y X C], or an object array [n] if sizes differ."""

    root: str
    paths: tuple[str, ...]
    labels: np.ndarray
    channels: int
    size: Size | None  # of all images, None if sizes differ

    def __call__(self, rows: np.ndarray) -> Fields:
        """The fields of some rows. Raises UsageError for a file that is corrupt or was changed."""
        images = [self._decode_one(os.path.join(self.root, self.paths[int(row)])) for row in rows]
        return {"image": object_array(images) if self.size is None else np.stack(images), "label": self.labels[rows]}

    def _decode_one(self, path: str) -> Pixels:
        image = decode(path, path, self.channels)
        if self.size not in (None, image.shape[:2]):
            raise corrupt_error(path, f"its header says {self.size}, it is {image.shape[:2]}")
        return image


def _stray_note(files: tuple[ImageFile, ...], folder: ClassFolders) -> tuple[str, ...]:
    """A note on images outside of class folders, if there are any."""
    in_class = {f for split in folder.splits.values() for group in split.values() for f in group}
    stray = [f.path for f in files if f not in in_class]
    more = f" and {len(stray) - 1:,} more" if len(stray) > 1 else ""
    return (f"{stray[0]}{more}: in no class folder, skipped",) if stray else ()


def _files(root: str) -> tuple[ImageFile, ...]:
    """The images below a folder. Raises UsageError for images of an unsupported format: they must not be missed."""
    paths = list_files(root, EXTENSIONS + UNSUPPORTED)
    unsupported = [path for path in paths if path.suffix.lower() in UNSUPPORTED]
    if unsupported:
        more = f" and {len(unsupported) - 1:,} more" if len(unsupported) > 1 else ""
        raise UsageError(
            f"{unsupported[0]}{more} cannot be read as an image; convert to one of {', '.join(EXTENSIONS)}"
        )
    status = ((path, path.stat()) for path in paths)
    return tuple(ImageFile(p.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns) for p, s in status)


def _group_by_split_and_class(root: str, files: tuple[ImageFile, ...]) -> ClassFolders:
    """Files by split and class.

    If no folder is named as a split, the split `test` is the last tenth of each class's files by name: at least one if
    the class has two. Raises UsageError for other folders beside those of splits, and as `_class_names`.
    """
    parts = [(f, f.path.split("/")) for f in files]
    has_splits = any(len(p) > 2 and p[0].lower() in SPLITS for _, p in parts)
    if has_splits:
        _check_splits(root, {p[0] for _, p in parts if len(p) > 1})
    classes: dict[str, dict[str, list[ImageFile]]] = defaultdict(lambda: defaultdict(list))
    subfolders: dict[str, set[str]] = defaultdict(set)  # by class, the folders in its folder
    for f, p in parts:
        split, *rest = p if has_splits else ("train", *p)
        if len(rest) > 1:
            classes[split.lower()][rest[0]].append(f)
            subfolders[rest[0]].update(rest[1:-1][:1])
    names = _class_names(root, subfolders, [set(split) for split in classes.values()])
    if not has_splits:
        for name in names:
            if name.lower() in SPLITS and name.lower() != "train":  # which is a vehicle too
                raise UsageError(
                    f"{root} has a folder {name!r} of images beside {', '.join(n for n in names if n != name)}: "
                    f"a split holds class folders; a class needs another name"
                )
        test_counts = {c: min(max(1, len(group) // 10), len(group) - 1) for c, group in classes["train"].items()}
        classes["test"] = {c: group[len(group) - test_counts[c] :] for c, group in classes["train"].items()}
        classes["train"] = {c: group[: len(group) - test_counts[c]] for c, group in classes["train"].items()}
    return ClassFolders({s: classes[s] for s in SPLITS if s in classes}, names)


def _check_splits(root: str, folders: set[str]) -> None:
    others = sorted(name for name in folders if name.lower() not in SPLITS)
    if others:
        raise UsageError(
            f"{root} has folders of splits, and beside them {', '.join(others)}: "
            f"names of splits are {', '.join(SPLITS[:-1])} or {SPLITS[-1]}; rename or remove the other folders"
        )
    _check_distinct(root, "split", folders, str.lower)


def _class_names(root: str, subfolders: dict[str, set[str]], classes_of_splits: list[set[str]]) -> tuple[str, ...]:
    """The names of the classes in order: by value if all are whole numbers, as 2 and 10, otherwise as text.

    Raises UsageError if there is no class or only one, for splits below class folders, for names that are not UTF-8,
    and for two names of one class: names of equal number, or names that differ only in case or outer spaces and occur
    in no split together.
    """
    names = sorted(subfolders)
    if not names or {name.lower() for name in names} <= set(SPLITS):
        raise UsageError(f"{root} has images, but none in class folders: put each in a folder named after its class")
    for name in names:
        if name.encode(errors="ignore").decode() != name:
            raise UsageError(f"{root}: the name of the class folder {name!r} is not UTF-8; rename it")
    if len(names) == 1:
        hint = _one_class_hint(root, subfolders)
        raise UsageError(f"{root} has one class folder, {names[0]!r}, but a classifier needs two: {hint}")
    for name in names:
        splits = sorted(folder for folder in subfolders[name] if folder.lower() in SPLITS)
        if splits:
            raise UsageError(
                f"{root} has folders of splits inside those of classes, as {name}/{splits[0]}: "
                f"put the split outside, as {splits[0]}/{name}, or give {Path(root, name)}"
            )
    if all(NUMBER.fullmatch(name) for name in names):
        _check_distinct(root, "number", names, int)
        return tuple(sorted(names, key=int))
    _check_distinct(root, "class", names, _normalize_name, classes_of_splits)
    return tuple(names)


def _one_class_hint(root: str, subfolders: dict[str, set[str]]) -> str:
    """What to do about a folder with one class folder: where its classes may be instead."""
    (name, folders), *_ = subfolders.items()
    if folders:
        listed = f"it contains {', '.join(sorted(folders)[:4])}{', …' if len(folders) > 4 else ''}"
        return f"{listed}; give {Path(root, name)}" if Path(root, name).is_dir() else f"{listed}; move these up"
    if name.lower() in DETECTION_FOLDERS:
        return "a detection set needs annotations beside this folder, as COCO, Pascal VOC or YOLO"
    return "put the images of each class in a folder of its own"


def _check_distinct(
    root: str,
    kind: str,
    names: Iterable[str],
    key: Callable[[str], Hashable],
    classes_of_splits: Sequence[set[str]] = (),
) -> None:
    """Raises UsageError for two folders of the same key, unless a split has both: then they are two classes."""
    by_key: dict[Hashable, set[str]] = defaultdict(set)
    for name in names:
        by_key[key(name)].add(name)
    for group in by_key.values():
        if len(group) > 1 and not any(len(group & split) > 1 for split in classes_of_splits):
            listed = " and ".join(map(repr, sorted(group)))
            raise UsageError(f"{root}: the folders {listed} name one {kind}; make their names equal or more different")


def _normalize_name(name: str) -> str:
    """A name without differences in case, outer spaces and Unicode's forms of accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()


@lru_cache(maxsize=2)
def _common_shape(root: str, files: tuple[ImageFile, ...], tick: Tick) -> tuple[int, Size | None]:
    """The channels of all images, 1 if all are grey, otherwise 3; and their size, None if sizes differ.

    Reads the files' headers, about 0.05 ms each. Raises UsageError for a file that is not an image or has more than
    8 bits per channel.
    """
    grey, sizes = True, set()
    for file in track(files, "reading headers of images", tick):
        path = os.path.join(root, file.path)
        with open_image(path, path) as image:
            grey &= image.mode in GREY
            sizes.add(upright_size(image))
    return 1 if grey else 3, sizes.pop() if len(sizes) == 1 else None
