"""What a source of data offers, and how a run reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from data.eval_set import EvalSet
from data.fields import Augment, Batch, Identity
from data.progress import Tick, silent
from data.text.tokenizers import Tokenizer


@runtime_checkable
class EpochSource(Protocol):
    """Items by (epoch, position)."""

    @property
    def shuffled(self) -> bool:
        """Whether each epoch has a random order; otherwise items keep their own order."""

    def __len__(self) -> int:
        """Items in an epoch."""

    def items(self, epochs: np.ndarray, positions: np.ndarray) -> Batch:
        """Fields of the items at (shuffled) positions of epochs, one row each."""


@dataclass(frozen=True)
class Reading:
    """How a run reads its sources as rows.

    Texts are read by `tokenizer` in rows of `context` tokens: with `windows`, as windows of a language model, in order
    if `streams`, the rows of a batch, is given; otherwise each text is a row. Texts to classify or translate have at
    most `max_length` tokens. Lengths are multiples of `parts`. Windows of an evaluation have at most `eval_context`
    tokens, of which `overlap` are of the window before. `prepare` transforms the images of an evaluation.
    """

    tokenizer: Tokenizer | None = None
    context: int | None = None
    windows: bool = False
    streams: int | None = None
    max_length: int | None = None
    parts: int = 1
    seed: int = 0
    eval_context: int | None = None
    overlap: int = 0
    prepare: Augment | None = None
    tick: Tick = silent

    def for_texts(self) -> tuple[Tokenizer, int]:
        """The tokenizer and the context, which a run on texts has."""
        assert self.tokenizer is not None
        assert self.context is not None
        return self.tokenizer, self.context


@dataclass(frozen=True)
class RowType:
    """What the rows of a source are: their `kind` (text, pairs, images, boxes or features), on which knobs depend; the
    same in words; the fields that a loss may ask for; the shape of one row of each field, {} before texts are tokens;
    and if rows are tokens, the number of different ones.
    """

    kind: str
    words: str
    target_fields: frozenset[str]
    shapes: dict[str, tuple[int, ...]]
    vocab: int | None = None


@runtime_checkable
class Source(Protocol):
    """A split of a data set, or parts of splits."""

    @property
    def identity(self) -> Identity:
        """Its name, split, count and the checksum of its content."""

    @property
    def documents(self) -> tuple[str, ...]:
        """Its texts; () for other rows."""

    @property
    def classes(self) -> int | None:
        """The number of classes, None without labels."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the classes, if they have any."""

    @property
    def absent(self) -> tuple[str, ...]:
        """The names of classes that only other splits have rows of."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of its rows, if each is a file."""

    def __len__(self) -> int:
        """The number of rows."""

    def row_type(self) -> RowType:
        """What its rows are. Reads the first one."""

    def describe(self, rows: EpochSource) -> str:
        """Its size, and that of its training rows, for the summary of a run."""

    def rows(self, reading: Reading) -> EpochSource:
        """The training rows. Raises UsageError if there are none."""

    def eval_set(self, reading: Reading) -> EvalSet:
        """The rows of an evaluation. Raises UsageError as `rows`."""

    def limited(self, count: int) -> "Source":
        """The first `count` rows."""

    def first_row(self, prepare: Augment) -> "Source":
        """The first row only, transformed by `prepare`; texts are returned unchanged."""

    def part_order(self) -> np.ndarray:
        """Its rows in the order in which parts of it take them [n]."""

    def gather(self, parts: "Sequence[Part]", identity: Identity) -> "Source":
        """A source like this one, of some rows of several."""


Part = tuple[Source, np.ndarray]  # some rows of a source


def gather_notes(parts: Sequence[Part]) -> tuple[str, ...]:
    """The notes of the sources of parts, each once."""
    return tuple(dict.fromkeys(note for source, _ in parts for note in source.notes))
