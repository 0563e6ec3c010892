"""Parts and sums of splits in TFDS's syntax: `train[:90%]`, `test[-100:]`, `train[:50%]+test`.

Ends are rows, or percentages rounded to the closest row; negative ones count from the end. The rows of class folders,
which are sorted by class, are reordered first, so that a part has the same fraction of every class.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from data.images import detection
from data.images.detection import DetectionDataset, RaggedAnnotations
from data.sources.image_folder import FolderReader
from data.types import Examples, Fields, ParallelText, Pixels, Source, Texts, absent_classes, checksum, object_array
from errors import UsageError, quote

END = r"-?\d[\d_]*(?:\.\d+)?%?"
PART = re.compile(rf"\s*(?P<name>[^\[\]+]+?)\s*(?:\[(?P<start>{END})?:(?P<stop>{END})?\])?\s*")
LEGAL = "legal: a split's name, NAME[:90%], NAME[90%:], NAME[100:200], NAME[-10%:], or a sum of such, as train+test"


class Part(NamedTuple):
    """A split, and the start and stop of a part of it, as written."""

    name: str
    start: str | None = None
    stop: str | None = None

    def bounds(self, count: int) -> tuple[int, int]:
        """Start and stop as rows of a split of `count` rows. Raises UsageError if they are out of range or equal."""
        start, stop = (_resolve_end(end, usual, count) for end, usual in ((self.start, 0), (self.stop, count)))
        shares = [abs(float(end[:-1])) for end in self[1:] if end and end.endswith("%")]
        if max(abs(start), abs(stop)) > count or max(shares, default=0) > 100:
            raise UsageError(f"{self} is out of range: {self.name!r} has {count:,} rows")
        start, stop = (end + count if end < 0 else end for end in (start, stop))
        if start >= stop:
            raise UsageError(f"{self} is empty: it has none of the {count:,} rows of {self.name!r}")
        return start, stop

    def __str__(self) -> str:
        """The part as it was written."""
        return self.name if self.start is self.stop is None else f"{self.name}[{self.start or ''}:{self.stop or ''}]"


def _resolve_end(end: str | None, usual: int, count: int) -> int:
    """The row of an end, rounded as TFDS's `closest`: halves to even."""
    if end is None:
        return usual
    return round(float(end[:-1]) * count / 100) if end.endswith("%") else int(end)


def is_plain(split: str) -> bool:
    """Whether a split is just a name, without parts or sums."""
    return not set(split) & set("[]+")


def parse(split: str) -> tuple[Part, ...]:
    """The parts of a split. Raises UsageError for a syntax error."""
    matches = [PART.fullmatch(text) for text in split.split("+")]
    parts = [Part(*match.group("name", "start", "stop")) for match in matches if match]
    for part, match in zip(parts, matches, strict=False):
        ends = [end for end in part[1:] if end is not None]
        mixed = len({end.endswith("%") for end in ends}) > 1
        broken = any("." in end and not end.endswith("%") for end in ends)
        if mixed or broken or (match and "[" in match.group() and not ends):
            parts.clear()
            break
    if len(parts) != len(matches):
        raise UsageError(f"split {quote(split)} is not a split; {LEGAL}")
    return tuple(parts)


def split_names(split: str) -> tuple[str, ...]:
    """The names of the splits that a split has parts of. Raises UsageError as `parse`."""
    return (split,) if is_plain(split) else tuple(part.name for part in parse(split))


def resolve(split: str, count: Callable[[str], int]) -> tuple[str, list[tuple[str, range]]]:
    """A split with its ends as rows, `train[0:900]`, and (split, rows) of each part; `count` gives a split's rows.

    A part that is a whole split is written as its name. Raises UsageError as `parse` and `Part.bounds`, and for a row
    in two parts: TFDS gives it twice, and standard errors would count the copy as another example.
    """
    chosen = [(part.name, range(*part.bounds(count(part.name)))) for part in parse(split)]
    for (name, rows), (other, more) in itertools.combinations(chosen, 2):
        if name == other and max(rows.start, more.start) < min(rows.stop, more.stop):
            raise UsageError(f"split {quote(split)} has rows of {name!r} in two parts; a row may be in one part only")
    plain = [name if len(rows) == count(name) else f"{name}[{rows.start}:{rows.stop}]" for name, rows in chosen]
    return "+".join(plain), chosen


def overlap(one: str, other: str) -> str | None:
    """The split of which `one` and `other`, as written by `resolve`, have common rows; None if there are none."""
    for part in parse(one):
        for mine in parse(other):
            starts, stops = ([int(end) for p in (part, mine) if (end := p[i]) is not None] for i in (1, 2))
            if part.name == mine.name and (not starts or not stops or max(starts) < min(stops)):
                return part.name
    return None


def take(split: str, load: Callable[[str], Source]) -> Source:
    """The source of a split, from the sources that `load` gives by name.

    Raises UsageError as `resolve`, and for a sum of splits with different classes.
    """
    sources = {name: load(name) for name in split_names(split)}
    classes = {", ".join(getattr(source, "names", None) or ()): name for name, source in sources.items()}
    if len(classes) > 1:
        differ = " and ".join(f"{name!r} has {listed or 'no names'}" for listed, name in classes.items())
        raise UsageError(f"split {quote(split)} is a sum of splits with different classes: {differ}")
    resolved, chosen = resolve(split, lambda name: len(sources[name]))
    if resolved in sources:
        return sources[resolved]
    first = next(iter(sources.values()))
    identity = {**first.identity, "split": resolved, "count": sum(len(rows) for _, rows in chosen)}
    if len(sources) > 1:
        identity["checksum"] = checksum(*(str(source.identity["checksum"]).encode() for source in sources.values()))
    return _concatenate([(sources[name], rows) for name, rows in chosen], first, identity)


def _stratified_order(source: Source) -> Sequence[int]:
    """The rows of a source in the order in which parts are taken: for class folders, classes evenly interleaved."""
    labels = _class_labels(source)
    if labels is None:
        return range(len(source))
    counts = np.bincount(labels)
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return np.argsort(place, kind="stable").tolist()


def _class_labels(source: Source) -> np.ndarray | None:
    """The labels of images in class folders [n], which are sorted; None for other sources."""
    return source.fields.labels if isinstance(source, Examples) and isinstance(source.fields, FolderReader) else None


def _concatenate(chosen: Sequence[tuple[Source, range]], first: Source, identity: dict[str, Any]) -> Source:
    orders = [(source, _stratified_order(source)) for source, _ in chosen]
    rows: list[tuple[Any, int]] = [
        (source, order[i]) for (source, order), (_, part) in zip(orders, chosen, strict=True) for i in part
    ]

    def all_of(values: Callable[[Any], Sequence[Any]]) -> tuple[Any, ...]:
        return tuple(values(source)[row] for source, row in rows)

    if isinstance(first, Texts):
        documents, labels, absent = all_of(lambda s: s.documents), None, tuple[str, ...]()
        if first.labels is not None:
            labels = np.array(all_of(lambda s: s.labels), first.labels.dtype)
            absent = absent_classes(labels, first.names or [*map(str, range(first.classes or 0))])
        return replace(first, documents=documents, labels=labels, identity=identity, absent=absent)
    if isinstance(first, ParallelText):
        texts, translations = all_of(lambda s: s.texts), all_of(lambda s: s.translations)
        return replace(first, texts=texts, translations=translations, identity=identity)
    notes = dict.fromkeys(note for source, _ in chosen if isinstance(source, Examples) for note in source.notes)
    changed: dict[str, Any] = {"count": len(rows), "identity": identity, "notes": tuple(notes)}
    if isinstance(first, DetectionDataset):
        return _concatenate_detection(replace(first, **changed), rows)
    read = _RowReader(tuple(rows))
    if _class_labels(first) is not None:
        labels = np.array(all_of(lambda source: source.fields.labels), np.int32)
        changed["absent"] = absent_classes(labels, first.names or ())
    fields = read if callable(first.fields) else read(np.arange(len(rows)))
    return replace(first, fields=fields, **changed)


@dataclass(frozen=True)
class _RowReader:
    """Rows -> fields; each row is a row of one of the sources."""

    rows: tuple[tuple[Examples, int], ...]

    def __call__(self, wanted: np.ndarray) -> Fields:
        """The fields of some rows, in their order."""
        rows = [source.__getitems__([row]) for source, row in (self.rows[int(i)] for i in wanted)]
        return {name: _stack([fields[name] for fields in rows]) for name in rows[0]}


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """A field of single rows [1 ...] -> of all rows [n ...], as an object array if images differ in size."""
    same_shape = len({part.shape for part in parts}) == 1
    return np.concatenate(parts) if same_shape else object_array([part[0] for part in parts])


@dataclass(frozen=True)
class _Decoder:
    """Decodes images of several detection sets."""

    rows: tuple[tuple[Callable[[int], Pixels], int], ...]

    def __call__(self, i: int) -> Pixels:
        decode, row = self.rows[i]
        return decode(row)


def _concatenate_detection(dataset: DetectionDataset, rows: Sequence[tuple[Any, int]]) -> DetectionDataset:
    parts = [source.annotations[row] for source, row in rows]
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])
    sizes = np.array([source.annotations.size(row) for source, row in rows], np.int32)
    boxes, labels, crowd, difficult = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    annotations = RaggedAnnotations(boxes, labels, crowd, difficult, starts, sizes)
    decode = _Decoder(tuple((source.fields.decode, row) for source, row in rows))
    max_boxes = max(1, *(int(part.is_valid.sum()) for part in parts))
    paths = tuple(source.paths[row] for source, row in rows if source.paths)
    reader = detection.DetectionReader(decode, annotations, max_boxes)
    return replace(dataset, fields=reader, annotations=annotations, paths=paths)
