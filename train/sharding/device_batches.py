"""From host rows to global arrays: each process reads only the rows that its devices own."""

from collections.abc import Iterator

import jax
import numpy as np

from data import loader
from data.eval_set import EvalSet
from data.fields import Batch
from data.sampler import BatchSampler
from errors import UsageError
from train.sharding.mesh import Placement, batch_axes


def local_rows(place: Placement, size: int) -> list[int]:
    """The rows of a batch of `size` that this process's devices own, given by the sharding."""
    owned = place.sharding("batch").addressable_devices_indices_map((size,))
    return sorted({row for cut in owned.values() if cut for row in range(*cut[0].indices(size))})


def to_global_batch(local: Batch, rows: list[int], size: int, place: Placement) -> dict[str, jax.Array]:
    """Global arrays [size ...] from this process's rows [len(rows) ...]."""
    index_of_row = np.full(size, -1)
    index_of_row[rows] = np.arange(len(rows))

    def to_global(name: str, values: np.ndarray) -> jax.Array:
        sharding = place.sharding(batch_axes(name, values.ndim))

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            mine = index_of_row[index[0]]
            return values[mine[0] : mine[-1] + 1][(slice(None), *index[1:])]

        return jax.make_array_from_callback((size, *values.shape[1:]), sharding, part)

    return {name: to_global(name, values) for name, values in local.items()}


def check_batch(size: int, accumulate: int, place: Placement, context: int | None = None) -> None:
    """Check that a batch divides into shards times microbatches, and a row into sequence shards.

    Raises UsageError with sizes that fit.
    """
    parts = place.seq_shards
    if context and context % parts:
        fit = " or ".join(str(n) for n in (context // parts * parts, -(-context // parts) * parts) if n)
        raise UsageError(f"model.context = {context} does not divide into the mesh's {parts} parts; {fit} would fit")
    if size < 1 or accumulate < 1:
        raise UsageError(f"train.batch = {size} and train.accumulate = {accumulate} must be 1 or more")
    unit = place.batch_shards * accumulate
    if size % unit:
        fit = " or ".join(str(n) for n in (size // unit * unit, -(-size // unit) * unit) if n)
        raise UsageError(
            f"train.batch = {size} does not divide into {place.batch_shards} batch shards times "
            f"train.accumulate = {accumulate}; {fit} would fit"
        )


def check_sequence_lengths(row: Batch, place: Placement) -> None:
    """Raise UsageError unless the lengths of a batch's sequences divide into the mesh's sequence shards."""
    parts = place.seq_shards
    for name, values in row.items():
        if values.ndim > 1 and batch_axes(name, 2) == "batch seq" and values.shape[1] % parts:
            raise UsageError(
                f"rows of {values.shape[1]} {name} do not divide into the mesh's {parts} parts; "
                f"data.max_length = {-(-values.shape[1] // parts) * parts} would fit"
            )


def check_finite_batch(batch: Batch) -> Batch:
    """The batch, unchanged. Raises UsageError if a value is not finite: XLA's fused programs need not propagate nan.

    A sum is fast, and finite only if all its terms are.
    """
    for name, values in batch.items():
        if np.issubdtype(values.dtype, np.floating):
            with np.errstate(all="ignore"):
                suspect = not np.isfinite(values.sum())
            if suspect and not np.isfinite(values).all():
                count = int(np.any(~np.isfinite(values.reshape(len(values), -1)), 1).sum())
                raise UsageError(
                    f"the data's field {name!r} is not finite in {count} of the {len(values)} rows of a batch; "
                    f"correct the data, or data.mean and data.std"
                )
    return batch


def train_batches(
    sampler: BatchSampler, place: Placement, start: int, stop: int, *, workers: int, prefetch: int
) -> Iterator[dict[str, jax.Array]]:
    """The global batches of updates `start` to `stop` - 1, phase by phase."""
    ends = [p.from_step for p in sampler.phases[1:]] + [stop]
    for phase, end in zip(sampler.phases, ends, strict=True):
        first, last = max(start, phase.from_step), min(stop, end)
        if first < last:
            rows = local_rows(place, phase.batch_size)
            for batch in loader.batches(sampler, rows, first, last, workers=workers, prefetch=prefetch):
                yield to_global_batch(check_finite_batch(batch), rows, phase.batch_size, place)


def eval_batches(eval_set: EvalSet, place: Placement, size: int) -> Iterator[dict[str, jax.Array]]:
    """The global batches of an evaluation, in order, with each row's index in the evaluation set: row int32 [B]."""
    rows = local_rows(place, size)
    for i, batch in enumerate(eval_set.batches(size, rows)):
        batch["row"] = np.asarray(rows, np.int32) + np.int32(i * size)
        yield to_global_batch(check_finite_batch(batch), rows, size, place)
