"""Images with boxes from folders and prepared sets: what is read, what is mended and told, what is refused."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import detection, image_files, kinds, sources
from data.detection import Marked, Scenes, Truth
from errors import UsageError


def paint(path: Path, rows: int, columns: int, mode: str = "RGB") -> Path:
    """An image file whose red grows to the right and green downwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((rows, columns, 3), np.uint8)
    image[..., 0], image[..., 1] = 2 * np.arange(columns), 3 * np.arange(rows)[:, None]
    Image.fromarray(image).convert(mode).save(path)
    return path


def coco() -> dict[str, Any]:
    """Two images; classes of ids 7 and 3; a crowd among the boxes."""
    mark = lambda i, image, kind, box, **more: dict(id=i, image_id=image, category_id=kind, bbox=box, **more)  # noqa: E731
    return {
        "images": [
            {"id": 11, "file_name": "wide.png", "height": 20, "width": 40},
            {"id": 5, "file_name": "high.png", "height": 30, "width": 10},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "bird"}],
        "annotations": [
            mark(1, 11, 7, [10, 5, 20, 10], iscrowd=0),
            mark(2, 5, 3, [0, 0, 10, 15]),
            mark(3, 11, 3, [0, 0, 40, 20], iscrowd=1),
            mark(4, 11, 3, [30, 10, 4, 2.5], iscrowd=0),
        ],
    }


def write_coco(root: Path, table: Any, form: str = "coco", split: str = "val") -> Path:
    """A folder in one of the forms that hold COCO's JSON."""
    folder = {"coco": root / split, "images": root / "images" / split, "roboflow": root / split}[form]
    for name, rows, columns in (("wide.png", 20, 40), ("high.png", 30, 10)):
        paint(folder / name, rows, columns)
    file = folder / "_annotations.coco.json" if form == "roboflow" else root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(table if isinstance(table, str) else json.dumps(table))
    return root


def scenes(root: Path, split: str = "val") -> Scenes:
    source = sources.load(str(root), split)
    assert isinstance(source, Scenes)
    return source


@pytest.mark.parametrize("form", ["coco", "images", "roboflow"])
def test_coco_is_read(tmp_path: Path, form: str) -> None:
    """Classes by the order of their ids, corners from width and height, crowds kept as truths and not as rows."""
    root = write_coco(tmp_path / "set", coco(), form)
    assert sources.splits_of(str(root)) == ("val",)
    source = scenes(root)
    assert (len(source), source.classes, source.names, source.notes) == (2, 2, ("bird", "cat"), ())
    wide, high = source.truths[0], source.truths[1]
    np.testing.assert_allclose(wide.boxes, [[10, 5, 30, 15], [0, 0, 40, 20], [30, 10, 34, 12.5]])
    assert (wide.kinds.tolist(), wide.crowd.tolist(), wide.difficult.any()) == ([1, 0, 0], [False, True, False], False)
    np.testing.assert_allclose(high.boxes, [[0, 0, 10, 15]])
    assert source.truths.sizes.tolist() == [[20, 40], [30, 10]]
    got = source.__getitems__([1, 0])
    assert [i.shape for i in got["image"]] == [(30, 10, 3), (20, 40, 3)]
    assert got["image"][1][7, 9].tolist() == [18, 21, 0]
    np.testing.assert_array_equal(got["there"], [[1, 0], [1, 1]])
    np.testing.assert_array_equal(got["kinds"], [[0, 0], [1, 0]])
    np.testing.assert_allclose(got["boxes"][0], [[0.5, 0.25, 1, 0.5], [0, 0, 0, 0]])
    np.testing.assert_allclose(got["boxes"][1], [[0.5, 0.5, 0.5, 0.5], [0.8, 0.5625, 0.1, 0.125]])
    assert [got[k].dtype for k in ("boxes", "kinds", "there")] == [np.float32, np.int32, np.float32]


def test_rows_are_limited_and_padded(tmp_path: Path) -> None:
    """To fewer boxes, the first ones stay; to more, padding."""
    source = scenes(write_coco(tmp_path / "set", coco()))
    few, many = source.limited(1).__getitems__([0]), source.limited(5).__getitems__([0])
    np.testing.assert_allclose(few["boxes"], [[[0.5, 0.5, 0.5, 0.5]]])
    assert many["there"].tolist() == [[1, 1, 0, 0, 0]]
    assert not many["boxes"][0, 2:].any()
    assert source.shapes == {"image": (), "boxes": (2, 4), "kinds": (2,), "there": (2,)}


def test_identity_is_that_of_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same folder elsewhere is the same set; a moved box, a renamed class, another image or pixel, another set."""
    one = scenes(write_coco(tmp_path / "a" / "set", coco())).identity
    assert one == scenes(write_coco(tmp_path / "b" / "set", coco())).identity
    for i, change in enumerate(("box", "class", "image")):
        table = coco()
        if change == "box":
            table["annotations"][0]["bbox"][0] += 1
        elif change == "class":
            table["categories"][0]["name"] = "cats"
        else:
            table["images"].pop(1), table["annotations"].pop(1)
        assert scenes(write_coco(tmp_path / str(i) / "set", table)).identity["checksum"] != one["checksum"]
    root = tmp_path / "a" / "set"
    found = {one["checksum"]}
    for colour in ("red", "blue"):  # two files of one length
        Image.new("RGB", (40, 20), colour).save(root / "val" / "wide.png", "BMP")
        found.add(scenes(root).identity["checksum"])
    assert len(found) == 3
    monkeypatch.chdir(root)
    assert scenes(Path(".")).identity == scenes(root).identity
    monkeypatch.setattr(image_files, "HASHED", 0)
    large = scenes(root).identity
    Image.new("RGB", (40, 20), "green").save(root / "val" / "wide.png", "BMP")
    assert scenes(root).identity == large


def test_what_is_mended_is_told(tmp_path: Path) -> None:
    """A box that leaves its image is cut, one without area or outside left out; rounding is not worth a word."""
    table = coco()
    boxes = ([-4, 5, 10, 10], [35, 15, 5.001, 5], [3, 3, 0, 8], [50, 3, 4, 4], [8, 9, -2, 3])
    for i, box in enumerate(boxes, 10):
        table["annotations"].append(dict(id=i, image_id=11, category_id=3, bbox=box))
    source = scenes(write_coco(tmp_path / "set", table))
    np.testing.assert_allclose(source.truths[0].boxes[3:], [[0, 5, 6, 15], [35, 15, 40, 20]])
    cut, left = source.notes
    assert cut == "set val: 1 box cut to the image, of wide.png"
    assert left == "set val: 3 boxes without area left out, of wide.png"


def test_notes_name_some_images() -> None:
    """The first three, and how many more."""
    images = [Marked(f"{i}.png", (4, 4), Truth([[0, 0, 9, 2]], [0], [False], [False])) for i in range(5)]
    source = detection.scenes("set", "val", images, ["a"], lambda i: np.zeros((4, 4, 3), np.uint8), {})
    assert source.notes == ("set val: 5 boxes cut to the image, of 0.png, 1.png, 2.png and 2 more images",)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_become_rgb(tmp_path: Path, mode: str) -> None:
    """Grey, with transparency, with a palette."""
    image = detection.pixels(paint(tmp_path / "i.png", 5, 7, mode), "i.png")
    assert (image.shape, image.dtype) == ((5, 7, 3), np.uint8)
    if mode == "RGBA":
        assert image[4, 6].tolist() == [12, 12, 0]


Spoil = Callable[[dict[str, Any]], Any]


def spoilt(**change: Any) -> Spoil:
    """A change of the first annotation."""
    return lambda table: table["annotations"][0].update(change)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoilt(category_id=8), r"val\.json: annotation 1 has category_id 8, which the file does not list"),
        (spoilt(image_id=8), "annotation 1 has image_id 8, which the file does not list"),
        (spoilt(image_id="11"), "annotation 1 has image_id = '11'"),
        (spoilt(bbox=[1, 2, 3]), r"annotation 1: 'bbox' is \[1, 2, 3\], not 4 numbers"),
        (spoilt(bbox=[1, 2, 3, "x"]), r"not 4 numbers"),
        (spoilt(iscrowd="0"), "annotation 1: 'iscrowd' is '0', not 0 or 1"),
        (spoilt(bbox=[1, 2, 3, 10**400]), "not 4 numbers"),
        (spoilt(bbox=None), "annotation 1 has bbox = None"),
        (spoilt(bbox=[1, 2, 3, float("nan")]), r"wide\.png: a box has a corner that is no finite number"),
        (spoilt(id=2), "annotation id 2 is there twice"),
        (lambda t: t["images"][0].update(id=5), "image id 5 is there twice"),
        (lambda t: t["images"][0].update(file_name="high.png"), r"high\.png' is there twice"),
        (lambda t: t["images"][0].update(file_name="gone.png"), r"its image .*gone\.png is missing"),
        (lambda t: t["images"][0].update(width=41), "has 20 rows and 40 columns, .* says 20 and 41"),
        (lambda t: t["images"][0].update(width="x"), r"the size of wide\.png is \(20, 'x'\), not 2 numbers"),
        (lambda t: t["categories"][0].update(id=3), "category id 3 is there twice"),
        (lambda t: t["categories"][0].update(name="bird"), "the name of a category, 'bird' is there twice"),
        (lambda t: t.pop("categories"), "has no list 'categories' of objects"),
        (lambda t: t.update(images=[1]), "has no list 'images' of objects"),
        (lambda t: t.update(images=[], annotations=[]), "its split 'val' holds no image"),
        (lambda t: t.update(categories=[], annotations=[]), "name no class"),
    ],
)
def test_bad_coco_is_refused(tmp_path: Path, spoil: Spoil, says: str) -> None:
    """One line that names file, row and value."""
    table = coco()
    spoil(table)
    with pytest.raises(UsageError, match=says) as told:
        scenes(write_coco(tmp_path / "set", table))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is not JSON: Expecting"), ("[]", "holds a list, not the lists images"), (9**5 * "[", "is not JSON")],
)
def test_broken_json_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """The message names the file."""
    with pytest.raises(UsageError, match=rf"instances_val\.json {says}"):
        scenes(write_coco(tmp_path / "set", text))


def test_broken_images_are_refused(tmp_path: Path) -> None:
    """One that is no image, and one that ends early."""
    root = write_coco(tmp_path / "set", coco())
    whole = (root / "val" / "wide.png").read_bytes()
    for data in (b"no image", whole[: len(whole) // 2]):
        (root / "val" / "wide.png").write_bytes(data)
        with pytest.raises(UsageError, match=r"wide\.png cannot be read as an image"):
            scenes(root)


def test_images_that_cannot_be_read_well_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 16 bits, which would turn white, and one so large that Pillow calls it an attack; in any kind of set."""
    root, voc = write_coco(tmp_path / "set", coco()), write_voc(tmp_path / "voc")
    path = paint(tmp_path / "i.png", 20, 40)
    objects = {"bbox": BBoxFeature(), "label": ClassLabel()}
    read = (
        lambda: detection.pixels(path, "i.png"),
        lambda: detection.pixels(path.read_bytes(), "i.png"),
        lambda: scenes(root),
        lambda: scenes(voc, "train"),
        lambda: detection.of_prepared(
            Rows([{"image": path.read_bytes(), "objects": {"bbox": [], "label": []}}]),
            objects,
            (None, None, 3),
            {"name": "set", "split": "val"},
        ),
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for each in read:
        with pytest.raises(UsageError, match=r"cannot be read as an image .*decompression bomb"):
            each()
    monkeypatch.undo()
    for file in (path, root / "val" / "wide.png", voc / "JPEGImages" / "one.png"):
        Image.fromarray(np.full((20, 40), 1000, np.uint16)).save(file)
    for each in read:
        with pytest.raises(UsageError, match="has more than 8 bits a channel"):
            each()


def test_names_of_folders(tmp_path: Path) -> None:
    """A misspelt split names the nearest; a field is no choice here; a folder of text is still one."""
    root = write_coco(tmp_path / "set", coco())
    with pytest.raises(UsageError, match=r"unknown split .*'val'"):
        sources.load(str(root), "vla")
    with pytest.raises(UsageError, match=r"data\.field"):
        sources.load(str(root), "val", field="text")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("some text of some length")
    assert sources.splits_of(str(tmp_path / "texts")) == ("train", "validation")


XML = """<annotation><filename>x.jpg</filename><size><width>{x}</width><height>{y}</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = """<object><name>{name}</name>{more}<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax>
</bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""


HARD = OBJECT.format(1, 1, 9, 9, name="dog", more="<difficult>{}</difficult>")


def write_voc(root: Path, ids: str = "one two", first: str | None = None) -> Path:
    """A folder in the form of VOC: one image with a box of each of two classes, one with none, one of another split."""
    for name, rows, columns in (("one", 20, 40), ("two", 30, 10), ("three", 8, 8)):
        paint(root / "JPEGImages" / f"{name}.png", rows, columns)
    objects = OBJECT.format(1, 1, 40, 20, name="dog", more="") + OBJECT.format(
        11, 6, 30, 15.0, name="cat", more="<difficult>1</difficult>"
    )
    other = OBJECT.format(1, 1, 8, 8, name="ant", more="<difficult>0</difficult>")
    trees = {
        "one": first or XML.format(x=40, y=20, objects=objects),
        "two": XML.format(x=0, y=0, objects=""),
        "three": XML.format(x=8, y=8, objects=other),
    }
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, tree in trees.items():
        (root / "Annotations" / f"{name}.xml").write_text(tree)
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_text("\n".join(ids.split()) + "\n")
    (lists / "val.txt").write_text("three\n")
    (lists / "cat_train.txt").write_text("one  1\ntwo -1\n")
    return root


def test_voc_is_read(tmp_path: Path) -> None:
    """Boxes count from 1 and hold their last pixel; classes are those of all splits; difficult ones are no rows."""
    root = write_voc(tmp_path / "voc")
    assert sources.splits_of(str(root)) == ("train", "val")
    source = scenes(root, "train")
    assert (len(source), source.names) == (2, ("ant", "cat", "dog"))
    one = source.truths[0]
    np.testing.assert_allclose(one.boxes, [[0, 0, 40, 20], [10, 5, 30, 15]])
    assert (one.kinds.tolist(), one.crowd.tolist(), one.difficult.tolist()) == ([2, 1], [False] * 2, [False, True])
    got = source.__getitems__([0, 1])
    assert got["there"].tolist() == [[1], [0]]
    np.testing.assert_allclose(got["boxes"][:, 0], [[0.5, 0.5, 1, 1], [0, 0, 0, 0]])
    assert scenes(root, "val").truths[0].kinds.tolist() == [0]


@pytest.mark.parametrize(
    ("ids", "first", "says"),
    [
        ("one four", None, r"train\.txt lists four, and .*four\.xml is missing"),
        ("one one", None, r"train\.txt: image 'one' is there twice"),
        ("one", "<annotation>", r"one\.xml is not XML: "),
        ("one", "<annotation><object></object></annotation>", r"one\.xml: an object has no <name>"),
        ("one", "<annotation><object><name>a</name></object></annotation>", "box of a a is .*, not 4 numbers"),
        ("one", "<?xml version='1.0' encoding='nonesuch'?><annotation/>", r"one\.xml is not XML: "),
        (
            "one",
            XML.format(x=40, y=20, objects=HARD.format("maybe")),
            "a dog has <difficult>maybe</difficult>; legal: 0",
        ),
        ("one", XML.format(x=41, y=20, objects=""), r"has 20 rows and 40 columns, .*one\.xml says 20 and 41"),
    ],
)
def test_bad_voc_is_refused(tmp_path: Path, ids: str, first: str | None, says: str) -> None:
    """One line that names the file."""
    with pytest.raises(UsageError, match=says) as told:
        scenes(write_voc(tmp_path / "voc", ids, first), "train")
    assert "\n" not in str(told.value)


def test_difficult_is_said_in_several_ways(tmp_path: Path) -> None:
    said = {"0": False, "False": False, " 1 ": True, "TRUE": True, "Unspecified": False, "": False}
    objects = "".join(HARD.format(text) for text in said)
    source = scenes(write_voc(tmp_path / "voc", "one", XML.format(x=40, y=20, objects=objects)), "train")
    assert source.truths[0].difficult.tolist() == list(said.values())


def test_a_list_in_another_encoding_is_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc")
    (root / "ImageSets" / "Main" / "train.txt").write_bytes("größe\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"train\.txt is not UTF-8 text"):
        scenes(root, "train")


def test_voc_without_its_image(tmp_path: Path) -> None:
    """The image that the list names is missing."""
    root = write_voc(tmp_path / "voc")
    (root / "JPEGImages" / "one.png").unlink()
    with pytest.raises(UsageError, match=r"one\.xml: its image .*one\.jpg is missing"):
        scenes(root, "train")


def test_a_class_beyond_the_list_is_refused() -> None:
    """As of a prepared set that keeps its labels to itself, by -1."""
    images = [Marked("a.png", (4, 4), Truth([[0, 0, 2, 2]], [-1], [False], [False]))]
    with pytest.raises(UsageError, match=r"a\.png: a box is of class -1 of 1"):
        detection.scenes("set", "val", images, ["a"], lambda i: np.zeros((4, 4, 3), np.uint8), {})


PREPARED = os.environ.get("TFDS_DATA_DIR")


@pytest.mark.skipif(not PREPARED, reason="TFDS_DATA_DIR is not set: no prepared TFDS sets here")
def test_tfds_bccd() -> None:
    """205 images, 2,805 boxes, one of them without area; rows survive the way into a worker process."""
    source = sources.load("bccd", "train", data_dir=PREPARED)
    assert isinstance(source, Scenes)
    assert (len(source), source.names) == (205, ("RBC", "WBC", "Platelets"))
    assert source.notes == ("bccd/1.0.0 train: 1 box without area left out, of BloodImage_00343",)
    assert len(source.truths.kinds) == 2804
    some = source.__getitems__([204, 3])
    assert (some["image"][0].shape, some["boxes"].shape) == ((480, 640, 3), (2, 28, 4))
    again = pickle.loads(pickle.dumps(source)).__getitems__([204, 3])
    assert all((again[k] == some[k]).all() for k in ("boxes", "kinds", "there"))
    assert (again["image"][1] == some["image"][1]).all()


class Feature:
    """A feature as TFDS describes it, by the name of its class."""

    names = ("a", "b")


class BBoxFeature(Feature):
    pass


class ClassLabel(Feature):
    pass


class Rows(list[Any]):
    def __getitems__(self, wanted: list[int]) -> list[Any]:
        return [self[i] for i in wanted]


def test_prepared_sets_with_crowds(tmp_path: Path) -> None:
    """Rows before columns, in shares; `label` goes before another ClassLabel; crowds and hard ones are set apart."""
    image = paint(tmp_path / "i.png", 20, 40).read_bytes()
    marks = dict(
        bbox=[[0.25, 0.5, 0.5, 1], [0, 0, 1, 1], [0, 0, 1, 0.5]],
        label=[1, 0, 1],
        pose=[0, 0, 0],
        is_difficult=[False, True, False],
        is_crowd=[False, False, True],
    )
    rows = Rows([{"image": image, "objects": marks}, {"image": image, "objects": {k: [] for k in marks}}])
    objects = {"bbox": BBoxFeature(), "is_difficult": Feature(), "pose": ClassLabel(), "label": ClassLabel()}
    source = detection.of_prepared(rows, objects, (None, None, 3), {"name": "set", "split": "val"})
    np.testing.assert_allclose(source.truths[0].boxes, [[20, 5, 40, 10], [0, 0, 40, 20], [0, 0, 20, 20]])
    assert source.truths[0].difficult.tolist() == [False, True, False]
    assert source.truths[0].crowd.tolist() == [False, False, True]
    assert source.__getitems__([0, 1])["there"].tolist() == [[1], [0]]
    with pytest.raises(UsageError, match="need a BBoxFeature and a ClassLabel; they have bbox"):
        detection.of_prepared(rows, {"bbox": BBoxFeature()}, (None, None, 3), {"name": "set", "split": "val"})


@pytest.mark.parametrize("shape", [(None, None, 3), (20, 40, 3)])
def test_prepared_rows_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any) -> None:
    """Not one by one; where all images have one shape, none is opened for it."""
    image, opened = paint(tmp_path / "i.png", 20, 40).read_bytes(), []
    rows = Rows([{"image": image, "objects": {"bbox": [], "label": []}}] * 5)
    asked: list[int] = []
    monkeypatch.setattr(
        Rows, "__getitems__", lambda self, wanted: (asked.append(len(wanted)), [self[i] for i in wanted])[1]
    )
    monkeypatch.setattr(image_files, "opened", lambda *of, real=image_files.opened: (opened.append(of), real(*of))[1])
    monkeypatch.setattr(kinds, "BLOCK", 3)
    monkeypatch.setattr(detection, "DECODE_ONCE", 0)
    objects = {"bbox": BBoxFeature(), "label": ClassLabel()}
    source = detection.of_prepared(rows, objects, shape, {"name": "set", "split": "val"})
    assert (asked, len(opened)) == ([3, 2], 0 if shape[0] else 5)
    assert source.truths.size(4) == (20, 40)
