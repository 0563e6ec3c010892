"""Folders in Pascal VOC's form: what is read and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from data import sources
from errors import UsageError
from tests.boxed_folders import OBJECT, XML, scenes, write_voc

HARD = OBJECT.format(1, 1, 9, 9, name="dog", more="<difficult>{}</difficult>")


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
