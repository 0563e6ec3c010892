"""COCO's JSON annotations, in the layouts of COCO, Roboflow, CVAT and Label Studio.

Lin et al. 2014, arXiv:1405.0312. `annotations/instances_SPLIT.json` beside `SPLIT/`, `images/SPLIT/` or `images/`;
`SPLIT/_annotations.coco.json` among the images; `SPLIT.json` in the folder itself; or one file there with another name:
the last tenth of its images is the split `test`.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from data.files import glob_any_case
from data.images.decode import display_name
from data.images.detection import note
from data.sources.annotations import (
    Annotations,
    Box,
    ImageRecord,
    SplitReader,
    check_class_name,
    is_split,
    last_tenth,
    parse_numbers,
    require_unique,
)
from documents import Json, read_json, reject_lfs_pointer
from errors import UsageError, quote

Id = int | str
IN_SPLIT_FOLDER = "_annotations.coco.json"
OTHER_TASKS = (
    "captions_",
    "person_keypoints_",
    "stuff_",
    "panoptic_",
    "image_info_",
)  # COCO's files without boxes of classes


def find_reader(root: Path) -> SplitReader | None:
    """The reader and the splits of a folder with COCO's JSON, None for another folder.

    Raises UsageError for two files of one split.
    """
    found = glob_any_case(root, "annotations/instances_*.json") + glob_any_case(root, f"*/{IN_SPLIT_FOLDER}")
    files = _by_split(root, found or [p for p in glob_any_case(root, "annotations/*.json") if _is_coco(p)])
    if not files:
        files = _by_split(
            root, [p for p in glob_any_case(root, "*.json") if p.name.lower() == IN_SPLIT_FOLDER or _is_coco(p)]
        )
        if len(files) == 1 and not is_split(*files):
            files = dict.fromkeys(("train", "test"), *files.values())
    return (partial(_read, root, files), tuple(files)) if files else None


def _by_split(root: Path, found: Sequence[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in found:
        split = _split_of(root, file)
        if (other := files.setdefault(split, file)) != file:
            raise UsageError(f"{other} and {file} are both of the split {split!r}: remove one")
    return files


def _split_of(root: Path, file: Path) -> str:
    if file.name.lower() == IN_SPLIT_FOLDER and file.parent != root:
        return file.parent.name
    return file.stem[len("instances_") :] if file.name.lower().startswith("instances_") else file.stem


def _is_coco(file: Path) -> bool:
    """Whether a file has COCO's boxes, by its name and its lists."""
    if file.name.lower().startswith(OTHER_TASKS) or file.is_dir():
        return False
    status = file.stat()
    return _has_tables(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _has_tables(file: Path, size: int, changed: int) -> bool:
    """Whether a file has all of COCO's lists; `size` and `changed` are for the cache. Raises UsageError."""
    reject_lfs_pointer(file)
    text = file.read_bytes()
    return all(f'"{name}"'.encode() in text for name in _Tables._fields)


def _read(root: Path, files: Mapping[str, Path], split: str) -> Annotations:
    """A split. Raises UsageError for missing, invalid and duplicate entries, naming file and row."""
    file = files[split]
    table = _tables(file)
    categories, root_name = _drop_root_category(table, file, files)
    ids = [_id(row, "id", f"{file}: category {quote(row.get('name'))}") for row in categories]
    require_unique(ids, f"{file}: category id")
    class_names = {
        i: check_class_name(row.get("name"), f"{file}: category {i}") for i, row in zip(ids, categories, strict=True)
    }
    require_unique(class_names.values(), f"{file}: the name of a category,")
    classes = {number: i for i, number in enumerate(sorted(class_names, key=lambda i: (isinstance(i, str), i)))}
    ids = [_id(row, "id", f"{file}: image {quote(row.get('file_name'))}") for row in table.images]
    require_unique(ids, f"{file}: image id")
    boxes: dict[Id, list[Box]] = {number: [] for number in ids}
    for n, annotation in enumerate(table.annotations, 1):
        where = f"{file}: annotation {quote(annotation['id']) if annotation.get('id') is not None else f'number {n}'}"
        image, category = (
            _reference(annotation, key, known, where) for key, known in (("image_id", boxes), ("category_id", classes))
        )
        boxes[image].append(_box(annotation, classes[category], where))
    own = (_plain_id(annotation.get("id")) for annotation in table.annotations)
    require_unique((number for number in own if number is not None), f"{file}: annotation id")
    folders = _image_folders(root, file, split)
    images = [_image(row, boxes[i], folders, file) for row, i in zip(table.images, ids, strict=True)]
    ignored = {_plain_id(annotation["image_id"]) for annotation in table.annotations if annotation.get("ignore")}
    with_ignored = [image.name for image, i in zip(images, ids, strict=True) if i in ignored]
    require_unique((str(image.path) for image in images), f"{file}: image")
    if len(set(files.values())) < len(files):  # one file for both splits
        images = last_tenth(sorted(images, key=lambda image: image.name))[split]
    where = f"{display_name(root)} {split}"
    notes = note(where, "images with boxes of `ignore` 1, which are not ignored, as in COCO's evaluation", with_ignored)
    if root_name:
        notes += (f"{where}: category {quote(root_name)}, the others' supercategory without boxes, is no class",)
    return Annotations(root, split, images, [class_names[i] for i in classes], notes=notes)


class _Tables(NamedTuple):
    images: list[Json]
    categories: list[Json]
    annotations: list[Json]


def _tables(file: Path) -> _Tables:
    table = read_json(file)
    if not isinstance(table, dict):
        raise UsageError(f"{file} has a {type(table).__name__}, not the lists images, annotations and categories")
    for key in _Tables._fields:
        rows = table.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UsageError(f"{file} has no list {key!r} of objects")
    return _Tables(*(table[key] for key in _Tables._fields))


def _plain_id(value: object) -> Id | None:
    """An id: 11, 11.0 and "11" are equal; None if it is not an id."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        return int(value) if str(int(value)) == value else value
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _id(row: Json, key: str, where: str) -> Id:
    value = _plain_id(row.get(key))
    if value is None:
        raise UsageError(f"{where} has {key} = {quote(row.get(key))}")
    return value


def _reference(row: Json, key: str, known: Collection[Id], where: str) -> Id:
    value = _id(row, key, where)
    if value not in known:
        raise UsageError(f"{where} has {key} {quote(value)}, which the file does not list")
    return value


def _box(annotation: Json, label: int, where: str) -> Box:
    if annotation.get("bbox") is None and annotation.get("segmentation"):
        raise UsageError(f"{where} has a segmentation and no bbox: write the boxes too")
    left, top, width, height = parse_numbers(annotation.get("bbox"), f"{where}: 'bbox'")
    crowd = annotation.get("iscrowd")
    if crowd is not None and (crowd not in (0, 1) or isinstance(crowd, str)):
        raise UsageError(f"{where}: 'iscrowd' is {quote(crowd)}, not 0 or 1")
    return Box((left, top, left + width, top + height), label, crowd=bool(crowd))


def _drop_root_category(table: _Tables, file: Path, files: Mapping[str, Path]) -> tuple[list[Json], str | None]:
    """The categories without Roboflow's root, and its name: the supercategory of all others, without boxes."""
    for root in table.categories:
        others = [row for row in table.categories if row is not root]
        name = root.get("name")
        if others and isinstance(name, str) and all(row.get("supercategory") == name for row in others):
            tables = [table if other == file else _tables(other) for other in set(files.values())]
            if not any(_has_box(root, one) for one in tables):
                return others, name
    return table.categories, None


def _has_box(category: Json, table: _Tables) -> bool:
    ids = {_plain_id(row.get("id")) for row in table.categories if row == category}
    return any(_plain_id(annotation.get("category_id")) in ids for annotation in table.annotations)


class _ImageFolders(NamedTuple):
    """The folders of a file's images, the most likely first, and the prefixes that an image's real path may have."""

    folders: list[Path]
    real_prefixes: tuple[str, ...]


def _image_folders(root: Path, file: Path, split: str) -> _ImageFolders:
    if file.name.lower() == IN_SPLIT_FOLDER and file.parent != root:
        folders = [file.parent, file.parent / "images"]
    else:
        images = glob_any_case(root, "images")
        inside = [] if file.parent == root else [root / split, *(folder / split for folder in images)]
        folders = [folder for folder in (*inside, *images, root) if folder.is_dir()]
    return _ImageFolders(folders, tuple(os.path.realpath(folder) + os.sep for folder in (root, *folders)))


def _image(row: Json, boxes: Sequence[Box], image_folders: _ImageFolders, file: Path) -> ImageRecord:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{file}: image {quote(row.get('id'))} has file_name = {quote(name)}")
    path = _locate(name, image_folders, file)
    size = (row.get("height") or 0, row.get("width") or 0)  # some tools write 0 for an unknown size
    rows, columns = parse_numbers(size, f"{file}: the size of {path.name}", 2)
    return ImageRecord(path, path.name, boxes, file, (rows, columns) if rows and columns else None)


def _locate(name: str, image_folders: _ImageFolders, file: Path) -> Path:
    """The image file of a name, in which `\\` may separate folders and %20 may be a space.

    Raises UsageError if it is missing, or outside of the folder, also by a link.
    """
    slashed = name.replace("\\", "/")
    outside = False
    for spelled in dict.fromkeys((name, slashed, unquote(slashed))):
        for folder in image_folders.folders:
            path = folder / spelled
            try:
                real = os.path.realpath(path)
            except ValueError:  # a NUL, which no file name has
                continue
            if not real.startswith(image_folders.real_prefixes):
                outside = True
            elif os.path.lexists(real):
                return path
    if outside:
        raise UsageError(f"{file}: its image {quote(name)} is outside of its folder and is not opened: copy it there")
    first, *more = image_folders.folders
    tried = f"; also not in {', '.join(map(str, more))}" if more else ""
    raise UsageError(f"{file}: its image {quote(str(first / name))[1:-1]} is missing{tried}")
