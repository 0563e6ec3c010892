"""Small folders of images with boxes, in the forms of COCO and Pascal VOC."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import sources
from data.images.detection import DetectionDataset


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


XML = """<annotation><filename>x.jpg</filename><size><width>{x}</width><height>{y}</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = """<object><name>{name}</name>{more}<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax>
</bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""


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


def scenes(root: Path, split: str = "val") -> DetectionDataset:
    source = sources.load(str(root), split)
    assert isinstance(source, DetectionDataset)
    return source
