"""Folders in Pascal VOC's form: what is read and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from data import sources
from errors import UsageError
from tests.support.boxed_folders import OBJECT, XML, paint, scenes, write_voc
from train import introduction

HARD = OBJECT.format(1, 1, 9, 9, name="dog", more="<difficult>{}</difficult>")


def test_voc_is_read(tmp_path: Path) -> None:
    """Boxes count from 1 and hold their last pixel; classes are those of all splits; difficult ones are no rows."""
    root = write_voc(tmp_path / "voc")
    assert sources.splits_of(str(root)) == ("train", "val")
    source = scenes(root, "train")
    assert (len(source), source.names) == (2, ("ant", "cat", "dog"))
    one = source.annotations[0]
    np.testing.assert_allclose(one.boxes, [[0, 0, 40, 20], [10, 5, 30, 15]])
    assert (one.labels.tolist(), one.crowd.tolist(), one.difficult.tolist()) == ([2, 1], [False] * 2, [False, True])
    got = source.__getitems__([0, 1])
    assert got["box_mask"].tolist() == [[1], [0]]
    np.testing.assert_allclose(got["boxes"][:, 0], [[0.5, 0.5, 1, 1], [0, 0, 0, 0]])
    assert scenes(root, "val").annotations[0].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("ids", "first", "says"),
    [
        ("one four", None, r"train\.txt lists four, and .*four\.xml is missing"),
        ("one one", None, r"train\.txt: image 'one' appears twice"),
        ("one", "<annotation>", r"one\.xml is not XML: "),
        ("one", "<annotation><object></object></annotation>", r"one\.xml: an object has no <name>"),
        ("one", "<annotation><object><name>a</name></object></annotation>", "a a has no <bndbox>"),
        ("one", "<?xml version='1.0' encoding='nonesuch'?><annotation/>", r"one\.xml is not XML: "),
        (
            "one",
            XML.format(x=40, y=20, objects=HARD.format("maybe")),
            "a dog has <difficult>maybe</difficult>; legal: 0",
        ),
        ("one", XML.format(x=41, y=20, objects=""), r"has 20 rows and 40 columns, .*one\.xml says 20 and 41"),
        (
            "one",
            XML.format(x=40, y=20, objects=OBJECT.format(0.1, 0.2, 0.5, 1.0, name="dog", more="")),
            r"one\.xml: all boxes end within the first pixel",
        ),
    ],
)
def test_bad_voc_is_refused(tmp_path: Path, ids: str, first: str | None, says: str) -> None:
    """One line that names the file."""
    with pytest.raises(UsageError, match=says) as error:
        scenes(write_voc(tmp_path / "voc", ids, first), "train")
    assert "\n" not in str(error.value)


def test_a_name_is_a_line(tmp_path: Path) -> None:
    """With spaces, after a byte-order mark, with an ending; a number behind a name is the name's if it has an .xml."""
    root = write_voc(tmp_path / "voc")
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "png")):
        for old, new in (("one", "my photo 1"), ("two", "img (2)")):
            (root / folder / f"{old}.{ending}").rename(root / folder / f"{new}.{ending}")
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_bytes("\ufeffmy photo 1\r\nimg (2).PNG\r\n\r\n".encode())
    (lists / "one.txt").write_text("my photo 1\n")
    (lists / "cat_train.txt").write_text("my photo 1 -1\nimg (2)  0\n")
    assert sources.splits_of(str(root)) == ("one", "train", "val")
    assert [len(truth.labels) for truth in map(scenes(root, "train").annotations.__getitem__, range(2))] == [2, 0]
    assert len(scenes(root, "one")) == 1


def test_only_images_are_images(tmp_path: Path) -> None:
    """Other files of the same name are passed over; of two images <filename> chooses."""
    root = write_voc(tmp_path / "voc")
    for name in ("one.json", "one.PDF", "._one.png"):
        (root / "JPEGImages" / name).write_text("{}")
    want = scenes(root, "train").identity
    paint(root / "JPEGImages" / "one.jpg", 20, 40)
    with pytest.raises(UsageError, match=r"one\.xml: its image may be one\.jpg or one\.png; its <filename> 'x\.jpg'"):
        scenes(root, "train")
    file = root / "Annotations" / "one.xml"
    file.write_text(file.read_text().replace("x.jpg", "one.png"))
    assert scenes(root, "train").identity == want


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("<xmin>1<", "<xmin>nan<"), r"box of a dog is \[nan, 1\.0, 40\.0, 20\.0\], not 4 numbers"),
        (("<xmin>1<", "<xmin>1_0<"), r"box of a dog is \['1_0', "),
        (("<width>40<", "<width>wide<"), r"<size> is \[20\.0, 'wide'\], not 2 numbers"),
        (("annotation>", "annotations>"), r"one\.xml is not a Pascal VOC annotation: it has <annotations>"),
        (("bndbox>", "robndbox>"), "a dog has no <bndbox>"),
        (("<name>dog<", "<name>do&#10;g<"), r"one\.xml: 'do\\ng' is not a class name"),
    ],
)
def test_other_xml_is_refused(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    """What is no number, another tool's, or no name."""
    root = write_voc(tmp_path / "voc")
    file = root / "Annotations" / "one.xml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UsageError, match=says):
        scenes(root, "train")


def test_difficult_is_said_in_several_ways(tmp_path: Path) -> None:
    said = {"0": False, "False": False, " 1 ": True, "TRUE": True, "Unspecified": False, "": False}
    objects = "".join(HARD.format(text) for text in said)
    source = scenes(write_voc(tmp_path / "voc", "one", XML.format(x=40, y=20, objects=objects)), "train")
    assert source.annotations[0].difficult.tolist() == list(said.values())


def test_a_list_in_another_encoding_is_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc")
    (root / "ImageSets" / "Main" / "train.txt").write_bytes("größe\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"train\.txt is not UTF-8 text"):
        scenes(root, "train")


def test_lists_further_below_are_not_passed_over(tmp_path: Path) -> None:
    """As of a folder of several years: their splits would be others than those of the lists."""
    root = write_voc(tmp_path / "VOCdevkit" / "VOC2007")
    with pytest.raises(UsageError, match=rf"has lists of Pascal VOC further below, as .*\.txt: give {root}$"):
        sources.splits_of(str(root.parent))


def test_a_list_has_an_ending_in_any_case(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc")
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "train.TXT")
    assert sources.splits_of(str(root)) == ("train", "val")


def test_images_of_two_splits_are_named(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc")
    (root / "ImageSets" / "Main" / "val.txt").write_text("three\ntwo\n")
    (said,) = introduction.overlap_notes(scenes(root, "train"), scenes(root, "val"))
    assert said.strip().startswith("held out: images that are trained on too (1): ")
    assert said.endswith("two.png")
    assert introduction.overlap_notes(scenes(root, "train"), scenes(root, "val[:1]")) == ()


def test_voc_without_its_image(tmp_path: Path) -> None:
    """The image that the list names is missing."""
    root = write_voc(tmp_path / "voc")
    (root / "JPEGImages" / "one.png").unlink()
    with pytest.raises(UsageError, match=r"one\.xml: its image .*one\.jpg is missing"):
        scenes(root, "train")
