"""Folders with COCO's JSON: what is read, what is mended and reported, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import sources
from data.images import decode
from errors import UsageError
from tests.support.boxed_folders import coco, paint, scenes, write_coco


@pytest.mark.parametrize("form", ["coco", "images", "roboflow"])
def test_coco_is_read(tmp_path: Path, form: str) -> None:
    """Classes by the order of their ids, corners from width and height, crowds kept as truths and not as rows."""
    root = write_coco(tmp_path / "set", coco(), form)
    assert sources.splits_of(str(root)) == ("val",)
    source = scenes(root)
    assert (len(source), source.classes, source.names, source.notes) == (2, 2, ("bird", "cat"), ())
    wide, high = source.annotations[0], source.annotations[1]
    np.testing.assert_allclose(wide.boxes, [[10, 5, 30, 15], [0, 0, 40, 20], [30, 10, 34, 12.5]])
    assert (wide.labels.tolist(), wide.crowd.tolist(), wide.difficult.any()) == ([1, 0, 0], [False, True, False], False)
    np.testing.assert_allclose(high.boxes, [[0, 0, 10, 15]])
    assert source.annotations.sizes.tolist() == [[20, 40], [30, 10]]
    got = source.__getitems__([1, 0])
    assert [i.shape for i in got["image"]] == [(30, 10, 3), (20, 40, 3)]
    assert got["image"][1][7, 9].tolist() == [18, 21, 0]
    np.testing.assert_array_equal(got["box_mask"], [[1, 0], [1, 1]])
    np.testing.assert_array_equal(got["box_labels"], [[0, 0], [1, 0]])
    np.testing.assert_allclose(got["boxes"][0], [[0.5, 0.25, 1, 0.5], [0, 0, 0, 0]])
    np.testing.assert_allclose(got["boxes"][1], [[0.5, 0.5, 0.5, 0.5], [0.8, 0.5625, 0.1, 0.125]])
    assert [got[k].dtype for k in ("boxes", "box_labels", "box_mask")] == [np.float32, np.int32, np.float32]


def test_rows_are_limited_and_padded(tmp_path: Path) -> None:
    """To fewer boxes, the first ones stay; to more, padding."""
    source = scenes(write_coco(tmp_path / "set", coco()))
    few, many = source.with_max_boxes(1).__getitems__([0]), source.with_max_boxes(5).__getitems__([0])
    np.testing.assert_allclose(few["boxes"], [[[0.5, 0.5, 0.5, 0.5]]])
    assert many["box_mask"].tolist() == [[1, 1, 0, 0, 0]]
    assert not many["boxes"][0, 2:].any()
    assert source.shapes == {"image": (), "boxes": (2, 4), "box_labels": (2,), "box_mask": (2,)}


def test_headers_of_images_are_reported_as_they_are_read(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    tick = lambda *what: said.append(what)  # noqa: E731
    sources.load(str(write_coco(tmp_path / "set", coco())), "val", tick=tick)
    assert said == [(what, done, 2) for what in ("reading headers of images", "hashing images") for done in (0, 1, 2)]


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
    monkeypatch.setattr(decode, "HASH_CONTENTS_UP_TO", 0)
    large = scenes(root).identity
    Image.new("RGB", (40, 20), "green").save(root / "val" / "wide.png", "BMP")
    assert scenes(root).identity == large


def test_what_is_mended_is_reported(tmp_path: Path) -> None:
    """A box that leaves its image is cut, one without area or outside is left out; rounding is not reported."""
    table = coco()
    boxes = ([-4, 5, 10, 10], [35, 15, 5.001, 5], [3, 3, 0, 8], [50, 3, 4, 4], [8, 9, -2, 3])
    for i, box in enumerate(boxes, 10):
        table["annotations"].append(dict(id=i, image_id=11, category_id=3, bbox=box))
    source = scenes(write_coco(tmp_path / "set", table))
    np.testing.assert_allclose(source.annotations[0].boxes[3:], [[0, 5, 6, 15], [35, 15, 40, 20]])
    cut, left = source.notes
    assert cut == "set val: 1 box clipped to the image, of wide.png"
    assert left == "set val: 3 boxes without area dropped, of wide.png"


Spoil = Callable[[dict[str, Any]], Any]


def test_boxes_to_be_ignored_count_and_are_named(tmp_path: Path) -> None:
    """pycocotools goes by `iscrowd` alone."""
    table = coco()
    table["annotations"][0].update(ignore=1)
    table["annotations"][1].update(ignore=0)
    source = scenes(write_coco(tmp_path / "set", table))
    (said,) = source.notes
    assert (
        said == "set val: images with boxes of `ignore` 1, which are not ignored, as in COCO's evaluation (1): wide.png"
    )
    assert source.annotations[0].is_valid.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("old", "new"),
    [("annotations/instances_val.json", "Annotations/INSTANCES_val.JSON"), ("images", "Images"), ("", "")],
)
def test_names_of_files_are_of_any_case(tmp_path: Path, old: str, new: str) -> None:
    root = write_coco(tmp_path / "set", coco(), "images" if old else "roboflow")
    old, new = (old, new) if old else ("val/_annotations.coco.json", "val/_Annotations.coco.JSON")
    (root / new).parent.mkdir(exist_ok=True)
    (root / old).rename(root / new)
    assert sources.splits_of(str(root)) == ("val",)
    assert len(scenes(root)) == 2


def spoilt(**change: Any) -> Spoil:
    """A change of the first annotation."""
    return lambda table: table["annotations"][0].update(change)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoilt(category_id=8), r"val\.json: annotation 1 has category_id 8, which the file does not list"),
        (spoilt(image_id=8), "annotation 1 has image_id 8, which the file does not list"),
        (spoilt(image_id="eleven"), "annotation 1 has image_id 'eleven', which the file does not list"),
        (spoilt(image_id=11.5), r"annotation 1 has image_id = 11\.5"),
        (spoilt(image_id=True), "annotation 1 has image_id = True"),
        (spoilt(bbox="1234"), r"annotation 1: 'bbox' is '1234', not 4 numbers"),
        (spoilt(bbox=["1", "2", "3", "4"]), "not 4 numbers"),
        (spoilt(bbox=[1, 2, 3, True]), r"'bbox' is \[1, 2, 3, True\], not 4 numbers"),
        (spoilt(bbox={"x": 1, "y": 2, "w": 3, "h": 4}), "not 4 numbers"),
        (spoilt(bbox=None, segmentation=[[1, 2, 3, 4, 5, 6]]), "annotation 1 has a segmentation and no bbox"),
        (spoilt(bbox=list(range(9999))), r"'bbox' is \[0, 1, 2, 3, 4, 5, \.\.\.\], not 4 numbers"),
        (spoilt(bbox=[1, 2, 3]), r"annotation 1: 'bbox' is \[1, 2, 3\], not 4 numbers"),
        (spoilt(bbox=[1, 2, 3, "x"]), r"not 4 numbers"),
        (spoilt(iscrowd="0"), "annotation 1: 'iscrowd' is '0', not 0 or 1"),
        (spoilt(bbox=[1, 2, 3, 10**400]), "not 4 numbers"),
        (spoilt(bbox=None), "annotation 1: 'bbox' is None, not 4 numbers"),
        (spoilt(bbox=[1, 2, 3, float("nan")]), r"annotation 1: 'bbox' is \[1, 2, 3, nan\], not 4 numbers"),
        (spoilt(id="2"), "annotation id 2 appears twice"),
        (spoilt(id=2), "annotation id 2 appears twice"),
        (lambda t: t["images"][0].update(id=5), "image id 5 appears twice"),
        (
            lambda t: [mark.update(bbox=[0.2, 0.1, 0.8, 0.6]) for mark in t["annotations"]],
            r"val\.json: all boxes end within the first pixel; write pixels, not fractions",
        ),
        (lambda t: t["images"][0].update(file_name="high.png"), r"high\.png' appears twice"),
        (lambda t: t["images"][0].update(file_name="gone.png"), r"its image .*gone\.png is missing"),
        (lambda t: t["images"][0].update(width=41), "has 20 rows and 40 columns, .* says 20 and 41"),
        (lambda t: t["images"][0].update(width="x"), r"the size of wide\.png is \(20, 'x'\), not 2 numbers"),
        (lambda t: t["categories"][0].update(id=3), "category id 3 appears twice"),
        (lambda t: t["categories"][0].update(name="bird"), "the name of a category, 'bird' appears twice"),
        (lambda t: t.pop("categories"), "has no list 'categories' of objects"),
        (lambda t: t.update(images=[1]), "has no list 'images' of objects"),
        (lambda t: t.update(images=[], annotations=[]), "split 'val' has no images"),
        (lambda t: t.update(categories=[], annotations=[]), "name no classes"),
    ],
)
def test_bad_coco_is_refused(tmp_path: Path, spoil: Spoil, says: str) -> None:
    """One line that names file, row and value."""
    table = coco()
    spoil(table)
    with pytest.raises(UsageError, match=says) as error:
        scenes(write_coco(tmp_path / "set", table))
    assert "\n" not in str(error.value)


def test_ids_are_known_in_any_form(tmp_path: Path) -> None:
    """As texts and as whole floats; annotations need none; a byte-order mark is passed over."""
    table, want = coco(), scenes(write_coco(tmp_path / "a" / "set", coco())).identity
    for form in (str, float):
        other = coco()
        for row in other["images"] + other["categories"]:
            row["id"] = form(row["id"])
        for row in other["annotations"]:
            row["image_id"], row["category_id"] = str(row["image_id"]), float(row["category_id"])
            row.pop("id")
        assert scenes(write_coco(tmp_path / form.__name__ / "set", other)).identity == want
    for row in table["categories"] + table["annotations"]:
        key = "category_id" if "category_id" in row else "id"
        row[key] = {7: "cat", 3: "bird"}[row[key]]
    root = write_coco(tmp_path / "set", "\ufeff" + json.dumps(table))
    assert scenes(root).names == ("bird", "cat")


def test_a_root_category_is_no_class(tmp_path: Path) -> None:
    """Roboflow's, over all the others and without a box in any split, also of the name of one; else it is a class."""
    table = coco()
    for row in table["categories"]:
        row["supercategory"] = "cat"
    table["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
    root = write_coco(tmp_path / "set", table, "roboflow")
    source = scenes(root)
    assert source.names == ("bird", "cat")
    assert source.notes == ("set val: category 'cat', the others' supercategory without boxes, is no class",)
    for row in table["categories"]:
        row["name"] = row["name"].replace("cat", "animal") if row["id"] == 0 else row["name"]
        row["supercategory"] = "animal" if row["id"] else "none"
    assert scenes(write_coco(root, table, "roboflow")).names == ("bird", "cat")
    table["annotations"][0]["category_id"] = 0
    write_coco(root, table, "roboflow", split="train")
    assert scenes(root).names == ("animal", "bird", "cat")


def test_images_are_looked_for_where_tools_put_them(tmp_path: Path) -> None:
    """CVAT's flat `images/`, Label Studio's names, one file for all; what was tried is named."""
    table = coco()
    root = write_coco(tmp_path / "set", table, "images")
    for name in ("wide.png", "high.png"):
        (root / "images" / "val" / name).rename(root / "images" / f"a {name}")
    for form in ("a {}", "images/a {}", "images\\a {}", "a%20{}"):
        for row, name in zip(table["images"], ("wide.png", "high.png"), strict=True):
            row["file_name"] = form.format(name)
        assert len(scenes(write_coco(tmp_path / "set", table, "images"))) == 2
    (root / "annotations" / "instances_val.json").rename(root / "result.json")
    assert sources.splits_of(str(root)) == ("train", "test")
    assert [scenes(root, split).annotations.sizes.tolist() for split in ("train", "test")] == [[[30, 10]], [[20, 40]]]
    for name, splits in (("annotations.JSON", ("train", "test")), ("instances_val.json", ("val",))):
        (root / "result.json").rename(root / name)
        assert sources.splits_of(str(root)) == splits
        (root / name).rename(root / "result.json")
    (root / "config.json").write_text('{"categories": 3}')
    (root / "result.json").rename(root / "train.json")
    shutil.copy(root / "train.json", root / "val.json")
    assert sources.splits_of(str(root)) == ("train", "val")
    assert len(scenes(root, "train")) == 2
    (root / "more.json").mkdir()
    assert sources.splits_of(str(root)) == ("train", "val")
    table["images"][0]["file_name"] = "gone.png"
    with pytest.raises(UsageError, match=r"its image .*/val/gone\.png is missing; also not in .*/images, .*/set$"):
        scenes(write_coco(tmp_path / "set", table, "images"))


def test_images_outside_are_not_opened(tmp_path: Path) -> None:
    """By a path, by a link of the file or of a folder; a linked folder of a split is its owner's choice."""
    outside = paint(tmp_path / "outside" / "wide.png", 20, 40)
    root = write_coco(tmp_path / "set", coco())
    (root / "val" / "link.png").symlink_to(outside)
    (root / "val" / "folder").symlink_to(outside.parent)
    for name in (
        str(outside),
        "../../outside/wide.png",
        "../../x",
        "link.png",
        "folder/wide.png",
        "..\\..\\outside\\wide.png",
    ):
        table = coco()
        table["images"][0]["file_name"] = name
        with pytest.raises(
            UsageError, match=r"instances_val\.json: its image .* is outside of its folder and is not opened"
        ):
            scenes(write_coco(tmp_path / "set", table))
    shutil.move(write_coco(root, coco()) / "val", tmp_path / "elsewhere")
    (root / "val").symlink_to(tmp_path / "elsewhere")
    assert len(scenes(root)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read as JSON: Expecting"),
        ("[]", "has a list, not the lists images"),
        (9**5 * "[", "cannot be read as JSON: it is nested too deeply"),
    ],
)
def test_broken_json_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """The message names the file."""
    with pytest.raises(UsageError, match=rf"instances_val\.json {says}"):
        scenes(write_coco(tmp_path / "set", text))


@pytest.mark.parametrize(
    ("one", "other"),
    [("instances_val.json", "val.json"), ("annotations/instances_val.json", "val/_annotations.coco.json")],
)
def test_two_files_of_one_split_are_refused(tmp_path: Path, one: str, other: str) -> None:
    """Which of them has the boxes is not known."""
    root = write_coco(tmp_path / "set", coco())
    text = (root / "annotations" / "instances_val.json").read_text()
    shutil.rmtree(root / "annotations")
    for name in (one, other):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    with pytest.raises(UsageError, match=rf"{one} and .*{other} are both of the split 'val': remove one"):
        sources.splits_of(str(root))


def test_a_pointer_beside_images_is_named(tmp_path: Path) -> None:
    """Also one that may be COCO's by its place alone."""
    root = write_coco(tmp_path / "set", "version https://git-lfs.github.com/spec/v1\n", "images")
    (root / "annotations" / "instances_val.json").rename(root / "annotations" / "all.json")
    with pytest.raises(UsageError, match=r"annotations/all\.json is a Git LFS pointer"):
        scenes(root)


def test_broken_images_are_refused(tmp_path: Path) -> None:
    """One that is no image, and one that ends early."""
    root = write_coco(tmp_path / "set", coco())
    whole = (root / "val" / "wide.png").read_bytes()
    for data in (b"no image", whole[: len(whole) // 2]):
        (root / "val" / "wide.png").write_bytes(data)
        with pytest.raises(UsageError, match=r"wide\.png cannot be read as an image"):
            scenes(root)


def test_names_of_folders(tmp_path: Path) -> None:
    """A misspelt split names the nearest; a field is no choice here; a folder of text is still one."""
    root = write_coco(tmp_path / "set", coco())
    with pytest.raises(UsageError, match=r"unknown split .*'val'.* val\[:90%\] and val\[90%:\]"):
        sources.load(str(root), "vla")
    with pytest.raises(UsageError, match=r"data\.field"):
        sources.load(str(root), "val", field="text")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("some text of some length")
    assert sources.splits_of(str(tmp_path / "texts")) == ("train", "validation")
