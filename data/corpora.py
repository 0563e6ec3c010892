"""A user's texts: files of plain text, each a document, and files of rows, each row a document by one of its fields."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.files import list_files
from data.folders import SPLITS
from data.kinds import Texts, texts
from documents import read_rows, read_text
from errors import UsageError, quote

PLAIN = (".txt",)
JSON, TABLES_OF_TEXT = (".jsonl", ".ndjson"), (".csv", ".tsv")
TABLES = (".parquet", ".arrow")  # of rows too, which are not read yet
EXTENSIONS = (*PLAIN, *JSON, *TABLES_OF_TEXT, *TABLES)  # of files that a folder's texts may lie in
DEFAULT_FIELD = "text"  # the field of rows that is read where none is named
UNSUPPORTED = {  # endings of files whose bytes are no text to learn from -> what to do
    **dict.fromkeys(TABLES, "write its rows as .jsonl"),
    **dict.fromkeys((".json", ".json5", ".yaml", ".yml", ".xml"), "write it as .jsonl, an object a line, or as .txt"),
    **dict.fromkeys((".html", ".htm", ".xhtml", ".ipynb", ".tex", ".rtf"), "take its text out and write that as .txt"),
    **dict.fromkeys(".pdf .doc .docx .odt .epub .mobi .ppt .pptx".split(), "take its text out and write that as .txt"),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "write it as .csv"),
    **dict.fromkeys(".gz .bz2 .xz .zst .lz4 .zip .7z .rar .tar .tgz".split(), "unpack it first"),
    **dict.fromkeys(".db .sqlite .pkl .npy .npz .h5 .hdf5 .bin .idx .tfrecord .pt".split(), "it holds no text"),
}
Row = tuple[str, dict[str, Any]]  # its place, as `FILE, line N`, and its fields


def load(path: Path, split: str, field: str | None) -> Texts:
    """The documents of a split of a file, or of a folder's files by their names.

    Raises UsageError where there is no text, files of several kinds, or a row whose field holds none.
    """
    found = texts(path.name, split, (d for d in columns(path, split, (field or DEFAULT_FIELD,))[0] if d))
    return replace(found, notes=_skipped_note(path))


def columns(path: Path, split: str, fields: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The texts of a split by field, row by row; of plain text the one of all fields.

    Where no files are named as splits, the last tenth is the split `validation`: of ten rows or files or more whole
    ones, of fewer the end of each. Raises UsageError as `load`.
    """
    by_split = _by_split(path, _files(path))
    rows = [row for file in by_split.get(split, _files(path)) for row in _texts(file, fields)]
    if not by_split:
        rows = _take_split(rows, split)
    if not any(any(row) for row in rows):
        raise UsageError(f"{path} is too short: its split {split!r}{'' if by_split else ', a tenth,'} holds nothing")
    return tuple(zip(*rows, strict=True))


def splits_of(path: Path) -> tuple[str, ...]:
    """The splits of a file or folder: those that its folders or files are named by, else `train` and `validation`."""
    return tuple(_by_split(path, _files(path))) or ("train", "validation")


def has_rows(path: Path) -> bool:
    """Whether the texts lie in rows, by field."""
    rows = (*JSON, *TABLES_OF_TEXT)
    return bool(list_files(path, rows)) if path.is_dir() else path.name.lower().endswith(rows)


def _files(path: Path) -> list[Path]:
    """The files of a path. Raises UsageError where there are none, or of several kinds: which would be its texts?"""
    found = sorted(list_files(path, EXTENSIONS)) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        wanted = "no .txt file, nor one of rows (.jsonl, .csv, .tsv)"
        raise UsageError(f"{wanted}, at {str(path)!r}; give one, or a folder that holds some or images")
    kinds = {_format(file): file for file in found}
    if len(kinds) > 1:
        shown = " and ".join(file.name for _, file in sorted(kinds.items()))
        raise UsageError(f"{path} holds files of several kinds, as {shown}: give one kind a folder of its own")
    for file in found:
        if (ending := file.suffix.lower()) in UNSUPPORTED:
            raise UsageError(f"{file} is read as no text: {ending} files are not; {UNSUPPORTED[ending]}")
    return found


def _format(file: Path) -> str:
    ending = file.suffix.lower()
    return JSON[0] if ending in JSON else ending if ending in EXTENSIONS else PLAIN[0]


def _by_split(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Files by the split that their folder or they are named by, training first; {} where none or all are of one.

    `test-00000-of-00002.jsonl` is named by its split too. Raises UsageError where some are and others are not: held-out
    text would be trained on.
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(root, file), []).append(file)
    named = [split for split in SPLITS if split in found]
    if named and len(named) < len(found):
        (of_split, *_), (other, *_) = found[named[0]], next(f for name, f in found.items() if name not in SPLITS)
        raise UsageError(
            f"{root} holds {of_split.relative_to(root)}, named as a split, beside {other.relative_to(root)}, which is "
            f"not: name both by {', '.join(SPLITS)}, or take one away"
        )
    return {split: found[split] for split in named} if len(named) > 1 else {}


def _split_of(root: Path, file: Path) -> str:
    """The split that a file's folder below the root, else its name, may stand for."""
    folder, *below = file.relative_to(root).parts or (file.name,)
    if below and folder.lower() in SPLITS:
        return folder.lower()
    plain = _format(file) in PLAIN  # a text's own name may begin so, as test-of-time.txt
    return re.sub(r"[-_.]\d+.*", "", file.stem.lower()) if plain else re.split(r"[-_.]", file.name.lower())[0]


def _skipped_note(path: Path) -> tuple[str, ...]:
    """A note of the files in a folder that are not read, where there are some."""
    if not path.is_dir():
        return ()
    read = {*_files(path)}
    names = sorted(str(file.relative_to(path)) for file in list_files(path, ("",)) if file not in read)
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return (f"{path.name}: passed over, as no texts: {', '.join(names[:3])}{more}",) if names else ()


def _take_split(rows: list[tuple[str, ...]], split: str) -> list[tuple[str, ...]]:
    if len(rows) >= 10 or len(rows[0]) > 1:  # translations are not cut
        held = max(2, len(rows) // 10)  # one alone would have no neighbour, and its windows count as documents
        return rows[:-held] if split == "train" else rows[-held:]
    cuts = [len(document) - len(document) // 10 for (document,) in rows]
    return [(d[:cut] if split == "train" else d[cut:],) for (d,), cut in zip(rows, cuts, strict=True)]


def _texts(file: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The texts of a file's rows by field. Raises UsageError for a row that lacks one."""
    if _format(file) in PLAIN:
        yield (read_text(file),)
        return
    empty = True
    for where, row in _json_rows(file) if _format(file) in JSON else _table_rows(file):
        empty = False
        for field in fields:
            if field not in row:
                has = ", ".join(map(quote, list(row)[:8])) or "nothing"
                raise UsageError(
                    f"{where} has no field {field!r}; it has {has}: data.field, or --field, names the one to read"
                )
            if not isinstance(row[field], str):
                raise UsageError(f"{where}: the field {field!r} is {quote(row[field])}, not text")
        yield tuple(row[field] for field in fields)
    if empty:
        raise UsageError(f"{file} holds no rows")


def _json_rows(file: Path) -> Iterator[Row]:
    for where, value in read_rows(file):
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {quote(value)}, not an object with fields")
        yield where, value


def _table_rows(file: Path) -> Iterator[Row]:
    """The rows of a .csv or .tsv file below its header. Raises UsageError for stray quotes or cells.

    Also for a .tsv row of lines that would be rows by themselves: the quotes around may be those of the texts.
    """
    csv.field_size_limit(sys.maxsize)
    tab = "\t" if file.suffix.lower() == ".tsv" else None
    lines = list[str]()  # of the row that is read
    reader = csv.DictReader(
        _record_lines(io.StringIO(read_text(file), newline=""), lines), delimiter=tab or ",", strict=True
    )
    try:
        header = list(reader.fieldnames or ())
        if len(set(header)) < len(header):
            raise UsageError(f"{file}: its header names a column twice: {', '.join(map(quote, header))}")
        lines.clear()
        for row in reader:
            where = f"{file}, line {reader.line_num:,}"
            if None in row or None in row.values():
                raise UsageError(f"{where} has more or fewer cells than the {len(header)} of the header")
            full = [line for line in lines if line.strip()]
            if tab and len(full) > 1 and all(line.count(tab) == len(header) - 1 for line in full):
                raise UsageError(
                    f"{where} ends a quoted cell of {len(full):,} lines, each of which would be a row: "
                    f"if the quotes are the texts' own, write the rows as .jsonl"
                )
            lines.clear()
            yield where, row
    except csv.Error as error:
        first = reader.reader.line_num - len(lines) + 1
        raise UsageError(
            f"{file}, from line {first:,} on: {error}; a cell that begins with a quote ends with one, and has those "
            f"inside doubled"
        ) from None


def _record_lines(lines: Iterable[str], seen: list[str]) -> Iterator[str]:
    """Yield the lines, and append each to `seen` when it is read."""
    for line in lines:
        seen.append(line)
        yield line
