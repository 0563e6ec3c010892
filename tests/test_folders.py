"""Images in class folders: splits, classes, decoding, and what is refused."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import launch
from configs import base, resnet
from data import augment, folders, image_files, loader, mixing, sources
from data import prepared as prepared_sets
from data.kinds import Examples, Texts
from data.plan import ExampleCorpus, Phase, Plan
from errors import UsageError
from tests.runs import host
from train import setup


def save(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", level: int = 90, **how: Any) -> Path:
    """An image of one colour, rows by columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size[::-1], (level, level // 2, 10))
    (image.quantize(2) if mode == "P" else image.convert(mode)).save(path, **how)
    return path


def decode(path: str, channels: int = 3) -> np.ndarray:
    return image_files.decode(path, path, channels)


def classes(root: Path, count: int = 12, vary: bool = True) -> Path:
    """Three classes with `count` images each, told apart by their level of red."""
    for c, name in enumerate(("cat", "dog", "eel")):
        for i in range(count):
            save(root / name / f"{i:02d}.png", (8 + vary * (i % 3), 6 + vary * (i % 2)), level=60 * c + 50 + i)
    return root


def told(source: Examples) -> list[tuple[int, int]]:
    """Each example's label and level of red."""
    got = source.__getitems__(range(len(source)))
    return [(int(y), int(image[0, 0, 0])) for image, y in zip(got["image"], got["label"], strict=True)]


def test_class_folders_hold_out_a_tenth_of_each(tmp_path: Path) -> None:
    """The last of each class by name, one at least; together they are all, each in its class."""
    root = classes(tmp_path / "pets", 25)
    assert sources.splits_of(str(root)) == ("train", "test")
    train, test = (sources.load(str(root), s) for s in ("train", "test"))
    assert train.names == test.names == ("cat", "dog", "eel")
    assert train.classes == 3
    assert told(train) == [(c, 60 * c + 50 + i) for c in range(3) for i in range(23)]
    assert told(test) == [(c, 60 * c + 50 + i) for c in range(3) for i in (23, 24)]
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
    assert sources.splits_of(str(tmp_path)) == ("train", "test", "valid")
    assert len(sources.load(str(tmp_path), "valid")) == 1
    save(tmp_path / "drafts" / "a" / "5.jpg")
    save(tmp_path / "cat" / "5.jpg")
    with pytest.raises(UsageError, match=r"beside them cat, drafts: a split is called train, .* or eval"):
        sources.load(str(tmp_path), "train")


def test_splits_are_named_in_any_case(tmp_path: Path) -> None:
    for split in ("Train", "Testing"):
        save(tmp_path / split / "a" / "1.jpg")
    assert sources.splits_of(str(tmp_path)) == ("train", "testing")
    assert sources.load(str(tmp_path), "testing").names == ("a",)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    """Where no class has two images, none is held out."""
    for name in ("a", "b"):
        save(tmp_path / name / "1.jpg")
    assert len(sources.load(str(tmp_path), "train")) == 2
    with pytest.raises(UsageError, match="its split 'test' holds no image"):
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
    for name in ("a.HEIC", "b.heic", "c.png"):
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
    with pytest.raises(UsageError, match="one kind of text or none"):
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
    exif[folders.ORIENTATION] = 6
    save(tmp_path / "alike" / "dog" / "turned.jpg", (8, 6), exif=exif)
    assert sources.load(str(tmp_path / "alike"), "train").__getitems__([0])["image"].dtype == object


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    """Orientation 6: the file's left edge is the top."""
    exif = Image.Exif()
    exif[folders.ORIENTATION] = 6
    dark = np.zeros((32, 16, 3), np.uint8)
    dark[:, :8] = 255
    Image.fromarray(dark).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    got = decode(str(tmp_path / "turned.jpg"))
    assert got.shape == (16, 32, 3)
    assert got[:7].min() > 240
    assert got[9:].max() < 15


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_colours(mode: str, tmp_path: Path) -> None:
    """Grey is grey in three channels, transparency is dropped, and only where all are grey is there one channel."""
    ending = {"CMYK": "jpg"}.get(mode, "png")
    how = {"transparency": b"\x00\x80"} if mode == "P" else {}
    save(tmp_path / "a" / f"1.{ending}", mode=mode, **how)
    save(tmp_path / "b" / "2.png", mode="L")
    save(tmp_path / "b" / "3.png", mode="L")
    channels = 1 if mode in folders.GREY else 3
    assert sources.load(str(tmp_path), "train").shapes["image"] == (8, 6, channels)
    colour, grey = (decode(str(tmp_path / "a" / f"1.{ending}"), c) for c in (3, 1))
    assert colour.shape == (8, 6, 3)
    assert grey.shape == (8, 6, 1)
    if mode in ("P", "RGBA", "CMYK"):
        assert np.abs(colour.astype(int) - (90, 45, 10)).max() <= 12  # a palette, or JPEG, is near it
    else:
        assert (colour == grey).all()


@pytest.mark.parametrize("ending", [e.removeprefix(".") for e in image_files.ENDINGS])
def test_every_format_is_read(ending: str, tmp_path: Path) -> None:
    save(tmp_path / f"x.{ending}")
    assert decode(str(tmp_path / f"x.{ending}")).shape == (8, 6, 3)


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
    monkeypatch.setattr(image_files, "HASHED", 0)
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
    with pytest.raises(UsageError, match=r"cat/01\.png .* \(its header told \(8, 6\), it is \(5, 5\)\)"):
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


def plan(root: Path) -> Plan:
    images = augment.Images(0, augment.parse("random_resized_crop,flip,randaugment:1:9"), size=(8, 8))
    corpus = ExampleCorpus(sources.load(str(root), "train"))
    return Plan((corpus,), (Phase(0, 6),), 0, images, mixing.Mix(0, (("mixup", 0.2), ("cutmix", 1.0))))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_folders_are_read_ahead(workers: int, tmp_path: Path) -> None:
    """In a thread or in processes: the plan's batches, in order; a damaged image is named there too."""
    made = plan(classes(tmp_path))
    got = list(loader.batches(made, [0, 4], 1, 6, workers=workers, prefetch=2))
    assert len(got) == 5
    for step, batch in zip(range(1, 6), got, strict=True):
        want = made.batch(step)
        assert batch.keys() == want.keys()
        for name in want:
            np.testing.assert_array_equal(batch[name], want[name][[0, 4]])
    for path in (tmp_path / "eel").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"eel/.*cannot be read as an image"):
        list(loader.batches(made, list(range(6)), 0, 6, workers=workers, prefetch=2))


def test_prepared_images_of_any_size() -> None:
    """A set of TFDS whose images have sizes of their own gives them as they are."""

    class Rows(list):
        def __getitems__(self, wanted: list[int]) -> list[dict[str, Any]]:
            return [self[i] for i in wanted]

    label = SimpleNamespace(num_classes=2, names=["a", "b"])
    features = {"label": label, "image": SimpleNamespace(shape=(None, None, 3))}
    rows = Rows({"image": np.full((4 + i, 5, 3), i, np.uint8), "label": i % 2} for i in range(4))
    source = prepared_sets._labelled_images(rows, features, {"name": "made", "split": "train"})
    got = source.__getitems__([3, 0])
    assert got["image"].dtype == object
    assert [image.shape for image in got["image"]] == [(7, 5, 3), (4, 5, 3)]
    assert list(got["label"]) == [1, 0]


def test_mixtures_of_any_sizes_have_the_same_channels(tmp_path: Path) -> None:
    """Two folders of varying sizes mix; where one is grey, the message says so."""
    for name, mode in (("one", "RGB"), ("two", "RGB"), ("grey", "L")):
        for i in range(4):
            save(tmp_path / name / f"class{i % 2}" / f"{i}.png", (8 + i, 6), mode)
    one, two, grey = (ExampleCorpus(sources.load(str(tmp_path / n), "train")) for n in ("one", "two", "grey"))
    phases = (Phase(0, 8, (1.0, 1.0)),)
    assert Plan((one, two), phases, 0, augment.Images(size=(4, 4))).batch(0)["image"].shape == (8, 4, 4, 3)
    with pytest.raises(UsageError, match=r"uint8\[\*, \*, 3\].*uint8\[\*, \*, 1\]"):
        Plan((one, grey), phases, 0)


def test_mixtures_of_sizes_are_united_by_one(tmp_path: Path) -> None:
    """Sets of one size, of another, and of any size mix by the size that is wanted, each row as in its own set."""
    for name, sizes in (("one", (12, 12)), ("two", (16, 16)), ("any", (14, 18))):
        for i in range(4):
            save(tmp_path / name / f"class{i % 2}" / f"{i}.png", (sizes[i // 2], 10), level=60 + i)
    corpora = tuple(ExampleCorpus(sources.load(str(tmp_path / n), "train")) for n in ("one", "two", "any"))
    images = augment.Images(0, (("flip",),), size=(8, 8))
    plan = Plan(corpora, (Phase(0, 30, (1.0, 1.0, 1.0)),), 0, images)
    whole, part = plan.batch(2), plan.batch(2, [7, 4, 21])
    assert whole["image"].shape == (30, 8, 8, 3)
    np.testing.assert_array_equal(part["image"], whole["image"][[7, 4, 21]])
    with pytest.raises(UsageError, match=r"same fields.*12, 10.*16, 10"):
        Plan(corpora[:2], (Phase(0, 8, (1.0, 1.0)),), 0, augment.Images())
    with pytest.raises(UsageError, match=r"different sizes: set data\.size"):
        Plan(corpora, (Phase(0, 8, (1.0, 1.0, 1.0)),), 0, augment.Images())


def test_a_run_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From its command to the worst mistakes; without a size, one line."""
    root = classes(tmp_path / "pets")
    args = [
        "train",
        f"--workdir={tmp_path}/w",
        "--config=configs/mlp.py:digits",
        f"--config.data.name={root}",
        "--config.model.inputs=192",
        "--config.train.steps=2",
        "--config.train.batch=8",
    ]
    assert launch.main(args) == 2
    assert "the images have different sizes: set data.size" in capsys.readouterr().err
    more = ["--config.data.size=8", "--config.data.augment=random_resized_crop,flip,mixup:0.2", "--config.eval.batch=2"]
    assert launch.main([*args, *more, "--config.data.mean=(0.5, 0.4, 0.3)"]) == 0
    assert "data    pets (33 examples), split train; held out: test (3)" in capsys.readouterr().out
    assert launch.main(["eval", f"--workdir={tmp_path}/w"]) == 0
    assert "3 examples in 3 clusters" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "classes_"), [({}, 3), ({"classes": 7}, 7)])
def test_a_published_size_takes_the_classes_of_the_data(more: dict[str, int], classes_: int, tmp_path: Path) -> None:
    """CIFAR's ten are the size's own; what the config says goes before both."""
    source = sources.load(str(classes(tmp_path / "pets", 3)), "train")
    cfg = base.config("fashion", resnet.CONFIGS, resnet.ABLATIONS)
    with cfg.unlocked():
        cfg.data.update(size=(16, 16), mean=0.5, deviation=0.5)
        cfg.model.update(more)
    assert setup.set_up(cfg, host(), source, None).model.config.classes == classes_
