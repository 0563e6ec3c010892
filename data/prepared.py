"""Sets prepared by TensorFlow Datasets, read as array_record without TensorFlow."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import detection, splits
from data.embedded import BUILTIN
from data.kinds import (
    DECODE_ONCE,
    Examples,
    Fields,
    ParallelText,
    Source,
    Texts,
    check_labels,
    checksum,
    field_error,
    iter_blocks,
    object_array,
    unknown_split,
)
from data.pairs import languages
from data.progress import Tick, silent
from errors import UsageError, quote, unknown


def list_prepared(data_dir: str | None) -> list[str]:
    """The TFDS sets that lie in a folder, as NAME or NAME/CONFIG."""
    if data_dir is None:
        return []
    infos = [p for depth in ("*/*", "*/*/*") for p in Path(data_dir).glob(f"{depth}/dataset_info.json")]
    return sorted({str(p.parent.parent.relative_to(data_dir)) for p in infos})


@functools.cache
def open_builder(name: str, data_dir: str | None) -> Any:
    """TFDS's builder of a set. Raises UsageError for an unknown one."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(f"data set {name!r} needs the package tensorflow-datasets: {error}") from None
    try:
        return tfds.builder(name, data_dir=data_dir, file_format=None)
    except tfds.core.registered.DatasetNotFoundError:
        known = [*BUILTIN, *list_prepared(data_dir), *tfds.list_builders(with_community_datasets=False)]
        raise UsageError(f"{unknown('data set', name, known)}{_unset_hint(data_dir)}") from None
    except Exception as error:  # a version that is none fails an assertion
        if "Parsing builder name" in str(error):
            raise UsageError(f"{name!r} is no file or folder that is there, nor a name of a set of TFDS") from None
        family = name.partition("/")[0].partition(":")[0]
        variants = [f"{family}/{v}" for v in getattr(tfds.builder_cls(family), "builder_configs", {})]
        if isinstance(error, ValueError) and name.partition("/")[2] and name not in variants:
            raise unknown("data set", name, variants) from None
        raise UsageError(f"data set {quote(name)}: {[*str(error).splitlines(), type(error).__name__][0]}") from None


def _unset_hint(data_dir: str | None) -> str:
    return "" if data_dir else " (TFDS_DATA_DIR, the folder of prepared sets, is not set)"


def open_split(name: str, split: str, data_dir: str | None, raw: str | None = None) -> tuple[Any, Any, dict[str, Any]]:
    """Rows, features and identity of a split of a prepared set; the feature `raw` comes as the bytes of its file.

    Raises UsageError where it is not there.
    """
    builder = open_builder(name, data_dir)
    known = builder.info.splits  # none of a set that is not prepared
    for one in splits.split_names(split) if known else ():
        if one not in known:
            raise unknown_split(name, one, known)
    if known and not splits.is_plain(split):
        split = splits.resolve(split, lambda one: known[one].num_examples)[0]
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


def _skip_decoding(feature: str | None) -> dict[str, Any] | None:
    if feature is None:
        return None
    import tensorflow_datasets as tfds

    return {feature: tfds.decode.SkipDecoding()}


def read_rows(name: str, split: str, data_dir: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows of a split, and its identity. Raises UsageError where it is not there."""
    source, _, identity = open_split(name, split, data_dir)
    return _read_all(source), identity


def _read_all(source: Any, tick: Tick = silent) -> list[dict[str, Any]]:
    return [row for block in iter_blocks(len(source), tick) for row in source.__getitems__(block)]


def load(name: str, split: str, field: str | None, data_dir: str | None, tick: Tick = silent) -> Source:
    """Images with labels, or texts, with labels where the set has classes. Raises UsageError as `sources.load`."""
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
    texts = sorted(k for k, f in features.items() if type(f).__name__ == "Text")  # they come in any order
    if field is None and texts:
        field = "text" if "text" in texts else texts[0]
        if field != "text" and len(texts) > 1:
            raise UsageError(f"{name} has the texts {', '.join(texts)}: data.field, or --field, names the one to read")
    both = languages(field)
    for one in both or (str(field),):
        if one not in texts:
            raise unknown(f"text field of {name}", one, texts)
    if both:
        read = _read_all(rows, tick)
        first, second = (tuple(to_str(row[side]) for row in read) for side in both)
        return ParallelText(first, second, both, {**identity, "field": field})
    assert field is not None
    read = _read_all(rows, tick)
    documents, identity = tuple(to_str(row[field]) for row in read), {**identity, "field": field}
    if label is None:
        return Texts(documents, identity)
    return Texts(documents, identity, label.read(read), label.classes, label.names)


@dataclass(frozen=True)
class LabelFeature:
    """The feature of a set that holds its classes: one a row (ClassLabel), or any number (a Sequence of ClassLabel)."""

    key: str
    multilabel: bool
    classes: int
    names: tuple[str, ...] | None  # None where they are numbers only

    @property
    def field(self) -> str:
        """The field of Examples that they become."""
        return "labels" if self.multilabel else "label"

    def read(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """The labels of some rows: int32 [n], or float32 [n C] of 0 and 1 where a row has any number of them.

        What a set keeps secret is -1.
        """
        if not self.multilabel:
            return np.array([row[self.key] for row in rows], np.int32)
        found = np.zeros((len(rows), self.classes), np.float32)
        for i, row in enumerate(rows):
            classes = np.asarray(row[self.key], np.int64)
            if (classes < 0).any():
                found[i] = -1
            else:
                found[i, classes] = 1
        return found


def _find_labels(features: Any) -> LabelFeature | None:
    """The labels of a set: of one class a row, else of several, `label` or `labels`, else the only ones.

    None where there are others beside each other: the features come in any order.
    """
    single = {k: f for k, f in features.items() if type(f).__name__ == "ClassLabel"}
    several = {k: f.feature for k, f in features.items() if type(getattr(f, "feature", None)).__name__ == "ClassLabel"}
    found = single or several
    key = next((k for k in ("label", "labels") if k in found), next(iter(found)) if len(found) == 1 else None)
    if key is None:
        return None
    names, classes = tuple(found[key].names or ()), found[key].num_classes
    return LabelFeature(key, not single, classes, None if names == tuple(map(str, range(len(names)))) else names)


def to_str(text: bytes | str) -> str:
    """Text as TFDS gives it, which may be bytes."""
    return text.decode("utf-8") if isinstance(text, bytes) else text


def _image_examples(
    rows: Any, features: Any, label: LabelFeature, identity: dict[str, Any], tick: Tick = silent
) -> Examples:
    shape, count = features["image"].shape, len(rows)

    def read(wanted: np.ndarray) -> Fields:
        got = rows.__getitems__([int(i) for i in wanted])
        labels = label.read(got)
        check_labels(labels, identity)
        images = [g["image"] for g in got]
        return {"image": object_array(images) if None in shape else np.stack(images), label.field: labels}

    classes, names = label.classes, label.names
    if None in shape or count * int(np.prod(shape)) > DECODE_ONCE:
        return Examples(read, count, identity, classes, names)
    parts = [read(np.array(block)) for block in iter_blocks(count, tick)]
    fields = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return Examples(fields, count, identity, classes, names)
