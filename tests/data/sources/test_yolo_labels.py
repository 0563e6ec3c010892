"""Folders with the labels of Darknet and YOLO: what is read, what is said of it, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from data import sources
from errors import UsageError
from tests.support.boxed_folders import OBJECT, XML, paint, scenes

LABEL = "1 0.5 0.25 0.5 0.5\n"  # of an image of 20 rows and 40 columns: 10, 0, 30, 10


def write(root: Path, **files: str) -> Path:
    """Files of a folder by path, with `__` for / and `_` before the ending; an image's text is not used."""
    for name, text in files.items():
        path = root / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            paint(path, 20, 40)
        else:
            path.write_text(text)
    return root


def flat(root: Path, label: str = LABEL) -> Path:
    """Two images, the second of the split `test`, and labels of the first."""
    return write(root, a_png="", b_png="", a_txt=label, classes_txt="ball\ncube\n")


def test_labels_beside_images_are_read(tmp_path: Path) -> None:
    """Shares become corners; an empty file and no file are no boxes; the last tenth is the split test."""
    root = write(flat(tmp_path / "set"), c_png="", c_txt="\n")
    assert sources.splits_of(str(root)) == ("train", "test")
    source = scenes(root, "train")
    assert (len(source), source.names) == (2, ("ball", "cube"))
    assert source.notes == ("set: images without a label file, read as background (1): b.png",)
    np.testing.assert_allclose(source.annotations[0].boxes, [[10, 0, 30, 10]])
    assert (source.annotations[0].labels.tolist(), len(source.annotations[1].labels)) == ([1], 0)
    assert len(scenes(root, "test").annotations[0].labels) == 0
    moved = write(tmp_path / "b" / "set", a_png="", b_png="", c_png="", a_txt=LABEL, classes_txt="ball\ncube\n")
    assert scenes(moved, "train").identity == source.identity


@pytest.mark.parametrize("order", ["images__{}__", "{}__images__"])
def test_splits_are_folders(tmp_path: Path, order: str) -> None:
    """Ultralytics' and Roboflow's order of folders."""
    root = tmp_path / "set"
    for split in ("train", "val2017"):
        images = order.format(split)
        write(root, **{f"{images}a_png": "", f"{images.replace('images', 'labels')}a_txt": LABEL})
    write(root, obj_names="ball\r\ncube\r\n\r\n")
    assert sources.splits_of(str(root)) == ("train", "val2017")
    for split in ("train", "val2017"):
        assert scenes(root, split).annotations[0].labels.tolist() == [1]
    write(root, images__a_png="")
    with pytest.raises(UsageError, match=r"has folders of splits, and images outside of them, as images/a\.png"):
        scenes(root, "train")


def test_names_of_classes_lie_in_files_of_any_case(tmp_path: Path) -> None:
    (flat(tmp_path / "a") / "classes.txt").rename(tmp_path / "a" / "Classes.TXT")
    (flat(tmp_path / "b") / "classes.txt").rename(tmp_path / "b" / "obj.NAMES")
    write(flat(tmp_path / "c"), DATA_YAML="names: [ball, cube]")
    (tmp_path / "c" / "classes.txt").unlink()
    for name in "abc":
        assert scenes(tmp_path / name, "train").names == ("ball", "cube")
    write(tmp_path / "c", data_yaml="names: [cube, ball]")
    assert scenes(tmp_path / "c", "train").names == ("cube", "ball")


@pytest.mark.parametrize("names", ["[no, 7]", "\n  0: no\n  1: 7", "\n- no\n- 7", "{1: 7, 0: no}"])
def test_settings_name_classes_and_splits(tmp_path: Path, names: str) -> None:
    """By the end of each path, whatever machine it is of; `no` is a class and not False."""
    paths = "path: /home/me/data\ntrain: ../train/images # all\nval: [/x/y/some/a.txt]\ntest: ../gone\n"
    root = write(tmp_path / "set", train__images__a_png="", train__labels__a_txt=LABEL, more__images__b_png="")
    write(root, data_yaml=f"{paths}nc: 2\nnames: {names}\n", some__a_txt="C:\\\\data\\\\images\\\\b.png\n")
    assert sources.splits_of(str(root)) == ("train", "val")
    source = scenes(root, "train")
    assert (source.names, source.annotations[0].labels.tolist()) == (("no", "7"), [1])
    assert source.notes == (
        "set: splits of the settings without images (1): test: '../gone'",
        "set: images without a label file, read as background (1): more/images/b.png",
    )
    assert len(scenes(root, "val").annotations[0].labels) == 0


def test_lists_are_splits(tmp_path: Path) -> None:
    """Of paths of another machine: by the file's name, then by its folders. What two splits share is said."""
    root = write(tmp_path / "set", obj__a_png="", obj__a_txt=LABEL, more__a_png="", b_png="", coco_names="ball\ncube\n")
    write(root, train_txt="\ufeff/data/obj/a.png\nb.png\n", valid_txt="build\\x64\\more\\a.png\n/other/b.png\n")
    assert sources.splits_of(str(root)) == ("train", "valid")
    assert [len(truth.labels) for truth in map(scenes(root, "train").annotations.__getitem__, range(2))] == [1, 0]
    assert "set: splits that overlap (1): train and valid share 1 images" in scenes(root, "valid").notes
    for line, says in (("/etc/passwd", "no image matches"), ("../../a.png", "several images match")):
        (root / "train.txt").write_text(line)
        with pytest.raises(UsageError, match=rf"train\.txt lists {line}, which {says} in "):
            scenes(root, "train")


@pytest.mark.parametrize("lost", ["b.png.txt", "b_old.txt", "Labels/x/b.txt"])
def test_labels_that_match_no_image_are_said(tmp_path: Path, lost: str) -> None:
    root = write(tmp_path / "set", a_png="", a_txt=LABEL, b_png="", classes_txt="ball\ncube")
    (root / lost).parent.mkdir(parents=True, exist_ok=True)
    (root / lost).write_text(LABEL)
    assert [*scenes(root, "train").notes, *scenes(root, "test").notes][:2] == [
        f"set: labels without an image, skipped (1): {lost}",
        "set: images without a label file, read as background (1): b.png",
    ]


def test_what_is_made_of_labels_is_said(tmp_path: Path) -> None:
    """The box around an outline, as Ultralytics takes it; a label that stands twice; a label without an image."""
    lines = "0 0.25 0.1 0.75 0.1 0.5 0.6\n" + LABEL + LABEL + "0 0.9 0.5 0.4 0.2\n"
    root = write(tmp_path / "set", images__a_png="", labels__a_txt=lines, labels__z_txt=LABEL, classes_txt="ball\ncube")
    source = scenes(root, "train")
    np.testing.assert_allclose(
        source.annotations[0].boxes, [[10, 2, 30, 12], [10, 0, 30, 10], [28, 8, 40, 12]], atol=1e-5
    )
    assert source.notes == (
        "set: labels without an image, skipped (1): labels/z.txt",
        "set train: images with outlines, which are read as their bounding boxes (1): images/a.png",
        "set train: images with a duplicate label, which is read once (1): images/a.png",
        "set train: 1 box clipped to the image, of images/a.png",
    )


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("2 0.5 0.5 0.1 0.1", r"line 1 is of class 2; there are 2, from 0: \('ball', 'cube'\)"),
        ("-1 0.5 0.5 0.1 0.1", "line 1 is of class -1"),
        ("0.5 0.5 0.5 0.1 0.1", r"line 1 is of class 0\.5"),
        (LABEL + "0 0.5 0.5 0.1 0.1 0.9", "line 2 has six numbers, the last a confidence"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.5 0.1", "line 1 has 8 numbers"),
        ("0 0.5 0.5 0.1", "line 1 has 4 numbers"),
        ("0 64 48 20 20", "line 1 has 64; labels are fractions of the image's sides, from 0 to 1"),
        ("0 -0.5 0.5 0.1 0.1", r"line 1 has -0\.5; labels are fractions"),
        ("0,0.5,0.5,0.1,0.1", "line 1 is '0,0.5,.*': separate .* by spaces, not commas"),
        ("0 0,5 0,5 0,1 0,1", "line 1 is '0 0,5 .* not commas"),
        (LABEL + "0 nan 0.5 0.1 0.1", "line 2: '0 nan .* not 5 numbers"),
        (LABEL + "0 0_1 0.5 0.1 0.1", "line 2: '0 0_1 .* not 5 numbers"),
        (LABEL + "ball 0.5 0.5 0.1 0.1", "line 2: 'ball .* not 5 numbers"),
        (LABEL + "x" * 9999, r"line 2: 'x+\.\.\.x+' is .* not 1 numbers"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, label: str, says: str) -> None:
    """One line that names the file and the line."""
    root = write(flat(tmp_path / "set", label), data_yaml="names: [ball, cube]")
    with pytest.raises(UsageError, match=says) as error:
        scenes(root, "train")
    assert "a.txt" in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (dict(classes_txt=""), r"classes\.txt has no class names"),
        (dict(classes_txt="ball\n\ncube"), r"classes\.txt: line 2: '' is not a class name"),
        (dict(classes_txt="ball\nball"), r"classes\.txt: the class 'ball' appears twice"),
        (dict(obj_names="cube\nball"), "keep one of the two"),
        (dict(data_yaml="names: [ball, cub"), r"data\.yaml is not YAML: "),
        (dict(data_yaml="[" * 2000), r"data\.yaml is not YAML: "),
        (dict(data_yaml="version https://git-lfs.github.com/spec/v1\n"), r"^[^:]*data\.yaml is a Git LFS pointer"),
        (dict(data_yaml="names: [cube, ball]"), "keep one of the two"),
        (dict(data_yaml="names: {0: ball, 2: cube}"), "not a list of class names"),
        (dict(data_yaml="names: ball"), "not a list of class names"),
        (dict(data_yaml="names: [ball, [cube]]"), r"\['cube'\] is not a class name"),
        (dict(data_yaml="names: [ball, cube]\nnc: 3"), "nc = '3' but 2 names"),
        (dict(data_yaml="names: [ball, cube]\nkpt_shape: [17, 3]"), "labels of key points"),
        (dict(data_yaml="names: [ball, cube]\ntrain: gone"), "have train: 'gone', but there are no images"),
        (dict(a_jpg="", a_png=""), r"a\.(jpg|png) and .*a\.(jpg|png) differ only in"),
        (dict(a_xml=XML.format(x=40, y=20, objects="")), r"has boxes in \.xml, as a\.xml, and in \.txt"),
    ],
)
def test_folders_amiss_are_refused(tmp_path: Path, files: dict[str, str], says: str) -> None:
    """Names that are missing or differ, images that differ only in their ending, two forms in one folder."""
    root = write(flat(tmp_path / "set"), **files)
    with pytest.raises(UsageError, match=says):
        scenes(root, "train")


def test_settings_further_below_are_not_passed_over(tmp_path: Path) -> None:
    root = write(flat(tmp_path / "sets" / "balls"), data_yaml="names: [ball, cube]\nval: b.png")
    with pytest.raises(UsageError, match=rf"are further below, in .*data\.yaml: give {root}$"):
        sources.splits_of(str(root.parent))


def test_labels_need_names(tmp_path: Path) -> None:
    """Without names they are refused; texts that are no labels leave the folder one of images of classes."""
    root = flat(tmp_path / "set")
    (root / "classes.txt").unlink()
    (root / "a.txt").write_text("ball 0.5 0.5 0.1 0.1")
    with pytest.raises(UsageError, match=r"set has labels, as .*a\.txt, but no class names: add classes\.txt or"):
        scenes(root, "train")
    write(tmp_path / "apart", images__a_png="", labels__a_txt="a small animal")
    with pytest.raises(UsageError, match=r"apart has labels, as .*labels/a\.txt, but no class names"):
        scenes(tmp_path / "apart", "train")
    for kind in ("cat", "dog"):
        write(tmp_path / "captions", **{f"{kind}__{i}_png": "" for i in "ab"}, **{f"{kind}__a_txt": "a small animal"})
    write(tmp_path / "captions", classes_txt="cat\ndog\n", dog__a_txt="")
    (tmp_path / "captions" / "cat" / "a.txt").write_bytes("größe".encode("latin-1"))
    assert sources.load(str(tmp_path / "captions"), "train").names == ("cat", "dog")


@pytest.mark.parametrize("form", ["flat", "splits", "annotations"])
def test_xml_beside_images_is_read(tmp_path: Path, form: str) -> None:
    """labelImg's flat folder, Roboflow's folders of splits, and a folder of annotations beside that of the images."""
    tree = XML.format(x=40, y=20, objects=OBJECT.format(11, 6, 30, 15.5, name="dog", more=""))
    names = {"flat": ("{}_png", "{}_xml"), "splits": ("train__{}_png", "train__{}_xml")}
    image, xml = names.get(form, ("images__{}_png", "annotations__{}_xml"))
    root = tmp_path / "set"
    for i in "ab":
        write(root, **{image.format(i): "", xml.format(i): tree})
    write(root, **{image.format("c"): "", image.format("a").replace("png", "json"): "{}"})
    assert sources.splits_of(str(root)) == (("train",) if form == "splits" else ("train", "test"))
    source = scenes(root, "train")
    np.testing.assert_allclose(source.annotations[0].boxes, [[10, 5, 30, 15.5]])
    assert source.notes[0].startswith("set: files without a partner (image and .xml), skipped (1): ")
    (root / "annotations.xml").write_text("<annotations/>")
    with pytest.raises(UsageError, match=r"annotations\.xml is in the format of CVAT, which is not read"):
        scenes(root, "train")
