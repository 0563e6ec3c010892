"""Texts with labels in files of rows: classes over all splits, and every wrong value named by its place."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from data import sources
from data.sources import rows as row_files
from data.types import ParallelText, Texts
from errors import UsageError

ENDINGS = [".jsonl", ".csv", ".tsv", ".parquet"]
TEXTS = ['so "it"\ngoes, on', "schön\u2028 ", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Rows in the format of the path's extension; a CSV begins with a byte-order mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        out = io.StringIO()
        table = csv.DictWriter(out, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        path.write_text("\ufeff" + out.getvalue(), "utf-8", newline="")
    return path


def load(path: Path, split: str = "train", field: str = "text:label") -> Texts:
    source = sources.load(str(path), split, field=field)
    assert isinstance(source, Texts)
    return source


def labels_of(source: Texts) -> list[int]:
    assert source.labels is not None
    assert source.labels.dtype == np.int32
    return source.labels.tolist()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("column", ["label", "class", "mood"])
def test_names_are_classes_in_order_of_the_alphabet(ending: str, column: str, tmp_path: Path) -> None:
    """Over both splits of a file, of which the last tenth of each class is held out."""
    rows = [{"id": i, "text": text, column: "sad" if i < 6 else "happy"} for i, text in enumerate(TEXTS)]
    path = write(tmp_path / f"moods{ending}", rows)
    field = f"text:{column}" if column != "mood" else "text:label=mood"
    assert sources.splits_of(str(path), field=field) == ("train", "validation")
    train, held = (load(path, split, field) for split in ("train", "validation"))
    assert train.names == held.names == ("happy", "sad")
    assert (*train.documents, *held.documents) == (*TEXTS[:5], *TEXTS[6:11], TEXTS[5], TEXTS[11])
    assert labels_of(train) + labels_of(held) == [1] * 5 + [0] * 5 + [1, 0]
    assert train.identity["checksum"] != held.identity["checksum"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_splits_share_their_classes(ending: str, tmp_path: Path) -> None:
    """Also those that one of them lacks, which is named."""
    write(tmp_path / f"train{ending}", [{"text": str(i), "label": "ab"[i % 2]} for i in range(4)])
    write(tmp_path / f"test{ending}", [{"text": "x", "label": "c"}])
    train, test = (load(tmp_path, split) for split in ("train", "test"))
    assert train.names == test.names == ("a", "b", "c")
    assert (train.absent, test.absent) == (("c",), ("a", "b"))
    assert "split 'train' has no row of c" in train.notes
    assert labels_of(load(tmp_path, "train+test")) == [0, 1, 0, 1, 2]
    assert load(tmp_path, "train+test").absent == ()
    assert load(tmp_path, "train[:1]").absent == ("b", "c")
    with pytest.raises(UsageError, match=r"unknown split of .* 'tset'; did you mean 'test'"):
        load(tmp_path, "tset")


@pytest.mark.parametrize("ending", ENDINGS)
def test_numbers_are_classes(ending: str, tmp_path: Path) -> None:
    rows = [{"text": str(i), "label": i % 11} for i in range(44)]
    train = load(write(tmp_path / f"a{ending}", rows))
    assert (train.names, train.classes) == (None, 11)
    assert labels_of(train) == [i % 11 for i in range(33)]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_lists_are_several_classes(ending: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": str(i), "labels": ["b", "a"][: i % 3]} for i in range(10)]
    train = load(write(tmp_path / f"a{ending}", rows), field="text:labels")
    assert (train.names, train.label_field) == (("a", "b"), "labels")
    np.testing.assert_array_equal(train.labels[:4], [[0, 0], [0, 1], [1, 1], [0, 0]])
    assert len(train) == 9


def test_two_texts_stay_a_translation(tmp_path: Path) -> None:
    """By the second name, whatever the first: `mood` holds no labels unless it is said to."""
    path = write(tmp_path / "a.jsonl", [{"text": str(i), "mood": "sad"} for i in range(20)])
    assert isinstance(sources.load(str(path), "train", field="text:mood"), ParallelText)
    for name in ("train.text", "train.label"):
        (tmp_path / name).write_text("a\nb\n")
    assert isinstance(sources.load(str(tmp_path), "train", field="text:label"), ParallelText)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text,label\na,x\nb,\n", r"a\.csv, line 3: the field 'label' is '': a label is not empty"),
        ("a.csv", "text,label\na,x\n,y\n", r"line 3: the field 'text' is empty"),
        ("a.csv", "text,label\na,x\nb, x\n", r"line 3: the field 'label' is ' x': .*no space before"),
        ("a.csv", "text,lable\na,x\n", r"line 2: unknown field 'label'; did you mean 'lable'\?"),
        ("a.csv", "text,label\na,x\nb,x\n", r"'label' has one label only, 'x', but a classifier needs two"),
        ("a.csv", "text,label\na,0\nb,1\nc,3\n", r"has the class 3 but no 2 in any split"),
        ("a.csv", "text,label\na,1\nb,2\n", r"has the class 1 but no 0 in any split"),
        ("a.csv", "text,label\na,0\nb,-1\n", r"line 3: the field 'label' is -1: numbers of classes begin at 0"),
        ("a.csv", "", r"a\.csv has no rows"),
        ("a.jsonl", '{"text": "a", "label": null}', r"line 1: the field 'label' is None, not a label"),
        ("a.jsonl", '{"text": "a", "label": 0.5}', "is 0.5, not a label"),
        ("a.jsonl", '{"text": "a", "label": true}', "is True, not a label"),
        ("a.jsonl", '{"text": "a", "label": ["x", 1.5]}', "is 1.5, not a label"),
        ("a.jsonl", '{"text": 3, "label": 1}', "the field 'text' is 3, not text"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}\n{"text": "a", "label": "x"}', r"line 1: .*list.*, .*line 2: .*'x'"),
        ("a.jsonl", '{"text": "a", "label": []}', "has one label only, nothing"),
        ("a.jsonl", '{"text": "a"}', "line 1: unknown field 'label'; legal: text"),
    ],
)
def test_what_is_no_label_is_refused_by_its_place(name: str, content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=says) as refused:
        load(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_parquet_is_read_as_texts_and_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"text": t, "de": t.upper(), "extra": [1]} for t in TEXTS])
    assert sources.load(str(path), "train").documents == tuple(TEXTS[:-2])  # type: ignore[union-attr]
    pairs = sources.load(str(path), "validation", field="text:de")
    assert isinstance(pairs, ParallelText)
    assert pairs.translations == ("I", "J")


def test_what_is_no_parquet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("PAR1")
    with pytest.raises(UsageError, match=r"a\.parquet cannot be read as Parquet: "):
        sources.load(str(tmp_path / "a.parquet"), "train")
    path = write(tmp_path / "b.parquet", [{"text": "a"}, {"text": None}])
    with pytest.raises(UsageError, match=r"b\.parquet, row 2: the field 'text' is None, not text"):
        sources.load(str(path), "train")
    with pytest.raises(UsageError, match=r"b\.parquet: unknown field 'texts'; did you mean 'text'"):
        sources.load(str(path), "train", field="texts")
    monkeypatch.setitem(row_files.sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="need the package pyarrow: pip install pyarrow"):
        sources.load(str(path), "train")
