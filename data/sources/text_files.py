"""Text files: .txt, each file a document; .jsonl, .csv, .tsv, .parquet, each row a document, in one of its fields."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data.files import ARROW, JSON, PLAIN, ROWS, SPLITS, TEXTS, list_files
from data.sources.reader import Reader, Request, checked_reader
from data.sources.rows import read_columns
from data.types import Texts, texts
from documents import read_text
from errors import UsageError, quote

DEFAULT_FIELD = "text"  # the field of rows that is read by default
UNSUPPORTED = {  # extensions of files that are not read as text -> what to do
    **dict.fromkeys(ARROW, "write its rows as .jsonl or .parquet"),
    **dict.fromkeys((".json", ".json5", ".yaml", ".yml", ".xml"), "write it as .jsonl, an object a line, or as .txt"),
    **dict.fromkeys((".html", ".htm", ".xhtml", ".ipynb", ".tex", ".rtf"), "take its text out and write that as .txt"),
    **dict.fromkeys(".pdf .doc .docx .odt .epub .mobi .ppt .pptx".split(), "take its text out and write that as .txt"),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "write it as .csv"),
    **dict.fromkeys(".gz .bz2 .xz .zst .lz4 .zip .7z .rar .tar .tgz".split(), "unpack it first"),
    **dict.fromkeys(".db .sqlite .pkl .h5 .hdf5 .bin .idx .tfrecord .pt".split(), "it has no text"),
}


def find(request: Request) -> Reader | None:
    """The reader of a text file or a folder of texts."""
    if request.path_kind != "text":
        return None
    path, field = request.path, request.field
    takes_field = field is not None and has_rows(path)
    return checked_reader(request.name, lambda: splits_of(path), lambda split: load(path, split, field), takes_field)


def load(path: Path, split: str, field: str | None) -> Texts:
    """The documents of a split of a file, or of a folder's files sorted by name.

    Raises UsageError if there is no text, if files have different formats, or if a row's field has no text.
    """
    (documents,) = columns(path, split, (field or DEFAULT_FIELD,))
    return replace(texts(path.name, split, filter(None, documents)), notes=skipped_note(path))


def columns(path: Path, split: str, fields: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The texts of a split, a tuple a field; plain text has one field, whatever its name.

    If no files are named as splits, the last tenth is the split `validation`: whole rows or files if there are ten or
    more, otherwise the end of each. Raises UsageError as `load`.
    """
    by_split = files_by_split(path)
    rows = [row for file in by_split.get(split, list_texts(path)) for row in _texts(file, fields)]
    if not by_split:
        rows = _take_split(rows, split)
    if not any(any(row) for row in rows):
        raise UsageError(f"{path} is too short: its split {split!r}{'' if by_split else ' (a tenth)'} is empty")
    return tuple(zip(*rows, strict=True))


def splits_of(path: Path) -> tuple[str, ...]:
    """The splits of a file or folder: those that folders or files are named after, else `train` and `validation`."""
    return tuple(files_by_split(path)) or ("train", "validation")


def has_rows(path: Path) -> bool:
    """Whether a file, or a file of a folder, has rows with fields."""
    return bool(list_files(path, ROWS)) if path.is_dir() else path.name.lower().endswith(ROWS)


def list_texts(path: Path) -> list[Path]:
    """The files of a path. Raises UsageError if there is none, or if they have different formats."""
    files = sorted(list_files(path, TEXTS)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError(
            f"no .txt, .jsonl, .csv, .tsv or .parquet file at {str(path)!r}; give one, or a folder of such files or of "
            f"images"
        )
    formats = {_format(file): file for file in files}
    if len(formats) > 1:
        examples = " and ".join(file.name for _, file in sorted(formats.items()))
        raise UsageError(f"{path} has files of several formats, as {examples}: put each format in a folder of its own")
    for file in files:
        if (extension := file.suffix.lower()) in UNSUPPORTED:
            raise UsageError(f"{file}: {extension} files are not read as text; {UNSUPPORTED[extension]}")
    return files


def _format(file: Path) -> str:
    extension = file.suffix.lower()
    return JSON[0] if extension in JSON else extension if extension in TEXTS else PLAIN[0]


def files_by_split(root: Path) -> dict[str, list[Path]]:
    """The files of a path by the split that they or their folders are named after, training first.

    {} if there are no two splits. `test-00000-of-00002.jsonl` is named after its split too. Raises UsageError if only
    some are named after splits: held-out text would be trained on.
    """
    by_name: dict[str, list[Path]] = {}
    for file in list_texts(root):
        by_name.setdefault(_split_of(root, file), []).append(file)
    found = [split for split in SPLITS if split in by_name]
    if found and len(found) < len(by_name):
        (of_split, *_), (other, *_) = by_name[found[0]], next(f for name, f in by_name.items() if name not in SPLITS)
        raise UsageError(
            f"{root} has {of_split.relative_to(root)}, named as a split, and {other.relative_to(root)}, which is not: "
            f"name both by {', '.join(SPLITS)}, or remove one"
        )
    return {split: by_name[split] for split in found} if len(found) > 1 else {}


def _split_of(root: Path, file: Path) -> str:
    """The possible split of a file: by its folder below the root, otherwise by its name."""
    folder, *below = file.relative_to(root).parts or (file.name,)
    if below and folder.lower() in SPLITS:
        return folder.lower()
    if _format(file) in PLAIN:  # the title of a text may begin with a split's name, as test-of-time.txt
        return re.sub(r"[-_.]\d+.*", "", file.stem.lower())
    return re.split(r"[-_.]", file.name.lower())[0]


def skipped_note(path: Path) -> tuple[str, ...]:
    """A note on the files of a folder that are not read, if there are any."""
    if not path.is_dir():
        return ()
    read = {*list_texts(path)}
    names = sorted(str(file.relative_to(path)) for file in list_files(path, ("",)) if file not in read)
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return (f"{path.name}: skipped, as they are not texts: {', '.join(names[:3])}{more}",) if names else ()


def _take_split(rows: list[tuple[str, ...]], split: str) -> list[tuple[str, ...]]:
    if len(rows) >= 10 or len(rows[0]) > 1:  # translations are not cut
        count = max(2, len(rows) // 10)  # with a single document, its windows would count as documents
        return rows[:-count] if split == "train" else rows[-count:]
    cuts = [len(document) - len(document) // 10 for (document,) in rows]
    return [(d[:cut] if split == "train" else d[cut:],) for (d,), cut in zip(rows, cuts, strict=True)]


def _texts(file: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The texts of a file's rows, a tuple of fields each. Raises UsageError for a row that lacks a field."""
    if _format(file) in PLAIN:
        yield (read_text(file),)
        return
    for where, row in read_columns(file, fields):
        yield tuple(text_of(where, row, field) for field in fields)


def text_of(where: str, row: dict[str, object], field: str) -> str:
    """The text in a field of a row. Raises UsageError for another value."""
    value = row[field]
    if not isinstance(value, str):
        raise UsageError(f"{where}: the field {field!r} is {quote(value)}, not text")
    return value
