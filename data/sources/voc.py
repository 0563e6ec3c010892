"""Pascal VOC's XML annotations.

Everingham et al. 2010, doi:10.1007/s11263-009-0275-4: `ImageSets/Main/SPLIT.txt`, `Annotations/ID.xml` and
`JPEGImages/ID.*`. Or without these lists, as written by labelImg and Roboflow: an .xml beside each image, or in a
folder beside the folder of images; splits are then folders too.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from data import files
from data.images.decode import EXTENSIONS, display_name
from data.images.detection import note
from data.sources.annotations import (
    Annotations,
    Box,
    ImageRecord,
    SplitReader,
    by_key,
    by_split,
    check_class_name,
    key,
    parse_number,
    parse_numbers,
    require_unique,
)
from documents import read_lines, reject_lfs_pointer
from errors import UsageError, quote

DIFFICULT = {"0": False, "1": True, "false": False, "true": True, "unspecified": False}
LISTS = ("ImageSets", "Main")  # the folder of the lists of splits
CLASS_LIST_LINE = re.compile(r"(.*\S)\s+(-1|0|1)")  # a line of a list of the images that contain a class


class _Object(NamedTuple):
    corners: tuple[float, ...]
    name: str
    difficult: bool


class _XmlFile(NamedTuple):
    """The annotation of an image in an .xml."""

    file: Path
    objects: Sequence[_Object]
    size: tuple[float, float] | None
    image: str  # its <filename>


def find_reader(root: Path) -> SplitReader | None:
    """The reader and the splits of a folder with VOC's lists, None for another folder."""
    lists = root.joinpath(*LISTS)
    if not lists.is_dir() or not (root / "Annotations").is_dir():
        return None
    splits = {p.stem: p for p in files.glob_any_case(lists, "*.txt") if not _is_class_list(p, root / "Annotations")}
    return (partial(_read_lists, root, splits), tuple(splits)) if splits else None


def reader_of_pairs(root: Path, images: Sequence[Path], xmls: Sequence[Path]) -> SplitReader:
    """The reader and the splits of a folder with images and an .xml for each. Raises UsageError."""
    xml_by_key = by_key(xmls, root)
    image_by_key = by_key((image for image in images if key(image, root) in xml_by_key), root)
    unpaired = [str(p.relative_to(root)) for p in (*images, *xmls) if key(p, root) not in image_by_key]
    splits = by_split([*image_by_key.values()], root)
    paired = {k: file for k, file in xml_by_key.items() if k in image_by_key}
    return partial(_read_pairs, root, splits, paired, unpaired), tuple(splits)


def _is_class_list(file: Path, annotations: Path) -> bool:
    """Whether a list has -1, 0 or 1 after each name: whether the image contains a class."""
    lines = _lines(file)
    flags = [CLASS_LIST_LINE.fullmatch(line) for line in lines]
    return bool(lines) and all(flags) and not (annotations / f"{lines[0]}.xml").is_file()


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in read_lines(file) if line.strip()]


def _read_lists(root: Path, splits: dict[str, Path], split: str) -> Annotations:
    folder, image_folder = root / "Annotations", root / "JPEGImages"
    trees = {_relative_stem(p, folder): _read_xml(p) for p in files.list_files(folder, (".xml",))}
    images: dict[str, list[Path]] = {}
    for path in files.list_files(image_folder, EXTENSIONS) if image_folder.is_dir() else ():
        images.setdefault(_relative_stem(path, image_folder), []).append(path)
    found = []
    for line in _lines(splits[split]):
        name = line.rpartition(".")[0] if line not in trees and line.lower().endswith(EXTENSIONS) else line
        if name not in trees:
            missing = quote(str(folder / f"{name}.xml"))[1:-1]
            raise UsageError(f"{splits[split]} lists {quote(name)[1:-1]}, and {missing} is missing")
        found.append((name, _image_path(name, images.get(name, []), trees[name], image_folder), trees[name]))
    require_unique((name for name, _, _ in found), f"{splits[split]}: image")
    return _annotations(root, split, found, trees.values())


def _read_pairs(
    root: Path, splits: dict[str, list[Path]], xmls: dict[tuple[str, ...], Path], unpaired: Sequence[str], split: str
) -> Annotations:
    trees = {name: _read_xml(file) for name, file in xmls.items()}
    found = [(str(path.relative_to(root)), path, trees[key(path, root)]) for path in splits[split]]
    notes = note(display_name(root), "files without a partner (image and .xml), skipped", unpaired)
    return _annotations(root, split, found, trees.values(), notes)


def _annotations(
    root: Path,
    split: str,
    found: Sequence[tuple[str, Path, _XmlFile]],
    trees: Iterable[_XmlFile],
    notes: Sequence[str] = (),
) -> Annotations:
    """The annotations of images, each with its name and .xml; `trees` are those of all splits, so that labels agree."""
    classes = sorted({one.name for tree in trees for one in tree.objects})
    labels = {name: i for i, name in enumerate(classes)}
    images = [
        ImageRecord(
            path, name, [Box(o.corners, labels[o.name], difficult=o.difficult) for o in t.objects], t.file, t.size
        )
        for name, path, t in found
    ]
    return Annotations(root, split, images, classes, notes=notes)


def _relative_stem(path: Path, folder: Path) -> str:
    """A file's path below a folder without its extension, as in a list."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _image_path(name: str, paths: Sequence[Path], tree: _XmlFile, folder: Path) -> Path:
    chosen = [path for path in paths if path.name == tree.image] if len(paths) > 1 else paths
    if paths and len(chosen) != 1:
        listed = " or ".join(path.name for path in paths)
        raise UsageError(f"{tree.file}: its image may be {listed}; its <filename> {quote(tree.image)} must name one")
    return chosen[0] if chosen else folder / f"{name}.jpg"


def _read_xml(file: Path) -> _XmlFile:
    """The annotation in an .xml. Raises UsageError."""
    reject_lfs_pointer(file)
    try:
        tree = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # invalid XML, or an unknown encoding
        raise UsageError(f"{file} is not XML: {error}") from None
    if tree.tag != "annotation":
        raise UsageError(f"{file} is not a Pascal VOC annotation: it has <{tree.tag}>, not <annotation>")
    size = [parse_number((tree.findtext(f"size/{side}") or "0").strip()) for side in ("height", "width")]
    rows, columns = parse_numbers(size, f"{file}: <size>", 2)
    objects = [_object(one, file) for one in tree.findall("object")]
    return _XmlFile(file, objects, (rows, columns) if rows and columns else None, tree.findtext("filename") or "")


def _object(element: ElementTree.Element, file: Path) -> _Object:
    """A box's corners, its class and whether it is difficult. VOC's pixels count from 1 and include the last ones."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise UsageError(f"{file}: an object has no <name>")
    name = check_class_name(name, str(file))
    if element.find("bndbox") is None:
        raise UsageError(f"{file}: a {name} has no <bndbox>; other shapes are not read")
    tags = ("xmin", "ymin", "xmax", "ymax")
    corners = [parse_number(element.findtext(f"bndbox/{tag}")) for tag in tags]
    left, top, right, bottom = parse_numbers(corners, f"{file}: box of a {name}")
    difficult = (element.findtext("difficult") or "0").strip().lower()
    if difficult not in DIFFICULT:
        raise UsageError(
            f"{file}: a {name} has <difficult>{quote(difficult)[1:-1]}</difficult>; legal: {', '.join(DIFFICULT)}"
        )
    return _Object((left - 1, top - 1, right, bottom), name, DIFFICULT[difficult])
