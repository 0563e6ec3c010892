"""A user's folder of images with boxes, annotated in the JSON of COCO or the XML of Pascal VOC.

COCO: Lin et al. 2014, arXiv:1405.0312; `annotations/instances_SPLIT.json` beside `SPLIT/` or `images/SPLIT/`, or
`SPLIT/_annotations.coco.json` among the images. VOC: Everingham et al. 2010, doi:10.1007/s11263-009-0275-4;
`ImageSets/Main/SPLIT.txt`, `Annotations/ID.xml`, `JPEGImages/ID.*`.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from data.detection import Marked, Scenes, Truth, pixels, scenes
from data.geometry import Size
from data.image_files import identity, name_of, opened
from data.kinds import Pixels, checksum
from errors import UsageError


def find(name: str) -> tuple[Callable[[str], Scenes], tuple[str, ...]] | None:
    """The reader and the splits of a folder of images with boxes, or None where it is none."""
    root = Path(name)
    if not root.is_dir():
        return None
    files = {p.stem.removeprefix("instances_"): p for p in sorted(root.glob("annotations/instances_*.json"))}
    files |= {p.parent.name: p for p in sorted(root.glob("*/_annotations.coco.json"))}
    if files:
        return partial(_coco, root, files), tuple(files)
    lists = root / "ImageSets" / "Main"
    if lists.is_dir() and (root / "Annotations").is_dir():
        splits = {p.stem: p for p in sorted(lists.glob("*.txt")) if not _of_one_class(p)}
        return partial(_voc, root, splits), tuple(splits)
    return None


@dataclass(frozen=True)
class _Files:
    """Decodes the images of a folder."""

    paths: tuple[Path, ...]

    def __call__(self, i: int) -> Pixels:
        return pixels(self.paths[i], str(self.paths[i]))


class _Object(NamedTuple):
    """A box as it was annotated: four numbers, a class, and whether it is a crowd, or difficult."""

    box: tuple[float, ...]
    kind: int
    crowd: bool = False
    difficult: bool = False


def _coco(root: Path, files: dict[str, Path], split: str) -> Scenes:
    file = files[split]
    folders = [root / split, root / "images" / split] if file.parent.name == "annotations" else [file.parent]
    folder = next((f for f in folders if f.is_dir()), folders[0])
    table = _json(file)
    images, categories, marks = (_dicts(table, key, file) for key in ("images", "categories", "annotations"))
    named = {row["id"]: str(row["name"]) for row in _keyed(categories, ("id", "name"), "category", file)}
    _once(named.values(), f"{file}: the name of a category,")
    classes = {number: i for i, number in enumerate(sorted(named))}
    found: dict[int, list[_Object]] = {row["id"]: [] for row in _keyed(images, ("id", "file_name"), "image", file)}
    for mark in _keyed(marks, ("id", "image_id", "category_id", "bbox"), "annotation", file):
        where = f"{file}: annotation {mark['id']}"
        for key, known in (("image_id", found), ("category_id", classes)):
            if mark[key] not in known:
                raise UsageError(f"{where} has {key} {mark[key]}, which the file does not list")
        box, crowd = _numbers(mark["bbox"], f"{where}: 'bbox'"), mark.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise UsageError(f"{where}: 'iscrowd' is {crowd!r}, not 0 or 1")
        found[mark["image_id"]].append(_Object(box, classes[mark["category_id"]], crowd=bool(crowd)))
    paths = [folder / str(image["file_name"]) for image in images]
    _once(map(str, paths), f"{file}: image")
    marked = []
    for image, path in zip(images, paths, strict=True):
        truth = _truth(found[image["id"]])
        truth.boxes[:, 2:] += truth.boxes[:, :2]  # from width and height
        size = _size(path, image.get("height"), image.get("width"), file)
        marked.append(Marked(path.name, size, truth))
    return _scenes(root, split, marked, [named[i] for i in classes], paths)


def _scenes(root: Path, split: str, marked: Sequence[Marked], classes: Sequence[str], paths: Sequence[Path]) -> Scenes:
    lengths = [path.stat().st_size for path in paths]
    images = [(m.name, *m.size, len(m.truth.kinds), length) for m, length in zip(marked, lengths, strict=True)]
    told = checksum(repr((classes, images)).encode(), *(field for m in marked for field in m.truth)).encode()
    known = identity(root, split, told, paths, sum(lengths))
    return scenes(name_of(root), split, marked, classes, _Files(tuple(paths)), known)


def _truth(objects: Sequence[_Object]) -> Truth:
    boxes, kinds, crowd, difficult = zip(*objects, strict=True) if objects else ((),) * 4
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return Truth(corners, np.array(kinds, np.int32), np.array(crowd, bool), np.array(difficult, bool))


def _json(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise UsageError(f"{file} is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise UsageError(f"{file} holds a {type(table).__name__}, not the lists images, annotations and categories")
    return table


def _dicts(table: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    rows = table.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{file} has no list {key!r} of objects")
    return rows


def _keyed(rows: list[dict[str, Any]], keys: tuple[str, ...], kind: str, file: Path) -> list[dict[str, Any]]:
    """Rows that have the keys; ids are whole numbers, and a row's own is no other's."""
    for row in rows:
        for key in keys:
            value = row.get(key)
            if value is None or (key.endswith("id") and type(value) is not int):
                raise UsageError(f"{file}: {kind} {row.get('id')!r} has {key} = {value!r}")
    _once((row["id"] for row in rows), f"{file}: {kind} id")
    return rows


def _once(names: Iterable[Any], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{what} {name!r} is there twice")
        seen.add(name)


def _numbers(values: Any, what: str, count: int = 4) -> tuple[float, ...]:
    try:
        numbers = tuple(float(x) for x in values)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count:
        raise UsageError(f"{what} is {values!r}, not {count} numbers")
    return numbers


def _size(path: Path, y: Any, x: Any, file: Path) -> Size:
    """Rows and columns of an image file, by its head. Raises UsageError where its annotation says otherwise."""
    said = _numbers((y or 0, x or 0), f"{file}: the size of {path.name}", 2)
    if not path.exists():
        raise UsageError(f"{file}: its image {path} is missing")
    with opened(path, str(path)) as image:
        columns, rows = image.size
    if said not in ((rows, columns), (0, 0)):  # some annotators write 0
        raise UsageError(f"{path} has {rows} rows and {columns} columns, {file} says {said[0]:g} and {said[1]:g}")
    return rows, columns


def _of_one_class(path: Path) -> bool:
    """Whether a list of images is one of VOC's that say which hold a class, by a number behind each."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return len(lines.readline().split()) > 1


def _voc(root: Path, splits: dict[str, Path], split: str) -> Scenes:
    folder = root / "Annotations"
    trees = {p.stem: _xml(p) for p in sorted(folder.glob("*.xml"))}
    objects = {name: [_object(o, folder / f"{name}.xml") for o in t.findall("object")] for name, t in trees.items()}
    names = sorted({kind for marks in objects.values() for _, kind, _ in marks})  # one numbering for all splits
    images = {p.stem: p for p in sorted((root / "JPEGImages").glob("*"), reverse=True)}
    try:
        ids = splits[split].read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise UsageError(f"{splits[split]} is not UTF-8 text: {error}") from None
    _once(ids, f"{splits[split]}: image")
    marked, paths = [], []
    for name in ids:
        file = folder / f"{name}.xml"
        if name not in trees:
            raise UsageError(f"{splits[split]} lists {name}, and {file} is missing")
        paths.append(images.get(name, root / "JPEGImages" / f"{name}.jpg"))
        size = _size(paths[-1], trees[name].findtext("size/height"), trees[name].findtext("size/width"), file)
        truth = _truth([_Object(box, names.index(kind), difficult=hard) for box, kind, hard in objects[name]])
        marked.append(Marked(name, size, truth))
    return _scenes(root, split, marked, names, paths)


def _xml(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # of what is in it, or of its encoding
        raise UsageError(f"{file} is not XML: {error}") from None


DIFFICULT = {"0": False, "1": True, "false": False, "true": True, "unspecified": False}


def _object(element: ElementTree.Element, file: Path) -> tuple[tuple[float, ...], str, bool]:
    """A box's corners, from pixels that count from 1 and all belong to it; its class; whether it is difficult."""
    kind = (element.findtext("name") or "").strip()
    if not kind:
        raise UsageError(f"{file}: an object has no <name>")
    tags = ("xmin", "ymin", "xmax", "ymax")
    left, top, right, bottom = _numbers([element.findtext(f"bndbox/{t}") for t in tags], f"{file}: box of a {kind}")
    hard = (element.findtext("difficult") or "0").strip().lower()
    if hard not in DIFFICULT:
        raise UsageError(f"{file}: a {kind} has <difficult>{hard}</difficult>; legal: {', '.join(DIFFICULT)}")
    return (left - 1, top - 1, right, bottom), kind, DIFFICULT[hard]
