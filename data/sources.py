"""Where examples come from: embedded sets, a user's text files, and TFDS, all read by row.

A source is random-access and knows its identity. Two kinds: `Examples` (fields by row) and `Texts` (documents).
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errors import UsageError, unknown

DECODE_ONCE = 2**30  # bytes: a set no larger than this when decoded is held decoded in memory


@dataclass(frozen=True)
class Examples:
    """Labelled examples, a row each: features float32 [n F] or image uint8 [n Y X C], and label int32 [n].

    `fields` is a dict of arrays, or a function from rows to one where the set is too large to hold decoded.
    """

    fields: dict[str, np.ndarray] | Callable[[np.ndarray], dict[str, np.ndarray]]
    count: int
    identity: dict[str, Any]
    classes: int

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The fields of some rows, in their order."""
        wanted = np.asarray(rows)
        return self.fields(wanted) if callable(self.fields) else {k: v[wanted] for k, v in self.fields.items()}


@dataclass(frozen=True)
class Texts:
    """Documents, as str."""

    documents: tuple[str, ...]
    identity: dict[str, Any]

    def __len__(self) -> int:
        return len(self.documents)


Source = Examples | Texts


def load(name: str, split: str, *, field: str | None = None, data_dir: str | None = None) -> Source:
    """A source by name: an embedded set, a path to text (`.txt` file or folder of them), else a TFDS name.

    `field` picks the text of a TFDS set that has several. Raises UsageError for an unknown name, split or field, or a
    set that is not prepared, with the command that prepares it.
    """
    if name in EMBEDDED:
        reader, splits = EMBEDDED[name]
        _known_split(name, split, splits)
        return reader(split)
    if _is_text(name):
        return _text_files(Path(name), split)
    return _tfds(name, split, field, data_dir)


def splits_of(name: str, data_dir: str | None = None) -> tuple[str, ...]:
    """The splits a source has, in the order of its own listing."""
    if name in EMBEDDED:
        return EMBEDDED[name][1]
    if _is_text(name):
        return ("train", "validation")
    return tuple(_builder(name, data_dir).info.splits)


def _is_text(name: str) -> bool:
    return name.endswith(".txt") or Path(name).is_dir() or (os.sep in name and Path(name).exists())


def _known_split(name: str, split: str, splits: Iterable[str]) -> None:
    if split not in splits:
        raise unknown(f"split of {name}", split, splits)


def checksum(*parts: np.ndarray | bytes) -> str:
    """A digest of arrays and bytes, 16 hex digits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:16]


def _examples(name: str, split: str, classes: int, **fields: np.ndarray) -> Examples:
    count = len(next(iter(fields.values())))
    identity = {"name": name, "split": split, "count": count, "checksum": checksum(*fields.values())}
    return Examples(fields, count, identity, classes)


def _texts(name: str, split: str, documents: Iterable[str]) -> Texts:
    documents = tuple(documents)
    digest = checksum(*(d.encode() + b"\0" for d in documents))
    return Texts(documents, {"name": name, "split": split, "count": len(documents), "checksum": digest})


def _xor(split: str) -> Examples:
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    return _examples("xor", split, 2, features=x, label=(x.sum(1) == 1).astype(np.int32))


def _moons(split: str) -> Examples:
    from sklearn.datasets import make_moons

    x, y = make_moons(n_samples=100 if split == "train" else 1000, noise=0.1, random_state=1 + (split != "train"))
    return _examples("moons", split, 2, features=x.astype(np.float32), label=y.astype(np.int32))


def _digits(split: str) -> Examples:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    image = np.rint(x.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    test = np.arange(len(y)) % 5 == 4
    rows = ~test if split == "train" else test
    return _examples("digits", split, 10, image=image[rows], label=y[rows].astype(np.int32))


def _pydoc_text(split: str) -> Texts:
    from pydoc_data.topics import topics

    names = sorted(topics)
    held = {n for i, n in enumerate(names) if i % 5 == 4}
    return _texts("pydoc_text", split, (topics[n] for n in names if (n in held) == (split == "validation")))


EMBEDDED: dict[str, tuple[Callable[[str], Source], tuple[str, ...]]] = {
    "xor": (_xor, ("train", "test")),
    "moons": (_moons, ("train", "test")),
    "digits": (_digits, ("train", "test")),
    "pydoc_text": (_pydoc_text, ("train", "validation")),  # differs by Python's patch release: for first contact only
}


def _text_files(path: Path, split: str) -> Texts:
    """A file, or a folder's files in the order of their names; the last tenth is the validation split.

    Of ten files or more whole files are held out, of fewer the end of each file.
    """
    _known_split(str(path), split, ("train", "validation"))
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UsageError(f"no .txt file at {str(path)!r}; give a .txt file or a folder that holds some")
    documents = [_read(f) for f in files]
    if len(documents) >= 10:
        held = len(documents) // 10
        chosen = documents[:-held] if split == "train" else documents[-held:]
    else:
        cuts = [len(d) - len(d) // 10 for d in documents]
        chosen = [d[:c] if split == "train" else d[c:] for d, c in zip(documents, cuts, strict=True)]
    return _texts(path.name, split, chosen)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None


def _prepared(data_dir: str | None) -> list[str]:
    """The TFDS sets that lie in a folder, as NAME or NAME/CONFIG."""
    if data_dir is None:
        return []
    infos = [p for depth in ("*/*", "*/*/*") for p in Path(data_dir).glob(f"{depth}/dataset_info.json")]
    return sorted({str(p.parent.parent.relative_to(data_dir)) for p in infos})


@functools.cache
def _builder(name: str, data_dir: str | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(f"data set {name!r} needs the package tensorflow-datasets: {error}") from None
    try:
        return tfds.builder(name, data_dir=data_dir, file_format=None)
    except tfds.core.registered.DatasetNotFoundError:
        known = [*EMBEDDED, *_prepared(data_dir), *tfds.list_builders(with_community_datasets=False)]
        raise unknown("data set", name, known) from None
    except ValueError as error:
        family = name.partition("/")[0]
        variants = [f"{family}/{v}" for v in getattr(tfds.builder_cls(family), "builder_configs", {})]
        if name.partition("/")[2] and name not in variants:
            raise unknown("data set", name, variants) from None
        raise UsageError(f"data set {name!r}: {str(error).splitlines()[0]}") from None


def _tfds(name: str, split: str, field: str | None, data_dir: str | None) -> Source:
    builder = _builder(name, data_dir)
    if builder.info.splits:  # a set that is not prepared knows none
        _known_split(name, split, builder.info.splits)
    try:
        rows = builder.as_data_source(split=split)
    except (NotImplementedError, ValueError, AssertionError, OSError):
        raise UsageError(
            f"data set {name!r} is not prepared as array_record in {builder.data_dir}; run: python -c "
            f"\"import tensorflow_datasets as t; t.data_source('{name}', download=True)\", or set TFDS_DATA_DIR"
        ) from None
    features, count = builder.info.features, len(rows)
    digest = checksum(repr([(s.name, s.shard_lengths, s.num_bytes) for s in builder.info.splits.values()]).encode())
    identity = {"name": builder.info.full_name, "split": split, "count": count, "checksum": digest}
    if "image" in features and "label" in features:
        return _labelled_images(rows, features, identity)
    texts = [k for k, f in features.items() if type(f).__name__ == "Text"]
    if field is None and texts:
        field = texts[0]
    if field not in texts:
        raise unknown(f"text field of {name}", str(field), texts)
    batches = (rows.__getitems__(range(i, min(i + 1024, count))) for i in range(0, count, 1024))
    documents = tuple(_decode(row[field]) for batch in batches for row in batch)
    return Texts(documents, {**identity, "field": field})


def _decode(text: bytes | str) -> str:
    return text.decode("utf-8") if isinstance(text, bytes) else text


def _labelled_images(rows: Any, features: Any, identity: dict[str, Any]) -> Examples:
    def read(wanted: np.ndarray) -> dict[str, np.ndarray]:
        got = rows.__getitems__([int(i) for i in wanted])
        label = np.array([g["label"] for g in got], np.int32)
        return {"image": np.stack([g["image"] for g in got]), "label": label}

    count, classes, shape = len(rows), features["label"].num_classes, features["image"].shape
    if None in shape:
        raise UsageError(f"{identity['name']}: images of varying size {shape} need a resize, which this source lacks")
    if count * int(np.prod(shape)) > DECODE_ONCE:
        return Examples(read, count, identity, classes)
    parts = [read(np.arange(i, min(i + 1024, count))) for i in range(0, count, 1024)]
    fields = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return Examples(fields, count, identity, classes)
