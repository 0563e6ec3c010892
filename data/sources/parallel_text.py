"""Parallel text, read from pairs of files or from two columns of rows."""

from functools import partial
from pathlib import Path

from data.fields import checksum
from data.files import glob_any_case
from data.sources import text_files
from data.sources.reader import Reader, Request, checked_reader
from data.types import ParallelText
from documents import read_lines
from errors import UsageError


def languages(field: str | None) -> tuple[str, str] | None:
    """The two languages of a field `en:de`, the source first; None if it does not name two.

    Raises UsageError if both are the same.
    """
    first, colon, second = (field or "").partition(":")
    if colon and first == second:
        raise UsageError(f"data.field = {field!r} must name two different languages, as en:de")
    return (first, second) if first and colon and second and ":" not in second else None


def find(request: Request) -> Reader | None:
    """The reader of pairs: of a folder's pairs of files, otherwise of two fields of the rows of a file or folder."""
    path, field = request.path, request.field
    if not (both := languages(field)):
        return None
    assert field is not None
    has_rows = text_files.has_rows(path)
    if path.is_dir() and (_by_split(path, both) or _have_side_files(path, both) or not has_rows):
        return Reader(lambda: splits_of(path, field), lambda split: from_files(path, split, field), takes_field=True)
    if not has_rows or request.path_kind != "text":
        return None
    known, load = lambda: text_files.splits_of(path), lambda split: from_rows(path, split, field)
    return checked_reader(str(path), known, load, takes_field=True)


def from_files(folder: Path, split: str, field: str) -> ParallelText:
    """Pairs of the lines of two files: `en` and `de` if they exist, otherwise `train.en`, `train.de`, `test.en` ….

    The last tenth of `en` and `de` is the split `validation`. Raises UsageError if files are missing or differ in
    length.
    """
    both, splits = languages(field), splits_of(folder, field)
    assert both is not None
    if split not in splits:
        expected = " and ".join(f"{split}.{side}" for side in both)
        hint = f"it has {', '.join(splits)}" if splits else f"expected {expected}"
        raise UsageError(f"{folder} has no pairs of files for {field} and the split {split!r}; {hint}")
    is_one_pair = _have_side_files(folder, both)
    files = [folder / side for side in both] if is_one_pair else _by_split(folder, both)[split]
    sides = [read_lines(file) for file in files]
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(f"{len(side):,} in {file.name}" for file, side in zip(files, sides, strict=True))
        raise UsageError(f"{folder}: both files of a pair must have the same number of lines; there are {counts}")
    if is_one_pair:
        cut = len(sides[0]) - len(sides[0]) // 10
        sides = [side[:cut] if split == "train" else side[cut:] for side in sides]
    texts, translations = map(tuple, sides)
    digest = checksum(*(line.encode() + b"\0" for line in texts + translations))
    identity = {"name": folder.name, "split": split, "count": len(texts), "checksum": digest, "field": field}
    return ParallelText(texts, translations, both, identity)


def from_rows(path: Path, split: str, field: str) -> ParallelText:
    """Pairs from two fields of the rows of a file or folder. Raises UsageError as `text_files.load`."""
    both = languages(field)
    assert both is not None
    texts, translations = text_files.columns(path, split, both)
    digest = checksum(*(line.encode() + b"\0" for line in texts + translations))
    identity = {"name": path.name, "split": split, "count": len(texts), "checksum": digest, "field": field}
    return ParallelText(texts, translations, both, identity)


def splits_of(folder: Path, field: str) -> tuple[str, ...]:
    """The splits of a folder's pairs of files, training first."""
    both = languages(field)
    assert both is not None
    if _have_side_files(folder, both):
        return ("train", "validation")
    return tuple(sorted(_by_split(folder, both), key=lambda split: split != "train"))


def _by_split(folder: Path, both: tuple[str, str]) -> dict[str, list[Path]]:
    """The two files of each split that has both, by the split's name: the file name without `.en` (in any case)."""
    first, second = map(partial(_side_files, folder), both)
    return {split: [first[split], second[split]] for split in first if split in second}


def _side_files(folder: Path, side: str) -> dict[str, Path]:
    """The files of a language by split; of two files of a split, the one whose case matches `side`."""
    files = sorted(glob_any_case(folder, f"*.{side.lower()}"), key=lambda path: path.name.endswith(f".{side}"))
    return {path.name[: -len(side) - 1]: path for path in files if path.is_file()}


def _have_side_files(folder: Path, names: tuple[str, str]) -> bool:
    return all((folder / name).is_file() for name in names)
