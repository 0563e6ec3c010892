"""TensorFlow Datasets, prepared as array_record and read without TensorFlow."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.fields import (
    DECODE_ONCE,
    Fields,
    Identity,
    check_labels,
    checksum,
    field_error,
    iter_blocks,
    object_array,
    unknown_split,
)
from data.images import detection
from data.images.detection import Rows
from data.progress import Tick, silent
from data.source import Source
from data.sources import splits
from data.sources.builtin import BUILTIN
from data.sources.labelled_texts import label_columns
from data.sources.parallel_text import languages
from data.sources.reader import Reader, Request
from data.types import Examples, ParallelText, Texts
from errors import UsageError, quote, unknown

Row = dict[str, Any]  # values by feature
Features = Mapping[str, Any]  # TFDS's feature connectors by name


def list_prepared(data_dir: str | None) -> list[str]:
    """The TFDS data sets prepared in a folder, as NAME or NAME/CONFIG."""
    if data_dir is None:
        return []
    infos = [p for depth in ("*/*", "*/*/*") for p in Path(data_dir).glob(f"{depth}/dataset_info.json")]
    return sorted({str(p.parent.parent.relative_to(data_dir)) for p in infos})


@functools.cache
def open_builder(name: str, data_dir: str | None) -> Any:
    """The TFDS builder of a data set. Raises UsageError for an unknown name."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(f"data set {name!r} needs the package tensorflow-datasets: {error}") from None
    try:
        return tfds.builder(name, data_dir=data_dir, file_format=None)
    except tfds.core.registered.DatasetNotFoundError:
        known = [*BUILTIN, *list_prepared(data_dir), *tfds.list_builders(with_community_datasets=False)]
        folder = f"; for the folder of this name write ./{name}" if Path(name).is_dir() else ""
        raise UsageError(f"{unknown('data set', name, known)}{folder}{_unset_hint(data_dir)}") from None
    except Exception as error:  # an invalid version fails an assertion
        if "Parsing builder name" in str(error):
            raise UsageError(
                f"{name!r} is neither an existing file or folder nor the name of a TFDS data set"
            ) from None
        family = name.partition("/")[0].partition(":")[0]
        variants = [f"{family}/{v}" for v in getattr(tfds.builder_cls(family), "builder_configs", {})]
        if isinstance(error, ValueError) and name.partition("/")[2] and name not in variants:
            raise unknown("data set", name, variants) from None
        raise UsageError(f"data set {quote(name)}: {[*str(error).splitlines(), type(error).__name__][0]}") from None


def _unset_hint(data_dir: str | None) -> str:
    return "" if data_dir else " (TFDS_DATA_DIR, the folder of prepared data sets, is not set)"


def open_split(name: str, split: str, data_dir: str | None, raw: str | None = None) -> tuple[Rows, Features, Identity]:
    """Rows, features and identity of a split of a prepared data set; the feature `raw` is not decoded, but bytes.

    Raises UsageError if the data set is not prepared or has no such split.
    """
    builder = open_builder(name, data_dir)
    known = builder.info.splits  # empty if the data set is not prepared
    for split_name in splits.split_names(split) if known else ():
        if split_name not in known:
            raise unknown_split(name, split_name, known)
    if known and not splits.is_plain(split):
        split = splits.resolve(split, lambda split_name: known[split_name].num_examples)[0]
    try:
        rows = builder.as_data_source(split=split, decoders=_skip_decoding(raw))
    except (NotImplementedError, ValueError, AssertionError, OSError):
        raise UsageError(
            f"data set {name!r} is not prepared as array_record in {builder.data_dir}; run: python -c "
            f"\"import tensorflow_datasets as t; t.data_source('{name}', download=True)\", "
            f"or set TFDS_DATA_DIR{_unset_hint(data_dir)}"
        ) from None
    digest = checksum(repr([(s.name, s.shard_lengths, s.num_bytes) for s in builder.info.splits.values()]).encode())
    identity = {"name": builder.info.full_name, "split": split, "count": len(rows), "checksum": digest}
    return rows, builder.info.features, identity


def _skip_decoding(feature: str | None) -> dict[str, object] | None:
    if feature is None:
        return None
    import tensorflow_datasets as tfds

    return {feature: tfds.decode.SkipDecoding()}


def read_rows(name: str, split: str, data_dir: str | None) -> tuple[list[Row], Identity]:
    """All rows of a split, and its identity. Raises UsageError as `open_split`."""
    source, _, identity = open_split(name, split, data_dir)
    return _read_all(source), identity


def _read_all(source: Rows, tick: Tick = silent) -> list[Row]:
    return [row for block in iter_blocks(len(source), tick) for row in source.__getitems__(block)]


def find(request: Request) -> Reader:
    """The reader of a TFDS data set: of any name, as TFDS decides what is one."""
    name, data_dir = request.name, request.data_dir

    def known() -> tuple[str, ...]:
        return tuple(open_builder(name, data_dir).info.splits)

    def load_split(split: str) -> Source:
        return load(name, split, request.field, data_dir, request.tick)

    return Reader(known, load_split, takes_field=True, reads_parts=True)


def load(name: str, split: str, field: str | None, data_dir: str | None, tick: Tick = silent) -> Source:
    """Images with labels, images with boxes, parallel text, or texts, labelled if the data set has classes.

    Raises UsageError as `sources.load`.
    """
    rows, features, identity = open_split(name, split, data_dir)
    label = _find_labels(features)
    if "image" in features and label and label.key in ("label", "labels"):
        if field is not None:
            raise field_error(name, field)
        return _image_examples(rows, features, label, identity, tick)
    if "image" in features and "objects" in features:
        if field is not None:
            raise field_error(name, field)
        rows, _, _ = open_split(name, split, data_dir, raw="image")
        return detection.from_tfds(rows, features["objects"].feature, features["image"].shape, identity, tick)
    both = label_columns(field)
    if both and label and label.key == both[1]:
        field = both[0]  # labels come with a text anyway
    texts = sorted(k for k, f in features.items() if type(f).__name__ == "Text")  # features have no fixed order
    if field is None and texts:
        field = "text" if "text" in texts else texts[0]
        if field != "text" and len(texts) > 1:
            raise UsageError(f"{name} has the text fields {', '.join(texts)}: choose one with data.field or --field")
    sides = languages(field)
    for text_field in sides or (str(field),):
        if text_field not in texts:
            raise unknown(f"text field of {name}", text_field, texts)
    all_rows = _read_all(rows, tick)
    identity = {**identity, "field": field}
    if sides:
        first, second = (tuple(to_str(row[side]) for row in all_rows) for side in sides)
        return ParallelText(first, second, sides, identity)
    assert field is not None
    documents = tuple(to_str(row[field]) for row in all_rows)
    if label is None:
        return Texts(documents, identity)
    return Texts(documents, identity, label.read(all_rows), label.classes, label.names)


@dataclass(frozen=True)
class LabelFeature:
    """The feature with a data set's labels: one class a row (ClassLabel), or any number (a Sequence of ClassLabel)."""

    key: str
    multilabel: bool
    classes: int
    names: tuple[str, ...] | None  # None if the names are only numbers

    @property
    def field(self) -> str:
        """The field of Examples for these labels."""
        return "labels" if self.multilabel else "label"

    def read(self, rows: Sequence[Row]) -> np.ndarray:
        """The labels of some rows: int32 [n], or if multilabel float32 [n C] of 0 and 1. Withheld labels are -1."""
        if not self.multilabel:
            return np.array([row[self.key] for row in rows], np.int32)
        labels = np.zeros((len(rows), self.classes), np.float32)
        for i, row in enumerate(rows):
            classes = np.asarray(row[self.key], np.int64)
            if (classes < 0).any():
                labels[i] = -1
            else:
                labels[i, classes] = 1
        return labels


def _find_labels(features: Features) -> LabelFeature | None:
    """The label feature: a ClassLabel, or if there is none a Sequence of them; `label` or `labels`, or the only one.

    None if several features have other names: features have no fixed order, so none of them is the first.
    """
    single = {k: f for k, f in features.items() if type(f).__name__ == "ClassLabel"}
    lists = {k: f.feature for k, f in features.items() if type(getattr(f, "feature", None)).__name__ == "ClassLabel"}
    choices = single or lists
    key = next((k for k in ("label", "labels") if k in choices), next(iter(choices)) if len(choices) == 1 else None)
    if key is None:
        return None
    names, classes = tuple(choices[key].names or ()), choices[key].num_classes
    return LabelFeature(key, not single, classes, None if names == tuple(map(str, range(len(names)))) else names)


def to_str(text: bytes | str) -> str:
    """A text of TFDS, bytes or str, as str."""
    return text.decode("utf-8") if isinstance(text, bytes) else text


def _image_examples(
    rows: Rows, features: Features, label: LabelFeature, identity: Identity, tick: Tick = silent
) -> Examples:
    shape, count = features["image"].shape, len(rows)

    def read(wanted: np.ndarray) -> Fields:
        examples = rows.__getitems__([int(i) for i in wanted])
        labels = label.read(examples)
        check_labels(labels, identity)
        images = [example["image"] for example in examples]
        return {"image": object_array(images) if None in shape else np.stack(images), label.field: labels}

    classes, names = label.classes, label.names
    if None in shape or count * int(np.prod(shape)) > DECODE_ONCE:
        return Examples(read, count, identity, classes, names)
    parts = [read(np.array(block)) for block in iter_blocks(count, tick)]
    fields = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return Examples(fields, count, identity, classes, names)
