"""The data of a run: loading, checks, and the batches of its updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from configs.knobs import RunConfig
from data import sampler
from data.images.detection import align_boxes
from data.source import EpochSource, Source
from data.sources import intact
from errors import UsageError
from train.record.ticker import Ticker
from train.runtime import Runtime
from train.setup import inputs
from train.setup.setup import Setup, dataset_names, load_source, training_rows
from train.sharding import device_batches, mesh

CHECK_SECONDS = 10.0  # time limit for reading small data sets before a run, to find unreadable files


@dataclass(frozen=True)
class RunData:
    """The sources of a run's mixture, and the held-out split of the first."""

    corpora: tuple[Source, ...]
    held_out: Source

    @property
    def identity(self) -> list[dict[str, Any]]:
        """What checkpoints remember of the training data."""
        return [source.identity for source in self.corpora]

    def identities(self, config: RunConfig) -> dict[tuple[str, str], dict[str, Any]]:
        """The identity of each source, by the config's name of it and its split."""
        names = dataset_names(config)
        found = {(name, config.data.split): source.identity for name, source in zip(names, self.corpora, strict=True)}
        return {**found, (names[0], config.eval.split): self.held_out.identity}

    def check_readable(self, runtime: Runtime) -> None:
        """Read small sets, for at most CHECK_SECONDS, to find unreadable files. Raises UsageError."""
        until = runtime.monotonic() + CHECK_SECONDS
        intact.check_readable((*self.corpora, self.held_out), lambda: runtime.monotonic() < until)


def load(config: RunConfig, runtime: Runtime) -> RunData:
    """Load a config's data. Raises UsageError, also if the splits have different classes."""
    names, ticker = dataset_names(config), Ticker(runtime)
    corpora = tuple(load_source(config, runtime, name, config.data.split, ticker) for name in names)
    return RunData(corpora, load_source(config, runtime, names[0], config.eval.split, ticker))


def make_batches(setup: Setup, data: RunData, phase: sampler.Phase) -> sampler.BatchSampler:
    """The batches of a run that begins with a phase. Raises UsageError for data that do not go together."""
    config = setup.config
    device_batches.check_batch(config.train.batch, config.train.accumulate, setup.place, setup.context)
    trained, held_out = data.corpora[0], data.held_out
    if held_out.names != trained.names or (held_out.classes or 0) > (trained.classes or 0):
        splits = f"splits {config.eval.split!r} and {config.data.split!r}"
        raise UsageError(f"{config.data.name}: {splits} have different classes")
    if len(held_out) and _row_form(held_out) != _row_form(trained):
        ours, theirs = (source.row_type() for source in (trained, held_out))
        raise UsageError(
            f"{config.data.name}: split {config.data.split!r} has {ours.words}, {config.eval.split!r} has "
            f"{theirs.words}; fields, and the sizes that a network is built for, must be equal"
        )
    channels = inputs.image_channels(config, setup.model)
    augment = inputs.train_transform(config, setup.task, setup.task.has_boxes, channels)
    mix = inputs.mixup_transform(config, setup.task)
    return sampler.BatchSampler(training_sources(setup, data.corpora), (phase,), config.seed, augment, mix)


def _row_form(source: Source) -> tuple[str, dict[str, tuple[int, ...]]]:
    """What the rows of all splits share: kind, fields, and sizes other than of images and of time."""
    found = source.row_type()
    timed = {"features": 1, "tokens": 0, "mask": 0}  # fields that may have time as their first dim -> the dims after it
    sizes = {}
    for name, shape in found.shapes.items():
        is_fixed = found.kind == "features"
        sizes[name] = shape[len(shape) - timed.get(name, len(shape)) :] if is_fixed else ()
    return found.kind, sizes


def batch_shapes(setup: Setup, batches: sampler.BatchSampler, start: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of update `start` as ShapeDtypeStructs with shardings."""
    rows, row = batches.phase(start).batch_size, batches.batch(start, [0])
    device_batches.check_sequence_lengths(row, setup.place)
    shapes = {}
    for name, values in row.items():
        sharding = setup.place.sharding(mesh.batch_axes(name, values.ndim))
        shapes[name] = jax.ShapeDtypeStruct((rows, *values.shape[1:]), values.dtype, sharding=sharding)
    return shapes


def tokens_per_row(setup: Setup, batches: sampler.BatchSampler, start: int) -> int:
    """Predicted tokens per row; for translations, whose lengths differ, the mean over a batch."""
    if setup.task.target_field != "source":
        return setup.context or 0
    return round(float(batches.batch(start)["weight"].sum(1).mean()))


def training_sources(setup: Setup, corpora: Sequence[Source]) -> tuple[EpochSource, ...]:
    """The training rows of each source of a mixture. Raises UsageError for sources that do not go together."""
    config = setup.config
    absent = set.intersection(*(set(source.absent) for source in corpora))
    if absent and setup.task.has_classes:
        raise UsageError(
            f"{config.data.name}: split {config.data.split!r} has no example of {len(absent)} of the data's "
            f"{corpora[0].classes} classes: {', '.join(sorted(absent))}"
        )
    labelled = setup.task.has_classes
    types = {(type(s).__name__, s.classes if labelled else None) for s in corpora}
    names = {s.names for s in corpora} if labelled else set()
    if len(names) > 1 and len(types) == 1:
        differ = " and ".join(", ".join(n or ("numbers",)) for n in sorted(names, key=str))
        raise UsageError(
            f"data sets in a mixture must have the same classes; data.name = {config.data.name!r} has {differ}"
        )
    if len(types) > 1:
        what = " and ".join(f"{kind}{f' of {n} classes' if n else ''}" for kind, n in sorted(types, key=str))
        raise UsageError(f"data sets in a mixture must have the same type; data.name = {config.data.name!r} has {what}")
    if len(corpora) > 1 and config.data.max_length is None and corpora[0].row_type().kind == "pairs":
        raise UsageError(
            f"config key 'data.max_length' must be set for a mixture of parallel texts, {config.data.name!r}: "
            f"the tokens of a row, such as {setup.context}, not None"
        )
    if config.train.stateful and ("carried" not in setup.model.traits or not setup.task.is_language_model):
        raise UsageError("train.stateful = True needs a recurrent network and loss next_token")
    if config.train.stateful and len(corpora) > 1:
        raise UsageError(f"train.stateful = True needs one data set, not the mixture {config.data.name!r}")
    return tuple(training_rows(setup, source) for source in align_boxes(corpora))
