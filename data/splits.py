"""Splits in part and together, as TFDS writes them: `train[:90%]`, `test[-100:]`, `train[:50%]+test`.

Ends are rows, or a percentage of the split's, rounded to the closest row; negative ones count from the end. Rows of
class folders, which lie class after class, are counted so that a part has the same share of every class.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from data import detection
from data.detection import DetectionDataset, RaggedAnnotations
from data.folders import FolderReader
from data.kinds import Examples, Fields, ParallelText, Pixels, Source, Texts, checksum, object_array
from errors import UsageError, quote

END = r"-?\d[\d_]*(?:\.\d+)?%?"
PART = re.compile(rf"\s*(?P<name>[^\[\]+]+?)\s*(?:\[(?P<start>{END})?:(?P<stop>{END})?\])?\s*")
LEGAL = "legal: a split's name, NAME[:90%], NAME[90%:], NAME[100:200], NAME[-10%:], or a sum of such, as train+test"


class Part(NamedTuple):
    """A split and the ends of what is taken of it, as they were written."""

    name: str
    start: str | None = None
    stop: str | None = None

    def bounds(self, count: int) -> tuple[int, int]:
        """The first row, and the one behind the last, of a split of `count` rows. Raises UsageError for no row."""
        start, stop = (_resolve_end(end, usual, count) for end, usual in ((self.start, 0), (self.stop, count)))
        shares = [abs(float(end[:-1])) for end in self[1:] if end and end.endswith("%")]
        if max(abs(start), abs(stop)) > count or max(shares, default=0) > 100:
            raise UsageError(f"{self} is beyond the {count:,} rows of {self.name!r}")
        start, stop = (end + count if end < 0 else end for end in (start, stop))
        if start >= stop:
            raise UsageError(f"{self} has none of the {count:,} rows of {self.name!r}")
        return start, stop

    def __str__(self) -> str:
        """The part as it was written."""
        return self.name if self.start is self.stop is None else f"{self.name}[{self.start or ''}:{self.stop or ''}]"


def _resolve_end(end: str | None, usual: int, count: int) -> int:
    """The row of an end, rounded as TFDS's `closest`, which rounds halves to even."""
    if end is None:
        return usual
    return round(float(end[:-1]) * count / 100) if end.endswith("%") else int(end)


def is_plain(split: str) -> bool:
    """Whether a split is a name, with nothing taken of it or added."""
    return not set(split) & set("[]+")


def parse(split: str) -> tuple[Part, ...]:
    """The parts of a split. Raises UsageError for another form."""
    found = [PART.fullmatch(text) for text in split.split("+")]
    parts = [Part(*match.group("name", "start", "stop")) for match in found if match]
    for part, match in zip(parts, found, strict=False):
        ends = [end for end in part[1:] if end is not None]
        mixed = len({end.endswith("%") for end in ends}) > 1
        broken = any("." in end and not end.endswith("%") for end in ends)
        if mixed or broken or (match and "[" in match.group() and not ends):
            parts.clear()
            break
    if len(parts) != len(found):
        raise UsageError(f"split {quote(split)} is no split; {LEGAL}")
    return tuple(parts)


def split_names(split: str) -> tuple[str, ...]:
    """The splits of which a split has parts. Raises UsageError as `parse`."""
    return (split,) if is_plain(split) else tuple(part.name for part in parse(split))


def resolve(split: str, count: Callable[[str], int]) -> tuple[str, list[tuple[str, range]]]:
    """A split in rows, as `train[0:900]`, and the rows of each part by its split; `count` gives those of a split.

    A part that is a whole split is its name. Raises UsageError as `parse` and `Part.bounds`, and for a row in two
    parts, which TFDS gives twice: standard errors would take the copy for another example.
    """
    chosen = [(part.name, range(*part.bounds(count(part.name)))) for part in parse(split)]
    for (name, rows), (other, more) in itertools.combinations(chosen, 2):
        if name == other and max(rows.start, more.start) < min(rows.stop, more.stop):
            raise UsageError(f"split {quote(split)} has rows of {name!r} in two of its parts; each row stands in one")
    plain = [name if len(rows) == count(name) else f"{name}[{rows.start}:{rows.stop}]" for name, rows in chosen]
    return "+".join(plain), chosen


def overlap(one: str, other: str) -> str | None:
    """The split of which two splits, as `resolve` writes them, have rows in common; None where they have none."""
    for part in parse(one):
        for mine in parse(other):
            starts, stops = ([int(end) for p in (part, mine) if (end := p[i]) is not None] for i in (1, 2))
            if part.name == mine.name and (not starts or not stops or max(starts) < min(stops)):
                return part.name
    return None


def take(split: str, load: Callable[[str], Source]) -> Source:
    """What a split has of those that `load` gives by name. Raises UsageError as `resolve`, and where classes differ."""
    whole = {name: load(name) for name in split_names(split)}
    classes = {", ".join(getattr(source, "names", None) or ()): name for name, source in whole.items()}
    if len(classes) > 1:
        differ = " and ".join(f"{name!r} has {shown or 'no names'}" for shown, name in classes.items())
        raise UsageError(f"split {quote(split)} is a sum of other classes: {differ}")
    resolved, chosen = resolve(split, lambda name: len(whole[name]))
    if resolved in whole:
        return whole[resolved]
    first = next(iter(whole.values()))
    identity = {**first.identity, "split": resolved, "count": sum(len(rows) for _, rows in chosen)}
    if len(whole) > 1:
        identity["checksum"] = checksum(*(str(source.identity["checksum"]).encode() for source in whole.values()))
    return _concatenate([(whole[name], rows) for name, rows in chosen], first, identity)


def _stratified_order(source: Source) -> Sequence[int]:
    """The rows of a source in the order in which parts are taken: of class folders as evenly as they go."""
    labels = _class_labels(source)
    if labels is None:
        return range(len(source))
    counts = np.bincount(labels)
    place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return np.argsort(place, kind="stable").tolist()


def _class_labels(source: Source) -> np.ndarray | None:
    """The classes of images in class folders [n], which lie in their order; None of other sources."""
    return source.fields.labels if isinstance(source, Examples) and isinstance(source.fields, FolderReader) else None


def _concatenate(chosen: Sequence[tuple[Source, range]], first: Source, identity: dict[str, Any]) -> Source:
    orders = [(source, _stratified_order(source)) for source, _ in chosen]
    rows: list[tuple[Any, int]] = [
        (source, order[i]) for (source, order), (_, part) in zip(orders, chosen, strict=True) for i in part
    ]

    def all_of(values: Callable[[Any], Sequence[Any]]) -> tuple[Any, ...]:
        return tuple(values(source)[row] for source, row in rows)

    if isinstance(first, Texts):
        labels = None if first.labels is None else np.array(all_of(lambda s: s.labels), first.labels.dtype)
        return replace(first, documents=all_of(lambda s: s.documents), labels=labels, identity=identity)
    if isinstance(first, ParallelText):
        texts, translations = all_of(lambda s: s.texts), all_of(lambda s: s.translations)
        return replace(first, texts=texts, translations=translations, identity=identity)
    notes = dict.fromkeys(note for source, _ in chosen if isinstance(source, Examples) for note in source.notes)
    changed: dict[str, Any] = {"count": len(rows), "identity": identity, "notes": tuple(notes)}
    if isinstance(first, DetectionDataset):
        return _concatenate_detection(replace(first, **changed), rows)
    read = _RowReader(tuple(rows))
    if _class_labels(first) is not None:
        present = set(all_of(lambda source: source.fields.labels))
        changed["absent"] = tuple(name for i, name in enumerate(first.names or ()) if i not in present)
    fields = read if callable(first.fields) else read(np.arange(len(rows)))
    return replace(first, fields=fields, **changed)


@dataclass(frozen=True)
class _RowReader:
    """Rows of examples, each by its source and its row there -> fields."""

    rows: tuple[tuple[Examples, int], ...]

    def __call__(self, wanted: np.ndarray) -> Fields:
        """The fields of some rows, in their order."""
        found = [source.__getitems__([row]) for source, row in (self.rows[int(i)] for i in wanted)]
        return {name: _stack([fields[name] for fields in found]) for name in found[0]}


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Fields of a row each [1 ...] -> of all [n ...], as objects where images differ in size."""
    alike = len({part.shape for part in parts}) == 1
    return np.concatenate(parts) if alike else object_array([part[0] for part in parts])


@dataclass(frozen=True)
class _Decoder:
    """Decodes images of several sets of scenes."""

    rows: tuple[tuple[Callable[[int], Pixels], int], ...]

    def __call__(self, i: int) -> Pixels:
        decode, row = self.rows[i]
        return decode(row)


def _concatenate_detection(scenes: DetectionDataset, rows: Sequence[tuple[Any, int]]) -> DetectionDataset:
    found = [source.annotations[row] for source, row in rows]
    boxes, kinds, crowd, difficult = (np.concatenate(part) for part in zip(*found, strict=True))
    starts = np.cumsum([0, *(len(truth.labels) for truth in found)])
    sizes = np.array([source.annotations.size(row) for source, row in rows], np.int32)
    truths = RaggedAnnotations(boxes, kinds, crowd, difficult, starts, sizes)
    decode = _Decoder(tuple((source.fields.decode, row) for source, row in rows))
    most = max(1, *(int(truth.is_valid.sum()) for truth in found))
    paths = tuple(source.paths[row] for source, row in rows if source.paths)
    return replace(scenes, fields=detection.DetectionReader(decode, truths, most), annotations=truths, paths=paths)
