"""Which examples make up which batch: a pure function of (seed, step, global batch size).

There is no iterator state: any batch is computed from its step, on any number of processes, in microseconds, and a
process may compute only the rows that it owns. Within the run, *place* g is the g-th example ever consumed; epoch and
position follow from g, and the position is permuted by grain's index shuffle, keyed by seed and epoch.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data.kinds import Examples
from errors import UsageError

Batch = dict[str, np.ndarray]
Augment = Callable[[Batch, int, np.ndarray], Batch]  # (fields, step, global rows) -> fields


class Mixer(Protocol):
    """Something that mixes each row of a batch with another one."""

    def partners(self, step: int, size: int) -> np.ndarray:
        """The row that goes with each row of the batch of a step [size]."""

    def __call__(self, batch: Batch, others: Batch, step: int, rows: np.ndarray) -> Batch:
        """The fields of global rows mixed with those of their partners."""


@dataclass(frozen=True)
class Phase:
    """From update `from_step` on, a batch has `batch_size` rows and each corpus its weight in the mixture."""

    from_step: int
    batch_size: int
    weights: tuple[float, ...] = (1.0,)


def phases_from_json(rows: Sequence[dict[str, Any]]) -> tuple[Phase, ...]:
    """The phases of a manifest's list of dicts."""
    return tuple(Phase(int(r["from_step"]), int(r["batch_size"]), tuple(r["weights"])) for r in rows)


def phases_as_json(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """The phases as a list of dicts for a manifest."""
    return [{**asdict(p), "weights": list(p.weights)} for p in phases]


@runtime_checkable
class EpochSource(Protocol):
    """Something that yields the item at a position of an epoch."""

    @property
    def shuffled(self) -> bool:
        """Whether an epoch's order is drawn anew; else items come in their own order."""

    def __len__(self) -> int:
        """Items in an epoch."""

    def items(self, epochs: np.ndarray, positions: np.ndarray) -> Batch:
        """Fields of the items at shuffled positions of epochs, a row each."""


@dataclass(frozen=True)
class ExampleSource:
    """Examples as they are; every epoch holds each once."""

    source: Examples
    shuffled = True

    def __len__(self) -> int:
        return len(self.source)

    def items(self, epochs: np.ndarray, positions: np.ndarray) -> Batch:
        """Fields of those rows, and weight 1 [B] where they have none of their own."""
        fields = self.source.__getitems__(positions)
        return {"weight": np.ones(len(positions), np.float32), **fields}


def hash32(*parts: Any) -> int:
    """A number below 2^32 from seeds, names and counters."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")


PATTERN_LENGTH = 1000  # places after which a mixture's pattern of corpora repeats, at least
MIN_PLACES = 10  # of a pattern, for the corpus of least share: the pattern grows for it
MIN_WEIGHT = 1e-5  # of a mixture, so that a pattern stays small enough to hold


@dataclass(frozen=True)
class BatchSampler:
    """The batches of a run over one corpus or a weighted mixture of several."""

    sources: tuple[EpochSource, ...]
    phases: tuple[Phase, ...]
    seed: int
    augment: Augment | None = None
    mixup: Mixer | None = None

    def __post_init__(self) -> None:
        if len(self.sources) > 1:
            first = np.zeros(1, np.int64)
            rows = [self._augment_rows(c.items(first, first), 0, first) for c in self.sources]
            kinds = [{k: _row_type(v) for k, v in sorted(row.items())} for row in rows]
            if any(kind != kinds[0] for kind in kinds):
                raise UsageError(
                    f"the sets of a mixture must have the same fields; they have {' and '.join(map(str, kinds))}"
                )

    def phase(self, step: int) -> Phase:
        """The phase that holds a step."""
        return [p for p in self.phases if p.from_step <= step][-1]

    def examples_before(self, step: int) -> int:
        """Examples consumed before a step: the place of its row 0."""
        ends = [p.from_step for p in self.phases[1:]] + [step]
        return sum(
            max(0, min(end, step) - p.from_step) * p.batch_size for p, end in zip(self.phases, ends, strict=True)
        )

    def batch(self, step: int, rows: Sequence[int] | None = None) -> Batch:
        """The rows (all where None) of the batch that update `step` -> `step` + 1 consumes; [len(rows) ...]."""
        size = self.phase(step).batch_size
        own = np.arange(size) if rows is None else np.asarray(rows)
        if self.mixup is None:
            return self._read(step, own)
        both = np.concatenate([own, self.mixup.partners(step, size)[own]])
        needed, spots = np.unique(both, return_inverse=True)
        read = self._read(step, needed)
        batch, others = ({k: v[spot] for k, v in read.items()} for spot in np.split(spots, 2))
        return self.mixup(batch, others, step, own)

    def _read(self, step: int, own: np.ndarray) -> Batch:
        """Rows of a batch, augmented, each by itself."""
        phase = self.phase(step)
        places = self.examples_before(step) + own
        which, before = _assign_sources(places, phase.weights, self.seed)
        ranks = before[which, np.arange(len(places))] + self._mixture_remainders(step)[which]
        batch: Batch = {}
        for i, corpus in enumerate(self.sources):
            mine = np.flatnonzero(which == i)
            if not mine.size:
                continue
            epochs, positions = np.divmod(ranks[mine], len(corpus))
            if corpus.shuffled:
                positions = _shuffle(positions, epochs, len(corpus), self.seed, i)
            found = self._augment_rows(corpus.items(epochs, positions), step, own[mine])
            for name, values in found.items():
                whole = batch.setdefault(name, np.empty((len(own), *values.shape[1:]), values.dtype))
                whole[mine] = values
        return batch

    def _augment_rows(self, items: Batch, step: int, own: np.ndarray) -> Batch:
        """Rows of one corpus as the mixture takes them, which has them of one shape."""
        return self.augment(items, step, own) if self.augment else items

    def _mixture_remainders(self, step: int) -> np.ndarray:
        """What each corpus's count lacks under the weights in force at `step`, to go on where it was [corpora]."""
        begun = [p for p in self.phases if p.from_step <= step]
        lack = np.zeros(len(self.sources), np.int64)
        for old, new in itertools.pairwise(begun):
            edge = np.array([self.examples_before(new.from_step)])
            lack += (
                _assign_sources(edge, old.weights, self.seed)[1] - _assign_sources(edge, new.weights, self.seed)[1]
            )[:, 0]
        return lack


def _row_type(values: np.ndarray) -> str:
    """Type and shape of a row of a field [n ...]; of images of different sizes only the channels are fixed."""
    if values.dtype == object:
        return f"uint8[*, *, {values[0].shape[-1]}]"
    return f"{values.dtype}{list(values.shape[1:])}"


def _shuffle(positions: np.ndarray, epochs: np.ndarray, count: int, seed: int, corpus: int) -> np.ndarray:
    seeds = {int(e): hash32(seed, "shuffle", corpus, int(e)) for e in np.unique(epochs)}
    if count <= PERMUTE_BELOW:
        return np.array(
            [_permutation(count, seeds[e])[p] for p, e in zip(positions.tolist(), epochs.tolist(), strict=True)]
        )
    from grain.experimental import index_shuffle

    pairs = zip(positions.tolist(), epochs.tolist(), strict=True)
    return np.array([index_shuffle(p, max_index=count - 1, seed=seeds[e], rounds=4) for p, e in pairs])


PERMUTE_BELOW = (
    2**16
)  # grain's shuffle permutes at least so many indices and walks until one is small enough: slow below


@functools.lru_cache(maxsize=8)
def _permutation(count: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).permutation(count)


def _assign_sources(places: np.ndarray, weights: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which corpus serves each place [n], and how many places each corpus has served before it [corpora n]."""
    if len(weights) == 1:
        return np.zeros(len(places), np.int64), places[None]
    pattern, before, totals = _mixture_pattern(weights, seed)
    blocks, spots = np.divmod(places, len(pattern))
    return pattern[spots], blocks * totals[:, None] + before[:, spots]


@functools.lru_cache(maxsize=4)
def _mixture_pattern(weights: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mixture's repeating pattern [P], each corpus's places before each of it [corpora P], and in it [corpora]."""
    share = np.asarray(weights, np.float64) / sum(weights)
    length = PATTERN_LENGTH
    while length * min(share[share > 0]) < MIN_PLACES:
        length *= 10
    ends = np.rint(np.cumsum(share) * length).astype(np.int64)
    pattern = np.searchsorted(ends, np.arange(length), side="right")
    pattern = np.random.Generator(np.random.Philox(hash32(seed, "mixture"))).permutation(pattern)
    mine = pattern == np.arange(len(weights))[:, None]
    return pattern, np.cumsum(mine, 1) - mine, mine.sum(1)
