"""Documents as rows of tokens: windows to model language by, and padded sequences to classify."""

import math

import numpy as np

from data.kinds import Examples, Texts, check_labels
from data.plan import Batch, hash32
from data.progress import Tick, silent, track
from data.tokenizers import Tokenizer
from errors import UsageError


class WindowSource:
    """Windows of `context` + 1 tokens over documents laid end to end, an `eot` after each.

    Each epoch shifts the grid of windows by an offset of its own, so that a token meets other contexts; the target of
    the last token of a window is the first of the next.
    """

    shuffled = True

    def __init__(self, texts: Texts, tokenizer: Tokenizer, context: int, seed: int, tick: Tick = silent) -> None:
        self.tokens, self.context, self.seed = token_stream(texts, tokenizer, tick), context, seed
        spare = _windows_per_stream(texts, len(self.tokens), context, 1)
        self.shift, self.count = (context, spare - 1) if spare > 1 else (1, 1)

    def __len__(self) -> int:
        return self.count

    def items(self, epochs: np.ndarray, positions: np.ndarray) -> Batch:
        """tokens and targets int32 [B T], weight 1 [B T]."""
        offsets = np.array([hash32(self.seed, "offset", int(e)) % self.shift for e in epochs])
        starts = offsets + positions * self.context
        return _slice_windows(self.tokens, starts, self.context)


def token_stream(texts: Texts, tokenizer: Tokenizer, tick: Tick = silent) -> np.ndarray:
    """All documents' tokens [n] int32, between prefix and `eot`, but where there is one document only."""
    if len(texts) == 1:
        return tokenizer.encode(texts.documents[0])
    begin, end = np.array(tokenizer.prefix, np.int32), np.array([tokenizer.eot], np.int32)
    documents = track(texts.documents, "tokenising documents", tick)
    return np.concatenate([part for d in documents for part in (begin, tokenizer.encode(d), end)] or [end])


class StreamSource:
    """Windows of `context` + 1 tokens in their order, so that row r of each batch goes on where row r before it ended.

    The documents, laid end to end, are cut into `rows` streams. `reset` is 1 where a window has no predecessor.
    """

    shuffled = False

    def __init__(self, texts: Texts, tokenizer: Tokenizer, context: int, rows: int, tick: Tick = silent) -> None:
        self.tokens, self.context, self.rows = token_stream(texts, tokenizer, tick), context, rows
        self.windows = _windows_per_stream(texts, len(self.tokens), context, rows)

    def __len__(self) -> int:
        return self.rows * self.windows

    def items(self, epochs: np.ndarray, positions: np.ndarray) -> Batch:
        """tokens and targets int32 [B T], weight 1 [B T], reset [B]."""
        window, row = np.divmod(positions, self.rows)
        found = _slice_windows(self.tokens, (row * self.windows + window) * self.context, self.context)
        return {**found, "reset": (window == 0).astype(np.float32)}


def _windows_per_stream(texts: Texts, tokens: int, context: int, rows: int) -> int:
    """Windows a stream holds where a text is cut into `rows` streams."""
    count = (tokens - 1) // context // rows
    if count < 1:
        what = "one window" if rows == 1 else f"{rows} windows"
        raise UsageError(
            f"{texts.identity['name']} has {tokens} tokens in its split {texts.identity['split']!r}, too few for "
            f"{what} of context {context}; lower model.context or give more text"
        )
    return count


def _slice_windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> Batch:
    rows = tokens[starts[:, None] + np.arange(context + 1)]
    return {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weight": np.ones((len(starts), context), np.float32)}


def pad_documents(texts: Texts, tokenizer: Tokenizer, context: int, parts: int = 1, tick: Tick = silent) -> Examples:
    """Labelled documents as examples: their first `context` tokens, int32 [n T], mask [n T], label [n] or labels [n C].

    What the tokenizer puts around a text is there. T is the longest of them, up to a multiple of 8 and of `parts`.

    Raises UsageError where the documents have no labels, or secret ones.
    """
    name = texts.identity["name"]
    if texts.labels is None or texts.classes is None:
        raise UsageError(f"data set {name!r} has no labels to tell; as plain text it goes with the loss next_token")
    check_labels(texts.labels, texts.identity)
    before, after = (np.array(ids, np.int32) for ids in (tokenizer.prefix, tokenizer.suffix))
    room = context - len(before) - len(after)
    if room < 1:
        raise UsageError(
            f"a length of {context} tokens has no room between {len(before)} and {len(after)} special tokens"
        )
    documents = track(texts.documents, "tokenising documents", tick)
    rows = [np.concatenate([before, tokenizer.encode(d)[:room], after]) for d in documents]
    multiple = math.lcm(8, parts)
    length = min(context, -(-max(map(len, rows), default=1) // multiple) * multiple)
    tokens, mask = (np.zeros((len(texts), length), kind) for kind in (np.int32, np.float32))
    for i, ids in enumerate(rows):
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, 1
    fields = {"tokens": tokens, "mask": mask, texts.label_field: texts.labels}
    return Examples(fields, len(texts), texts.identity, texts.classes, texts.names)
