"""Reading ahead: a plan's batches, step after step, prefetched by grain in a thread or in worker processes."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.plan import Batch, BatchSampler


@dataclass(frozen=True)
class _Steps:
    plan: BatchSampler
    rows: tuple[int, ...]
    start: int
    stop: int

    def __setstate__(self, fields: dict[str, Any]) -> None:
        """Arrive in a worker process: Ctrl-C is for the run, which ends its workers."""
        self.__dict__.update(fields)
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: int) -> Batch:
        return self.plan.batch(self.start + int(i), self.rows)


def batches(
    plan: BatchSampler, rows: Sequence[int], start: int, stop: int, *, workers: int, prefetch: int
) -> Iterator[Batch]:
    """The given rows of batches `start` up to `stop`, read `prefetch` ahead; `workers` 0 reads in one thread."""
    import grain

    if workers:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags, which nobody else parsed
    dataset = grain.MapDataset.source(_Steps(plan, tuple(rows), start, stop))
    reading = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
    if workers:
        reading = reading.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(reading)
