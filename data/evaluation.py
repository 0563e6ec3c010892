"""Batches for evaluation: every example once, in order, the last batch padded by rows of weight 0."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.plan import Augment, Batch
from data.sources import Examples, Source
from data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Exam:
    """The examples of an evaluation, and the cluster that each belongs to (its document, or itself) [n]."""

    fields: Examples | Batch
    clusters: np.ndarray
    prepare: Augment | None = None

    def __len__(self) -> int:
        return len(self.clusters)

    def batches(self, size: int, rows: Sequence[int]) -> Iterator[Batch]:
        """The given rows of each batch of `size`; rows beyond the last example have weight 0."""
        wanted = np.asarray(rows)
        for start in range(0, len(self), size):
            index = start + wanted
            real = index < len(self)
            index = np.where(real, index, 0)
            batch = self._read(index)
            batch.setdefault("weight", np.ones(len(index), np.float32))
            for name in {"weight", "bytes"} & set(batch):
                mask = real.reshape(-1, *[1] * (batch[name].ndim - 1))
                batch[name] = (batch[name] * mask).astype(np.float32)
            yield self.prepare(batch, 0, wanted) if self.prepare else batch

    def _read(self, index: np.ndarray) -> Batch:
        if isinstance(self.fields, Examples):
            return self.fields.__getitems__(index)
        return {k: v[index] for k, v in self.fields.items()}


def exam(source: Source, tokenizer: Tokenizer | None, context: int | None, prepare: Augment | None = None) -> Exam:
    """An evaluation of a source: examples as they are, documents cut into windows that never cross a document.

    A cluster is an example or a document; where there is one document only, each of its windows is one.
    """
    if isinstance(source, Examples):
        return Exam(source, np.arange(len(source)), prepare)
    assert tokenizer is not None
    assert context is not None
    windows, clusters = [], []
    single = len(source) == 1
    for i, document in enumerate(source.documents):
        ids = tokenizer.encode(document)
        if not single:  # a document begins after the end of another, and its own end is to be told too
            ids = np.concatenate([[tokenizer.vocab - 1], ids, [tokenizer.vocab - 1]]).astype(np.int32)
        count = max(0, -(-(len(ids) - 1) // context))
        grid = np.full(count * context + 1, -1, np.int32)
        grid[: len(ids)] = ids[: len(grid)]
        starts = np.arange(count) * context
        windows.append(grid[starts[:, None] + np.arange(context + 1)])
        clusters.append(starts if single else np.full(count, i))
    rows = np.concatenate(windows) if windows else np.empty((0, context + 1), np.int32)
    tokens, targets = np.maximum(rows[:, :-1], 0), np.maximum(rows[:, 1:], 0)
    weight = (rows[:, 1:] >= 0).astype(np.float32)
    fields = {"tokens": tokens, "targets": targets, "weight": weight, "bytes": tokenizer.byte_lengths[targets] * weight}
    return Exam(fields, np.concatenate(clusters) if clusters else np.empty(0, np.int64))
