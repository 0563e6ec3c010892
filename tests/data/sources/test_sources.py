"""Sources by name: embedded, text files, sets prepared by TFDS."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import datasets

from data import sources
from data.source import Reading
from data.sources import builtin
from data.sources import tfds as prepared_sets
from data.text import tokenizers
from data.types import Texts
from errors import UsageError


@pytest.mark.parametrize("name", list(builtin.BUILTIN))
def test_embedded_sets_are_stable(name: str) -> None:
    """Loaded twice a set has the same identity; its splits have different ones, and share nothing (but xor's)."""
    splits = sources.splits_of(name)
    ids = [sources.load(name, s).identity for s in splits]
    assert ids == [sources.load(name, s).identity for s in splits]
    assert all(i["count"] == len(sources.load(name, s)) > 0 for i, s in zip(ids, splits, strict=True))
    if name != "xor":
        assert len({i["checksum"] for i in ids}) == len(ids)


def test_xor_is_xor() -> None:
    """Four points, label 1 where exactly one coordinate is."""
    got = sources.load("xor", "train")
    table = {tuple(map(int, f)): int(y) for f, y in zip(got.fields["features"], got.fields["label"], strict=True)}
    assert table == {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 0}


def test_digits_are_split_whole() -> None:
    """1,797 images over both splits, uint8 up to 255, all ten classes in each."""
    train, test = (sources.load("digits", s) for s in ("train", "test"))
    assert len(train) + len(test) == 1797
    for source in (train, test):
        assert source.fields["image"].dtype == np.uint8
        assert source.fields["image"].max() == 255
        assert set(source.fields["label"]) == set(range(10))


def test_moons_and_digits_are_scikit_learns() -> None:
    """Bit for bit, though scikit-learn is not imported for them."""
    for split, count, seed in (("train", 100, 1), ("test", 1000, 2)):
        features, label = datasets.make_moons(count, noise=0.1, random_state=seed)
        moons = sources.load("moons", split).fields
        np.testing.assert_array_equal(moons["features"], features.astype(np.float32))
        np.testing.assert_array_equal(moons["label"], label)
    pixels, label = datasets.load_digits(return_X_y=True)
    digits = sources.load("digits", "test").fields
    np.testing.assert_array_equal(digits["image"].reshape(-1, 64), np.rint(pixels[4::5] * (255 / 16)))
    np.testing.assert_array_equal(digits["label"], label[4::5])


def write(folder: Path, documents: list[str]) -> Path:
    folder.mkdir()
    for i, document in enumerate(documents):
        (folder / f"{i:02d}.txt").write_text(document, encoding="utf-8")
    return folder


def test_few_files_hold_out_the_end_of_each(tmp_path: Path) -> None:
    """Below ten files each document is cut in two, nine tenths and the rest."""
    documents = [f"document {i} " * (10 + i) for i in range(9)]
    folder = write(tmp_path / "few", documents)
    train, held = (sources.load(str(folder), s) for s in ("train", "validation"))
    assert [a + b for a, b in zip(train.documents, held.documents, strict=True)] == documents
    assert [len(b) for b in held.documents] == [len(d) // 10 for d in documents]


@pytest.mark.parametrize("count", [10, 25])
def test_many_files_are_held_out_whole(tmp_path: Path, count: int) -> None:
    """From ten files on, whole files are held out, a tenth of them, and each is in one split."""
    documents = [f"document {i}" for i in range(count)]
    folder = write(tmp_path / "many", documents)
    train, held = (sources.load(str(folder), s) for s in ("train", "validation"))
    assert [*train.documents, *held.documents] == documents
    assert len(held) == max(2, count // 10)


def test_a_file_alone_and_a_changed_one(tmp_path: Path) -> None:
    """A .txt file is a set of its own; a changed letter changes its checksum."""
    path = tmp_path / "a.txt"
    path.write_text("abcdefghij" * 3)
    first = sources.load(str(path), "train")
    assert first.documents == (("abcdefghij" * 3)[:27],)
    path.write_text("Abcdefghij" * 3)
    assert sources.load(str(path), "train").identity["checksum"] != first.identity["checksum"]


def test_what_loads_as_text_has_the_splits_of_text(tmp_path: Path) -> None:
    """`load` and `splits_of` agree on what is a file of text, whatever its ending."""
    path = tmp_path / "notes.md"
    path.write_text("some text, some more")
    assert sources.splits_of(str(path)) == ("train", "validation")
    assert all(isinstance(sources.load(str(path), s), Texts) for s in sources.splits_of(str(path)))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """The message names the file, not only its folder."""
    folder = write(tmp_path / "mixed", ["fine"])
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt is not UTF-8"):
        sources.load(str(folder), "train")


@pytest.mark.parametrize("name", ["./nope", "~/nope", "corpus-en-de", "my data"])
def test_a_name_of_nothing_is_refused(name: str) -> None:
    """Neither a path that is there nor what TFDS could call a set."""
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(UsageError, match=r"is neither an existing file or folder|no \.txt, \.jsonl") as refused:
        sources.load(name, "train", field=None if name == "./nope" else "en:de")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_missing_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No such file, or a folder without text."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no \.txt, \.jsonl"):
        sources.load(name, "train")


@pytest.mark.parametrize(
    ("name", "split", "nearest"),
    [
        ("digits", "tset", "'test'"),
        ("pydoc_text", "test", "validation"),
        ("digit", "train", "'digits'"),
        ("minst", "train", "'mnist'"),
    ],
)
def test_unknown_names_and_splits_name_the_nearest(name: str, split: str, nearest: str, tmp_path: Path) -> None:
    """A misspelt set or split is answered by the one that was meant."""
    with pytest.raises(UsageError, match=f"unknown .*{nearest}"):
        sources.load(name, split, data_dir=str(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_that_is_not_prepared_says_what_to_run(tmp_path: Path, split: str) -> None:
    """Of any split: the folder looked at, and the command."""
    with pytest.raises(UsageError, match=r"'mnist' is not prepared.*download=True.*TFDS_DATA_DIR"):
        sources.load("mnist", split, data_dir=str(tmp_path))


class Rows(list):
    def __getitems__(self, wanted: list[int]) -> list[dict[str, Any]]:
        return [self[i] for i in wanted]


def test_secret_labels_are_refused() -> None:
    """Contests keep those of a split to themselves, and TFDS has -1 there: nothing is judged by it."""
    identity = {"name": "contest", "split": "test"}
    hidden = Texts(("one", "two"), identity, np.array([1, -1], np.int32), 2)
    with pytest.raises(UsageError, match="split 'test' of 'contest' has no public labels"):
        hidden.as_examples(Reading(tokenizers.make("byte", ()), 8))

    features, label = (
        {"image": SimpleNamespace(shape=(2, 2, 1))},
        prepared_sets.LabelFeature("label", False, 2, ("a", "b")),
    )
    image = np.zeros((2, 2, 1), np.uint8)
    with pytest.raises(UsageError, match="has no public labels"):
        prepared_sets._image_examples(Rows([{"image": image, "label": -1}]), features, label, identity)


def test_rows_of_a_prepared_set_are_reported_as_they_are_read() -> None:
    said: list[tuple[str, int, int]] = []
    features, label = (
        {"image": SimpleNamespace(shape=(2, 2, 1))},
        prepared_sets.LabelFeature("label", False, 2, ("a", "b")),
    )
    rows = Rows([{"image": np.zeros((2, 2, 1), np.uint8), "label": 1}] * 3)
    tick = lambda *what: said.append(what)  # noqa: E731
    prepared_sets._image_examples(rows, features, label, {"name": "set", "split": "train"}, tick)
    assert said == [("reading rows", 0, 3), ("reading rows", 3, 3)]


PREPARED = os.environ.get("TFDS_DATA_DIR")
prepared = pytest.mark.skipif(not PREPARED, reason="TFDS_DATA_DIR is not set: no prepared TFDS sets here")


@prepared
def test_tfds_mnist() -> None:
    """10,000 test images, decoded, with labels 0 to 9; by row as by slice."""
    got = sources.load("mnist", "test", data_dir=PREPARED)
    assert len(got) == 10_000
    assert got.classes == 10
    assert got.names is None  # they would be the numbers
    some = got.__getitems__([3, 9999])
    assert some["image"].shape == (2, 28, 28, 1)
    assert some["image"].dtype == np.uint8
    assert some["label"].dtype == np.int32
    # 980 zeros to 1,009 nines: the counts of the published test set
    assert list(np.bincount(got.fields["label"])) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@prepared
def test_tfds_tiny_shakespeare() -> None:
    """One document a split; together the 1,115,394 bytes of the published file."""
    splits = sources.splits_of("tiny_shakespeare", PREPARED)
    loaded = [sources.load("tiny_shakespeare", s, data_dir=PREPARED) for s in splits]
    assert set(splits) == {"train", "validation", "test"}
    assert [len(s) for s in loaded] == [1, 1, 1]
    assert sum(len(s.documents[0].encode()) for s in loaded) == 1_115_394


@prepared
def test_classes_have_the_names_of_the_set() -> None:
    """Of images and of texts, also where the texts are read as examples."""
    clothes = sources.load("fashion_mnist", "test", data_dir=PREPARED).names
    assert clothes is not None
    assert (clothes[0], clothes[9], len(clothes)) == ("T-shirt/top", "Ankle boot", 10)
    texts = sources.load("glue/sst2", "validation", data_dir=PREPARED)
    assert texts.names == ("negative", "positive")
    assert texts.as_examples(Reading(tokenizers.make("byte", ()), 8)).names == texts.names


@prepared
def test_of_several_texts_one_is_named() -> None:
    """None of them is `text`."""
    with pytest.raises(
        UsageError, match=r"the text fields annotation, answer, .*: choose one with data\.field or --field"
    ):
        sources.load("gsm8k", "test", data_dir=PREPARED)
    assert len(sources.load("gsm8k", "test", field="answer", data_dir=PREPARED).documents) == 1319


@prepared
def test_tfds_text_with_labels() -> None:
    """glue/sst2's sentences as text; an unknown field, split or config names the nearest."""
    got = sources.load("glue/sst2", "validation", data_dir=PREPARED)
    assert len(got) == 872
    assert all(isinstance(d, str) and d for d in got.documents)
    same = sources.load("glue/sst2", "validation", field="sentence:label", data_dir=PREPARED)
    assert same.identity == sources.load("glue/sst2", "validation", field="sentence", data_dir=PREPARED).identity
    for name, split, field, nearest in (
        ("glue/sst2", "validation", "sentense", "sentence"),
        ("glue/sst2", "valid", None, "validation"),
        ("glue/sst3", "train", None, "glue/sst2"),
    ):
        with pytest.raises(UsageError, match=nearest):
            sources.load(name, split, field=field, data_dir=PREPARED)
