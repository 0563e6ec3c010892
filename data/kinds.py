"""What a source is: examples, documents, or pairs of them; random-access, by row, and sure of their identity."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.progress import Tick, silent
from errors import UsageError, unknown

Fields = dict[str, np.ndarray]
Pixels = np.ndarray  # one image, uint8 [Y X C]
Draw = np.random.Generator
BLOCK = 1024  # rows of a set that are read at once
DECODE_ONCE = 2**30  # bytes: a set no larger than this when decoded is held decoded in memory


@dataclass(frozen=True)
class Examples:
    """Examples, a row each, with what is to be told of them.

    Fields: features float32 [n F] or [n T F], image uint8 [n Y X C], or tokens int32 [n T] with mask float32 [n T]; and
    label int32 [n] out of `classes`, labels float32 [n C] of 0 and 1 where a row has any number of them, or target
    float32 [n C]. Images of different sizes are objects [n], each uint8 [y x C]; those with boxes have the fields of
    `data/detection.py: DetectionReader`. The fields are a dict of arrays, or a function from rows to one where the set
    is too large to hold. `names` are those of the classes, if they have some; `absent` are the names of classes of
    other splits without an example here; `notes` say what a user should know.
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
    """Documents, as str; perhaps each with a label out of `classes`, which may have names.

    labels are int32 [n], or float32 [n C] of 0 and 1 where a document has any number of them. `notes` say what a user
    should know.
    """

    documents: tuple[str, ...]
    identity: dict[str, Any]
    labels: np.ndarray | None = None
    classes: int | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def label_field(self) -> str:
        """The batch's field that the labels become: `label`, or `labels` where a row has any number of them."""
        return "labels" if self.labels is not None and self.labels.ndim == 2 else "label"


@dataclass(frozen=True)
class ParallelText:
    """Texts, each with its translation: from the first of two languages, as their fields or files are named."""

    texts: tuple[str, ...]
    translations: tuple[str, ...]
    languages: tuple[str, str]
    identity: dict[str, Any]

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> "ParallelText":
        """The first so many pairs."""
        return replace(self, texts=self.texts[:count], translations=self.translations[:count])

    @property
    def documents(self) -> tuple[str, ...]:
        """The texts of both languages."""
        return self.texts + self.translations


Source = Examples | Texts | ParallelText


def generator(seed: int, step: int, row: int, site: int = 0) -> Draw:
    """The draws for a row of the batch of a step; each site that draws has its own."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, site, row]))


def object_array(images: Sequence[Pixels]) -> np.ndarray:
    """Images of different sizes as an array of objects [n]."""
    held = np.empty(len(images), object)
    for i, image in enumerate(images):  # numpy would try to make one array of those that are alike
        held[i] = image
    return held


def check_labels(labels: np.ndarray, identity: dict[str, Any]) -> None:
    """Hold labels [n] to be known. Raises UsageError where some are kept secret, as those of contests are, by -1."""
    if len(labels) and labels.min() < 0:
        name, split = identity["name"], identity["split"]
        raise UsageError(f"the labels of {name!r} are kept secret in its split {split!r}; take another")


def field_error(name: str, field: str) -> UsageError:
    """What to raise where a field of text is asked of a set that has none to choose from."""
    return UsageError(f"config key 'data.field' = {field!r}: {name} has one kind of text or none")


def unknown_split(name: object, split: str, known: Iterable[str]) -> UsageError:
    """What to raise for a split that a set has not; a set of one split may be parted."""
    legal = [*known]
    error = unknown(f"split of {name}", split, legal)
    return error if len(legal) != 1 else UsageError(f"{error}; parts of it are {legal[0]}[:90%] and {legal[0]}[90%:]")


def iter_blocks(count: int, tick: Tick = silent) -> Iterator[range]:
    """All rows of a set, some at a time, since a set reads many together faster than one by one; reported as read."""
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
    """Examples held in memory."""
    count = len(next(iter(fields.values())))
    identity = {"name": name, "split": split, "count": count, "checksum": checksum(*fields.values())}
    return Examples(fields, count, identity, classes)


def texts(name: str, split: str, documents: Iterable[str]) -> Texts:
    """Documents without labels."""
    documents = tuple(documents)
    digest = checksum(*(d.encode() + b"\0" for d in documents))
    return Texts(documents, {"name": name, "split": split, "count": len(documents), "checksum": digest})
