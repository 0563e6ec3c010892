"""Splits in part and together, of every kind of source, as TFDS takes them."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import sources
from data.sources import image_folder, multiple_choice, splits
from data.types import Examples, ParallelText, Texts
from errors import UsageError
from tests.support import boxed_folders


def library():
    return pytest.importorskip("tensorflow_datasets.core.splits", reason="tensorflow-datasets is not installed")


def test_rows_are_those_of_tfds() -> None:
    """Of random parts of splits of random sizes, its rounding with it; what it refuses is refused."""
    tfds, draw = library(), random.Random(0)
    for _ in range(500):
        count = draw.choice([1, 2, 7, 10, 99, 100, 101, 1797])
        unit = draw.choice(["", "%"])
        most = 100 if unit else count
        ends = [draw.choice(["", f"{draw.randint(-most - 1, most + 1)}{unit}"]) for _ in range(2)]
        text = f"train[{ends[0]}:{ends[1]}]"
        infos = {"train": tfds.SplitInfo(name="train", shard_lengths=[count], num_bytes=0, filename_template=None)}
        try:
            (want,) = tfds.AbstractSplit.from_spec(text).to_absolute(infos)
            start, stop = want.from_ or 0, count if want.to is None else want.to
        except (ValueError, AssertionError):
            start = stop = 0
        if start < stop:
            assert splits.parse(text)[0].bounds(count) == (start, stop), (text, count)
        else:
            with pytest.raises(UsageError):
                splits.parse(text)[0].bounds(count)


def folder_of_images(root: Path) -> None:
    for split, count in (("train", 20), ("test", 10)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                value = i + (100 if name == "b" else 0)
                Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(root / split / name / f"{i:02d}.png")


def pairs_of_files(root: Path) -> None:
    for split, count in (("train", 40), ("test", 20)):
        for side in ("en", "de"):
            (root / f"{split}.{side}").write_text("".join(f"{side} {i}\n" for i in range(count)))


def rows_of_text(root: Path) -> None:
    for split, count in (("train", 40), ("test", 20)):
        (root / f"{split}.jsonl").write_text("".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(count)))


MAKE = {"images": folder_of_images, "pairs": pairs_of_files, "texts": rows_of_text}


def shown(source) -> list[str]:
    """A row each, in words."""
    if isinstance(source, Texts):
        return list(source.documents)
    if isinstance(source, ParallelText):
        return [f"{a}|{b}" for a, b in zip(source.texts, source.translations, strict=True)]
    fields = source.__getitems__(range(len(source)))
    return [f"{np.asarray(fields['image'][i]).ravel()[:1]} {fields['label'][i]}" for i in range(len(source))]


@pytest.mark.parametrize("kind", MAKE)
def test_parts_of_a_split_of_files(kind: str, tmp_path: Path) -> None:
    """Parts that meet make the whole, each row once; a part has an identity of its own, and is the same each time."""
    MAKE[kind](tmp_path)
    field = "en:de" if kind == "pairs" else None
    load = lambda split: sources.load(str(tmp_path), split, field=field)  # noqa: E731
    whole = load("train")
    for one, other, counts in (
        ("[:90%]", "[90%:]", (36, 4)),
        ("[:7]", "[7:]", (7, 33)),
        ("[:-10%]", "[-10%:]", (36, 4)),
    ):
        parts = [load(f"train{end}") for end in (one, other)]
        assert tuple(map(len, parts)) == counts
        assert sorted(shown(parts[0]) + shown(parts[1])) == sorted(shown(whole))
        ids = [json.dumps(source.identity) for source in (whole, *parts)]
        assert len(set(ids)) == 3
        assert json.dumps(load(f"train{one}").identity) == ids[1]
    assert load("train[0:36]").identity == load("train[:90%]").identity
    assert load("train[:100%]").identity == whole.identity
    both = load("train[10:20]+test")
    assert len(both) == 30
    assert sorted(shown(both)) == sorted(shown(load("train[10:20]")) + shown(load("test")))
    assert both.identity["split"] == "train[10:20]+test"


def test_a_part_of_class_folders_has_its_share_of_every_class(tmp_path: Path) -> None:
    folder_of_images(tmp_path)
    for split, each in (("train[:50%]", 10), ("train[50%:]", 10), ("train[-10%:]", 2), ("train[:10]", 5)):
        source = sources.load(str(tmp_path), split)
        assert isinstance(source, Examples)
        labels = source.__getitems__(range(len(source)))["label"]
        assert np.bincount(labels).tolist() == [each, each]
        assert source.absent == ()
    alone = sources.load(str(tmp_path), "train[:1]")
    assert isinstance(alone, Examples)
    assert alone.absent == ("b",)
    assert isinstance(sources.load(str(tmp_path), "train").fields, image_folder.FolderReader)


def test_parts_of_embedded_sets() -> None:
    whole, part = sources.load("digits", "train"), sources.load("digits", "train[90%:]")
    for name, values in part.fields.items():
        np.testing.assert_array_equal(values, whole.fields[name][round(0.9 * len(whole)) :])
    assert len(sources.load("digits", "train+test")) == 1797
    drawn = sources.load("adding:100", "test[5:8]")
    np.testing.assert_array_equal(
        drawn.__getitems__([2, 0])["features"], sources.load("adding:100", "test").__getitems__([7, 5])["features"]
    )


def test_parts_of_images_with_boxes(tmp_path: Path) -> None:
    """Of COCO's and VOC's folders: the images, sizes and boxes of the rows that are taken."""
    boxed_folders.write_coco(tmp_path, boxed_folders.coco(), split="val")
    boxed_folders.write_coco(tmp_path, boxed_folders.coco(), split="train")
    whole = boxed_folders.scenes(tmp_path)
    last, turned = boxed_folders.scenes(tmp_path, "val[50%:]"), boxed_folders.scenes(tmp_path, "val[1:]+train[:1]")
    assert (len(whole), len(last), len(turned)) == (2, 1, 2)
    for source, row, of in ((last, 0, 1), (turned, 0, 1), (turned, 1, 0)):
        fields, theirs = source.__getitems__([row]), whole.__getitems__([of])
        np.testing.assert_array_equal(fields["image"][0], theirs["image"][0])
        for ours, other in zip(source.annotations[row], whole.annotations[of], strict=True):
            np.testing.assert_array_equal(ours, other)
        assert source.annotations.size(row) == whole.annotations.size(of)
        count = min(fields["boxes"].shape[1], theirs["boxes"].shape[1])
        np.testing.assert_array_equal(fields["boxes"][:, :count], theirs["boxes"][:, :count])
    assert turned.names == whole.names
    assert turned.identity["split"] == "val[1:2]+train[0:1]"
    boxed_folders.write_voc(tmp_path / "voc")
    assert len(boxed_folders.scenes(tmp_path / "voc", "train[:1]+val")) == 2


def test_a_sum_has_the_same_classes(tmp_path: Path) -> None:
    """In the same order: a class is known by its place."""
    for split, names in (("train", ("cat", "dog")), ("valid", ("dog", "cat"))):
        (tmp_path / split).mkdir()
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / split / "a.png")
        table = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 0, "bbox": [0, 0, 2, 2]}],
        }
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(table))
    with pytest.raises(
        UsageError, match="sum of splits with different classes: 'train' has cat, dog and 'valid' has dog, cat"
    ):
        sources.load(str(tmp_path), "train+valid")
    assert len(sources.load(str(tmp_path), "valid[:1]")) == 1


@pytest.mark.parametrize(
    ("split", "says"),
    [
        *(
            (split, "is not a split; legal")
            for split in ("train[", "train[]", "train[:]", "train[5]", "[5:]", "train+")
        ),
        *((split, "is not a split; legal") for split in ("train[:1.5]", "train[5:50%]", "train[a:]", "train[:5]x")),
        ("train[5:5]", "none of the 1,438 rows"),
        ("train[:0%]", "none of"),
        ("train[7:3]", "none of"),
        ("train[:2000]", "out of range: 'train' has 1,438 rows"),
        ("train[:101%]", "out of range"),
        ("tain[:10%]", "did you mean 'train'"),
        ("train[:60]+test+train[59:80]", "rows of 'train' in two parts"),
        ("train+train", "rows of 'train' in two parts"),
    ],
)
def test_what_is_no_part_is_refused(split: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        sources.load("digits", split)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("train", "test", None),
        ("train", "train", "train"),
        ("train[0:90]", "train[90:100]", None),
        ("train[0:91]", "train[90:100]", "train"),
        ("train", "train[90:100]", "train"),
        ("train[0:9]+test", "test[5:6]", "test"),
    ],
)
def test_splits_that_overlap_are_known(one: str, other: str, shared: str | None) -> None:
    assert splits.overlap(one, other) == splits.overlap(other, one) == shared


def test_parts_of_questions(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps({"context": str(i), "choices": ["a"], "answer": 0}) + "\n" for i in range(10)))
    found = multiple_choice.load(str(file), "test[:20%]+test[-1:]", None)
    assert [q.context for q in found.items] == ["0", "1", "9"]
    assert found.identity != multiple_choice.load(str(file), "test", None).identity


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set: no prepared data")
def test_parts_of_prepared_sets() -> None:
    """TFDS reads only what is asked for; the identity is that of rows, however they were written."""
    where = os.environ["TFDS_DATA_DIR"]
    whole = sources.load("multi30k_en_de", "test", field="en:de", data_dir=where)
    part = sources.load("multi30k_en_de", "test[:10%]+test[-5:]", field="en:de", data_dir=where)
    assert isinstance(whole, ParallelText)
    assert isinstance(part, ParallelText)
    assert part.texts == whole.texts[:100] + whole.texts[-5:]
    assert part.identity == {**whole.identity, "split": "test[0:100]+test[995:1000]", "count": 105}
    images = sources.load("fashion_mnist", "test[99%:]", data_dir=where)
    assert len(images) == 100
    every = sources.load("fashion_mnist", "test", data_dir=where)
    np.testing.assert_array_equal(images.__getitems__([0])["image"], every.__getitems__([9900])["image"])
    asked = multiple_choice.load("arc_challenge_test", "test[:3]", where)
    assert asked.items == multiple_choice.load("arc_challenge_test", "test", where).items[:3]
    with pytest.raises(UsageError, match="none of the 1,000 rows"):
        sources.load("multi30k_en_de", "test[5:5]", field="en:de", data_dir=where)
    with pytest.raises(UsageError, match=r"unknown split of multi30k_en_de 'tset'.*'test'"):
        sources.load("multi30k_en_de", "tset[:5]", field="en:de", data_dir=where)
