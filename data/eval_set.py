"""Evaluation sets: every example once, in order; the last batch is padded with rows of weight 0."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.fields import Augment, Batch, Fields
from data.progress import Tick, silent, track
from data.text.packing import Documents
from data.text.tokenizers import Tokenizer
from errors import UsageError


class Rows(Protocol):
    """Rows that are read when they are asked for."""

    def __getitems__(self, rows: np.ndarray) -> Fields:
        """The fields of some rows."""


@dataclass(frozen=True)
class EvalSet:
    """The examples of an evaluation, and each one's cluster for standard errors (its document, or itself) [n]."""

    fields: Rows | Batch
    clusters: np.ndarray
    prepare: Augment | None = None

    def __len__(self) -> int:
        return len(self.clusters)

    def batches(self, size: int, rows: Sequence[int]) -> Iterator[Batch]:
        """The given rows of each batch of `size`; rows past the last example have weight 0."""
        own = np.asarray(rows)
        for start in range(0, len(self), size):
            index = start + own
            is_real = index < len(self)
            index = np.where(is_real, index, 0)
            batch = self._read(index)
            batch.setdefault("weight", np.ones(len(index), np.float32))
            for name in {"weight", "bytes"} & set(batch):
                mask = is_real.reshape(-1, *[1] * (batch[name].ndim - 1))
                batch[name] = (batch[name] * mask).astype(np.float32)
            yield self.prepare(batch, 0, index) if self.prepare else batch

    def _read(self, index: np.ndarray) -> Batch:
        if isinstance(self.fields, dict):
            return {k: v[index] for k, v in self.fields.items()}
        return self.fields.__getitems__(index)


def from_texts(texts: Documents, tokenizer: Tokenizer, context: int, overlap: int = 0, tick: Tick = silent) -> EvalSet:
    """An EvalSet of documents in windows of `context` tokens, which do not cross documents. A document is a cluster.

    Except in a document's first window, the first `overlap` tokens were scored in the window before and only serve as
    context. If there is one document only, each window is a cluster.
    """
    if not 0 <= overlap < context:
        raise UsageError(
            f"config key 'eval.overlap' = {overlap} must lie between 0 and {context - 1}, below model.context"
        )
    windows, clusters, is_scored, byte_counts = [], [], [], []
    single, stride = len(texts) == 1, context - overlap
    for i, document in enumerate(track(texts.documents, "tokenising documents", tick)):
        ids = tokenizer.encode(document)
        spans = byte_lengths(tokenizer, ids, document)
        if not single:  # predict the first token after the previous document's end, and this document's end
            ids = np.concatenate([tokenizer.prefix or [tokenizer.eot], ids, [tokenizer.eot]]).astype(np.int32)
            spans = np.concatenate([np.zeros(len(ids) - 1 - len(spans)), spans, [0]])
        count = 0 if len(ids) < 2 else 1 + max(0, -(-(len(ids) - 1 - context) // stride))
        grid, byte_rows = (np.full(count * stride + context + 1, fill) for fill in (np.int32(-1), np.float32(0)))
        grid[: len(ids)], byte_rows[: len(ids)] = ids, spans
        starts = np.arange(count) * stride
        windows.append(grid[starts[:, None] + np.arange(context + 1)])
        byte_counts.append(byte_rows[starts[:, None] + np.arange(1, context + 1)])
        is_scored.append((starts[:, None] == 0) | (np.arange(context) >= overlap))
        clusters.append(starts if single else np.full(count, i))
    token_rows = np.concatenate(windows) if windows else np.empty((0, context + 1), np.int32)
    tokens, targets = np.maximum(token_rows[:, :-1], 0), np.maximum(token_rows[:, 1:], 0)
    weight = ((token_rows[:, 1:] >= 0) & np.concatenate([*is_scored, np.empty((0, context), bool)])).astype(np.float32)
    fields = {"tokens": tokens, "targets": targets, "weight": weight}
    if tokenizer.byte_lengths is not None:
        fields["bytes"] = np.concatenate([*byte_counts, np.empty((0, context), np.float32)]) * weight
    return EvalSet(fields, np.concatenate(clusters) if clusters else np.empty(0, np.int64))


def byte_lengths(tokenizer: Tokenizer, ids: np.ndarray, document: str) -> np.ndarray:
    """UTF-8 bytes of each id of a document [n]; their sum is the document's length.

    A difference, by a space that the tokenizer puts before a text or by its normalisation, is added to the first id.
    """
    lengths = np.zeros(len(ids), np.float32)
    if tokenizer.byte_lengths is not None and len(ids):
        lengths = tokenizer.byte_lengths[ids]
        lengths[0] += len(document.encode()) - lengths.sum(dtype=np.float64)
    return lengths
