"""Fields of rows, which are arrays by name; random generators, checksums and blocks of rows; errors about data."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data.progress import Tick, silent
from errors import UsageError, unknown

Fields = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]  # fields of rows
Pixels = np.ndarray  # one image, uint8 [Y X C]
Rng = np.random.Generator
Augment = Callable[[Batch, int, np.ndarray], Batch]  # (fields, step, global rows) -> fields
Identity = dict[str, Any]  # name, split, count and checksum of a source, as JSON
BLOCK = 1024  # rows that are read at once
DECODE_ONCE = 2**30  # bytes: a set up to this size when decoded is kept decoded in memory


def hash32(*parts: object) -> int:
    """A number below 2^32 from seeds, names and counters."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


def generator(seed: int, step: int, row: int, site: int = 0) -> Rng:
    """The random generator of a batch's row, keyed by (seed, step, row) and by `site`, the place in the code."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, site, row]))


def object_array(images: Sequence[Pixels]) -> np.ndarray:
    """Images of different sizes as an array of objects [n]."""
    array = np.empty(len(images), object)
    for i, image in enumerate(images):  # np.array would stack images of equal size
        array[i] = image
    return array


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


def check_labels(labels: np.ndarray, identity: Identity) -> None:
    """Raise UsageError if a label of [n] is -1, which stands for a withheld label of a test set."""
    if len(labels) and labels.min() < 0:
        name, split = identity["name"], identity["split"]
        raise UsageError(f"split {split!r} of {name!r} has no public labels (they are -1); use another split")


def absent_classes(labels: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    """The names of classes that labels [n] lack; none for labels [n C], where a row may have no class."""
    present = set(labels.tolist()) if labels.ndim == 1 else range(len(names))
    return tuple(name for i, name in enumerate(names) if i not in present)


def absent_notes(split: str, absent: Sequence[str], what: str = "row of") -> tuple[str, ...]:
    """A note on the classes that a split has no rows of, if there are any: the first ten, and how many more."""
    more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
    return (f"split {split!r} has no {what} {', '.join(absent[:10])}{more}",) if absent else ()


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
