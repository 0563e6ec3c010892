"""The types of data sources: examples, documents, parallel text. All are random-access by row and have an identity."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.progress import Tick, silent
from errors import UsageError, unknown

Fields = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]  # fields of rows
Pixels = np.ndarray  # one image, uint8 [Y X C]
Rng = np.random.Generator
BLOCK = 1024  # rows that are read at once
DECODE_ONCE = 2**30  # bytes: a set up to this size when decoded is kept decoded in memory


def hash32(*parts: Any) -> int:
    """A number below 2^32 from seeds, names and counters."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


@dataclass(frozen=True)
class Examples:
    """Examples, one per row, with their labels or targets.

    Input fields: features float32 [n F] or [n T F], image uint8 [n Y X C], or tokens int32 [n T] with mask
    float32 [n T]. Output fields: label int32 [n] out of `classes`, labels float32 [n C] of 0 and 1 (any number of
    classes a row), or target float32 [n C]. Images of different sizes are an object array [n] of uint8 [y x C]. Images
    with boxes have the fields of `data/images/detection.py: DetectionReader`. `fields` is a dict of arrays, or a
    function from rows to such a dict if the set is too large for memory. `names` are the names of the classes, if they
    have any. `absent` are the names of classes that only other splits have examples of. `notes` are messages for the
    user.
    """

    fields: Fields | Callable[[np.ndarray], Fields]
    count: int
    identity: dict[str, Any]
    classes: int | None
    names: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, rows: Sequence[int] | np.ndarray) -> Fields:
        """The fields of some rows, in their order."""
        wanted = np.asarray(rows)
        return self.fields(wanted) if callable(self.fields) else {k: v[wanted] for k, v in self.fields.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each field."""
        return {name: values.shape[1:] for name, values in self.__getitems__([0]).items()}


@dataclass(frozen=True)
class Texts:
    """Documents as str, optionally labelled with one of `classes` classes, which may have names.

    labels are int32 [n], or float32 [n C] of 0 and 1 if a document has any number of classes. `absent` are the names of
    classes that only other splits have documents of. `notes` are messages for the user.
    """

    documents: tuple[str, ...]
    identity: dict[str, Any]
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


@dataclass(frozen=True)
class ParallelText:
    """Texts and their translations, from the first of `languages` to the second; these are names of fields or files."""

    texts: tuple[str, ...]
    translations: tuple[str, ...]
    languages: tuple[str, str]
    identity: dict[str, Any]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> "ParallelText":
        """The first `count` pairs."""
        return replace(self, texts=self.texts[:count], translations=self.translations[:count])

    @property
    def documents(self) -> tuple[str, ...]:
        """The texts of both languages."""
        return self.texts + self.translations


Source = Examples | Texts | ParallelText


def generator(seed: int, step: int, row: int, site: int = 0) -> Rng:
    """The random generator of a batch's row, keyed by (seed, step, row) and by `site`, the place in the code."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, site, row]))


def object_array(images: Sequence[Pixels]) -> np.ndarray:
    """Images of different sizes as an array of objects [n]."""
    array = np.empty(len(images), object)
    for i, image in enumerate(images):  # np.array would stack images of equal size
        array[i] = image
    return array


def check_labels(labels: np.ndarray, identity: dict[str, Any]) -> None:
    """Raise UsageError if a label of [n] is -1, which stands for a withheld label of a test set."""
    if len(labels) and labels.min() < 0:
        name, split = identity["name"], identity["split"]
        raise UsageError(f"split {split!r} of {name!r} has no public labels (they are -1); use another split")


def absent_classes(labels: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    """The names of classes that labels [n] lack; none for labels [n C], where a row may have no class."""
    present = set(labels.tolist()) if labels.ndim == 1 else range(len(names))
    return tuple(name for i, name in enumerate(names) if i not in present)


def count_classes(where: str, numbers: Iterable[int]) -> int:
    """How many classes there are, by their numbers. Raises UsageError unless these are 0, 1, 2 … and two at least."""
    count = 0
    for count, number in enumerate(sorted(numbers), 1):
        if number != count - 1:
            raise UsageError(
                f"{where} has the class {number} but no {count - 1} in any split: number the classes 0, 1, 2 … "
                f"without gaps, or write their names"
            )
    if count < 2:
        raise UsageError(f"{where} has one class only, but a classifier needs two")
    return count


def field_error(name: str, field: str) -> UsageError:
    """The error for data.field on a data set that has no text fields to choose from."""
    return UsageError(f"config key 'data.field' = {field!r}: {name} has no text fields to choose from; unset it")


def unknown_split(name: object, split: str, known: Iterable[str]) -> UsageError:
    """The error for a split that a data set does not have. If it has one split only, it says how to divide that."""
    legal = [*known]
    error = unknown(f"split of {name}", split, legal)
    return error if len(legal) != 1 else UsageError(f"{error}; to divide it: {legal[0]}[:90%] and {legal[0]}[90%:]")


def iter_blocks(count: int, tick: Tick = silent) -> Iterator[range]:
    """The rows of a data set in blocks of BLOCK, which read faster than single rows. Reports progress to `tick`."""
    tick("reading rows", 0, count)
    for start in range(0, count, BLOCK):
        block = range(start, min(start + BLOCK, count))
        yield block
        tick("reading rows", block.stop, count)


def checksum(*parts: np.ndarray | bytes) -> str:
    """A digest of arrays and bytes, 16 hex digits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:16]


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
