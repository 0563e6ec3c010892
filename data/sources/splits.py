"""Parts and sums of splits in TFDS's syntax: `train[:90%]`, `test[-100:]`, `train[:50%]+test`.

Ends are rows, or percentages rounded to the closest row; negative ones count from the end.
"""

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from data.fields import checksum
from data.source import Source
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

    Raises UsageError as `resolve`, and for a sum of splits with different classes or fields.
    """
    sources = {name: load(name) for name in split_names(split)}
    classes = {", ".join(source.names or ()): name for name, source in sources.items()}
    if len(classes) > 1:
        differ = " and ".join(f"{name!r} has {listed or 'no names'}" for listed, name in classes.items())
        raise UsageError(f"split {quote(split)} is a sum of splits with different classes: {differ}")
    kinds = {(found.kind, found.words): name for name, s in sources.items() if len(s) for found in [s.row_type()]}
    if len(kinds) > 1:
        differ = " and ".join(f"{name!r} has {words}" for (_, words), name in kinds.items())
        raise UsageError(f"split {quote(split)} is a sum of splits with different rows: {differ}")
    resolved, chosen = resolve(split, lambda name: len(sources[name]))
    if resolved in sources:
        return sources[resolved]
    first = next(iter(sources.values()))
    identity = {**first.identity, "split": resolved, "count": sum(len(rows) for _, rows in chosen)}
    if len(sources) > 1:
        identity["checksum"] = checksum(*(str(source.identity["checksum"]).encode() for source in sources.values()))
    order = {name: source.part_order() for name, source in sources.items()}
    return first.gather([(sources[name], order[name][rows.start : rows.stop]) for name, rows in chosen], identity)
