"""Arrays by the names of fields: read as given, from files of any layout, or refused by name, field, row and value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import sources
from data.sources import arrays as array_files
from data.sources.reader import Request
from data.types import Examples
from errors import UsageError

LABELS = np.arange(10) % 3


def fields(count: int = 10, **more: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"features": rng.normal(size=(count, 4)), "label": LABELS[:count], **more}


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A .npz file, or a folder of .npy files."""
    if path.suffix == ".npz":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
        return path
    path.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(path / name, array)
    return path


def load(path: Path, split: str = "train") -> Examples:
    source = sources.load(str(path), split)
    assert isinstance(source, Examples)
    return source


@pytest.mark.parametrize("form", ["a.npz", "a"])
def test_arrays_are_the_split_train(form: str, tmp_path: Path) -> None:
    """Each as the type of its field; a part has its rows; the content decides the checksum, the form does not."""
    given = fields()
    path = write(tmp_path / form, given)
    assert sources.splits_of(str(path)) == ("train",)
    source = load(path)
    assert (len(source), source.classes, source.names) == (10, 3, None)
    read = source.__getitems__([7, 2])
    np.testing.assert_array_equal(read["features"], given["features"].astype(np.float32)[[7, 2]])
    assert {k: v.dtype for k, v in read.items()} == {"features": np.float32, "label": np.int32}
    np.testing.assert_array_equal(load(path, "train[90%:]").__getitems__([0])["label"], LABELS[9:])
    other = load(write(tmp_path / "b" / ("b" if form == "a.npz" else "b.npz"), given))
    assert other.identity["checksum"] == source.identity["checksum"]
    changed = load(write(tmp_path / "c.npz", {**given, "features": given["features"] + 1}))
    assert changed.identity["checksum"] != source.identity["checksum"]
    with pytest.raises(UsageError, match=r"unknown split .*to divide it: train\[:90%\]"):
        load(path, "test")


@pytest.mark.parametrize("form", ["{}.npz", "{}"])
def test_splits_are_named_and_share_their_classes(form: str, tmp_path: Path) -> None:
    for split, rows in (("train", slice(0, 2)), ("Test", slice(0, 6))):
        write(tmp_path / form.format(split), {k: v[rows] for k, v in fields().items()})
    assert sources.splits_of(str(tmp_path)) == ("train", "test")
    train, test = load(tmp_path), load(tmp_path, "test")
    assert (len(train), len(test)) == (2, 6)
    assert train.classes == test.classes == 3
    assert (train.absent, test.absent) == (("2",), ())


@pytest.mark.parametrize(
    ("name", "array", "dtype"),
    [
        ("features", np.ones((10, 3, 4), np.int64), np.float32),
        ("image", np.ones((10, 4, 5, 3), np.uint8), np.uint8),
        ("tokens", np.ones((10, 6), np.uint16), np.int32),
    ],
)
@pytest.mark.parametrize(
    ("target", "values", "target_shape"),
    [
        ("label", LABELS.astype(np.uint8), ()),
        ("labels", np.eye(3, dtype=bool)[LABELS], (3,)),
        ("target", np.arange(10), (1,)),
        ("target", np.ones((10, 2)), (2,)),
    ],
)
def test_every_field_has_its_type(
    name: str,
    array: np.ndarray,
    dtype: Any,
    target: str,
    values: np.ndarray,
    target_shape: tuple[int, ...],
    tmp_path: Path,
) -> None:
    source = load(write(tmp_path / "a.npz", {name: array, target: values}))
    assert source.shapes[name] == array.shape[1:]
    assert source.shapes[target] == target_shape
    assert source.__getitems__([0])[name].dtype == dtype
    assert ("mask" in source.shapes) == (name == "tokens")
    assert source.classes == (None if target == "target" else 3)


def test_large_arrays_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same rows; a wrong value is found when its row is read."""
    path = write(tmp_path / "a", fields())
    small = load(path)
    monkeypatch.setattr(array_files, "DECODE_ONCE", 10)
    monkeypatch.setattr(array_files, "BLOCK", 4)
    large = load(path)
    assert callable(large.fields)
    assert (large.classes, len(large)) == (3, 10)
    for name, values in small.__getitems__([3, 9, 3]).items():
        np.testing.assert_array_equal(large.__getitems__([3, 9, 3])[name], values)
    features = fields()["features"]
    features[4, 1] = np.nan
    np.save(path / "features.npy", features)
    with pytest.raises(UsageError, match=r"features\.npy: row 4 has nan, which is not a finite float32"):
        load(path).__getitems__([8, 4])


NAN = np.where(np.arange(40).reshape(10, 4) == 21, np.nan, 1)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (fields(feature=LABELS), "train': unknown array 'feature'; did you mean 'features'"),
        (fields(image=np.ones((10, 2, 2, 1), np.uint8)), "needs one input, .*; it has features and image"),
        ({"features": np.ones((10, 2))}, "needs one target, label, labels or target; it has features only"),
        ({"label": LABELS}, "needs one input"),
        ({**fields(), "label": LABELS[:9]}, "the same number of rows.* 10 in features and 9 in label"),
        ({"features": np.ones((0, 2)), "label": LABELS[:0]}, "one or more; there are 0 in features"),
        ({**fields(), "features": np.ones(10)}, r"features is float64 \[10\]; legal: numbers \[n F\] or"),
        ({**fields(), "features": np.array(["a"] * 10)}, r"features is <U1 \[10\]"),
        ({**fields(), "features": NAN}, r"features: row 5 has nan, which is not a finite float32"),
        ({**fields(), "features": np.full((10, 1), 1e39)}, r"row 0 has 1e\+39, which is not a finite float32"),
        ({**fields(), "label": LABELS / 2}, r"label is float64 \[10\]; legal: whole numbers \[n\]"),
        ({**fields(), "label": LABELS - 1}, r"label: row 0 has -1, which is not a whole number from 0"),
        ({**fields(), "label": LABELS * 2}, "has the class 2 but no 1 in any split"),
        ({**fields(), "label": LABELS * 0}, "one class only"),
        ({"features": np.ones((10, 2)), "labels": np.full((10, 2), 0.5)}, "labels: row 0 has 0.5, which is not 0 or 1"),
        (
            {"image": np.ones((10, 2, 2), np.uint8), "label": LABELS},
            r"image is uint8 \[10, 2, 2\]; legal: uint8 \[n rows",
        ),
        ({"image": np.ones((10, 2, 2, 1)), "label": LABELS}, "image is float64"),
        ({"tokens": np.full((10, 2), 2**31), "label": LABELS}, "row 0 has 2147483648, which is not a whole number"),
        (fields(mask=np.ones((10, 4))), r"mask is \[10, 4\]; it must have the shape of tokens"),
    ],
)
def test_what_is_no_field_is_refused(arrays: dict[str, np.ndarray], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        load(write(tmp_path / "a.npz", arrays))
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def damage(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damage("train.npz", b"PK\x03\x04"), r"train\.npz cannot be read as \.npz"),
        (damage("label.npy", b"\x93NUMPY"), "label.npy cannot be read as an array"),
        (lambda folder: np.save(folder / "label", np.array([None] * 3), allow_pickle=True), "Python objects"),
        (lambda folder: np.savez(folder / "mine.npz", **fields()), r"mine\.npz is of no split: write SPLIT\.npz or"),
        (lambda folder: write(folder / "a" / "b", fields()), r"features\.npy is of no split"),
        (lambda folder: [np.savez(folder / "train.npz", **fields()), np.save(folder / "label", LABELS)], "same field"),
        (
            lambda folder: (
                [write(folder / name, fields(x)) for name, x in (("train.npz", 9), ("test", 8))]
                and np.save(folder / "test/features", np.ones((8, 5)))
            ),
            "rows of split 'train' are .*4.*, those of 'test' .*5",
        ),
    ],
)
def test_files_amiss_are_refused(spoil: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(UsageError, match=says) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


def test_one_array_is_no_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "a", LABELS)
    with pytest.raises(UsageError, match=r"a\.npy is one array: give a folder"):
        load(tmp_path / "a.npy")


def test_texts_beside_arrays_are_texts(tmp_path: Path) -> None:
    """As before arrays were read."""
    write(tmp_path / "a", fields())
    (tmp_path / "a" / "notes.txt").write_text("a text " * 20)
    (note,) = sources.load(str(tmp_path / "a"), "train").notes
    assert "skipped, as they are not texts: features.npy, label.npy" in note


def test_a_bare_word_is_a_folder_of_arrays_by_the_names_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mnist/mnist.npz` does not hide TFDS's mnist; any folder is read by a path."""
    monkeypatch.chdir(tmp_path)
    for name, file in (("named", "train.npz"), ("mnist", "mnist.npz"), ("in_npy", "train/features.npy")):
        Path(name, file).parent.mkdir(parents=True)
        np.save(Path(name, file), np.ones(2)) if file.endswith(".npy") else write(Path(name, file), fields())
    found = {name: array_files.find(Request(name)) is not None for name in ("named", "mnist", "in_npy")}
    assert found == {"named": True, "mnist": False, "in_npy": True}
    with pytest.raises(UsageError, match=r"mnist/mnist\.npz is of no split"):
        sources.load("./mnist", "train")


@pytest.mark.parametrize("large", [False, True])
def test_a_part_of_sorted_rows_names_the_classes_that_it_lacks(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows keep their order; a sum of parts has the classes of both."""
    monkeypatch.setattr(array_files, "DECODE_ONCE", 0 if large else 2**30)
    np.save(tmp_path / "features.npy", np.arange(10.0)[:, None])
    np.save(tmp_path / "label.npy", np.repeat(np.arange(5), 2))
    part = load(tmp_path, "train[:60%]")
    assert part.__getitems__(range(6))["label"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (part.absent, part.notes) == (("3", "4"), ("split 'train[0:6]' has no row of class 3, 4",))
    assert (load(tmp_path).absent, load(tmp_path, "train[:3]+train[5:]").absent) == ((), ())
