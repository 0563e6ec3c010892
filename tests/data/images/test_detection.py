"""Images with boxes of any kind of set, and prepared ones: what is read, what is reported, what is refused."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import fields, sources
from data.images import decode, detection
from data.images.detection import AnnotatedImage, BoxAnnotations, DetectionDataset
from errors import UsageError
from tests.support.boxed_folders import OBJECT, XML, coco, paint, scenes, write_coco, write_voc


def test_notes_name_some_images() -> None:
    """The first three, and how many more."""
    images = [
        AnnotatedImage(f"{i}.png", (4, 4), BoxAnnotations([[0, 0, 9, 2]], [0], [False], [False])) for i in range(5)
    ]
    source = detection.make_detection_dataset("set", "val", images, ["a"], lambda i: np.zeros((4, 4, 3), np.uint8), {})
    assert source.notes == ("set val: 5 boxes clipped to the image, of 0.png, 1.png, 2.png and 2 more images",)


def turned(root: Path, name: str, orientation: int, sized: bool | None) -> None:
    """An image with an orientation and a red box, 10, 5, 30, 15 as seen upright; the .xml gives the size as seen or as
    stored, or no size if `sized` is None.
    """
    upright = np.full((60, 80, 3), 30, np.uint8)
    upright[5:15, 10:30] = (250, 40, 40)
    stored = Image.fromarray(upright).transpose(decode.EXIF_TRANSPOSES[orientation])
    if orientation in (6, 8):  # what makes the one upright turns the other
        stored = Image.fromarray(upright).transpose(decode.EXIF_TRANSPOSES[14 - orientation])
    exif = Image.Exif()
    exif[decode.ORIENTATION] = orientation
    stored.save(root / f"{name}.png", exif=exif)
    columns, rows = (0, 0) if sized is None else (80, 60) if sized else stored.size
    objects = OBJECT.format(11, 6, 30, 15, name="ball", more="")
    (root / f"{name}.xml").write_text(XML.format(x=columns, y=rows, objects=objects))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("sized", [True, None])
def test_pixels_are_turned_as_boxes_are(tmp_path: Path, orientation: int, sized: bool | None) -> None:
    """By EXIF's orientation, and a note says so."""
    turned(tmp_path, "a", orientation, sized)
    source = scenes(tmp_path, "train")
    [row] = source.__getitems__([0])["image"]
    np.testing.assert_allclose(source.annotations[0].boxes, [[10, 5, 30, 15]])
    np.testing.assert_array_equal(row[5:15, 10:30].mean((0, 1)), [250, 40, 40])
    [note] = source.notes
    assert note == f"{tmp_path.name} train: images made upright by EXIF, as their boxes are (1): a.png"


def test_pixels_stay_as_stored_where_sizes_say_so(tmp_path: Path) -> None:
    """And then those too whose size would leave both, as the same tool has annotated them."""
    turned(tmp_path, "a", 6, sized=False)
    turned(tmp_path, "b", 3, sized=None)
    turned(tmp_path, "c", 8, sized=True)
    (tmp_path / "train").mkdir()
    for file in [*tmp_path.glob("*.png"), *tmp_path.glob("*.xml")]:
        file.rename(tmp_path / "train" / file.name)
    source = scenes(tmp_path, "train")
    assert source.annotations.sizes.tolist() == [[80, 60], [60, 80], [60, 80]]
    assert [note.partition(": ")[2] for note in source.notes] == [
        "images made upright by EXIF, as their boxes are (1): train/c.png",
        "images with EXIF orientation kept as stored, as annotated (2): train/a.png, train/b.png",
    ]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_become_rgb(tmp_path: Path, mode: str) -> None:
    """Grey, with transparency, with a palette."""
    image = detection.decode_rgb(paint(tmp_path / "i.png", 5, 7, mode), "i.png")
    assert (image.shape, image.dtype) == ((5, 7, 3), np.uint8)
    if mode == "RGBA":
        assert image[4, 6].tolist() == [12, 12, 0]


def test_images_that_cannot_be_read_well_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 16 bits, which would turn white, and one so large that Pillow calls it an attack; in any kind of set."""
    root, voc = write_coco(tmp_path / "set", coco()), write_voc(tmp_path / "voc")
    path = paint(tmp_path / "i.png", 20, 40)
    objects = {"bbox": BBoxFeature(), "label": ClassLabel()}
    read = (
        lambda: detection.decode_rgb(path, "i.png"),
        lambda: detection.decode_rgb(path.read_bytes(), "i.png"),
        lambda: scenes(root),
        lambda: scenes(voc, "train"),
        lambda: detection.from_tfds(
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
        with pytest.raises(UsageError, match="has more than 8 bits per channel"):
            each()


def test_a_class_beyond_the_list_is_refused() -> None:
    """As of a prepared set that keeps its labels to itself, by -1."""
    images = [AnnotatedImage("a.png", (4, 4), BoxAnnotations([[0, 0, 2, 2]], [-1], [False], [False]))]
    with pytest.raises(UsageError, match=r"a\.png: a box is of class -1; classes are 0 to 0"):
        detection.make_detection_dataset("set", "val", images, ["a"], lambda i: np.zeros((4, 4, 3), np.uint8), {})


PREPARED = os.environ.get("TFDS_DATA_DIR")


@pytest.mark.skipif(not PREPARED, reason="TFDS_DATA_DIR is not set: no prepared TFDS sets here")
def test_tfds_bccd() -> None:
    """205 images, 2,805 boxes, one of them without area; rows survive the way into a worker process."""
    source = sources.load("bccd", "train", data_dir=PREPARED)
    assert isinstance(source, DetectionDataset)
    assert (len(source), source.names) == (205, ("RBC", "WBC", "Platelets"))
    assert source.notes == ("bccd/1.0.0 train: 1 box without area dropped, of BloodImage_00343",)
    assert len(source.annotations.labels) == 2804
    some = source.__getitems__([204, 3])
    assert (some["image"][0].shape, some["boxes"].shape) == ((480, 640, 3), (2, 28, 4))
    again = pickle.loads(pickle.dumps(source)).__getitems__([204, 3])
    assert all((again[k] == some[k]).all() for k in ("boxes", "box_labels", "box_mask"))
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
    source = detection.from_tfds(rows, objects, (None, None, 3), {"name": "set", "split": "val"})
    np.testing.assert_allclose(source.annotations[0].boxes, [[20, 5, 40, 10], [0, 0, 40, 20], [0, 0, 20, 20]])
    assert source.annotations[0].difficult.tolist() == [False, True, False]
    assert source.annotations[0].crowd.tolist() == [False, False, True]
    assert source.__getitems__([0, 1])["box_mask"].tolist() == [[1], [0]]
    assert source.notes == ()
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 3
    Image.open(tmp_path / "i.png").save(tmp_path / "j.png", exif=exif)
    askew = Rows([{"image": (tmp_path / "j.png").read_bytes(), "objects": marks}])
    noted = detection.from_tfds(askew, objects, (None, None, 3), {"name": "set", "split": "val"})
    assert noted.notes == ("set val: images whose EXIF orientation is not applied (1): image 0",)
    boxes = {"bbox": BBoxFeature()}
    for some in (boxes, {**boxes, "pose": ClassLabel(), "kind": ClassLabel()}):
        with pytest.raises(UsageError, match=r"BBoxFeature and one ClassLabel .*; they have bbox"):
            detection.from_tfds(rows, some, (None, None, 3), {"name": "set", "split": "val"})


@pytest.mark.parametrize("shape", [(None, None, 3), (20, 40, 3)])
def test_prepared_rows_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any) -> None:
    """Not one by one; where all images have one shape, none is opened for it."""
    image, opened = paint(tmp_path / "i.png", 20, 40).read_bytes(), []
    rows = Rows([{"image": image, "objects": {"bbox": [], "label": []}}] * 5)
    asked: list[int] = []
    monkeypatch.setattr(
        Rows, "__getitems__", lambda self, wanted: (asked.append(len(wanted)), [self[i] for i in wanted])[1]
    )
    monkeypatch.setattr(decode, "open_image", lambda *of, real=decode.open_image: (opened.append(of), real(*of))[1])
    monkeypatch.setattr(fields, "BLOCK", 3)
    monkeypatch.setattr(detection, "DECODE_ONCE", 0)
    objects = {"bbox": BBoxFeature(), "label": ClassLabel()}
    source = detection.from_tfds(rows, objects, shape, {"name": "set", "split": "val"})
    assert (asked, len(opened)) == ([3, 2], 0 if shape[0] else 5)
    assert source.annotations.size(4) == (20, 40)
