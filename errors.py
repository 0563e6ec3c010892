"""What a user sees when an input is refused: one line that says what, which value, and what would be legal."""

import difflib
import reprlib
from collections.abc import Iterable

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80  # characters


class UsageError(ValueError):
    """A mistake in a flag, a config or a file of the user's; the launcher prints it in one line and exits with 2."""


def quote(value: object) -> str:
    """A value as a message shows it: its repr, of which a long or deep one is cut."""
    return _REPR.repr(value)


def unknown(kind: str, name: str, legal: Iterable[str]) -> UsageError:
    """The refusal of a misspelt name: names the nearest legal ones, else lists them all."""
    names = sorted(str(n) for n in legal)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if not near:  # a dotted name is often right in its last part only
        tails: dict[str, list[str]] = {}
        for n in names:
            tails.setdefault(n.rsplit(".", 1)[-1], []).append(n)
        tail = difflib.get_close_matches(str(name).rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.6)
        near = [n for t in tail for n in tails[t]][:3]
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    if not near or len(names) <= 8:
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        hint = f"{hint} legal: {shown or 'none'}".strip()
    return UsageError(f"unknown {kind} {quote(name)}; {hint}")
