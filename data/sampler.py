"""The examples of each batch: a pure function of (seed, step, global batch size).

There is no iterator state: any batch is computed from its step, on any number of processes, in microseconds. A process
may compute only its own rows. *Index* g is that of the g-th example consumed in the run. Epoch and position follow from
g. The position is permuted by grain's index shuffle, keyed by seed and epoch.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from data.fields import Augment, Batch, hash32
from data.source import EpochSource
from documents import Json
from errors import UsageError


class Mixer(Protocol):
    """Mixes each row of a batch with another row, its partner."""

    def partners(self, step: int, size: int) -> np.ndarray:
        """The partner of each row of a step's batch [size]."""

    def __call__(self, batch: Batch, others: Batch, step: int, rows: np.ndarray) -> Batch:
        """The fields of global `rows` mixed with `others`, the fields of their partners."""


@dataclass(frozen=True)
class Phase:
    """Batch size and mixture weights (one a source) from update `from_step` on."""

    from_step: int
    batch_size: int
    weights: tuple[float, ...] = (1.0,)


def phases_from_json(rows: Sequence[Json]) -> tuple[Phase, ...]:
    """Phases from a manifest's list of dicts."""
    return tuple(Phase(int(r["from_step"]), int(r["batch_size"]), tuple(r["weights"])) for r in rows)


def phases_as_json(phases: Sequence[Phase]) -> list[Json]:
    """Phases as a list of dicts for a manifest."""
    return [{**asdict(p), "weights": list(p.weights)} for p in phases]


PATTERN_LENGTH = 1000  # examples after which the sequence of a mixture's sources repeats, at least
MIN_PLACES = 10  # entries of the pattern for the source of least weight; the pattern grows until it has them
MIN_WEIGHT = 1e-5  # of a source in a mixture: bounds the length of the pattern
PERMUTE_BELOW = 2**16  # grain's index shuffle rejects indices of a permutation of at least this size: slow below it


@dataclass(frozen=True)
class BatchSampler:
    """The batches of a run over one source or a weighted mixture of several."""

    sources: tuple[EpochSource, ...]
    phases: tuple[Phase, ...]
    seed: int
    augment: Augment | None = None
    mixup: Mixer | None = None

    def __post_init__(self) -> None:
        if len(self.sources) > 1:
            first = np.zeros(1, np.int64)
            rows = [self._augment_rows(source.items(first, first), 0, first) for source in self.sources]
            types = [{k: _row_type(v) for k, v in sorted(row.items())} for row in rows]
            if any(type_ != types[0] for type_ in types):
                raise UsageError(
                    f"the sets of a mixture must have the same fields; they have {' and '.join(map(str, types))}"
                )

    def phase(self, step: int) -> Phase:
        """The phase of a step."""
        return [p for p in self.phases if p.from_step <= step][-1]

    def examples_before(self, step: int) -> int:
        """Examples consumed before a step: the index of its row 0."""
        ends = [p.from_step for p in self.phases[1:]] + [step]
        return sum(
            max(0, min(end, step) - p.from_step) * p.batch_size for p, end in zip(self.phases, ends, strict=True)
        )

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """The given rows (None: all) of the batch of update `step` -> `step` + 1: [len(rows) ...]."""
        size = self.phase(step).batch_size
        own = np.arange(size) if rows is None else np.asarray(rows)
        if self.mixup is None:
            return self._read(step, own)
        both = np.concatenate([own, self.mixup.partners(step, size)[own]])
        needed, inverse = np.unique(both, return_inverse=True)
        read = self._read(step, needed)
        batch, others = ({k: v[index] for k, v in read.items()} for index in np.split(inverse, 2))
        return self.mixup(batch, others, step, own)

    def _read(self, step: int, rows: np.ndarray) -> Batch:
        """Rows of a batch, each augmented, before they are mixed with their partners."""
        weights = self.phase(step).weights
        index = self.examples_before(step) + rows
        owner, counts = _assign_sources(index, weights, self.seed)
        ranks = counts[owner, np.arange(len(index))] + self._mixture_remainders(step)[owner]
        batch: Batch = {}
        for i, source in enumerate(self.sources):
            own = np.flatnonzero(owner == i)
            if not own.size:
                continue
            epochs, positions = np.divmod(ranks[own], len(source))
            if source.shuffled:
                positions = _shuffle(positions, epochs, len(source), self.seed, i)
            fields = self._augment_rows(source.items(epochs, positions), step, rows[own])
            for name, values in fields.items():
                batch.setdefault(name, np.empty((len(rows), *values.shape[1:]), values.dtype))[own] = values
        return batch

    def _augment_rows(self, items: Batch, step: int, rows: np.ndarray) -> Batch:
        """Rows of one source after augmentation, which brings the rows of a mixture to one shape."""
        return self.augment(items, step, rows) if self.augment else items

    def _mixture_remainders(self, step: int) -> np.ndarray:
        """What to add to each source's count by the weights of `step`, so that earlier phases count too [sources]."""
        remainders = np.zeros(len(self.sources), np.int64)
        for old, new in itertools.pairwise(p for p in self.phases if p.from_step <= step):
            index = np.array([self.examples_before(new.from_step)])
            before, after = (_assign_sources(index, phase.weights, self.seed)[1] for phase in (old, new))
            remainders += (before - after)[:, 0]
        return remainders


def _row_type(values: np.ndarray) -> str:
    """Type and shape of one row of a field [n ...]; images of different sizes have only their channels in common."""
    if values.dtype == object:
        return f"uint8[*, *, {values[0].shape[-1]}]"
    return f"{values.dtype}{list(values.shape[1:])}"


def _shuffle(positions: np.ndarray, epochs: np.ndarray, count: int, seed: int, source: int) -> np.ndarray:
    seeds = {int(e): hash32(seed, "shuffle", source, int(e)) for e in np.unique(epochs)}
    if count <= PERMUTE_BELOW:
        return np.array(
            [_permutation(count, seeds[e])[p] for p, e in zip(positions.tolist(), epochs.tolist(), strict=True)]
        )
    from grain.experimental import index_shuffle

    pairs = zip(positions.tolist(), epochs.tolist(), strict=True)
    return np.array([index_shuffle(p, max_index=count - 1, seed=seeds[e], rounds=4) for p, e in pairs])


@functools.lru_cache(maxsize=8)
def _permutation(count: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).permutation(count)


def _assign_sources(index: np.ndarray, weights: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The source of each example index [n], and how many examples each source gave before it [sources n]."""
    if len(weights) == 1:
        return np.zeros(len(index), np.int64), index[None]
    pattern, before, totals = _mixture_pattern(weights, seed)
    repeats, offsets = np.divmod(index, len(pattern))
    return pattern[offsets], repeats * totals[:, None] + before[:, offsets]


@functools.lru_cache(maxsize=4)
def _mixture_pattern(weights: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mixture's repeating sequence of sources [P]; each source's count before each entry [sources P]; its total."""
    fractions = np.asarray(weights, np.float64) / sum(weights)
    length = PATTERN_LENGTH
    while length * min(fractions[fractions > 0]) < MIN_PLACES:
        length *= 10
    ends = np.rint(np.cumsum(fractions) * length).astype(np.int64)
    pattern = np.searchsorted(ends, np.arange(length), side="right")
    pattern = np.random.Generator(np.random.Philox(hash32(seed, "mixture"))).permutation(pattern)
    own = pattern == np.arange(len(weights))[:, None]
    return pattern, np.cumsum(own, 1) - own, own.sum(1)
