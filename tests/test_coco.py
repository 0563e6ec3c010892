"""Folders with COCO's JSON: what is read, what is mended and told, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import image_files, sources
from errors import UsageError
from tests.boxed_folders import coco, scenes, write_coco


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
