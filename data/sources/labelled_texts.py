"""Texts with labels: two columns of the rows of files, `data.field=text:label`.

The second is a column of labels, and not of translations, if it is called `label`, `labels` or `class`; any other
column is written `text:label=COLUMN`. A label is a text (the name of a class), a whole number (a class from 0 on), or a
list of these (several classes a row). The classes are those of all splits together.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.fields import absent_classes, absent_notes, checksum, count_classes
from data.sources import parallel_text, text_files
from data.sources.reader import Reader, Request, checked_reader
from data.sources.rows import read_columns
from data.types import Texts
from errors import UsageError, quote

LABELS = ("label", "labels", "class")
NUMBER = re.compile(r"0|-?[1-9][0-9]{0,8}")


class Row(NamedTuple):
    """A text with its label, the label's place, and whether the label is a list of classes."""

    text: str
    label: tuple[str, ...]
    where: str
    is_list: bool


class Classes(NamedTuple):
    """How many classes there are, and their names in order; None if labels are numbers."""

    total: int
    names: tuple[str, ...] | None


def find(request: Request) -> Reader | None:
    """The reader of texts with labels, if data.field names a column of labels and the files have rows."""
    path, both = request.path, label_columns(request.field)
    if both is None or request.path_kind != "text" or not text_files.has_rows(path):
        return None
    if path.is_dir() and parallel_text.splits_of(path, str(request.field)):
        return None  # train.text and train.label are lines side by side
    return checked_reader(
        request.name, lambda: text_files.splits_of(path), lambda split: load(path, split, both), takes_field=True
    )


def label_columns(field: str | None) -> tuple[str, str] | None:
    """The columns of texts and labels that data.field names, None if it does not name labels.

    Raises UsageError if both are the same.
    """
    text, _, label = (field or "").partition(":")
    first, equals, column = label.partition("=")
    if not text or first not in LABELS or (equals and not column):
        return None
    if text == (column or first):
        raise UsageError(f"data.field = {field!r} must name two different columns, as text:label")
    return text, column or first


def load(path: Path, split: str, columns: tuple[str, str]) -> Texts:
    """The texts and labels of a split of a file, or of a folder's files sorted by name.

    If no files are named as splits, the last tenth of each class is the split `validation`. Raises UsageError for a
    text or label that is missing or empty, for lists of labels beside single ones, for numbers that leave one out, and
    for a single class.
    """
    by_split = text_files.files_by_split(path)
    if by_split:
        rows = {name: [row for file in files for row in _rows(file, columns)] for name, files in by_split.items()}
    else:
        rows = _hold_out([row for file in text_files.list_texts(path) for row in _rows(file, columns)])
    every = [row for name in rows for row in rows[name]]
    classes, own = _classes(path, columns[1], every), rows[split]
    if not own:
        raise UsageError(f"{path} is too short: its split {split!r} (a tenth) is empty")
    index = {name: i for i, name in enumerate(classes.names or map(str, range(classes.total)))}
    documents, labels = tuple(row.text for row in own), _encode(own, index)
    absent = absent_classes(labels, tuple(index))
    digest = checksum(*(d.encode() + b"\0" for d in documents), labels, repr(classes).encode())
    identity = {"name": path.name, "split": split, "count": len(own), "checksum": digest, "field": ":".join(columns)}
    notes = (*absent_notes(split, absent), *text_files.skipped_note(path))
    return Texts(documents, identity, labels, classes.total, classes.names, notes, absent)


def _rows(file: Path, columns: tuple[str, str]) -> Iterator[Row]:
    text_column, label_column = columns
    for where, row in read_columns(file, columns):
        text, value = text_files.text_of(where, row, text_column), row[label_column]
        if not text.strip():
            raise UsageError(f"{where}: the field {text_column!r} is empty; give a text, or remove the row")
        labels = value if isinstance(value, list) else [value]
        where = f"{where}: the field {label_column!r}"
        yield Row(text, tuple(_label(where, label) for label in labels), where, isinstance(value, list))


def _label(where: str, value: object) -> str:
    """A label as text. Raises UsageError for what is no text or whole number, or is empty or begins with a space."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{where} is {quote(value)}, not a label: a text, a whole number, or a list of these")
    text = str(value)
    if not text or text != text.strip():
        raise UsageError(f"{where} is {quote(text)}: a label is not empty, and has no space before or after it")
    return text


def _hold_out(rows: list[Row]) -> dict[str, list[Row]]:
    """The splits `train` and `validation`, the last tenth of the rows of each class: one at least if there are two."""
    by_label: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_label.setdefault(() if row.is_list else row.label, []).append(i)
    held_out = set[int]()
    for own in by_label.values():
        count = min(max(1, len(own) // 10), len(own) - 1)
        held_out.update(own[len(own) - count :])
    kept = [row for i, row in enumerate(rows) if i not in held_out]
    return {"train": kept, "validation": [rows[i] for i in sorted(held_out)]}


def _classes(path: Path, column: str, rows: Sequence[Row]) -> Classes:
    """The classes of all rows. Raises UsageError as `load`."""
    first_place: dict[str, str] = {}  # where each label is first
    for row in rows:
        if row.is_list != rows[0].is_list:
            a_list, other = (row, rows[0]) if row.is_list else (rows[0], row)
            raise UsageError(f"{a_list.where} is a list of labels, {other.where} is {quote(other.label[0])}, not one")
        for label in row.label:
            first_place.setdefault(label, row.where)
    where = f"{path}: the column {column!r}"
    numbers = [int(label) for label in first_place if NUMBER.fullmatch(label)]
    if numbers and min(numbers) < 0:
        raise UsageError(f"{first_place[str(min(numbers))]} is {min(numbers)}: numbers of classes begin at 0")
    if not first_place or (len(first_place) == 1 and not rows[0].is_list):
        has = ", ".join(map(quote, first_place)) or "nothing"
        raise UsageError(f"{where} has one label only, {has}, but a classifier needs two")
    if len(numbers) == len(first_place):
        return Classes(count_classes(where, numbers), None)
    return Classes(len(first_place), tuple(sorted(first_place)))


def _encode(rows: Sequence[Row], index: dict[str, int]) -> np.ndarray:
    """The labels of rows: int32 [n], or float32 [n C] of 0 and 1 if each is a list."""
    if not rows[0].is_list:
        return np.array([index[row.label[0]] for row in rows], np.int32)
    labels = np.zeros((len(rows), len(index)), np.float32)
    for i, row in enumerate(rows):
        for label in row.label:
            labels[i, index[label]] = 1
    return labels
