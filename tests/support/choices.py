"""Which values of their choices a few random configs hold: few seeds then stand for many."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest


class Choices:
    """Draws as numpy's generator does, and notes at each call what could come and what came."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.could: dict[Any, set[str]] = {}  # by the place of the call
        self.came: dict[Any, set[str]] = {}

    def note(self, could: Any, came: Any) -> None:
        call = sys._getframe(2)
        for notes, values in ((self.could, could), (self.came, np.ravel(came).tolist())):
            notes.setdefault((call.f_code.co_name, call.f_lasti), set()).update(map(repr, values))

    def choice(self, values: Any, size: int | None = None) -> Any:
        found = self.draw.choice(values, size)
        self.note(values, found)
        return found

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        """Below `low`, each counts; of sizes from low to high a small and a large one do."""
        found = self.draw.integers(low, high, size)
        if high is None:
            self.note(range(low), found)
        else:
            self.note([-1, 1] if high - low > 1 else [], np.sign(2 * found - (low + high - 1)))
        return found


def noted(make: Callable[[Any], Any], seeds: Iterable[int]) -> list[Choices]:
    """The choices that these configs are made by."""
    found = [Choices(seed) for seed in seeds]
    for choices in found:
        make(choices)
    return found


def left_out(found: list[Choices], places: Iterable[Any] | None = None) -> dict[Any, set[str]]:
    """Values that could come at these places, or at any, and came in no config."""
    places = {p for c in found for p in c.could} if places is None else places
    could, came = ({p: {v for c in found for v in getattr(c, n).get(p, ())} for p in places} for n in ("could", "came"))
    return {place: could[place] - came[place] for place in could if could[place] - came[place]}


def seeds(first: int, *more: int, weekly: int) -> list[Any]:
    """For parametrize: the first by default, more in the slow suite, and every week as many from 0 on."""
    marks = {first: (), **dict.fromkeys(more, pytest.mark.slow)}
    marks |= {seed: pytest.mark.weekly for seed in range(weekly) if seed not in marks}
    return [pytest.param(seed, marks=mark) for seed, mark in marks.items()]
