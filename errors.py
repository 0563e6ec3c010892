"""Errors for users: one line that says what is wrong, with which value, and what would be legal."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

LONG = 200  # characters of a value that a message quotes, at most


class _Repr(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"an int of {x.bit_length():,} bits"


_REPR = _Repr()
_REPR.maxstring = _REPR.maxother = 80  # characters


class UsageError(ValueError):
    """A user's mistake in a flag, a config or a file, on one line; the launcher prints it and exits with 2.

    `problems` are the parts of a message made by `join_problems`.
    """

    def __init__(self, text: str, problems: Iterable[str] = ()) -> None:
        line = re.sub(r"\s*\n\s*", " ", text.strip())
        super().__init__(line)
        self.problems = tuple(problems) or (line,)


def quote(value: object) -> str:
    """A value in a message: its repr, cut if it is long or deep."""
    return _REPR.repr(value)


def join_problems(problems: Iterable[str]) -> UsageError:
    """All problems of an input as one error, without duplicates: `2 problems: (1) …; (2) …`."""
    distinct = list(dict.fromkeys(problems))
    if len(distinct) == 1:
        return UsageError(distinct[0])
    numbered = "; ".join(f"({i}) {text}" for i, text in enumerate(distinct, 1))
    return UsageError(f"{len(distinct)} problems: {numbered}", distinct)


@contextmanager
def raise_with(problems: Iterable[str]) -> Iterator[None]:
    """Raise one UsageError with the block's problems and `problems`, so that neither hides the other."""
    known = list(problems)
    try:
        yield
    except UsageError as error:
        raise join_problems([*error.problems, *known]) from error
    if known:
        raise join_problems(known)


@contextmanager
def prefix_errors(what: str) -> Iterator[None]:
    """Prefix UsageErrors of the block with `what`, a file or folder, unless the message names it."""
    try:
        yield
    except UsageError as error:
        if what in str(error):
            raise
        raise UsageError(f"{what}: {error}") from error


def shorten(text: str) -> str:
    """A message on one line, with its long quoted values, tuples and words cut to LONG characters."""
    value = rf"""(?<!\w)'[^']{{{LONG},}}'(?!\w)|"[^"]{{{LONG},}}"|[([][\d'"([][^()[\]]{{{LONG},}}|\S{{{LONG},}}"""
    cut = lambda m: f"{m[0][: LONG - 40]}… ({len(m[0]):,} characters)"  # noqa: E731
    return re.sub(value, cut, " ".join(text.split()))


def unknown(
    kind: str, name: str, legal: Iterable[str], renamed: Mapping[str, str] | None = None, *, listed: bool = True
) -> UsageError:
    """The error for an unknown name: suggests the nearest legal ones, otherwise lists them all if `listed`.

    `renamed` maps old names to new ones; the error for an old name gives the new one.
    """
    if len(name := str(name)) > LONG:  # not a misspelling, and slow to compare
        return UsageError(f"unknown {kind} {quote(name)}")
    names = sorted(str(n) for n in legal)
    if renamed and (now := renamed.get(name)) in names:
        return UsageError(f"unknown {kind} {quote(name)}: it is now called {now!r}")
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if not near:  # often only the last part of a dotted name is right
        tails: dict[str, list[str]] = {}
        for n in names:
            tails.setdefault(n.rsplit(".", 1)[-1], []).append(n)
        tail = difflib.get_close_matches(str(name).rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)
        near = [n for t in tail for n in tails[t]][:3]
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    if listed and (not near or len(names) <= 8):
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        hint = f"{hint} legal: {shown or 'none'}".strip()
    return UsageError(f"unknown {kind} {quote(name)}; {hint}")
