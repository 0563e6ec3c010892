"""The data loader: a sampler's batches in order of steps, prefetched by grain in a thread or in worker processes."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.fields import Batch
from data.sampler import BatchSampler


@dataclass(frozen=True)
class _Steps:
    sampler: BatchSampler
    rows: tuple[int, ...]
    start: int
    stop: int

    def __setstate__(self, fields: dict[str, object]) -> None:
        """Unpickled in a worker process, which ignores Ctrl-C: the run handles it and ends its workers."""
        self.__dict__.update(fields)
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: int) -> Batch:
        return self.sampler.batch(self.start + int(i), self.rows)


def batches(
    sampler: BatchSampler, rows: Sequence[int], start: int, stop: int, *, workers: int, prefetch: int
) -> Iterator[Batch]:
    """The given rows of batches `start` to `stop` - 1, prefetched `prefetch` ahead; `workers` = 0 reads in a thread."""
    import grain

    if workers:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags, which are not parsed otherwise
    dataset = grain.MapDataset.source(_Steps(sampler, tuple(rows), start, stop))
    iterator = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    if workers:
        iterator = iterator.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(iterator)
