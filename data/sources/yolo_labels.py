"""The label files of Darknet and YOLO: a .txt for each image, with a line `CLASS X Y WIDTH HEIGHT` for each box.

X and Y are the box's centre; all four are fractions of the image's sides. The .txt is beside its image, or below
`labels/` as the image is below `images/`. An image without a .txt has no boxes. Class names come from data.yaml,
*.names, classes.txt or _darknet.labels. Splits come from data.yaml, otherwise from the lists train.txt, val.txt …,
otherwise from folders; otherwise the last tenth by name is the split `test`.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import yaml

from data import files
from data.images.decode import display_name
from data.images.detection import note
from data.sources.annotations import (
    Annotations,
    Box,
    ImageRecord,
    SplitReader,
    by_key,
    by_split,
    check_class_name,
    is_split,
    key,
    parse_number,
    parse_numbers,
    read_class_names,
    require_unique,
)
from documents import Json, read_lines, read_text
from errors import UsageError, quote

SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAMES = ("classes.txt", "_darknet.labels")  # and *.names
SLACK = 1e-4  # by which a fraction may leave [0, 1]: tools write few digits
LABELS_TO_CHECK = 8  # .txt files that are read to see whether they are labels


class _LabelFolder(NamedTuple):
    """A folder: its classes, images by split, label files by key, and notes."""

    classes: tuple[str, ...]
    splits: dict[str, list[Path]]
    labels: dict[tuple[str, ...], Path]
    notes: tuple[str, ...]


def find_reader(root: Path, images: Sequence[Path], texts: Sequence[Path]) -> SplitReader | None:
    """The reader and the splits of a folder with label files, None if its .txt files are not labels.

    Raises UsageError.
    """
    keys = {key(image, root) for image in images}
    labels = [p for p in texts if key(p, root) in keys and p.name.lower() not in NAMES]
    if not labels:
        return None
    not_empty = [p for p in labels if p.stat().st_size][:LABELS_TO_CHECK]
    settings = _settings(root)
    in_labels = any(_is_below_labels(p, root) for p in labels)
    if not (settings or in_labels or any(map(_is_label, not_empty)) or (_class_name_files(root) and not not_empty)):
        return None
    if "kpt_shape" in settings:
        raise UsageError(f"{root} has labels of key points (kpt_shape in its settings); only boxes are read")
    for file in (file for name in SETTINGS for file in files.glob_any_case(root, f"*/{name}")) if not settings else ():
        if all(p.is_relative_to(file.parent) for p in labels):
            raise UsageError(f"{root} has labels whose settings are further below, in {file}: give {file.parent}")
    classes = _classes(root, settings, labels[0])
    labelled = {key(p, root) for p in labels}
    by_key((image for image in images if key(image, root) in labelled), root)
    lists = [p for p in texts if p.parent == root and is_split(p.stem) and p not in labels]
    splits, notes = _splits(root, settings, images, lists, texts)
    stray = {*texts} - {*labels, *lists}
    stray_names = sorted(str(p.relative_to(root)) for p in stray if _is_below_labels(p, root) or _is_label(p))
    notes += note(display_name(root), "labels without an image, skipped", stray_names)
    bare = sorted(str(p.relative_to(root)) for p in images if key(p, root) not in labelled)
    notes += note(display_name(root), "images without a label file, read as background", bare)
    return partial(_read, root, _LabelFolder(classes, splits, by_key(labels, root), notes)), tuple(splits)


def _is_below_labels(file: Path, root: Path) -> bool:
    return "labels" in map(str.lower, file.relative_to(root).parts[:-1])


def _is_label(file: Path) -> bool:
    """Whether the first line of a file looks like a label: five words or more, at most one of which is not a number.

    Commas separate words too: labels have none, but a file with them must be rejected rather than read as a text.
    """
    with file.open("rb") as opened:
        line = opened.read(1000).decode("utf-8-sig", errors="replace").lstrip().partition("\n")[0]
    words = line.replace(",", " ").split()
    return len(words) >= 5 and sum(isinstance(parse_number(word), float) for word in words) >= len(words) - 1


def _settings(root: Path) -> Json:
    """The settings of data.yaml, with all values as text; {} if there is no such file. Raises UsageError."""
    file = next(
        (file for name in SETTINGS for file in files.glob_any_case(root, name)[::-1]), None
    )  # lower case comes last
    if file is None:
        return {}
    text = read_text(file)
    try:
        found = yaml.load(text, Loader=yaml.BaseLoader)  # `no` may be a class name, not False
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    return found if isinstance(found, dict) else {}


def _class_name_files(root: Path) -> list[Path]:
    """The files with class names."""
    found = files.list_files(root, (".names", *NAMES))
    return [file for file in found if file.suffix.lower() == ".names" or file.name.lower() in NAMES]


def _classes(root: Path, settings: Json, label: Path) -> tuple[str, ...]:
    """The class names. Raises UsageError if there are none, or if files differ."""
    found = {str(file): read_class_names(file) for file in _class_name_files(root)}
    listed = settings.get("names")
    if listed:
        order = list(
            listed.items() if isinstance(listed, dict) else enumerate(listed) if isinstance(listed, list) else ()
        )
        if isinstance(listed, dict) and all(str(i).isdecimal() for i in listed):
            order = sorted(listed.items(), key=lambda entry: int(entry[0]))
        names = {str(i): check_class_name(name, f"names in the settings of {root}") for i, name in order}
        if not names or [*names] != [str(i) for i in range(len(names))]:
            raise UsageError(f"the settings of {root} have names = {quote(listed)}, not a list of class names")
        require_unique(names.values(), f"the settings of {root}: the class")
        if settings.get("nc", str(len(names))) != str(len(names)):
            raise UsageError(f"the settings of {root} have nc = {quote(settings['nc'])} but {len(names)} names")
        found["its settings"] = tuple(names.values())
    if not found:
        raise UsageError(f"{root} has labels, as {label}, but no class names: add classes.txt or data.yaml")
    if len({*found.values()}) > 1:
        (one, these), (other, those) = next((a, b) for a in found.items() for b in found.items() if a[1] != b[1])
        raise UsageError(f"{one} names the classes {quote(these)}, {other} {quote(those)}: keep one of the two")
    return next(iter(found.values()))


def _splits(
    root: Path, settings: Json, images: Sequence[Path], lists: Sequence[Path], texts: Sequence[Path]
) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Images by split, and notes. Raises UsageError."""
    splits: dict[str, list[Path]] = {}
    not_found = []
    for split in (split for split in ("train", "val", "test") if settings.get(split)):
        entries = settings[split] if isinstance(settings[split], list) else [settings[split]]
        found = [image for entry in entries for image in _images_of_entry(str(entry), root, images, texts)]
        if found:
            require_unique(found, f"the settings of {root}: {split}: image")
            splits[split] = found
        else:
            not_found.append(f"{split}: {quote(settings[split])}")
    notes = note(display_name(root), "splits of the settings without images", not_found)
    if not_found and not splits:
        raise UsageError(f"the settings of {root} have {not_found[0]}, but there are no images")
    splits = splits or {file.stem: _read_list(file, root, images) for file in lists}
    pairs = [(a, b) for i, a in enumerate(splits) for b in [*splits][i + 1 :] if {*splits[a]} & {*splits[b]}]
    shared = [f"{a} and {b} share {len({*splits[a]} & {*splits[b]})} images" for a, b in pairs]
    return splits or by_split(images, root), notes + note(display_name(root), "splits that overlap", shared)


def _parts(path: str) -> tuple[str, ...]:
    """The folders and the name of a path of any operating system, without roots, `.` and `..`."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return tuple(part for part in parts if part not in ("/", "//", ".", ".."))


def _images_of_entry(path: str, root: Path, images: Sequence[Path], texts: Sequence[Path]) -> list[Path]:
    """The images of a folder or list in the settings: the longest end of its path that exists below the root."""
    parts = _parts(path)
    for start in range(len(parts)):
        end = parts[start:]
        if path.lower().endswith(".txt"):
            found = [p for p in texts if p.relative_to(root).parts == end]
            if found:
                return _read_list(found[0], root, images)
        elif found := [p for p in images if p.relative_to(root).parts[: len(end)] == end]:
            return found
    return [] if parts else [*images]


def _read_list(file: Path, root: Path, images: Iterable[Path]) -> list[Path]:
    """The images of a list of paths, which may be of another machine: matched by file name, then by folders.

    Raises UsageError for a line that matches no image, or several.
    """
    named: dict[str, list[Path]] = {}
    for image in images:
        named.setdefault(image.name, []).append(image)
    found = []
    for line in filter(None, map(str.strip, read_lines(file))):
        parts = _parts(line)
        some = named.get(parts[-1] if parts else "", [])
        alike = {image: _common_suffix_length(image.relative_to(root).parts, parts) for image in some}
        best = [image for image in some if alike[image] == max(alike.values())]
        if len(best) != 1:
            what = "several images match" if best else "no image matches"
            raise UsageError(f"{file} lists {quote(line)[1:-1]}, which {what} in {root}")
        found += best
    require_unique(found, f"{file}: image")
    return found


def _common_suffix_length(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of parts that two paths have in common at their ends."""
    same = [a == b for a, b in zip(reversed(one), reversed(other), strict=False)]
    return same.index(False) if False in same else len(same)


def _read(root: Path, found: _LabelFolder, split: str) -> Annotations:
    images, outlined, twice = [], [], []
    for path in found.splits[split]:
        name, file = str(path.relative_to(root)), found.labels.get(key(path, root))
        boxes, outlines = _boxes(file, found.classes) if file else ([], 0)
        outlined += [name] * bool(outlines)
        twice += [name] * (len({*boxes}) < len(boxes))
        images.append(ImageRecord(path, name, [*dict.fromkeys(boxes)], file or path))
    where = f"{display_name(root)} {split}"
    notes = note(where, "images with outlines, which are read as their bounding boxes", outlined)
    notes += note(where, "images with a duplicate label, which is read once", twice)
    return Annotations(root, split, images, found.classes, relative=True, notes=(*found.notes, *notes))


def _boxes(file: Path, classes: Sequence[str]) -> tuple[list[Box], int]:
    """The boxes of a file, corners in fractions of the image, and how many are outlines. Raises UsageError."""
    boxes, outlines = [], 0
    for n, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file}: line {n}"
        if "," in line:
            raise UsageError(f"{where} is {quote(line.strip())}: separate the numbers of a label by spaces, not commas")
        words = [parse_number(word) for word in line.split()]
        values = parse_numbers(words, f"{where}: {quote(line.strip())}", len(words))
        kind, *shares = values
        if len(values) == 6:
            raise UsageError(f"{where} has six numbers, the last a confidence: these are predictions, not labels")
        if len(values) < 5 or len(values) % 2 == 0:
            raise UsageError(f"{where} has {len(values)} numbers; CLASS X Y WIDTH HEIGHT are 5, an outline 7, 9, …")
        if kind not in range(len(classes)):
            raise UsageError(f"{where} is of class {kind:g}; there are {len(classes)}, from 0: {quote(classes)}")
        if not -SLACK <= min(shares) <= max(shares) <= 1 + SLACK:
            wrong = min(shares) if min(shares) < -SLACK else max(shares)
            raise UsageError(f"{where} has {wrong:g}; labels are fractions of the image's sides, from 0 to 1")
        if len(shares) == 4:
            x, y, width, height = shares
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            xs, ys, outlines = shares[::2], shares[1::2], outlines + 1
            corners = (min(xs), min(ys), max(xs), max(ys))
        boxes.append(Box(corners, int(kind)))
    return boxes, outlines
