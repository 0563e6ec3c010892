"""Arrays by the names of fields: .npz files, and folders with a .npy file for each field.

A folder holds `train.npz`, `test.npz` … or `train/features.npy`, `train/label.npy`, `test/features.npy` …; without
splits, a .npz file and a folder of .npy files are the split `train`. The fields are those of `data/types.py: Examples`.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.fields import (
    BLOCK,
    DECODE_ONCE,
    Fields,
    absent_classes,
    absent_notes,
    checksum,
    count_classes,
    iter_blocks,
)
from data.files import SPLITS, list_files
from data.images.decode import display_name
from data.sources.reader import Reader, Request, checked_reader
from data.types import Examples
from documents import reject_lfs_pointer
from errors import UsageError, quote, unknown

NPZ, NPY = ".npz", ".npy"


class Form(NamedTuple):
    """What an array may be: the beginnings of its dtype (as `f4`), its dims, both in words; and what it is read as."""

    types: tuple[str, ...]
    dims: tuple[int, ...]
    words: str
    dtype: type[np.generic]


NUMBERS, INTEGERS = ("f", "i", "u", "b"), ("i", "u")
FORMS = {
    "features": Form(NUMBERS, (2, 3), "numbers [n F] or [n T F]", np.float32),
    "image": Form(("u1",), (4,), "uint8 [n rows columns channels]", np.uint8),
    "tokens": Form(INTEGERS, (2,), "whole numbers [n T]", np.int32),
    "mask": Form(NUMBERS, (2,), "0 and 1 [n T]", np.float32),
    "label": Form((*INTEGERS, "b"), (1,), "whole numbers [n]", np.int32),
    "labels": Form(NUMBERS, (2,), "0 and 1 [n classes]", np.float32),
    "target": Form(NUMBERS, (1, 2), "numbers [n] or [n outputs]", np.float32),
}
INPUTS, OUTPUTS = ("features", "image", "tokens"), ("label", "labels", "target")


@dataclass(frozen=True)
class ArrayFile:
    """An array in a .npy file, or the member of that name in a .npz file."""

    path: Path
    name: str

    def __str__(self) -> str:
        """Its place, for messages."""
        return str(self.path) if self.path.suffix.lower() == NPY else f"{self.path}: {self.name}"

    def open(self) -> np.ndarray:
        """The array, of a .npy file mapped into memory. Raises UsageError if it cannot be read."""
        reject_lfs_pointer(self.path)
        try:
            opened = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if isinstance(opened, np.ndarray):
                return opened
            with opened:
                return opened[self.name]
        except Exception as error:  # numpy and zipfile raise nearly any exception for a damaged file
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UsageError(f"{self} cannot be read as an array: {reason}") from None


@dataclass(frozen=True)
class ArrayReader:
    """Rows -> fields, read from .npy files on each call."""

    files: dict[str, ArrayFile]

    def __call__(self, rows: np.ndarray) -> Fields:
        """The fields of some rows. Raises UsageError for a value that a field cannot have."""
        return _complete({name: _read(str(file), name, file.open(), rows) for name, file in self.files.items()})


def find(request: Request) -> Reader | None:
    """The reader of a .npz file, or of a folder with .npz or .npy files and neither texts nor images.

    A bare word is such a folder if the name of a file is that of a split or field: `mnist/mnist.npz` is neither.
    """
    path = request.path
    if path.is_dir():
        files = [] if request.files else list_files(path, (NPZ, NPY))
        named = [file for file in files if file.stem.lower() in SPLITS or file.stem in FORMS]
        if not (named if request.is_word else files):
            return None
    elif not path.name.lower().endswith((NPZ, NPY)):
        return None
    found = _files_by_split(path)
    return checked_reader(request.name, lambda: tuple(found), lambda split: _load(path, split, found))


def from_arrays(name: str, split: str, arrays: Mapping[str, np.ndarray], classes: int | None = None) -> Examples:
    """Examples in memory; `classes` is by default one more than the greatest label.

    Raises UsageError for an array that is not of its field's form, and for a value that a field cannot have.
    """
    _check_forms(name, arrays)
    return _in_memory(name, split, {k: _read(f"{name}: {k}", k, array) for k, array in arrays.items()}, classes)


def _files_by_split(path: Path) -> dict[str, dict[str, ArrayFile]]:
    """The arrays of each split by field. Raises UsageError for files whose split is not clear."""
    if not path.is_dir():
        if path.suffix.lower() == NPY:
            raise UsageError(f"{path} is one array: give a folder with a .npy file for each field, as features.npy")
        return {"train": _members(path)}
    found: dict[str, dict[str, ArrayFile]] = {}
    for file in list_files(path, (NPZ, NPY)):
        *folders, _ = file.relative_to(path).parts
        is_npz = file.suffix.lower() == NPZ
        split = "/".join(folders) or (file.stem if is_npz else "train")
        if split.lower() not in SPLITS or (folders and is_npz):
            raise UsageError(
                f"{file} is of no split: write SPLIT.npz or SPLIT/FIELD.npy, where SPLIT is one of {', '.join(SPLITS)}"
            )
        own = found.setdefault(split.lower(), {})
        for name, array in (_members(file) if is_npz else {file.stem: ArrayFile(file, file.stem)}).items():
            if name in own:
                raise UsageError(f"{own[name]} and {array} are the same field of the same split: remove one")
            own[name] = array
    return {split: found[split] for split in SPLITS if split in found}


def _members(file: Path) -> dict[str, ArrayFile]:
    reject_lfs_pointer(file)
    try:
        with zipfile.ZipFile(file) as members:
            names = [name.removesuffix(NPY) for name in members.namelist()]
    except Exception as error:  # as above
        raise UsageError(f"{file} cannot be read as .npz: {error}") from None
    return {name: ArrayFile(file, name) for name in names}


def _load(path: Path, split: str, found: Mapping[str, Mapping[str, ArrayFile]]) -> Examples:
    """The examples of a split; the classes, and the tokens' vocabulary, are those of all splits together.

    Up to DECODE_ONCE bytes are kept in memory; of more, .npy files are read row by row. Raises UsageError as
    `from_arrays`, and for splits that differ.
    """
    opened = {name: {field: file.open() for field, file in files.items()} for name, files in found.items()}
    for name, arrays in opened.items():
        _check_forms(f"{path}: split {name!r}", arrays)
    _check_same(path, opened)
    classes, vocab = _count_classes(path, found), _count_tokens(found)
    files, arrays = found[split], opened[split]
    size = sum(array.size * np.dtype(FORMS[name].dtype).itemsize for name, array in arrays.items())
    if size <= DECODE_ONCE or not all(isinstance(array, np.memmap) for array in arrays.values()):
        fields = {name: _read(str(files[name]), name, array) for name, array in arrays.items()}
        return replace(_in_memory(display_name(path), split, fields, classes), vocab=vocab)
    reader, count = ArrayReader(dict(files)), len(next(iter(arrays.values())))
    forms = repr([(name, array.shape, str(array.dtype)) for name, array in sorted(arrays.items())])
    some = reader(np.linspace(0, count - 1, BLOCK).astype(np.int64))  # reading all would take minutes
    digest = checksum(forms.encode(), *(some[name] for name in sorted(some)))
    identity = {"name": display_name(path), "split": split, "count": count, "checksum": digest}
    labels = _read(str(files["label"]), "label", arrays["label"]) if "label" in files else None
    absent = () if labels is None else absent_classes(labels, [*map(str, range(classes or 0))])
    notes = absent_notes(split, absent, "row of class")
    return Examples(reader, count, identity, classes, None, absent, notes, labels, vocab=vocab)


def _in_memory(name: str, split: str, fields: Fields, classes: int | None) -> Examples:
    """Examples of arrays that are checked."""
    fields, absent = _complete(fields), tuple[str, ...]()
    if "labels" in fields:
        columns = fields["labels"].shape[1]
        if classes not in (None, columns):
            raise UsageError(f"{name}: labels has {columns} columns; there are {classes} classes")
        classes = columns
    elif "label" in fields:
        least = 1 + int(fields["label"].max())
        classes = least if classes is None else classes
        if least > classes:
            raise UsageError(f"{name}: label has the class {least - 1}; there are {classes} classes, from 0 on")
        absent = absent_classes(fields["label"], [*map(str, range(classes))])
    elif classes is not None:
        raise UsageError(f"{name}: there are {classes} classes but no label")
    count, digest = len(next(iter(fields.values()))), checksum(*(fields[field] for field in sorted(fields)))
    identity = {"name": name, "split": split, "count": count, "checksum": digest}
    vocab = 1 + int(fields["tokens"].max()) if "tokens" in fields else None
    notes = absent_notes(split, absent, "row of class")
    return Examples(fields, count, identity, classes, None, absent, notes, vocab=vocab)


def _complete(fields: Fields) -> Fields:
    """Fields with a mask of ones for tokens without one."""
    if "tokens" in fields and "mask" not in fields:
        return {**fields, "mask": np.ones(fields["tokens"].shape, np.float32)}
    return fields


def _check_forms(where: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise UsageError for arrays that are no fields of examples, have other types or shapes, or differ in length."""
    for name, array in arrays.items():
        if name not in FORMS:
            raise UsageError(f"{where}: {unknown('array', name, FORMS)}")
        form = FORMS[name]
        if not array.dtype.str[1:].startswith(form.types) or array.ndim not in form.dims or 0 in array.shape[1:]:
            raise UsageError(f"{where}: {name} is {array.dtype} {list(array.shape)}; legal: {form.words}")
    for what, legal in (("input", INPUTS), ("target", OUTPUTS)):
        if len(has := [name for name in legal if name in arrays]) != 1:
            listed = " and ".join(has) or f"{', '.join(arrays)} only"
            raise UsageError(f"{where} needs one {what}, {', '.join(legal[:-1])} or {legal[-1]}; it has {listed}")
    if "mask" in arrays and ("tokens" not in arrays or arrays["mask"].shape != arrays["tokens"].shape):
        raise UsageError(f"{where}: mask is {list(arrays['mask'].shape)}; it must have the shape of tokens")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len({*lengths.values()}) > 1 or not max(lengths.values()):
        listed = " and ".join(f"{count:,} in {name}" for name, count in lengths.items())
        raise UsageError(f"{where}: arrays must have the same number of rows, one or more; there are {listed}")


def _check_same(path: Path, opened: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Raise UsageError for splits whose rows have other fields or shapes."""
    rows = {split: {k: list(a.shape[1:]) for k, a in sorted(arrays.items())} for split, arrays in opened.items()}
    (first, row), *others = rows.items()
    for split, other in others:
        if other != row:
            raise UsageError(f"{path}: rows of split {first!r} are {row}, those of {split!r} {other}")


def _count_classes(path: Path, found: Mapping[str, Mapping[str, ArrayFile]]) -> int | None:
    """The classes of all splits; None without labels. Raises UsageError for numbers that leave one out."""
    every = [files for files in found.values() if "label" in files]
    if not every:
        labels = next(iter(found.values())).get("labels")
        return labels.open().shape[1] if labels else None
    numbers = np.concatenate([_read(str(files["label"]), "label", files["label"].open()) for files in every])
    return count_classes(f"{path}: label", np.unique(numbers).tolist())


def _count_tokens(found: Mapping[str, Mapping[str, ArrayFile]]) -> int | None:
    """One more than the greatest token of all splits; None without tokens."""
    files = [fields["tokens"] for fields in found.values() if "tokens" in fields]
    greatest = -1
    for file in files:
        array = file.open()
        for block in iter_blocks(len(array)):
            greatest = max(greatest, int(_read(str(file), "tokens", array, np.array(block)).max()))
    return greatest + 1 if files else None


def _read(where: str, name: str, array: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """An array, or some rows of it, as the type of its field. Raises UsageError for a value it cannot have."""
    values = np.asarray(array if rows is None else array[rows])
    with np.errstate(over="ignore"):
        read = values.astype(FORMS[name].dtype)
    wrong, rule = np.zeros(len(read), bool), ""
    if name in ("features", "target"):
        wrong, rule = ~np.isfinite(read), "a finite float32"
    elif name in ("labels", "mask"):
        wrong, rule = (read != 0) & (read != 1), "0 or 1"
    elif name in ("label", "tokens"):
        wrong, rule = (values < 0) | (values > np.iinfo(np.int32).max), "a whole number from 0 to 2^31 - 1"
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        row = at[0] if rows is None else int(rows[at[0]])
        raise UsageError(f"{where}: row {row:,} has {quote(values[at].item())}, which is not {rule}")
    return read[:, None] if name == "target" and read.ndim == 1 else read
