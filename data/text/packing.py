"""Documents as rows of tokens: windows for language models, padded sequences for classifiers."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data.fields import Batch, Fields, Identity, hash32
from data.progress import Tick, silent, track
from data.text.tokenizers import Tokenizer
from errors import UsageError


class Documents(Protocol):
    """Texts of a data set."""

    @property
    def documents(self) -> tuple[str, ...]:
        """The texts."""

    @property
    def identity(self) -> Identity:
        """Its name, split, count and checksum."""

    def __len__(self) -> int:
        """The number of texts."""


class WindowSource:
    """Windows of `context` + 1 tokens over the concatenated documents, with an `eot` after each document.

    Windows overlap by one token: the last target of a window is the first input of the next. Each epoch shifts all
    windows by a random offset, so that the context of a token varies.
    """

    shuffled = True

    def __init__(self, texts: Documents, tokenizer: Tokenizer, context: int, seed: int, tick: Tick = silent) -> None:
        self.tokens = token_stream(texts, tokenizer, tick)
        self.context = context
        self.seed = seed
        windows = _windows_per_stream(texts, len(self.tokens), context, 1)
        self.shift, self.count = (context, windows - 1) if windows > 1 else (1, 1)

    def __len__(self) -> int:
        return self.count

    def items(self, epochs: np.ndarray, positions: np.ndarray) -> Batch:
        """tokens and targets int32 [B T], weight 1 [B T]."""
        offsets = np.array([hash32(self.seed, "offset", int(e)) % self.shift for e in epochs])
        starts = offsets + positions * self.context
        return _slice_windows(self.tokens, starts, self.context)


def token_stream(texts: Documents, tokenizer: Tokenizer, tick: Tick = silent) -> np.ndarray:
    """The tokens of all documents [n] int32, each between prefix and `eot`; a single document has neither."""
    if len(texts) == 1:
        return tokenizer.encode(texts.documents[0])
    begin, end = np.array(tokenizer.prefix, np.int32), np.array([tokenizer.eot], np.int32)
    documents = track(texts.documents, "tokenising documents", tick)
    parts = []
    for document in documents:
        parts += [begin, tokenizer.encode(document), end]
    return np.concatenate(parts or [end])


class StreamSource:
    """Windows of `context` + 1 tokens in order: row r of a batch continues row r of the batch before it.

    The concatenated documents are cut into `rows` streams. `reset` is 1 for the first window of a stream.
    """

    shuffled = False

    def __init__(self, texts: Documents, tokenizer: Tokenizer, context: int, rows: int, tick: Tick = silent) -> None:
        self.tokens = token_stream(texts, tokenizer, tick)
        self.context = context
        self.rows = rows
        self.windows = _windows_per_stream(texts, len(self.tokens), context, rows)

    def __len__(self) -> int:
        return self.rows * self.windows

    def items(self, epochs: np.ndarray, positions: np.ndarray) -> Batch:
        """tokens and targets int32 [B T], weight 1 [B T], reset [B]."""
        window, row = np.divmod(positions, self.rows)
        batch = _slice_windows(self.tokens, (row * self.windows + window) * self.context, self.context)
        return {**batch, "reset": (window == 0).astype(np.float32)}


def _windows_per_stream(texts: Documents, tokens: int, context: int, rows: int) -> int:
    """Windows in each of `rows` streams. Raises UsageError if there is none."""
    count = (tokens - 1) // context // rows
    if count < 1:
        what = "one window" if rows == 1 else f"{rows} windows"
        raise UsageError(
            f"split {texts.identity['split']!r} of {texts.identity['name']} has {tokens} tokens, too few for "
            f"{what} of context {context}; lower model.context or give more text"
        )
    return count


def _slice_windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> Batch:
    rows = tokens[starts[:, None] + np.arange(context + 1)]
    return {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weight": np.ones((len(starts), context), np.float32)}


def pad_documents(
    documents: Sequence[str], tokenizer: Tokenizer, context: int, parts: int = 1, tick: Tick = silent
) -> Fields:
    """Documents as rows: tokens int32 [n T], mask float32 [n T].

    tokens are the first `context` tokens, with the tokenizer's prefix and suffix. T is that of the longest document,
    rounded up to a multiple of 8 and of `parts`, `context` at most.

    Raises UsageError if the context has no room for a document.
    """
    before, after = (np.array(ids, np.int32) for ids in (tokenizer.prefix, tokenizer.suffix))
    available = context - len(before) - len(after)
    if available < 1:
        raise UsageError(
            f"data.max_length or model.context is {context} tokens, with no room for a document between "
            f"{len(before)} and {len(after)} special tokens"
        )
    read = track(documents, "tokenising documents", tick)
    rows = [np.concatenate([before, tokenizer.encode(d)[:available], after]) for d in read]
    tokens, mask = pad_rows(rows, context, math.lcm(8, parts))
    return {"tokens": tokens, "mask": mask}


def pad_rows(rows: Sequence[np.ndarray], limit: int, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids -> ids int32 [n T], mask float32 [n T]; T is the longest, rounded up to `multiple`, limit at most."""
    length = min(limit, -(-max(map(len, rows), default=1) // multiple) * multiple)
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.float32)
    for i, ids in enumerate(rows):
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, 1
    return tokens, mask
