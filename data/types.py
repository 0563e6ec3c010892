"""The types of data sources: examples, texts, parallel text. All are random-access by row and have an identity."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from data import eval_set
from data.eval_set import EvalSet
from data.fields import (
    Augment,
    Batch,
    Fields,
    Identity,
    absent_classes,
    absent_notes,
    check_labels,
    checksum,
    object_array,
)
from data.source import EpochSource, Part, Reading, RowType, gather_notes
from data.text import packing, translation_rows
from errors import UsageError


@dataclass(frozen=True)
class ExampleSource:
    """Examples, each once an epoch."""

    source: "Examples"
    shuffled = True

    def __len__(self) -> int:
        return len(self.source)

    def items(self, epochs: np.ndarray, positions: np.ndarray) -> Batch:
        """Fields of the rows at `positions`, with weight 1 [B] unless the examples have weights."""
        fields = self.source.__getitems__(positions)
        return {"weight": np.ones(len(positions), np.float32), **fields}


@dataclass(frozen=True)
class Examples:
    """Examples, one per row, with their labels or targets.

    Input fields: features float32 [n F] or [n T F], image uint8 [n Y X C], or tokens int32 [n T] with mask
    float32 [n T]. Output fields: label int32 [n] out of `classes`, labels float32 [n C] of 0 and 1 (any number of
    classes a row), or target float32 [n C]. Images of different sizes are an object array [n] of uint8 [y x C]. Images
    with boxes have the fields of `data/images/detection.py: DetectionReader`. `fields` is a dict of arrays, or a
    function from rows to such a dict if the set is too large for memory. `names` are the names of the classes, if they
    have any. `absent` are the names of classes that only other splits have examples of. `notes` are messages for the
    user. `labels` [n] are those of a function `fields`, if they are known without reading rows. Parts of a set that is
    `sorted_by_class` have the same share of each class. `vocab` is the number of different tokens.
    """

    fields: Fields | Callable[[np.ndarray], Fields]
    count: int
    identity: Identity
    classes: int | None
    names: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    sorted_by_class: bool = False
    vocab: int | None = None

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, rows: Sequence[int] | np.ndarray) -> Fields:
        """The fields of some rows, in their order."""
        wanted = np.asarray(rows)
        return self.fields(wanted) if callable(self.fields) else {k: v[wanted] for k, v in self.fields.items()}

    @property
    def known_labels(self) -> np.ndarray | None:
        """The labels [n] of rows of one class each, None if that would take reading the rows."""
        return self.labels if callable(self.fields) else self.fields.get("label")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each field."""
        return {name: values.shape[1:] for name, values in self.__getitems__([0]).items()}

    @property
    def documents(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def paths(self) -> tuple[str, ...]:
        """None that are known."""
        return ()

    def row_type(self) -> RowType:
        """Images or features, with labels or targets."""
        shapes = self.shapes
        kind = "images" if "image" in shapes else "features"
        return RowType(kind, f"examples with {', '.join(sorted(shapes))}", frozenset(shapes), shapes, self.vocab)

    def describe(self, rows: EpochSource) -> str:
        """The number of examples."""
        return f"{len(self):,} examples"

    def rows(self, reading: Reading) -> EpochSource:
        """Each example once an epoch."""
        return ExampleSource(self)

    def eval_set(self, reading: Reading) -> EvalSet:
        """Each example is a cluster."""
        return EvalSet(self, np.arange(len(self)), reading.prepare)

    def limited(self, count: int) -> "Examples":
        """The first `count` examples."""
        count = min(count, len(self))
        fields = self.fields if callable(self.fields) else {k: v[:count] for k, v in self.fields.items()}
        return replace(self, fields=fields, count=count, identity={**self.identity, "count": count})

    def first_row(self, prepare: Augment) -> "Examples":
        """The first example, transformed."""
        row = prepare(self.__getitems__([0]), 0, np.zeros(1, np.int64))
        return replace(self, fields=row, count=1)

    def part_order(self) -> np.ndarray:
        """Their own order; if they are sorted by class, classes evenly interleaved."""
        if self.labels is None or not self.sorted_by_class:
            return np.arange(len(self))
        counts = np.bincount(self.labels)
        place = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
        return np.argsort(place, kind="stable")

    def gather(self, parts: Sequence[Part], identity: Identity) -> "Examples":
        """Examples that are read from their sources, or in memory if these are."""
        own = [(source, rows) for source, rows in parts if isinstance(source, Examples)]
        owners = np.repeat(np.arange(len(own)), [len(rows) for _, rows in own])
        read = _PartReader(tuple(source for source, _ in own), owners, np.concatenate([rows for _, rows in own]))
        fields = read if callable(self.fields) else read(np.arange(len(owners)))
        known = [labels[rows] for source, rows in own if (labels := source.known_labels) is not None]
        changed = replace(self, fields=fields, count=len(owners), identity=identity, labels=None, sorted_by_class=False)
        return _with_absent(changed, np.concatenate(known) if known else None, parts)


@dataclass(frozen=True)
class _PartReader:
    """Rows -> fields; each row i is the row `rows[i]` of the source `owners[i]`."""

    sources: tuple[Examples, ...]
    owners: np.ndarray
    rows: np.ndarray

    def __call__(self, wanted: np.ndarray) -> Fields:
        """The fields of some rows, in their order."""
        order, parts = [], []
        for i, source in enumerate(self.sources):
            places = np.flatnonzero(self.owners[wanted] == i)
            if places.size:
                order.append(places)
                parts.append(source.__getitems__(self.rows[wanted[places]]))
        back = np.argsort(np.concatenate(order))
        return {name: _concatenate([fields[name] for fields in parts])[back] for name in parts[0]}


def _concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """A field of some rows [n ...] each -> of all rows, as an object array if images differ in size."""
    same_shape = len({part.shape[1:] for part in parts}) == 1
    return np.concatenate(parts) if same_shape else object_array([image for part in parts for image in part])


@dataclass(frozen=True)
class Texts:
    """Documents as str, optionally labelled with one of `classes` classes, which may have names.

    labels are int32 [n], or float32 [n C] of 0 and 1 if a document has any number of classes. `absent` are the names of
    classes that only other splits have documents of. `notes` are messages for the user.
    """

    documents: tuple[str, ...]
    identity: Identity
    labels: np.ndarray | None = None
    classes: int | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def label_field(self) -> str:
        """The batch field of the labels: `label` (one class a row) or `labels` (any number)."""
        return "labels" if self.labels is not None and self.labels.ndim == 2 else "label"

    paths = ()

    def row_type(self) -> RowType:
        """Text, perhaps with labels."""
        labels = {self.label_field} if self.labels is not None else set()
        return RowType("text", f"text{' with labels' if labels else ''}", frozenset({"targets"} | labels), {})

    def describe(self, rows: EpochSource) -> str:
        """The number of documents, and of tokens if they are windows."""
        tokens = ""
        if isinstance(rows, packing.WindowSource | packing.StreamSource):
            tokens = f", {len(rows) * rows.context:,} tokens"
        return f"{len(self):,} documents{tokens}"

    def rows(self, reading: Reading) -> EpochSource:
        """Windows for a language model, otherwise labelled rows."""
        if not reading.windows:
            return self.as_examples(reading).rows(reading)
        tokenizer, context = reading.for_texts()
        if reading.streams is not None:
            return packing.StreamSource(self, tokenizer, context, reading.streams, reading.tick)
        return packing.WindowSource(self, tokenizer, context, reading.seed, reading.tick)

    def eval_set(self, reading: Reading) -> EvalSet:
        """Windows for a language model, otherwise labelled rows."""
        if not reading.windows:
            return self.as_examples(reading).eval_set(reading)
        tokenizer, context = reading.for_texts()
        length = min(context, reading.eval_context or context)
        return eval_set.from_texts(self, tokenizer, length, reading.overlap, reading.tick)

    def as_examples(self, reading: Reading) -> Examples:
        """Labelled texts as rows of tokens with mask and labels. Raises UsageError for missing or withheld labels."""
        tokenizer, context = reading.for_texts()
        if self.labels is None or self.classes is None:
            raise UsageError(f"data set {self.identity['name']!r} has no labels; use loss=next_token for plain text")
        check_labels(self.labels, self.identity)
        length = min(context, reading.max_length or context)
        fields = packing.pad_documents(self.documents, tokenizer, length, reading.parts, reading.tick)
        fields = {**fields, self.label_field: self.labels}
        return Examples(fields, len(self), self.identity, self.classes, self.names)

    def limited(self, count: int) -> "Texts":
        """The first `count` documents."""
        labels = None if self.labels is None else self.labels[:count]
        documents = self.documents[:count]
        return replace(self, documents=documents, labels=labels, identity={**self.identity, "count": len(documents)})

    def first_row(self, prepare: Augment) -> "Texts":
        """The texts themselves."""
        return self

    def part_order(self) -> np.ndarray:
        """Their own order."""
        return np.arange(len(self))

    def gather(self, parts: Sequence[Part], identity: Identity) -> "Texts":
        """Documents of several sources with their labels."""
        own = [(source, rows) for source, rows in parts if isinstance(source, Texts)]
        documents = tuple(source.documents[row] for source, rows in own for row in rows)
        known = [source.labels[rows] for source, rows in own if source.labels is not None]
        labels = np.concatenate(known) if known else None
        return _with_absent(replace(self, documents=documents, labels=labels, identity=identity), labels, parts)


L = TypeVar("L", Examples, Texts)


def _with_absent(source: L, labels: np.ndarray | None, parts: Sequence[Part]) -> L:
    """A source of parts, whose labels are [n] or [n C] if known, with the classes that it lacks, and a note on them."""
    notes, absent = gather_notes(parts), tuple(n for n in source.absent if all(n in part.absent for part, _ in parts))
    if labels is not None:
        absent = absent_classes(labels, source.names or [*map(str, range(source.classes or 0))])
        notes += absent_notes(str(source.identity["split"]), absent, "row of" if source.names else "row of class")
    return replace(source, absent=absent, notes=notes)


@dataclass(frozen=True)
class ParallelText:
    """Texts and their translations, from the first of `languages` to the second; these are names of fields or files."""

    texts: tuple[str, ...]
    translations: tuple[str, ...]
    languages: tuple[str, str]
    identity: Identity

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def documents(self) -> tuple[str, ...]:
        """The texts of both languages."""
        return self.texts + self.translations

    classes = names = None
    absent = notes = paths = ()

    def row_type(self) -> RowType:
        """Pairs."""
        return RowType("pairs", "texts with their translations", frozenset({"source"}), {})

    def describe(self, rows: EpochSource) -> str:
        """The number of pairs, and of those that are no rows."""
        dropped = len(self) - len(rows)
        return f"{len(self):,} pairs{f', {dropped:,} of them too long or empty' if dropped else ''}"

    def rows(self, reading: Reading) -> EpochSource:
        """Pairs of at most max_length tokens."""
        return self.as_examples(reading, truncate=False).rows(reading)

    def eval_set(self, reading: Reading) -> EvalSet:
        """All pairs; longer ones are cut."""
        return self.as_examples(reading, truncate=True).eval_set(reading)

    def as_examples(self, reading: Reading, *, truncate: bool) -> Examples:
        """Pairs as rows of tokens: longer ones than the context are cut if `truncate`, otherwise dropped.

        With max_length, training rows all have that length, so that data sets can be mixed.
        """
        tokenizer, context = reading.for_texts()
        length = None if truncate else reading.max_length
        fields = translation_rows.make(
            self.texts,
            self.translations,
            tokenizer,
            min(context, length or context),
            truncate=truncate,
            pad_to_limit=length is not None,
            parts=reading.parts,
            name=str(self.identity["name"]),
            tick=reading.tick,
        )
        count = len(fields["source"])
        return Examples(fields, count, {**self.identity, "rows": count}, None)

    def limited(self, count: int) -> "ParallelText":
        """The first `count` pairs."""
        texts, translations = self.texts[:count], self.translations[:count]
        return replace(self, texts=texts, translations=translations, identity={**self.identity, "count": len(texts)})

    def first_row(self, prepare: Augment) -> "ParallelText":
        """The texts themselves."""
        return self

    def part_order(self) -> np.ndarray:
        """Their own order."""
        return np.arange(len(self))

    def gather(self, parts: Sequence[Part], identity: Identity) -> "ParallelText":
        """Pairs of several sources."""
        own = [(source, rows) for source, rows in parts if isinstance(source, ParallelText)]
        texts = tuple(source.texts[row] for source, rows in own for row in rows)
        translations = tuple(source.translations[row] for source, rows in own for row in rows)
        return replace(self, texts=texts, translations=translations, identity=identity)


def examples(name: str, split: str, classes: int | None, **fields: np.ndarray) -> Examples:
    """Examples in memory."""
    count = len(next(iter(fields.values())))
    identity = {"name": name, "split": split, "count": count, "checksum": checksum(*fields.values())}
    return Examples(fields, count, identity, classes)


def texts(name: str, split: str, documents: Iterable[str]) -> Texts:
    """Documents without labels."""
    documents = tuple(documents)
    digest = checksum(*(d.encode() + b"\0" for d in documents))
    return Texts(documents, {"name": name, "split": split, "count": len(documents), "checksum": digest})
