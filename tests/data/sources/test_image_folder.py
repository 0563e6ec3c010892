"""Images in class folders: splits, classes, identity, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import sources
from data.images import decode
from data.types import Examples, Texts
from errors import UsageError
from tests.support.image_folders import classes, labels_and_levels, save


def test_class_folders_hold_out_a_tenth_of_each(tmp_path: Path) -> None:
    """The last of each class by name, one at least; together they are all, each in its class."""
    root = classes(tmp_path / "pets", 25)
    assert sources.splits_of(str(root)) == ("train", "test")
    train, test = (sources.load(str(root), s) for s in ("train", "test"))
    assert train.names == test.names == ("cat", "dog", "eel")
    assert train.classes == 3
    assert labels_and_levels(train) == [(c, 60 * c + 50 + i) for c in range(3) for i in range(23)]
    assert labels_and_levels(test) == [(c, 60 * c + 50 + i) for c in range(3) for i in (23, 24)]
    save(root / "ant" / "a.png")
    assert len(sources.load(str(root), "test")) == 6  # a class of one image holds out none
    save(root / "ant" / "b.png")
    assert len(sources.load(str(root), "test")) == 7


def test_split_folders_are_splits(tmp_path: Path) -> None:
    """Classes are those of all splits together, so that a label means one class."""
    save(tmp_path / "train" / "b" / "1.jpg")
    save(tmp_path / "train" / "c" / "deeper" / "2.jpg")
    save(tmp_path / "val" / "a" / "3.jpg")
    save(tmp_path / "val" / "c" / "4.jpg")
    (tmp_path / "train" / "empty").mkdir()
    assert sources.splits_of(str(tmp_path)) == ("train", "val")
    train, val = (sources.load(str(tmp_path), s) for s in ("train", "val"))
    assert train.names == val.names == ("a", "b", "c")
    assert list(train.__getitems__(range(2))["label"]) == [1, 2]
    assert list(val.__getitems__(range(2))["label"]) == [0, 2]
    save(tmp_path / "val" / "aa" / "5.jpg")
    assert sources.load(str(tmp_path), "train").identity != train.identity  # its labels are others now
    with pytest.raises(UsageError, match=r"unknown split .*'test'.*train, val"):
        sources.load(str(tmp_path), "test")


def test_valid_is_a_split_and_what_is_none_is_refused(tmp_path: Path) -> None:
    """As Roboflow and ultralytics lay out a set; a folder of images beside those of splits is not lost in silence."""
    for split in ("train", "valid", "test"):
        save(tmp_path / split / "a" / "1.jpg")
        save(tmp_path / split / "b" / "1.jpg")
    assert sources.splits_of(str(tmp_path)) == ("train", "test", "valid")
    assert len(sources.load(str(tmp_path), "valid")) == 2
    save(tmp_path / "drafts" / "a" / "5.jpg")
    save(tmp_path / "cat" / "5.jpg")
    with pytest.raises(UsageError, match=r"beside them cat, drafts: names of splits are train, .* or eval"):
        sources.load(str(tmp_path), "train")


def test_splits_are_named_in_any_case(tmp_path: Path) -> None:
    for split in ("Train", "Testing"):
        save(tmp_path / split / "a" / "1.jpg")
        save(tmp_path / split / "b" / "1.jpg")
    assert sources.splits_of(str(tmp_path)) == ("train", "testing")
    assert sources.load(str(tmp_path), "testing").names == ("a", "b")
    save(tmp_path / "train" / "a" / "1.jpg")
    with pytest.raises(UsageError, match="folders 'Train' and 'train' name one split"):
        sources.splits_of(str(tmp_path))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    """Where no class has two images, none is held out."""
    for name in ("a", "b"):
        save(tmp_path / name / "1.jpg")
    assert len(sources.load(str(tmp_path), "train")) == 2
    with pytest.raises(UsageError, match="split 'test' has no images"):
        sources.load(str(tmp_path), "test")


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    for name in ("car", "plane", "train"):
        for i in range(2):
            save(tmp_path / name / f"{i}.jpg")
    assert sources.load(str(tmp_path), "train").names == ("car", "plane", "train")


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    """Notes, thumbnails of another system, and what has another ending."""
    root = classes(tmp_path, 3)
    (root / "README.txt").write_text("text")
    (root / "cat" / "notes.txt").write_text("text")
    (root / "cat" / "._00.png").write_bytes(b"no image")
    (root / ".cache").mkdir()
    (root / ".cache" / "x.png").write_bytes(b"no image")
    assert len(sources.load(str(root), "train")) == 6


@pytest.mark.parametrize("where", ["fox", "fox/raw", "cat"])
def test_pictures_that_are_not_read_are_refused(where: str, tmp_path: Path) -> None:
    """As those of a telephone: a class would vanish and other labels move, or half of one be missed; notes are none."""
    root = classes(tmp_path / "pets", 3)
    (root / where).mkdir(parents=True, exist_ok=True)
    (root / "notes").mkdir()
    (root / "notes" / "list.csv").write_text("a,b")
    assert sources.load(str(root), "train").names == ("cat", "dog", "eel")
    for name in ("a.HEIC", "b.svg", "c.png"):
        save(root / where / name, format="PNG")
    with pytest.raises(UsageError, match=rf"{where}/a\.HEIC and 1 more cannot be read as an image; convert to one of"):
        sources.load(str(root), "test")


def test_a_folder_is_what_it_holds_more_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text with a picture beside it stays text; a bare word may be a folder of images."""
    root = classes(tmp_path / "mnist", 2)
    monkeypatch.chdir(tmp_path)
    assert isinstance(sources.load("mnist", "train"), Examples)
    for i in range(6):
        (root / f"{i}.txt").write_text("a text of some length")
    assert isinstance(sources.load("mnist", "train"), Texts)
    captioned = classes(tmp_path / "captioned", 2)
    for image in captioned.rglob("*.png"):
        image.with_suffix(".txt").write_text("a caption")
    assert isinstance(sources.load(str(captioned), "train"), Examples)
    with pytest.raises(UsageError, match="has no text fields to choose from"):
        sources.load("mnist", "train", field="text")


def test_images_of_one_size_are_one_array(tmp_path: Path) -> None:
    """Else they are objects, each in its own size; a turned photo has another size than its file says."""
    alike = sources.load(str(classes(tmp_path / "alike", vary=False)), "train")
    assert alike.shapes == {"image": (8, 6, 3), "label": ()}
    assert alike.__getitems__([0, 5])["image"].dtype == np.uint8
    varying = sources.load(str(classes(tmp_path / "varying")), "train").__getitems__([0, 1, 2])["image"]
    assert varying.dtype == object
    assert [image.shape for image in varying] == [(8, 6, 3), (9, 7, 3), (10, 6, 3)]
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 6
    save(tmp_path / "alike" / "dog" / "turned.jpg", (8, 6), exif=exif)
    assert sources.load(str(tmp_path / "alike"), "train").__getitems__([0])["image"].dtype == object


def test_identity_is_of_names_lengths_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder lies and when it was made do not count; a changed byte does, in a set that is small."""
    one, two = (classes(tmp_path / place / "pets") for place in ("here", "there"))
    identity = sources.load(str(one), "train").identity
    assert identity == sources.load(str(two), "train").identity
    assert set(identity) == {"name", "split", "count", "checksum"}
    os.utime(two / "cat" / "00.png", (1, 1))
    assert identity == sources.load(str(two), "train").identity
    path = two / "cat" / "00.bmp"
    (two / "cat" / "00.png").rename(path)
    renamed = sources.load(str(two), "train").identity
    assert renamed != identity
    save(path, level=51)
    flat = sources.load(str(two), "train").identity
    save(path, level=52)
    assert sources.load(str(two), "train").identity != flat
    monkeypatch.setattr(decode, "HASH_CONTENTS_UP_TO", 0)
    large = sources.load(str(two), "train").identity
    save(path, level=53)
    assert sources.load(str(two), "train").identity == large


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """By its header when the set is opened; what is cut short, when it is read."""
    root = classes(tmp_path, 3)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(root / "cat" / "00.jpg")
    whole = (root / "cat" / "00.jpg").read_bytes()
    (root / "cat" / "00.jpg").write_bytes(whole[: len(whole) // 2])
    source = sources.load(str(root), "train")
    with pytest.raises(UsageError, match=r"cat/00\.jpg cannot be read as an image \(image file is truncated"):
        source.__getitems__([0])
    alike = sources.load(str(classes(tmp_path / "alike", 3, vary=False)), "train")
    save(tmp_path / "alike" / "cat" / "01.png", (5, 5))
    with pytest.raises(UsageError, match=r"cat/01\.png .* \(its header says \(8, 6\), it is \(5, 5\)\)"):
        alike.__getitems__([0, 1])
    (root / "dog" / "x.png").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match=r"dog/x\.png cannot be read as an image"):
        sources.load(str(root), "test")
    (root / "dog" / "x.png").unlink()
    (root / "dog" / "gone.png").symlink_to(root / "nowhere")
    with pytest.raises(UsageError, match=r"dog/gone\.png cannot be read"):
        sources.load(str(root), "train")
    (root / "dog" / "gone.png").unlink()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(root / "dog" / "deep.png")
    with pytest.raises(UsageError, match=r"dog/deep\.png has more than 8 bits"):
        sources.load(str(root), "train")


@pytest.mark.parametrize("paths", [("a.png",), ("train/a.png", "test/b.png")])
def test_images_without_classes_are_refused(paths: tuple[str, ...], tmp_path: Path) -> None:
    for path in paths:
        save(tmp_path / path)
    with pytest.raises(UsageError, match="none in class folders"):
        sources.load(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        ("10 2 1 0", "0 1 2 10"),
        ("-1 -10 3 +4", "-10 -1 3 +4"),
        ("007 1000 08", "007 08 1000"),
        ("train/10 train/9 test/9 test/10", "9 10"),
        ("10 9 x", "10 9 x"),
        ("1.5 10 9", "1.5 10 9"),
        ("² 10 9", "10 9 ²"),
    ],
)
def test_classes_that_are_all_whole_numbers_are_in_their_order(folders: str, names: str, tmp_path: Path) -> None:
    """Gaps close up, as a class is known by its place; the label of an image follows."""
    for i, folder in enumerate(folders.split()):
        save(tmp_path / folder / "1.png", level=50 + i)
    source = sources.load(str(tmp_path), "train")
    assert source.names == tuple(names.split())
    if "/" not in folders:
        levels = dict(zip(folders.split(), range(50, 60), strict=False))
        assert labels_and_levels(source) == [(i, levels[name]) for i, name in enumerate(names.split())]


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        ("1 01 2", "the folders '01' and '1' name one number"),
        ("train/1 train/2 test/01 test/2", "the folders '01' and '1' name one number"),
        ("0 -0", "the folders '-0' and '0' name one number"),
        ("train/cat train/dog test/Cat test/dog", "the folders 'Cat' and 'cat' name one class"),
        ("train/cat train/dog test/cat\u00a0 test/dog", "name one class"),
        ("train/caf\u00e9 train/dog test/cafe\u0301 test/dog", "name one class"),
        ("photos/cat photos/dog", "one class folder, 'photos', .* needs two: it contains cat, dog; give .*/photos$"),
        (
            "photos/train/cat photos/test/cat",
            "one class folder, 'photos', .*: it contains test, train; give .*/photos$",
        ),
        ("train/photos/cat train/photos/dog", "one class folder, 'photos', .*: it contains cat, dog; move these up$"),
        ("images", "one class folder, 'images', .*: a detection set needs annotations beside"),
        ("cat", "one class folder, 'cat', .*: put the images of each class in a folder of its own"),
        ("train/cat test/cat", "one class folder, 'cat'"),
        (
            "cat/train cat/test dog/Train",
            "splits inside those of classes, as cat/test: put the split outside, as test/cat, or give ",
        ),
        ("data/train/a data/test/a extra/a", "splits inside those of classes, as data/test: .*, or give .*/data$"),
        ("a b Test", "a folder 'Test' of images beside a, b: a split holds class folders"),
        ("caf\udce9 dog", r"the name of the class folder 'caf\\udce9' is not UTF-8"),
    ],
)
def test_folders_that_leave_the_classes_open_are_refused(folders: str, says: str, tmp_path: Path) -> None:
    for folder in folders.split(" "):
        save(tmp_path / folder / "1.png")
    with pytest.raises(UsageError, match=says):
        sources.load(str(tmp_path), "train")


def test_names_of_any_kind(tmp_path: Path) -> None:
    """Letters in both cases are classes where a split has both; spaces and file names that are no text do no harm."""
    for name in ("A", "a", "hot dog", "日本"):
        save(tmp_path / name / "1.png")
    os.rename(tmp_path / "A" / "1.png", os.fsencode(tmp_path / "A") + b"/\xe9 1.PNG")
    for other in ("Thumbs.db", "desktop.ini", ".DS_Store", "__MACOSX/a/1.png", "a/@eaDir/1.png"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_bytes(b"")
    source = sources.load(str(tmp_path), "train")
    assert source.names == ("A", "a", "hot dog", "日本")
    assert len(source) == len(source.__getitems__(range(4))["label"]) == 4


def test_a_class_without_an_image_in_a_split_is_named(tmp_path: Path) -> None:
    """And images that lie outside."""
    for folder in ("train/cat", "train/dog", "train/eel", "test/cat", "test/dog"):
        save(tmp_path / folder / "1.png")
    train, test = (sources.load(str(tmp_path), split) for split in ("train", "test"))
    assert isinstance(train, Examples)
    assert isinstance(test, Examples)
    assert (train.absent, train.notes) == ((), ())
    assert (test.absent, test.notes) == (("eel",), ("split 'test' has no image of eel",))
    for stray in ("cover.png", "test/1.png"):
        save(tmp_path / stray)
    assert sources.load(str(tmp_path), "train").notes == ("cover.png and 1 more: in no class folder, skipped",)


def test_links_do_not_mix_splits(tmp_path: Path) -> None:
    """Each image is there once, in the folder that is its own."""
    root = classes(tmp_path, 10)
    alone = [sources.load(str(root), split).identity for split in ("train", "test")]
    (root / "loop").symlink_to(".")
    (root / "again").symlink_to("cat")
    (root / "dog" / "00 too.png").symlink_to(root / "eel" / "00.png")
    assert [sources.load(str(root), split).identity for split in ("train", "test")] == alone
